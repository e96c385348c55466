"""Numbered folders: the newest of those taken, the first that is free, and what a gap means."""

from pathlib import Path

import pytest

from stepwise_pl.runs.numbering import first_free, newest


@pytest.mark.parametrize(
    "taken,last,free",
    [
        ("", "a", "a"),
        ("a", "a", "a-2"),
        ("a a-2 a-3", "a-3", "a-4"),
        ("a a-3", "a", "a-2"),  # behind a gap nothing counts
        ("a-2 a-3", "a-3", "a"),  # but the first may be gone
        ("a-4", "a", "a"),
        ("a a-2-2 a-02", "a", "a-2"),
    ],
)
def test_the_newest_and_the_first_that_is_free(taken: str, last: str, free: str) -> None:
    base = Path("x/a")
    for choose, name in ((newest, last), (first_free, free)):
        assert choose(base, lambda path: path.name in taken.split()) == base.with_name(name)
