"""The results of one checkpoint, as they lie in its run folder: on the test split, and out of the training distribution."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepwise_pl.common.disk import read_json, read_json_or_empty
from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.predictions import PART, Share, digest_of

# The summary of a run, or of an evaluation, holds these as numbers; and these as pairs of numbers.
_NUMBERS = (
    "test_accuracy", "test_examples", "answer_accuracy", "examples", "step", "steps", "removed_tokens", "seconds", "examples_seen",
    "max_cot_tokens", "tokens_read", "test_accuracy_any_length",
)  # fmt: skip
_MAY_BE_NULL = ("max_cot_tokens", "tokens_read", "test_accuracy_any_length", "test_interval", "answer_interval")
_PAIRS = ("test_interval", "answer_interval")


def read_summary(path: Path) -> dict[str, Any]:
    """Return the summary of a run or of an evaluation.

    Raises:
        UserError: the file cannot be read, or something else stands in the place of a number.
    """
    summary = read_json(path)
    for key in (*_NUMBERS, *_PAIRS):
        value = summary.get(key)
        if key not in summary or (value is None and key in _MAY_BE_NULL):
            continue
        numbers = value if key in _PAIRS and isinstance(value, list) and len(value) == 2 else [value]
        if len(numbers) != 1 + (key in _PAIRS) or not all(map(_is_number, numbers)):
            raise UserError(
                f"{path}: {key} is {json.dumps(value)[:60]}, where {'two numbers are' if key in _PAIRS else 'a number is'} meant"
            )
    return summary


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def accuracy_of(run_dir: Path, checkpoint: Path) -> Share | None:
    """Return the right answers of a checkpoint on the whole test split, at the stage it was trained to; None if it was not evaluated.

    The numbers of another checkpoint, or of the same name before training went on, do not count.
    """
    for summary in _evaluations(run_dir, checkpoint):
        if summary.get("split") == "test" and summary.get("limit") is None:
            return _share(summary.get("answer_accuracy"), summary.get("examples"))
    # The summary is gone as soon as a run goes on, so it is about the checkpoint that has its name.
    summary = read_json_or_empty(run_dir / "summary.json")
    if (
        summary.get("checkpoint") == checkpoint.name
        and checkpoint.resolve().parent == (run_dir / "checkpoints").resolve()
    ):
        return tested_share(summary)
    return None


def tested_share(summary: Mapping[str, Any]) -> Share | None:
    """Return the right answers on the test split that the summary of a run states; None if it states none, or is damaged."""
    return _share(summary.get("test_accuracy"), summary.get("test_examples"))


def suite_shares(run_dir: Path, checkpoint: Path, suite: str) -> dict[str, Share]:
    """Return the right answers of a checkpoint in every part of a suite (`evaluate suite=`); empty if it was not evaluated on it."""
    for summary in _evaluations(run_dir, checkpoint):
        if summary.get("suite") == suite:
            return _shares(summary)
    return {}


def _shares(summary: Mapping[str, Any]) -> dict[str, Share]:
    """The right answers in every part of a suite. Parts that are damaged are left out."""
    strata = summary.get("strata")
    parts = strata.get(PART) if isinstance(strata, dict) else None
    found = {
        part: _share(numbers.get("accuracy"), numbers.get("n"))
        for part, numbers in (parts.items() if isinstance(parts, dict) else ())
        if isinstance(numbers, dict)
    }
    return {part: share for part, share in found.items() if share is not None}


def _evaluations(run_dir: Path, checkpoint: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the summaries of the evaluations of exactly these weights, at the stage they were trained to."""
    digest = digest_of(checkpoint)
    for file in sorted((run_dir / "evaluations").glob("*.json")):
        summary = read_json_or_empty(file)
        if digest is not None and summary.get("checkpoint_digest") == digest and summary.get("as_trained"):
            yield summary


def _share(accuracy: Any, examples: Any) -> Share | None:
    """The right answers; None unless both are numbers of a result, for a file may be damaged."""
    if not (_is_number(accuracy) and _is_number(examples) and 0 <= accuracy <= 1 and examples >= 1):
        return None
    return Share(round(accuracy * examples), round(examples))
