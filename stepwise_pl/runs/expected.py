"""Whether a run falls inside the band that its recipe (conf/experiment/<name>.yaml) states under `expected`. Free of torch."""

from collections.abc import Iterable, Sequence
from typing import Any

from stepwise_pl.common.text import percent
from stepwise_pl.config.keys import is_aside
from stepwise_pl.config.training import ExpectedConfig


def changed_keys(given: Iterable[str], chosen: Iterable[str] = ()) -> list[str]:
    """Of the keys and groups that a command line sets, those that make something else of a recipe, sorted.

    There are none if the command line states the band itself: it is then about this very run.

    Args:
        chosen: groups whose choice changes what is learned.
    """
    given = set(given)
    if "expected.accuracy" in given:
        return []
    unasked = ("experiment", "trainer", "logger")
    return sorted({*chosen, *(key for key in given if key not in unasked and not is_aside(key))})


def judge(
    expected: ExpectedConfig, accuracy: float, seconds: float | None, changed: Sequence[str]
) -> dict[str, Any] | None:
    """The band and whether a run lies in it, for summaries; None if its recipe states none.

    Args:
        accuracy: of the answers to the test problems, 0 to 1.
        seconds: of training; None where that is not known.
        changed: what sets the run apart from the recipe (`changed_keys`).
    """
    if expected.accuracy is None:
        return None
    minutes = None if seconds is None else round(seconds / 60, 2)
    return {
        "accuracy": expected.accuracy,
        "accuracy_measured": accuracy,
        "accuracy_inside": _inside(accuracy, expected.accuracy),
        "minutes": expected.minutes,
        "minutes_measured": minutes,
        "minutes_inside": _inside(minutes, expected.minutes),
        "machine": expected.machine,
        "source": expected.source,
        "changed": list(changed),
    }


def judged_lines(judged: dict[str, Any]) -> list[str]:
    """For reading: a line each on accuracy and time, and on what the band is worth for this run."""
    low, high = judged["accuracy"]
    if judged["changed"]:
        changed = ", ".join(judged["changed"])
        return [
            f"{'expected':16}{percent(low)} to {percent(high)} of the recipe; not compared, because you changed {changed}"
        ]
    came_to = f"{_said(judged, 'accuracy', 'BELOW', 'above')} ({percent(judged['accuracy_measured'])})"
    lines = [f"test accuracy {percent(low)} to {percent(high)}: {came_to}"]
    if judged["minutes"] is not None:
        least, most = judged["minutes"]
        measured = judged["minutes_measured"]
        took = "" if measured is None else f": {_said(judged, 'minutes', 'faster', 'slower')} ({measured:.1f})"
        lines.append(f"{least:g} to {most:g} minutes on {judged['machine']}{took}")
    lines.append(f"says {judged['source']}")
    return [f"{'' if i else 'expected':16}{line}" for i, line in enumerate(lines)]


def _inside(value: float | None, band: Sequence[float] | None) -> bool | None:
    return None if value is None or band is None else band[0] <= value <= band[1]


def _said(judged: dict[str, Any], key: str, less: str, more: str) -> str:
    if judged[f"{key}_inside"]:
        return "inside"
    return less if judged[f"{key}_measured"] < judged[key][0] else more
