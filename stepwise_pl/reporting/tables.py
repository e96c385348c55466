"""The tables of the page."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stepwise_pl.common.text import percent, percents
from stepwise_pl.config.keys import flat
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.cells import Cell
from stepwise_pl.runs.provenance import changed_text
from stepwise_pl.runs.records import Sample, StageRecord

RECIPE = "recipe's band"
HEAD = (
    "run", "task", "model", "method", "schedule", "seed", "CoT tokens removed", "test accuracy", "95% Wilson interval", RECIPE, "steps",
    "examples", "tokens read", "examples per removed token", "seconds", "outcome",
)  # fmt: skip
CELL_HEAD = (
    "runs", "test accuracy, mean", "95% interval", "of each seed", "seeds", "ended", "CoT tokens removed", "schedule", "collapsed",
)  # fmt: skip
SAID_ABOVE = (
    "task",
    "model",
    "method",
)  # columns that are left out if all runs agree, because the heading names the value
NONE = "–"


def key_numbers(run: History) -> list[str]:
    """The row of a run under `HEAD`."""
    summary = run.summary
    tested = "test_accuracy" in summary
    interval = summary.get("test_interval")
    return [
        run.label,
        task_of(run.config),
        model_of(run.config),
        run.method,
        schedule_of(run),
        str(run.seed),
        removed_of(run),
        percent(summary["test_accuracy"]) if tested else NONE,
        f"{percents(interval)} n={summary.get('test_examples', '?')}{any_length(run)}" if tested and interval else NONE,
        recipe_of(run),
        number(summary.get("steps", run.rows[-1]["step"] if run.rows else None)),
        number(summary.get("examples_seen")),
        number(run.tokens_read),
        examples_per_token(run),
        number(summary.get("seconds")),
        outcome(run),
    ]


def recipe_of(run: History) -> str:
    """`inside 99.0–100.0%`: whether the test came to the band that the run's recipe states; the band alone before the test."""
    if run.band is None:
        return NONE
    low, high = run.band
    band = f"{percent(low).removesuffix('%')}–{percent(high)}"
    if run.tested is None:
        return band
    accuracy = run.tested[0]
    return f"{'BELOW' if accuracy < low else 'above' if accuracy > high else 'inside'} {band}"


def any_length(run: History) -> str:
    """Test accuracy of answers of any length, as an addition to `test_accuracy`; empty if both are equal."""
    found, within = (run.summary.get(key) for key in ("test_accuracy_any_length", "test_accuracy"))
    return "" if found in (None, within) else f"; {percent(found)} right at any length"


def mean_numbers(cell: Cell[History]) -> list[str]:
    """The row of a cell under `CELL_HEAD`. Its numbers are about the runs that have ended."""
    ended = cell.ended
    count = f"{len(ended)} of {len(cell.runs)}"
    if cell.accuracy is None:
        return [cell.label, *[NONE] * 4, count, NONE, schedule_of(cell.runs[0]), NONE]
    interval = f"{percents(cell.interval[:2])} {cell.interval[2]}" if cell.interval else "seeds not different"
    collapsed = f"{sum(bool(run.summary.get('collapsed')) for run in ended)} of {len(ended)}"
    if came_back := sum(has_come_back(run) for run in ended):
        collapsed += f" at the end, {came_back} more on the way"
    return [
        cell.label,
        percent(cell.accuracy),
        interval,
        ", ".join(map(percent, cell.accuracies)),
        ", ".join(str(run.seed) for run in ended),
        count,
        ", ".join(dict.fromkeys(map(removed_of, ended))),
        schedule_of(cell.runs[0]),
        collapsed,
    ]


def removed_of(run: History) -> str:
    """`3 of 8`: removed CoT tokens of the tested checkpoint, or so far if the run has not ended, and tokens of the longest CoT.

    The name of the stage follows, if it has one.
    """
    now = run.rows[-1] if run.rows else {}
    removed = run.summary.get("removed_tokens", now.get("schedule/removed_tokens", 0) if now else None)
    most, stage = run.max_cot_tokens, run.summary.get("stage") or run.stage_of(now)
    return (
        NONE if removed is None else f"{removed:.0f} of {'?' if most is None else most}{f', {stage}' if stage else ''}"
    )


def number(value: float | None) -> str:
    """A count, with commas between the thousands."""
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
    """Name of the model if it was pretrained, otherwise its shape."""
    if not config:
        return NONE
    if config.get("model.pretrained"):
        return str(config.get("model.name"))
    return f"{config.get('model.type')}, {config.get('model.layers')} layers, width {config.get('model.width')}"


def schedule_of(run: History) -> str:
    """Name of the baseline, or the settings that decide how fast tokens leave."""
    config = run.config
    if run.fixed_schedule or not config:
        return run.fixed_schedule or NONE
    unit = " steps" if config.get("method.unit") == "step" else ""
    shown = [f"Δ={config['schedule.delta']}{unit}"] if "schedule.delta" in config else []
    if "schedule.gate" in config:  # an adaptive schedule of before
        shown.append(f"{config.get('schedule.kind')}, gate {config['schedule.gate']}")
    elif "schedule.keep" in config:
        shown.append(f"{config.get('schedule.kind')}, {percent(config['schedule.keep'])}")
    smoothing = config.get("schedule.smoothing")
    shown += [f"λ={smoothing:g}"] if isinstance(smoothing, int | float) else []
    shown += [str(config["method.side"])] if config.get("method.side") == "right" else []
    shown += ["no reset"] if config.get("schedule.reset_optimizer") is False else []
    return ", ".join(shown) or str(config.get("schedule.kind", NONE))


def examples_per_token(run: History) -> str:
    """Training examples per removed token, at the pace that the run ended with or is configured for.

    A schedule without a pace gets the examples seen until the last token left, divided by the removed tokens.
    """
    configured = run.summary.get("examples_per_token", run.derived.get("examples_per_token"))
    if configured is not None:
        return number(configured)
    key = "schedule/removed_tokens"
    training = [row for row in run.rows if key in row and "test/loss" not in row]
    if run.baseline or not training or not training[-1][key] or "data.batch_size" not in run.config:
        return NONE
    # Such a schedule removes at a validation, whose row still has the tokens that leave.
    before = [row for row in training if row[key] < training[-1][key]]
    if not before:
        return NONE
    return f"{before[-1]['step'] * run.config['data.batch_size'] / training[-1][key]:,.0f} (measured)"


def has_come_back(run: History) -> bool:
    """Whether accuracy collapsed during the run but not at its end."""
    return run.summary.get("collapsed_at") is not None and not run.summary.get("collapsed")


def outcome(run: History) -> str:
    """The end of the run in a few words."""
    if not run.summary:
        return "failed" if run.error else "not ended"
    words = "collapsed" if run.summary.get("collapsed") else "ended"
    if has_come_back(run):
        words += f", collapsed at {run.summary['collapsed_at']} removed and came back"
    if run.rollbacks:
        words += f", {len(run.rollbacks)} rollback{'s' * (len(run.rollbacks) > 1)}"
    return words


class Apart(NamedTuple):
    """Common and differing settings of several runs.

    Attributes:
        same: keys and values that all runs share.
        keys: keys in which the runs differ: the heads of `rows`.
        rows: values of each run; None if the run lacks the key.
    """

    same: dict[str, str]
    keys: list[str]
    rows: list[list[str | None]]


def apart(settings: Sequence[Mapping[str, Any]]) -> Apart:
    """Split settings into those that all runs share and those that differ."""
    every = list(dict.fromkeys(key for run in settings for key in run))
    shown = [{key: shown_value(value) for key, value in run.items()} for run in settings]
    keys = [key for key in every if len({run.get(key) for run in shown}) > 1]
    same = {key: shown[0][key] for key in every if key not in keys}
    return Apart(same, keys, [[run.get(key) for key in keys] for run in shown])


def shown_value(value: Any) -> str:
    """A value of a configuration, roughly as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def settings(run: History) -> dict[str, Any]:
    """The configuration, without the keys that say where the run lies."""
    return {key: value for key, value in run.config.items() if key not in ("run_dir", "resume")}


def environment(run: History) -> dict[str, Any]:
    """Number of starts, and command, code, machine and packages of the last start."""
    if not run.sessions or not isinstance(run.sessions[-1], dict):
        return {}
    last = run.sessions[-1]
    changed = [
        f"at step {session.get('from_step')}: {changed_text(session['changed'])}"
        for session in run.sessions
        if isinstance(session, dict) and session.get("changed")
    ]
    shown = {key: last.get(key) for key in ("started", "command", "git", "python", "machine", "packages")}
    resumed = {"changed when resumed": "; ".join(changed)} if changed else {}
    return {
        "starts": len(run.sessions),
        **resumed,
        **{key: value for key, value in flat(shown).items() if value is not None},
    }


class Answer(NamedTuple):
    """A sample with the words of its prediction.

    Attributes:
        words: each word, and whether the target has the same word there; empty if no answer was finished.
    """

    sample: Sample
    words: list[tuple[str, bool]]


def answers(record: StageRecord) -> list[Answer]:
    """The answers among the samples of a stage."""
    out = []
    for sample in record["samples"]:
        target = sample["target"].split()
        words = (sample["prediction"] or "").split()
        out.append(Answer(sample, [(word, target[i : i + 1] == [word]) for i, word in enumerate(words)]))
    return out
