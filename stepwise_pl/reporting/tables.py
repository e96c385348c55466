"""The tables of the page."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from stepwise_pl.common.statistics import over_seeds
from stepwise_pl.common.text import percents
from stepwise_pl.config.keys import flat
from stepwise_pl.reporting.history import Cell, History
from stepwise_pl.runs.records import Sample, StageRecord

HEAD = (
    "run", "task", "model", "schedule", "seed", "CoT tokens removed", "test accuracy", "95% Wilson interval", "steps",
    "examples", "examples per removed token", "seconds", "outcome",
)  # fmt: skip
CELL_HEAD = (
    "runs", "test accuracy, mean", "95% interval", "of each seed", "seeds", "ended", "CoT tokens removed", "schedule", "collapsed",
)  # fmt: skip
SAID_ABOVE = ("task", "model")  # columns that are left out where all runs agree
NONE = "–"


def key_numbers(run: History) -> list[str]:
    """A run's row under `HEAD`."""
    summary = run.summary
    tested = "test_accuracy" in summary
    interval = summary.get("test_interval")
    return [
        run.label,
        task_of(run.config),
        model_of(run.config),
        schedule_of(run),
        str(run.seed),
        removed_of(run),
        f"{summary['test_accuracy']:.1%}" if tested else NONE,
        f"{percents(tuple(interval))} n={summary.get('test_examples', '?')}{any_length(run)}"
        if tested and interval
        else NONE,
        number(summary.get("steps", run.rows[-1]["step"] if run.rows else None)),
        number(summary.get("examples_seen")),
        examples_per_token(run),
        number(summary.get("seconds")),
        outcome(run),
    ]


def any_length(run: History) -> str:
    """Test accuracy of answers of any length, behind that of answers of the length asked for; empty where it is no other."""
    found, within = (run.summary.get(key) for key in ("test_accuracy_any_length", "test_accuracy"))
    return "" if found in (None, within) else f"; {found:.1%} right at any length"


def mean_numbers(cell: Cell) -> list[str]:
    """A cell's row under `CELL_HEAD`, about those of its runs that have ended."""
    ended = cell.ended
    count = f"{len(ended)} of {len(cell.runs)}"
    if not ended:
        return [cell.label, *[NONE] * 4, count, NONE, schedule_of(cell.runs[0]), NONE]
    accuracies = [float(run.summary["test_accuracy"]) for run in ended]
    low, high, how = over_seeds(accuracies, int(ended[0].summary["test_examples"]))
    came_back = sum(has_come_back(run) for run in ended)
    return [
        cell.label,
        f"{fmean(accuracies):.1%}",
        f"{percents((low, high))} {how}" if cell.distinct_seeds else "seeds not different",
        ", ".join(f"{accuracy:.1%}" for accuracy in accuracies),
        ", ".join(str(run.seed) for run in ended),
        count,
        ", ".join(dict.fromkeys(map(removed_of, ended))),
        schedule_of(cell.runs[0]),
        f"{sum(bool(run.summary.get('collapsed')) for run in ended)} of {len(ended)}{f' at the end, {came_back} more on the way' if came_back else ''}",
    ]


def mean_accuracy(cell: Cell) -> float:
    """Mean test accuracy over the runs that have ended; there must be one."""
    return fmean(float(run.summary["test_accuracy"]) for run in cell.ended)


def removed_of(run: History) -> str:
    """CoT tokens gone of how many, in the tested checkpoint or so far."""
    removed = run.rows[-1].get("schedule/removed_tokens", 0) if run.rows else None
    removed = run.summary.get("removed_tokens", removed)
    most = run.max_cot_tokens
    return NONE if removed is None else f"{removed:.0f} of {'?' if most is None else most}"


def number(value: float | None) -> str:
    """A count for reading."""
    return NONE if value is None else f"{value:,.0f}"


def task_of(config: Mapping[str, Any]) -> str:
    """Kind and size of the task."""
    kind = str(config.get("task.kind", NONE))
    if "task.digits" in config:
        first, second = config["task.digits"], config.get("task.second_digits")
        least = config.get("task.min_digits")
        return f"{kind} {f'{least}×{least} to ' if least else ''}{first}×{second or first}"
    return f"{kind} {config['task.train']}" if config.get("task.train") else kind


def model_of(config: Mapping[str, Any]) -> str:
    """Its name where weights were taken, otherwise its shape."""
    if not config:
        return NONE
    if config.get("model.pretrained"):
        return str(config.get("model.name"))
    return f"{config.get('model.type')}, {config.get('model.layers')} layers, width {config.get('model.width')}"


def schedule_of(run: History) -> str:
    """The baseline's name, or what decides how fast tokens leave."""
    config = run.config
    if run.baseline or not config:
        return run.baseline or NONE
    unit = " steps" if config.get("method.unit") == "step" else ""
    shown = [f"Δ={config['schedule.delta']}{unit}"] if "schedule.delta" in config else []
    if "schedule.gate" in config:
        shown.append(f"{config.get('schedule.kind')}, gate {config['schedule.gate']}")
    smoothing = config.get("schedule.smoothing")
    shown += [f"λ={smoothing:g}"] if isinstance(smoothing, int | float) else []
    shown += [str(config["method.side"])] if config.get("method.side") == "right" else []
    shown += ["no reset"] if config.get("schedule.reset_optimizer") is False else []
    return ", ".join(shown) or str(config.get("schedule.kind", NONE))


def examples_per_token(run: History) -> str:
    """At the pace that a run ended with, or is configured for; of a schedule that has no pace, the examples seen until the last token left, divided by the tokens."""
    configured = run.summary.get("examples_per_token", run.derived.get("examples_per_token"))
    if configured is not None:
        return number(configured)
    key = "schedule/removed_tokens"
    training = [row for row in run.rows if key in row and "test/loss" not in row]
    if run.baseline or not training or not training[-1][key] or "data.batch_size" not in run.config:
        return NONE
    last = next(row for row in training if row[key] == training[-1][key])
    return f"{last['step'] * run.config['data.batch_size'] / last[key]:,.0f} (measured)"


def has_come_back(run: History) -> bool:
    """Whether accuracy had collapsed on the way, but not at the end."""
    return run.summary.get("collapsed_at") is not None and not run.summary.get("collapsed")


def outcome(run: History) -> str:
    """How it ended."""
    if not run.summary:
        return "failed" if run.error else "not ended"
    said = "collapsed" if run.summary.get("collapsed") else "ended"
    if has_come_back(run):
        said += f", collapsed at {run.summary['collapsed_at']} removed and came back"
    if run.rollbacks:
        said += f", {len(run.rollbacks)} rollback{'s' * (len(run.rollbacks) > 1)}"
    return said


class Apart(NamedTuple):
    """What runs have in common, and what sets them apart.

    Attributes:
        same: what all have.
        keys: what differs, the heads of `rows`.
        rows: of each run, None where it has no such key.
    """

    same: dict[str, str]
    keys: list[str]
    rows: list[list[str | None]]


def apart(found: Sequence[Mapping[str, Any]]) -> Apart:
    """Compare dicts of plain values."""
    every = list(dict.fromkeys(key for one in found for key in one))
    shown = [{key: shown_value(value) for key, value in one.items()} for one in found]
    keys = [key for key in every if len({one.get(key) for one in shown}) > 1]
    same = {key: shown[0][key] for key in every if key not in keys}
    return Apart(same, keys, [[one.get(key) for key in keys] for one in shown])


def shown_value(value: Any) -> str:
    """A value of a configuration as YAML would have it, more or less."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def settings(run: History) -> dict[str, Any]:
    """The configuration, without where it was written."""
    return {key: value for key, value in run.config.items() if key not in ("run_dir", "resume")}


def environment(run: History) -> dict[str, Any]:
    """What the run was made with: its last start, and how many there were."""
    if not run.sessions or not isinstance(run.sessions[-1], dict):
        return {}
    last = run.sessions[-1]
    shown = {key: last.get(key) for key in ("started", "command", "git", "python", "machine", "packages")}
    return {"starts": len(run.sessions), **{key: value for key, value in flat(shown).items() if value is not None}}


class Answer(NamedTuple):
    """A sample, its prediction word by word with whether it is the target's there; empty where none was finished."""

    sample: Sample
    words: list[tuple[str, bool]]


def answers(record: StageRecord) -> list[Answer]:
    """The samples of a stage."""
    out = []
    for sample in record["samples"]:
        target = sample["target"].split()
        words = (sample["prediction"] or "").split()
        out.append(Answer(sample, [(word, target[i : i + 1] == [word]) for i, word in enumerate(words)]))
    return out
