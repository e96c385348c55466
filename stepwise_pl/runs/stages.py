"""From a run's metrics to its result: accuracy at each stage, as a table (its figure: `reporting/figures/accuracy.py`)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepwise_pl.common.statistics import wilson
from stepwise_pl.common.text import percent, with_wilson
from stepwise_pl.runs.records import damage_told, read_attempts

ANY_LENGTH = "right at any length"


@dataclass
class StageAccuracy:
    """The last validation of a stage: at one number of removed tokens, and in one stage if stages have names."""

    removed_tokens: int
    step: int
    accuracy: float
    examples: int
    accuracy_any_length: float | None = None  # None in runs from before it was measured
    stage: str = ""  # the name of the stage, if it has one

    @property
    def differs(self) -> bool:
        """Whether some answers are right but took more tokens than were asked for."""
        return self.accuracy_any_length not in (None, self.accuracy)

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson(self.accuracy, self.examples)


def read_stages(metrics_file: Path, names: Sequence[str] = ()) -> tuple[list[StageAccuracy], list[list[StageAccuracy]]]:
    """The stages that were validated, ascending; and the same of each attempt given up.

    Args:
        names: of the stages, if the method names them (`stage_names` in summary.json).

    Raises:
        UserError: the file is damaged.
    """
    if not metrics_file.is_file():
        return [], []
    with damage_told(metrics_file):
        kept, given_up = read_attempts(metrics_file)
        return stages_of(kept, names), [stages_of(rows, names) for rows in given_up]


def stages_of(rows: Iterable[Mapping[str, str]], names: Sequence[str] = ()) -> list[StageAccuracy]:
    """The validations in rows of metrics.csv, the last of each stage, ascending; `names`: see `read_stages`."""
    stages: dict[tuple[int, int], StageAccuracy] = {}
    for row in rows:
        if row.get("val/answer_accuracy"):
            removed, number = place_of(row)
            any_length = row.get("val/answer_accuracy_any_length")
            stages[removed, number] = StageAccuracy(
                removed, int(row["step"]), float(row["val/answer_accuracy"]), round(float(row["val/examples"])),
                float(any_length) if any_length else None, stage_name(names, number),
            )  # fmt: skip
    return [stages[place] for place in sorted(stages)]


def place_of(row: Mapping[str, str]) -> tuple[int, int]:
    """The removed tokens of a row of metrics.csv, and the number of its stage; -1 if the stages have no names."""
    # Rows have the number of the stage if it has a name, and else the removed tokens alone.
    return round(float(row["schedule/removed_tokens"])), round(float(row.get("schedule/stage") or -1))


def stage_name(names: Sequence[str], number: float | None) -> str:
    """The name of a stage by its number; the number itself if the names are lost, empty if there is no number."""
    if number is None or number < 0:
        return ""
    return names[int(number)] if number < len(names) else f"{number:.0f}"


def last_at_each(stages: Iterable[StageAccuracy]) -> list[StageAccuracy]:
    """The last of the stages at each number of removed tokens, for figures over removed tokens."""
    return list({stage.removed_tokens: stage for stage in stages}.values())


def removed_at(stages: Iterable[StageAccuracy], accuracy: float = 0.95) -> int | None:
    """The largest number of removed tokens whose last validation is at least this accurate; None if there is none."""
    last = last_at_each(stages)
    return max((stage.removed_tokens for stage in last if stage.accuracy >= accuracy), default=None)


def selected(metrics_file: Path) -> StageAccuracy | None:
    """The validation of best.ckpt, as checkpoints are chosen: of equal ones the first; None before the first validation."""
    kept, _ = read_attempts(metrics_file)
    validated = [row for row in kept if row.get("val/answer_accuracy")]
    best = max(validated, key=_selection_score, default=None)
    return None if best is None else stages_of([best])[0]


def _selection_score(row: Mapping[str, str]) -> float:
    """The score by which checkpoints are chosen. Runs from before it was logged have the most removed tokens first."""
    score = row.get("val/selection_score")
    return float(score) if score else 2 * float(row["schedule/removed_tokens"]) + float(row["val/answer_accuracy"])


def stage_table(stages: list[StageAccuracy]) -> str:
    """The stages as text, one line each; with accuracy at any length where that differs."""
    named = [len(stage.stage) for stage in stages if stage.stage]
    width = max(len("stage"), *named) + 2 if named else 0
    lines = [f"{'stage'[:width]:{width}}removed tokens    step  validation accuracy [95% Wilson interval]"]
    for stage in stages:
        at_any_length = stage.accuracy_any_length
        more = f"  ({percent(at_any_length)} {ANY_LENGTH})" if at_any_length is not None and stage.differs else ""
        accuracy = with_wilson(stage.accuracy, stage.examples)
        lines.append(f"{stage.stage:{width}}{stage.removed_tokens:14d}  {stage.step:6d}  {accuracy}{more}")
    return "\n".join(lines)
