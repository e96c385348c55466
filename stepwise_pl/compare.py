"""`python -m stepwise_pl.compare <run> <run> ...`: are two runs different, or a run and another model, or is it chance?"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.disk import read_json_or_empty, require_own_or_new, write_json
from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.common.statistics import holm, mcnemar, paired_difference
from stepwise_pl.common.text import table
from stepwise_pl.reporting.compare_text import pair_lines, seed_lines
from stepwise_pl.runs.cells import cells_of
from stepwise_pl.runs.folder import require_run
from stepwise_pl.runs.outside import Matched, matched, read_outside
from stepwise_pl.runs.predictions import HEAD, PART, Prediction, Share, read_predictions, why_stale
from stepwise_pl.runs.saved_config import comparable_config


@dataclass
class CompareConfig:
    """Paired comparison of runs' predictions: `python -m stepwise_pl.compare <run> <run> ...`."""

    # The run folders.
    runs: list[str] = setting(factory=list, path=True)
    # One run folder more, for `compare run=<folder> predictions=<file>`.
    run: str | None = setting(None, path=True)
    # The predictions of any other model for the same problems, as JSON Lines (docs/evaluation.md); null: runs alone.
    predictions: str | None = setting(None, path=True)
    # The checkpoint whose evaluation is compared, with as many tokens removed as the checkpoint was trained with.
    checkpoint: str = setting("best", path=True)
    # The split of that evaluation: `train`, `validation` or `test`.
    split: str = "test"
    # Another evaluation instead: the name of its file in `evaluations/`, without the ending.
    name: str | None = None
    # The part of a suite to compare; null: the evaluation is not of a suite.
    part: str | None = None
    # Write the numbers to this JSON file as well.
    out: str | None = setting(None, path=True)

    def __post_init__(self) -> None:
        self.runs = [*self.runs, *([self.run] if self.run else [])]
        if self.predictions is None and len(self.runs) < 2:
            raise UserError(
                "two or more runs are needed: python -m stepwise_pl.compare <run folder> <run folder> ...; or a run and "
                "the predictions of another model: run=<run folder> predictions=<file>"
            )
        if not self.runs:
            raise UserError("run is not set: python -m stepwise_pl.compare run=<run folder> predictions=<file>")
        for run in self.runs:
            require_run(run, "compare")
            require(self.runs.count(run) == 1, "runs", run, "is given twice")
        one_of("split", self.split, ("train", "validation", "test"))


@dataclass
class Evaluated:
    """The predictions of a run, and its configuration; or those of another model.

    Attributes:
        run: the run folder; of another model the file.
        summary: the summary of the evaluation; of another model empty.
        config: dotted keys; of another model empty.
        outside: how the file of another model was matched with the problems.
    """

    run: str
    summary: dict[str, Any]
    predictions: list[Prediction]
    config: dict[str, Any]
    outside: Matched | None = None

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 0))

    @property
    def share(self) -> Share:
        """The right answers."""
        return Share.of(prediction.right for prediction in self.predictions)

    @property
    def tested(self) -> tuple[float, int]:
        """Accuracy and number of problems."""
        return self.share.accuracy, self.share.n


def compare(config: CompareConfig) -> dict[str, Any]:
    """Compare the predictions of the runs and print the result.

    Returns:
        The numbers that `config.out` gets as JSON.

    Raises:
        UserError: a run has no such predictions, two runs have answered different problems, the file of another model
            cannot be matched with them, or `out` is another file.
    """
    if config.out:
        require_own_or_new(Path(config.out), "out", b'{\n  "runs": [')
    evaluated = [load(run, config) for run in config.runs]
    for other in evaluated[1:]:
        require_same_problems(evaluated[0], other)
    if config.predictions is not None:
        evaluated = with_outside(evaluated, config.predictions)
    matching = [f"{run.outside.line()}\n" for run in evaluated if run.outside is not None]
    means = means_over_seeds([run for run in evaluated if run.outside is None])
    tests, names = pairs(evaluated), [run.run for run in evaluated]
    # A table of means over seeds says nothing of one run that is compared with another model.
    seeds = ["", *seed_lines(means, names)] if len(config.runs) > 1 else []
    result = {"runs": [_record(run) for run in evaluated], "pairs": tests, "seeds": means}
    say("\n".join([*matching, *run_lines(evaluated), "", *pair_lines(tests, names), *seeds]))
    if config.out:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.out), result)
        say(f"written to {config.out}")
    return result


def load(run: str, config: CompareConfig) -> Evaluated:
    """Read those predictions of a run that `config` asks for.

    Raises:
        UserError: the run has none, or they are not about its checkpoint; the message names the command that makes them.
    """
    folder = Path(run) / "evaluations"
    typed = shlex.quote(f"run={run}")  # as one types it into a shell
    if config.name is not None:
        path = folder / f"{config.name}.jsonl"
        if not path.is_file():
            there = ", ".join(sorted(file.stem for file in folder.glob("*.jsonl"))) or "none"
            raise UserError(f"name={config.name}: run {run} has no such predictions (there: {there})")
    else:
        stem = Path(config.checkpoint).stem
        fitting = [
            file
            for file in sorted(folder.glob(f"{stem}-{config.split}-removed*.jsonl"))
            if read_json_or_empty(file.with_suffix(".json")).get("as_trained")
        ]
        if not fitting:
            more = "" if config.checkpoint == "best" else f" checkpoint={config.checkpoint}"
            raise UserError(
                f"run {run} has no predictions for split={config.split}; make them with: "
                f"python -m stepwise_pl.evaluate {typed}{more} split={config.split}"
            )
        # A run that has gone on may have predictions of earlier checkpoints. Those of the present one come first.
        path = min(
            fitting, key=lambda file: bool(why_stale(Path(run), file, read_json_or_empty(file.with_suffix(".json"))))
        )
    summary = read_json_or_empty(path.with_suffix(".json"))
    if why := why_stale(Path(run), path, summary):
        again = f"python -m stepwise_pl.evaluate {typed} checkpoint={Path(str(summary['checkpoint'])).stem}"
        raise UserError(f"{path}: {why}; evaluate it again: {again}")
    predictions = _of_part(read_predictions(path), config.part, path)
    return Evaluated(run, summary, predictions, comparable_config(Path(run)))


def with_outside(evaluated: Sequence[Evaluated], path: str) -> list[Evaluated]:
    """The runs and, last, another model, all on the problems that the file has predictions for.

    Args:
        path: the file of the other model's predictions.

    Raises:
        UserError: the file cannot be read, or no problem of it is one of the runs'.
    """
    from stepwise_pl.data.layout import normalize_answer

    found = matched(path, read_outside(Path(path)), evaluated[0].predictions, normalize_answer)
    runs = [replace(run, predictions=[run.predictions[place] for place in found.kept]) for run in evaluated]
    return [*runs, Evaluated(path, {}, found.predictions, {}, found)]


def _of_part(predictions: list[Prediction], part: str | None, path: Path) -> list[Prediction]:
    """The predictions for one part of a suite, because a mixture of unlike parts has no accuracy; without a suite all predictions."""
    if not predictions:
        raise UserError(f"{path}: holds no prediction; evaluate the run again")
    parts = dict.fromkeys(prediction.strata.get(PART) for prediction in predictions)
    if part not in parts:
        there = ", ".join(name for name in parts if name)
        advice = f"choose one with part= ({there})" if there else "it has none; leave part out"
        raise UserError(f"part={part or 'null'}: no such part in {path}; {advice}")
    return [prediction for prediction in predictions if prediction.strata.get(PART) == part]


def require_same_problems(one: Evaluated, other: Evaluated) -> None:
    """Check that two runs have answered the same problems in the same order.

    Raises:
        UserError: they have not; the message shows the first difference.
    """
    where = f"{one.run} and {other.run} have not answered the same problems"
    if len(one.predictions) != len(other.predictions):
        raise UserError(f"{where}: {len(one.predictions)} of them and {len(other.predictions)}")
    for number, (a, b) in enumerate(zip(one.predictions, other.predictions, strict=True), start=1):
        for name, x, y in (("prompt", a.prompt, b.prompt), ("answer", a.target, b.target)):
            if x != y:
                raise UserError(f"{where}: {name} {number} is {x[:60]!r} in the first, {y[:60]!r} in the second")


def pairs(evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Compare every two runs: problems that both, one or none of them gets right, difference of accuracy, McNemar's test."""
    out: list[dict[str, Any]] = []
    for one, other in combinations(evaluated, 2):
        right = [(a.right, b.right) for a, b in zip(one.predictions, other.predictions, strict=True)]
        only_first, only_second = right.count((True, False)), right.count((False, True))
        out.append({
            "first": one.run,
            "second": other.run,
            "both_right": right.count((True, True)),
            "only_first_right": only_first,
            "only_second_right": only_second,
            "both_wrong": right.count((False, False)),
            "difference": (only_first - only_second) / len(right),
            "interval": paired_difference(only_first, only_second, len(right)),
            "p": mcnemar(only_first, only_second),
        })  # fmt: skip
    corrected = holm([test["p"] for test in out])
    return [{**test, "p_holm": p} for test, p in zip(out, corrected, strict=True)]


def means_over_seeds(evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Average the accuracy of runs that differ in the seed alone.

    Returns:
        For each cell: `runs`, `seeds`, `accuracies`, `mean`; `interval` with `interval_is`, None for a single run or if
        two runs have the same seed; and `apart`, the values of the keys in which the cells differ.
    """
    cells = cells_of(evaluated)
    every = {key for cell in cells for key in cell.config}
    keys = sorted(key for key in every if len({repr(cell.config.get(key)) for cell in cells}) > 1)
    out: list[dict[str, Any]] = []
    for cell in cells:
        # The table of runs already has the interval of a single run.
        interval = cell.interval if len(cell.runs) > 1 else None
        out.append({
            "apart": {key: cell.config[key] for key in keys if key in cell.config},
            "runs": [run.run for run in cell.runs],
            "seeds": [run.seed for run in cell.runs],
            "accuracies": cell.accuracies,
            "mean": cell.accuracy,
            "interval": interval and interval[:2],
            "interval_is": interval and interval[2],
        })  # fmt: skip
    return out


def _record(run: Evaluated) -> dict[str, Any]:
    if run.outside is not None:
        return {"run": run.run, **run.outside.record(), **run.share.record()}
    kept = ("checkpoint", "step", "split", "file", "suite", "data_digest", "removed_tokens", "stage")
    known = {key: run.summary[key] for key in kept if key in run.summary}
    any_length = Share.of(prediction.right_any_length for prediction in run.predictions)
    return {"run": run.run, "seed": run.seed, **known, **run.share.record(), "accuracy_any_length": any_length.accuracy}


def run_lines(evaluated: Sequence[Evaluated]) -> list[str]:
    """The table of the runs: number, name and accuracy of each."""
    rows = [
        [
            f"{number}  {run.run}",
            str(run.summary.get("step", "?" if run.outside is None else "-")),
            ", ".join(str(run.summary[key]) for key in ("removed_tokens", "stage") if key in run.summary)
            or ("?" if run.outside is None else "-"),
            *run.share.row(),
        ]
        for number, run in enumerate(evaluated, start=1)
    ]
    return table(("run", "step", "removed tokens", *HEAD), rows)


def main() -> None:
    """The command."""
    entry_point("compare", CompareConfig, compare)


if __name__ == "__main__":
    main()
