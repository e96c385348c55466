"""The record of an evaluation: its summary, and its predictions, as files in the run folder. Training and `evaluate` write it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stepwise_pl.common.disk import write_json
from stepwise_pl.config.run import Config
from stepwise_pl.data.limits import Limits
from stepwise_pl.evaluation.answers import Answers
from stepwise_pl.evaluation.problems import Problems, digest
from stepwise_pl.evaluation.verifier import Bounds
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.runs.predictions import (
    Prediction,
    Share,
    by_last_number,
    by_position,
    by_stratum,
    digest_of,
    write_predictions,
)


@dataclass(frozen=True)
class Source:
    """The source of answers: a checkpoint, and how it was asked.

    Attributes:
        path: the run folder.
        step: optimizer steps of the checkpoint.
        own_stage: s(t) of the checkpoint.
        stage: the stage at which it was asked.
        bounds: the most tokens that it was let write.
        batch_size: problems scored at a time.
        accelerator: the device.
        limit: problems that were asked for, from the start; None: all.
    """

    path: Path
    config: Config
    checkpoint: Path
    step: int
    limits: Limits
    own_stage: int
    stage: int
    bounds: Bounds
    batch_size: int
    accelerator: str
    limit: int | None = None

    @classmethod
    def of(
        cls, run: TrainedRun, stage: int, bounds: Bounds, batch_size: int, *, accelerator: str, limit: int | None
    ) -> "Source":
        """Return a loaded run as the source."""
        return cls(
            run.path, run.config, run.checkpoint, run.step, run.limits, run.stage, stage, bounds, batch_size, accelerator, limit
        )  # fmt: skip

    @property
    def removed(self) -> int:
        """CoT units gone at the stage at which it was asked."""
        return self.config.method.removed(self.stage, self.limits)

    def file(self, problems: str) -> Path:
        """Return the file of the summary; `problems` is their name in files."""
        first = f"-first{self.limit}" if self.limit else ""
        return self.path / "evaluations" / f"{self.checkpoint.stem}-{problems}{first}-removed{self.removed}.json"

    def about(self, problems: Problems) -> dict[str, Any]:
        """Return the part of a summary that says what was scored, and how."""
        method, limits = self.config.method, self.limits
        return {
            "checkpoint": self.checkpoint.name,
            "checkpoint_digest": digest_of(self.checkpoint),
            "step": self.step,
            **problems.asked,
            "data_digest": digest(problems.examples),
            "limit": self.limit,
            "removed_tokens": limits.removed_tokens(self.removed),
            **({"removed_steps": self.removed} if method.unit == "step" else {}),
            **({"stage": name} if (name := method.stage_name(self.stage)) else {}),
            "as_trained": self.stage == min(self.own_stage, method.last_stage(limits)),
            "max_cot_tokens": limits.max_cot,
            "batch_size": self.batch_size,
            "accelerator": self.accelerator,
            "max_new_tokens": self.bounds.asked,
            "decoded_up_to": self.bounds.whole,
        }


def predictions_of(problems: Problems, answered: Answers) -> list[Prediction]:
    """Return the answers beside their problems, in the same order."""
    places = zip(problems.places, problems.examples, problems.strata, answered, strict=True)
    return [
        Prediction(
            place, example.prompt, answer.target or "", answer.predicted, answer.right, strata, answer.within_length,
            answer.cot_tokens, answer.unfinished,
        )
        for place, example, strata, answer in places
    ]  # fmt: skip


def summary_of(
    source: Source,
    problems: Problems,
    answered: Answers,
    predictions: Sequence[Prediction],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """Return the summary of an evaluation, without its speed.

    Args:
        metrics: of the whole split or file (`EvaluationMetrics.compute`). The parts of a suite are too unlike for one accuracy.
    """
    summary = {
        **source.about(problems),
        "examples": len(predictions),
        "unfinished_answers": sum(
            prediction.prediction is None or not prediction.within_length for prediction in predictions
        ),
        "cot_tokens_written": span([answer.cot_tokens for answer in answered]),
        "cot_tokens_of_targets": span([answer.target_cot_tokens for answer in answered]),
    }
    if "suite" not in problems.asked:
        whole = Share.of(prediction.right for prediction in predictions)
        summary |= {**metrics, "examples": whole.n, "answer_interval": whole.interval}
        if (by_number := by_last_number(predictions)) is not None:
            summary |= {"last_number_accuracy": by_number.accuracy, "last_number_interval": by_number.interval}
        summary["answer_positions"] = [share.record() for share in by_position(predictions)]
    return summary


def strata_of(predictions: Sequence[Prediction]) -> dict[str, dict[str, Any]]:
    """Return accuracies by property of the problems, for a summary."""
    return {
        name: {value: share.record() for value, share in shares.items()}
        for name, shares in by_stratum(predictions).items()
    }


def write(file: Path, summary: Mapping[str, Any], predictions: Sequence[Prediction]) -> None:
    """Write the summary to a file (`Source.file`), and the predictions beside it, as .jsonl."""
    file.parent.mkdir(exist_ok=True)
    write_predictions(predictions, file.with_suffix(".jsonl"))
    write_json(file, dict(summary))


def span(counts: Sequence[int]) -> dict[str, float]:
    """Return mean, least and most of the counts."""
    return {"mean": fmean(counts), "least": min(counts), "most": max(counts)}
