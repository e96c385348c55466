"""Linear CKA: what it must not see, what it must, and an independent formula."""

import numpy as np
import pytest

from stepwise_pl.inside.places import Place
from stepwise_pl.inside.similarity import linear_cka, similarity_rows
from stepwise_pl.inside.states import States

RNG = np.random.default_rng(2)


def by_gram_matrices(first: np.ndarray, second: np.ndarray) -> float:
    """CKA from the unbiased HSIC of Song et al. (2012, equation 5), with matrices of problems by problems."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n, one = len(k), np.ones(len(k))
        k, m = (matrix - np.diag(np.diag(matrix)) for matrix in (k, m))
        whole = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + whole - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = first @ first.T, second @ second.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_it_is_that_of_a_naive_formula() -> None:
    for problems, widths in ((30, (5, 5)), (50, (64, 7)), (8, (3, 20))):
        first, second = (RNG.standard_normal((problems, width)) for width in widths)
        second[:, :3] += first[:, :3]
        assert linear_cka(first, second) == pytest.approx(by_gram_matrices(first, second), abs=1e-9)


def test_rotation_scale_and_offset_change_nothing() -> None:
    states = RNG.standard_normal((100, 16)) * np.linspace(0.1, 3, 16)
    rotation = np.linalg.qr(RNG.standard_normal((16, 16))).Q
    assert linear_cka(states, states) == pytest.approx(1)
    assert linear_cka(states, 7 * states @ rotation + 5) == pytest.approx(1)
    # Another linear map does: CKA weighs directions by their variance.
    assert linear_cka(states, states @ np.diag(np.linspace(3, 0.1, 16))) < 0.9


def test_independent_states_have_none_even_if_they_are_wide() -> None:
    found = [linear_cka(RNG.standard_normal((200, 128)), RNG.standard_normal((200, 128))) for _ in range(20)]
    assert abs(np.mean(found)) < 0.02 and np.abs(found).max() < 0.05
    # The plain estimate would be far above zero.
    x, y = (RNG.standard_normal((200, 128)) for _ in range(2))
    x, y = x - x.mean(0), y - y.mean(0)
    plain = np.square(x.T @ y).sum() / np.sqrt(np.square(x.T @ x).sum() * np.square(y.T @ y).sum())
    assert plain > 0.3 and abs(linear_cka(x, y)) < 0.05


def test_a_shared_part_is_seen_by_its_share_of_the_variance() -> None:
    shared = RNG.standard_normal((400, 8))
    first, second = (np.concatenate([shared, RNG.standard_normal((400, 8))], axis=1) for _ in range(2))
    assert linear_cka(first, second) == pytest.approx(0.5, abs=0.05)


def test_states_that_are_the_same_in_all_problems_have_none() -> None:
    constant = np.tile(RNG.standard_normal(8).astype(np.float32), (50, 1))
    assert np.isnan(linear_cka(constant, RNG.standard_normal((50, 8))))
    assert np.isnan(linear_cka(RNG.standard_normal((50, 8)), constant))


def states_of(found: np.ndarray, places: list[Place], file) -> States:
    mapped = np.memmap(file, np.float32, "w+", shape=found.shape)
    mapped[:] = found
    mapped.flush()
    return States(file, places, tuple(range(found.shape[1])), found.shape)


def test_rows_are_of_what_both_have(tmp_path) -> None:
    first = RNG.standard_normal((3, 3, 40, 8)).astype(np.float32)  # [places, layers, problems, width]
    second = RNG.standard_normal((2, 2, 40, 4)).astype(np.float32)
    first[0, 0] = first[0, 0, 0]  # a state that is constant
    second[0, 1] = first[2, 1, :, :4]
    one = states_of(first, [Place("prompt", -1), Place("cot", 0), Place("cot", 1)], tmp_path / "a")
    two = states_of(second, [Place("cot", 1), Place("prompt", -1)], tmp_path / "b")
    rows = similarity_rows(one, two, "stage 0", ("removed-1", 1, 1))
    assert [(row.place, row.layer) for row in rows] == [("prompt -1", 1), ("cot 1", 0), ("cot 1", 1)]
    assert {(row.other, row.problems, row.checkpoint) for row in rows} == {("stage 0", 40, "removed-1")}
    assert rows[2].cka == pytest.approx(by_gram_matrices(first[2, 1], second[0, 1]), abs=1e-5) and rows[2].cka > 0.5
    assert abs(rows[1].cka) < 0.3
