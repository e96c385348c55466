"""Results that lie in run folders: those that are damaged are named, and never taken for others."""

import json
import math
from pathlib import Path

import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.results import read_summary

WHOLE = {
    "test_accuracy": 0.5, "test_examples": 10, "removed_tokens": 3, "seconds": 1.5, "test_interval": [0.2, 0.8],
    "max_cot_tokens": None, "tokens_read": None, "test_accuracy_any_length": None, "name": "x", "more": {},
}  # fmt: skip


def test_a_whole_summary_is_read_as_it_is(tmp_path: Path) -> None:
    for summary in (WHOLE, {}, {"test_interval": None}):
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        assert read_summary(tmp_path / "summary.json") == summary


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("test_accuracy", None), ("test_accuracy", "0.5"), ("test_accuracy", math.nan), ("removed_tokens", "x"), ("seconds", True),
        ("tokens_read", []), ("test_interval", [0.1]), ("test_interval", 3), ("answer_interval", [0.1, "x"]), ("examples", {}),
    ],
)  # fmt: skip
def test_what_is_no_number_is_named(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(WHOLE | {key: value}))
    with pytest.raises(UserError, match=f"summary.json: {key} is .*, where .* meant"):
        read_summary(tmp_path / "summary.json")


def test_brackets_without_end_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is no JSON"):
        read_summary(tmp_path / "summary.json")
