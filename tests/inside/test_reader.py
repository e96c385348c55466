"""States that do not fit on the disk together."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.encoding import encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.inside.places import Place, places_of
from stepwise_pl.inside.reader import StatesReader, groups
from stepwise_pl.inside.states import write_states
from stepwise_pl.inside.subject import Subject
from stepwise_pl.tasks import ExampleList, Multiplication
from tests.conftest import learner, small_model

PLACES = [Place("cot", number) for number in range(5)]


@pytest.fixture
def subject(tokenizer) -> Subject:
    task = Multiplication(digits=2, train_size=40, validation_size=5, test_size=5)
    texts = task.load()["train"].slice(0, 40)
    encoded = encode(ExampleList(texts), tokenizer, "problems")
    limits = Limits.of({"train": encoded}, "left")
    return Subject(learner(small_model(tokenizer), tokenizer), tokenizer, limits, 2, texts, encoded)


@pytest.mark.parametrize(("most", "size"), [(1e9, 1), (60, 3), (35, 5), (30, 5), (29, 10), (10, 15)])
def test_groups_hold_everything_once_and_are_small_enough(most: float, size: int) -> None:
    found = groups(PLACES, [0, 1, 2], 10, most)
    spots = [(place, layer) for places, layers in found for place in places for layer in layers]
    assert spots == [(place, layer) for place in PLACES for layer in (0, 1, 2)]
    assert len(found) == size and all(10 * len(places) * len(layers) <= most for places, layers in found)


def test_too_small_a_bound_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"disk_gb=1e-08: the states at one place after one layer take .* GB; give more"
    ):
        groups(PLACES, [0], 11, 10)


def test_states_in_parts_are_the_states_in_one(subject: Subject, tmp_path: Path) -> None:
    places = places_of(subject.batches(16), subject.side)
    whole = StatesReader(subject, places, [0, 1, 2], tmp_path, 1e9, 16)
    found = {spot: whole.at(*spot) for spot in whole.spots}
    assert len(found) == 3 * len(places) and all(np.isfinite(states).all() for states in found.values())
    each = 4 * 40 * 32
    for most in (7 * each, each):
        part = StatesReader(subject, places, [0, 1, 2], tmp_path, most, 16)
        for spot in part.spots:
            np.testing.assert_array_equal(part.at(*spot), found[spot])
            assert (tmp_path / "states").stat().st_size <= most
        np.testing.assert_array_equal(part.at(*part.spots[0]), found[part.spots[0]])  # a second time


def test_a_disk_without_room_is_one_line(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("Usage", (), {"free": 10})()
    )
    with pytest.raises(UserError, match=r"has 1e-08 GB free, the states need .*; free space, or set disk_gb"):
        StatesReader(subject, [Place("prompt", -1)], [0], tmp_path, 1e9, 16)


def test_states_that_are_replaced_count_as_room(subject: Subject, tmp_path: Path, monkeypatch) -> None:
    """Those of the model with random weights, and of the next checkpoint, take the place of those that lie there."""
    size = 4 * 40 * 32
    disk = type("Usage", (), {"free": size + 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk)
    place = Place("prompt", -1)
    StatesReader(subject, [place], [0], tmp_path, 1e9, 16).at(place, 0)
    disk.free = 100
    assert np.isfinite(StatesReader(subject, [place], [1], tmp_path, 1e9, 16).at(place, 1)).all()
    with pytest.raises(UserError, match="the states need"):
        StatesReader(subject, [place], [0, 1], tmp_path, 1e9, 16)


def test_states_for_which_the_disk_has_no_room_are_one_line_and_not_a_signal(subject: Subject, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk. A mapped file would end the process by SIGBUS."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(
            UserError, match=r"has no room for .* GB of states \(File too large\); free space, or ask for"
        ):
            write_states(subject, [Place("prompt", -1)], [0], tmp_path / "states")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
