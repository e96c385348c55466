"""Representation similarity: linear CKA of the states of two models at the same layer and place."""

import numpy as np
import numpy.typing as npt

from stepwise_pl.inside.states import States
from stepwise_pl.inside.subject import Source
from stepwise_pl.runs.inside import Similarity

Floats = npt.NDArray[np.floating]


def linear_cka(first: Floats, second: Floats) -> float:
    """Return linear CKA of two sets of states of the same problems, [problems, width of each]; nan if one is constant.

    It is 1 for states that differ in rotation, scale and offset alone (Kornblith et al., arXiv 1905.00414). Here HSIC is the
    unbiased estimate (Song et al. 2012), without the problems' similarity to themselves: the plain one is 0.2 for independent
    states of width 128 on 500 problems, and would differ between models of different width. It is computed in the space of
    features, so that no matrix of problems by problems is needed; at least 4 problems.
    """
    x, y = (states.astype(np.float64) - states.astype(np.float64).mean(0) for states in (first, second))
    for states, centred in ((first, x), (second, y)):
        # Differences that are nothing but rounding have no similarity.
        if np.square(centred).sum() <= 1e-12 * np.square(states.astype(np.float64)).sum():
            return float("nan")
    same = _hsic(x, x) * _hsic(y, y)
    return float(_hsic(x, y) / np.sqrt(same)) if same > 0 else float("nan")


def _hsic(x: Floats, y: Floats) -> float:
    """Return the unbiased HSIC of centred states with linear kernels, up to a factor that depends on the number of problems alone."""
    count = len(x)
    x_sizes, y_sizes = np.square(x).sum(1), np.square(y).sum(1)  # [problems]
    return float(
        np.square(x.T @ y).sum()
        - count / (count - 2) * (x_sizes * y_sizes).sum()
        + x_sizes.sum() * y_sizes.sum() / ((count - 1) * (count - 2))
    )


def similarity_rows(states: States, others: States, name: str, where: Source) -> list[Similarity]:
    """Return the similarity of the states of two models at all layers and places that both have; none where states are constant.

    Args:
        states, others: of the same problems in the same order.
        name: of the other model (`Similarity.other`).
        where: the checkpoint.
    """
    rows: list[Similarity] = []
    for place in states.places:
        if place not in others.places:
            continue
        for layer in states.layers:
            if layer not in others.layers:
                continue
            cka = linear_cka(states.at(place, layer), others.at(place, layer))
            if not np.isnan(cka):
                rows.append(Similarity(*where, layer, str(place), name, cka, states.shape[2]))
    return rows
