"""Metrics against independent computations."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from stepwise_pl.common.statistics import wilson
from stepwise_pl.data.batch import Part
from stepwise_pl.data.layout import normalize_answer
from stepwise_pl.evaluation.metrics import EvaluationMetrics
from stepwise_pl.methods import Stepwise
from stepwise_pl.models.learner import Learner, Scored
from tests.data.test_removal import make_batch


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    right, n = counts
    interval = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_wilson_needs_an_example() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0.0, 0)


def test_scores_are_a_loop_over_targets() -> None:
    batch = make_batch([(2, 3, 2), (1, 0, 4), (3, 5, 1)])
    logits = torch.randn(3, batch.tokens.shape[1], 12, generator=torch.Generator().manual_seed(0))
    loss = correct = targets = 0.0
    for row in range(3):
        for column in range(1, batch.tokens.shape[1]):
            if batch.part[row, column] in (Part.COT, Part.ANSWER):
                scores = logits[row, column - 1].double().numpy()
                wanted = int(batch.tokens[row, column])
                loss += np.log(np.exp(scores).sum()) - scores[wanted]
                correct += scores.argmax() == wanted
                targets += 1

    class Model:
        """A model that returns the given logits for any input."""

        config, device = SimpleNamespace(model_type="any"), torch.device("cpu")

        def forward(self, input_ids: torch.Tensor) -> Any:
            return SimpleNamespace(logits=logits[:, :-1])

        __call__ = forward

    scored = Learner(Model(), 0, Stepwise()).score(batch)  # type: ignore[arg-type]
    assert (float(scored.loss), float(scored.right.sum()), len(scored.label)) == pytest.approx(
        (loss, correct, targets), rel=1e-5
    )


def scored(loss: float, right: int, targets: int) -> Scored:
    label = torch.ones(targets, dtype=torch.long)
    return Scored(
        torch.tensor(loss), (torch.arange(targets) < right).long(), label, label, label, torch.zeros(targets, 2)
    )


def test_evaluation_metrics_weigh_tokens_and_examples() -> None:
    metrics = EvaluationMetrics()
    metrics.update(scored(6.0, 3, 4))
    metrics.update(scored(4.0, 1, 1))
    metrics.update_answers([True, False], [True, True])
    metrics.update_answers([True])
    result = {name: float(value) for name, value in metrics.compute().items()}
    assert result == pytest.approx(
        {
            "loss": 2.0,
            "perplexity": np.e**2,
            "answer_accuracy": 2 / 3,
            "answer_accuracy_any_length": 1.0,
            "token_accuracy": 0.8,
            "examples": 3,
        }
    )


def test_answers_are_compared_without_commas() -> None:
    assert normalize_answer(" 1,234 \n") == normalize_answer("1234")
    assert normalize_answer("1 2  3") != normalize_answer("123")
