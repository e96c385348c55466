"""Accuracy at each token of the answer."""

from stepwise_pl.common.text import percent
from stepwise_pl.reporting.figures.data import Cells, HeatMap, short
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.records import StageRecord


def digits_map(run: History, number: int) -> HeatMap | None:
    """Accuracy at each token of the answer at each stage; None if there is no record of it."""
    stages = run.last_records
    places = max((len(stage["digits"]) for stage in stages), default=0)
    if not places:
        return None

    def at(stage: int, place: int) -> float | None:
        found = stages[stage]["digits"]
        return found[place] if place < len(found) else None

    values = [[at(stage, place) for stage in range(len(stages))] for place in range(places)]
    hover = [
        [
            "" if value is None else f"token {place} of the answer: {percent(value)}\n"
            f"{_place(stage)}, step {stage['step']}\nwhole answers: {percent(stage['accuracy'])}, n={stage['examples']}"
            for stage, value in zip(stages, row, strict=True)
        ]
        for place, row in enumerate(values, start=1)
    ]  # fmt: skip
    named = any("stage" in stage for stage in stages)
    by = "stage" if named else "CoT tokens removed"
    final = [value for value in (row[-1] for row in values) if value is not None]
    hardest = final.index(min(final)) + 1
    return HeatMap(
        f"digits-{number + 1}", f"Digits of the answer: {run.label}",
        "Accuracy at each token of the answer (for multiplication: digit, the least significant first), teacher-forced, at the "
        f"last validation {'of each stage' if named else 'with each number of removed CoT tokens'}; of the examples whose answer is that long.",
        f"Heat map of accuracy by place in the answer and {by}. At the last stage, {_place(stages[-1])}, "
        f"the lowest is {percent(min(final))} at place {hardest}, the highest {percent(max(final))}.",
        by, "place in the answer",
        [Cells(
            [stage.get("stage") or str(stage["removed_tokens"]) for stage in stages],
            [str(place) for place in range(1, places + 1)], values,
            [["" if value is None else short(value) for value in row] for row in values], hover,
        )], number,
    )  # fmt: skip


def _place(stage: StageRecord) -> str:
    return f"{stage['removed_tokens']} CoT tokens removed{f', stage {name}' if (name := stage.get('stage')) else ''}"
