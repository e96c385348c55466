"""Probes with one hidden layer."""

from copy import deepcopy

import numpy as np
from sklearn.neural_network import MLPClassifier, MLPRegressor

from stepwise_pl.inside.problems import Sides
from stepwise_pl.inside.ridge import Fitted, Inputs, Labels, dense_of, score
from stepwise_pl.inside.targets import CLASS

HIDDEN = 128
# Weight decay makes the controls strong: with it the tokens of 4 digits give their sum modulo 5 away, without it those of 3.
DECAY = 0.3
# Passes over the problems to fit: at most, at least, and in a row without a better score. Sums modulo a number are found after
# a plateau of some passes.
MOST_PASSES, FEWEST_PASSES, PATIENCE = 100, 20, 8
# A score is better from this difference on, and cannot get better once that is all it lacks.
BETTER = 1e-3
# One-hot tokens of fewer columns are quicker as a dense matrix.
WIDE = 4000


def mlp_probe(x: Inputs, labels: Labels, sides: Sides) -> Fitted:
    """Fit a probe with one hidden layer (Adam, weight decay). The problems held back say which pass was best, and when the fit ends."""
    sides = sides.where(labels.target.has)
    is_class, values = labels.target.kind == CLASS, labels.values
    if x.shape[1] <= WIDE:
        x = dense_of(x)
    fit, held, scored = (x[rows].astype(np.float32) for rows in (sides.fit, sides.held, sides.scored))
    mean, deviation = (0.0, 1.0) if is_class else (values[sides.fit].mean(), values[sides.fit].std() or 1.0)
    settings = {"hidden_layer_sizes": (HIDDEN,), "batch_size": min(256, len(sides.fit)), "learning_rate_init": 1e-2,
                "alpha": DECAY, "random_state": 0}  # fmt: skip
    model = MLPClassifier(**settings) if is_class else MLPRegressor(**settings)
    more = {"classes": np.arange(labels.target.num_classes)} if is_class else {}
    best, waited = -np.inf, 0
    for number in range(MOST_PASSES):
        model.partial_fit(fit, (values[sides.fit] - mean) / deviation, **more)
        found = score(labels.target.kind, values[sides.held], model.predict(held) * deviation + mean)
        waited += 1
        if number == 0 or found > best + BETTER:
            best, weights, waited = found, deepcopy((model.coefs_, model.intercepts_)), 0
        if best >= 1 - BETTER or (number + 1 >= FEWEST_PASSES and waited >= PATIENCE):
            break
    model.coefs_, model.intercepts_ = weights
    return Fitted(best, np.asarray(model.predict(scored) * deviation + mean, np.float64))
