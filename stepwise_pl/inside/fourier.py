"""The geometry of digits: how far their vectors lie on circles (arXiv 2510.00184 fits six functions to ten digits).

The basis is 1, cos and sin of 2πkn/P for k turns over the P digits n, and (-1)^n if P is even. A basis of b functions explains
(b - 1) / (P - 1) of centred noise on average: six functions on ten points, 5/9. So every fit stands beside that of random
vectors, and beside that of the same vectors with their digits in random order.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepwise_pl.inside.places import Place
from stepwise_pl.inside.states import States
from stepwise_pl.inside.subject import Source, Subject
from stepwise_pl.inside.tokens import targets_at
from stepwise_pl.runs.inside import Fourier

Floats = npt.NDArray[np.float64]

DRAWS = 200  # random vectors, and random orders
LEAST_DIGITS = 4  # so that the smallest basis, of three functions, does not fit everything
LEAST_PROBLEMS = 5  # for the mean state of a digit


@functools.cache
def bases(digits: int) -> Mapping[str, Floats]:
    """Return bases with fewer functions than digits by name (`Fourier.basis`), each orthonormal, [digits, functions].

    First come those that grow, from one turn on; then each number of turns alone.
    """
    number = np.arange(digits)
    turns = {
        k: np.stack([np.cos(2 * np.pi * k * number / digits), np.sin(2 * np.pi * k * number / digits)], axis=1)
        for k in range(1, (digits - 1) // 2 + 1)
    }
    ones, sign = np.ones((digits, 1)), np.where(number % 2, -1.0, 1.0)[:, None]
    found: dict[str, list[Floats]] = {}
    for most in turns:
        grown = [ones, *(turns[k] for k in range(1, most + 1))]
        name = f"k 1-{most}" if most > 1 else "k 1"
        found[name] = grown
        if digits % 2 == 0:
            found[f"{name}, (-1)^n"] = [*grown, sign]
    found |= {f"k {k}": [ones, turns[k]] for k in turns if k > 1}
    joined = {name: np.concatenate(functions, axis=1) for name, functions in found.items()}
    return {name: np.linalg.qr(basis).Q for name, basis in joined.items() if basis.shape[1] < digits}


def fit(vectors: Floats, basis: Floats) -> float:
    """Return R² of vectors [..., digits, width] in a basis [digits, functions], over all dimensions, centred; nan if all are equal."""
    return float(_fits(vectors[None], basis)[0])


def _fits(vectors: Floats, basis: Floats) -> Floats:
    """Return R² of each set of vectors, [sets, digits, width] -> [sets]."""
    centred = vectors - vectors.mean(1, keepdims=True)
    whole = np.square(centred).sum((1, 2))
    explained = np.square(np.einsum("db,sdw->sbw", basis, centred)).sum((1, 2))
    # Differences that are nothing but rounding have no geometry.
    is_flat = whole <= 1e-12 * np.square(vectors).sum((1, 2))
    return np.where(is_flat, np.nan, explained / np.where(is_flat, 1.0, whole))


@functools.cache
def _of_noise(name: str, digits: int, width: int) -> tuple[float, float]:
    """Return mean and 95% quantile of the fit of random vectors."""
    vectors = np.random.default_rng(0).standard_normal((DRAWS, digits, width))
    fits = _fits(vectors, bases(digits)[name])
    return float(fits.mean()), float(np.quantile(fits, 0.95))


def fourier_rows(vectors: Floats, what: str, where: Source) -> list[Fourier]:
    """Return the fit of the vectors of digits in every basis; none if they are all equal.

    Args:
        vectors: [digits, width].
        what: names the vectors.
        where: the checkpoint.
    """
    digits, width = vectors.shape
    rng = np.random.default_rng(0)
    shuffled = np.stack([vectors[rng.permutation(digits)] for _ in range(DRAWS)])
    rows = []
    for name, basis in bases(digits).items():
        found = fit(vectors, basis)
        if np.isnan(found):
            return []
        in_any_order = float(np.quantile(_fits(shuffled, basis), 0.95))
        noise = _of_noise(name, digits, width)
        rows.append(Fourier(*where, what, basis.shape[1], digits, found, *noise, name, in_any_order))
    return rows


def fourier_of_embeddings(subject: Subject, digits: Sequence[int], where: Source) -> list[Fourier]:
    """Return the fit of the digits' rows in the embedding, and in the output embedding if that is another."""
    model: Any = subject.learner.model
    tables = {"embedding": model.get_input_embeddings().weight.detach()}  # [vocabulary, width]
    output = model.get_output_embeddings().weight.detach()
    if not torch.equal(output, tables["embedding"]):
        tables["output"] = output
    rows: list[Fourier] = []
    for what, table in tables.items():
        rows += fourier_rows(table[digits].double().cpu().numpy(), what, where)
    return rows


def fourier_of_states(subject: Subject, states: States, digits: Sequence[int], where: Source) -> list[Fourier]:
    """Return the fit of the mean states by the digit that the model has to say next, where it is each of them in enough problems."""
    following = targets_at(subject, states.places).numpy()  # [places, problems]
    rows: list[Fourier] = []
    for place, after in zip(states.places, following, strict=True):
        groups = [after == digit for digit in digits]
        if min(int(group.sum()) for group in groups) < LEAST_PROBLEMS:
            continue
        for layer in states.layers:
            found = states.at(place, layer).astype(np.float64)
            means = np.stack([found[group].mean(0) for group in groups])  # [digits, width]
            rows += fourier_rows(means, place_and_layer(place, layer), where)
    return rows


def place_and_layer(place: Place, layer: int) -> str:
    """Return the name of mean states (`Fourier.what`)."""
    return f"{place}, layer {layer}"
