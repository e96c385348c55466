"""The result of a finished run against the band of its recipe."""

from collections.abc import Mapping
from typing import Any, Protocol

from stepwise_pl.common.disk import read_json
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.runs.expected import judge
from stepwise_pl.runs.saved_config import derived_of


class Wanted(Protocol):
    """The problems and the checkpoint that were asked for (`EvaluateConfig`)."""

    checkpoint: str
    split: str | None
    file: Any
    limit: int | None


def judged_by_recipe(wanted: Wanted, run: TrainedRun, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a finished run against the band of its recipe; None if the band is about other problems or checkpoints."""
    asked = wanted.file is None and wanted.split in (None, "test") and wanted.limit is None
    finished = run.path / "summary.json"
    if not (asked and summary["as_trained"] and wanted.checkpoint == "best" and finished.is_file()):
        return None
    seconds = read_json(finished).get("seconds")
    changed = derived_of(run.path).get("changed") or []
    counted = f"{run.config.expected.counts}_accuracy"
    return judge(run.config.expected, summary[counted], seconds, changed) if counted in summary else None
