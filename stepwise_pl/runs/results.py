"""The results of one checkpoint, as they lie in its run folder: on the test split, and out of the training distribution."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepwise_pl.common.disk import read_json_or_empty
from stepwise_pl.runs.predictions import PART, Share, digest_of


def accuracy_of(run_dir: Path, checkpoint: Path) -> Share | None:
    """Return the right answers of a checkpoint on the whole test split, at the stage it was trained to; None if it was not evaluated.

    The numbers of another checkpoint, or of the same name before training went on, do not count.
    """
    for summary in _evaluations(run_dir, checkpoint):
        if summary.get("split") == "test" and summary.get("limit") is None:
            return _share(summary["answer_accuracy"], summary["examples"])
    # The summary is gone as soon as a run goes on, so it is about the checkpoint that has its name.
    summary = read_json_or_empty(run_dir / "summary.json")
    if (
        summary.get("checkpoint") == checkpoint.name
        and checkpoint.resolve().parent == (run_dir / "checkpoints").resolve()
    ):
        return _share(summary["test_accuracy"], summary["test_examples"])
    return None


def suite_shares(run_dir: Path, checkpoint: Path, suite: str) -> dict[str, Share]:
    """Return the right answers of a checkpoint in every part of a suite (`evaluate suite=`); empty if it was not evaluated on it."""
    for summary in _evaluations(run_dir, checkpoint):
        if summary.get("suite") == suite:
            parts = summary["strata"][PART]
            return {part: _share(found["accuracy"], found["n"]) for part, found in parts.items()}
    return {}


def _evaluations(run_dir: Path, checkpoint: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the summaries of the evaluations of exactly these weights, at the stage they were trained to."""
    digest = digest_of(checkpoint)
    for file in sorted((run_dir / "evaluations").glob("*.json")):
        summary = read_json_or_empty(file)
        if digest is not None and summary.get("checkpoint_digest") == digest and summary.get("as_trained"):
            yield summary


def _share(accuracy: float, examples: float) -> Share:
    return Share(round(accuracy * examples), round(examples))
