"""Run folders written by hand, so that every number is known and no test has to train."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepwise_pl.config.plain import save_yaml, to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.config.training import ExpectedConfig
from stepwise_pl.methods import Stepwise
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Multiplication

BAND = ExpectedConfig(accuracy=[0.9, 1.0], source="a table")
STEPS = 20  # steps between two validations


def write_run(
    path: Path,
    accuracies: Sequence[float] = (0.9, 0.5, 0.95),
    removed: Sequence[int] = (0, 1, 2),
    *,
    ended: bool = True,
    changed: Sequence[str] | None = (),
    expected: ExpectedConfig | None = None,
    **settings: Any,
) -> Path:
    """Write a run with a validation of 100 problems every `STEPS` steps.

    Args:
        accuracies: of the validations.
        removed: CoT tokens removed at each validation.
        ended: whether there is a summary; its test accuracy is that of the last validation.
        changed: keys that set the run apart from its recipe; None: an older run, which does not say.
        expected: the band of the recipe.
        settings: of the configuration.
    """
    parts = {"task": Multiplication(), "schedule": Linear(), "method": Stepwise()}
    config = Config(**{**parts, "run_dir": str(path), "expected": expected or ExpectedConfig(), **settings})
    (path / "checkpoints").mkdir(parents=True)
    derived = {"name": path.name, "max_cot_tokens": 2, **({} if changed is None else {"changed": list(changed)})}
    save_yaml({**to_plain(config), "derived": derived}, path / "config.yaml")
    for number, (accuracy, gone) in enumerate(zip(accuracies, removed, strict=True), start=1):
        append_validation(path, number * STEPS, accuracy, gone)
    if ended:
        end(path, accuracies[-1], removed[-1], expected, changed or ())
    return path


def append_validation(path: Path, step: int, accuracy: float, removed: int) -> None:
    """Append the row of a validation to metrics.csv, as a training does."""
    row = {
        "step": step, "attempt": 0, "schedule/removed_tokens": removed, "tokens_read": 1000 * step, "train/loss": 1 / step,
        "val/loss": 1 - accuracy, "val/answer_accuracy": accuracy, "val/answer_accuracy_any_length": accuracy, "val/examples": 100,
    }  # fmt: skip
    is_new = not (path / "metrics.csv").exists()
    with (path / "metrics.csv").open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def end(
    path: Path, accuracy: float, removed: int, expected: ExpectedConfig | None = None, changed: Sequence[str] = ()
) -> None:
    """Write the summary, as a training does at its end."""
    judged = None
    if expected is not None and expected.accuracy is not None:
        judged = {"accuracy": expected.accuracy, "accuracy_measured": accuracy, "changed": list(changed)}
    summary = {
        "name": path.name, "seed": 0, "test_accuracy": accuracy, "test_examples": 100, "test_interval": [accuracy, accuracy],
        "removed_tokens": removed, "max_cot_tokens": 2, "steps": 60, "examples_seen": 1920, "seconds": 5.0, "expected": judged,
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))


def write_evaluation(path: Path, removed: int, accuracy: float, speed: float, **more: Any) -> Path:
    """Write the result of an evaluation of the checkpoint that was kept of a stage."""
    file = path / "evaluations" / f"removed-{removed}-test-removed{removed}.json"
    file.parent.mkdir(exist_ok=True)
    found = {
        "checkpoint": f"removed-{removed}.ckpt", "as_trained": True, "removed_tokens": removed, "split": "test", "examples": 100,
        "answer_accuracy": accuracy, "answer_interval": [accuracy, accuracy], "accelerator": "cpu",
        "problems_per_second_batch_1": speed, **more,
    }  # fmt: skip
    file.write_text(json.dumps(found))
    return file
