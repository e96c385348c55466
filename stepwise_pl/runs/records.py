"""The measurements of a run in its folder: metrics.csv, and stages.jsonl with a line for every validation."""

import contextlib
import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from stepwise_pl.common.disk import write_text
from stepwise_pl.common.errors import UserError, first_line


class Sample(TypedDict):
    """A problem of a validation and its answer, as answers are compared; None where none was finished.

    Attributes:
        too_long: there, and true, where the answer is right but took more tokens than were asked for.
    """

    prompt: str
    target: str
    prediction: str | None
    right: bool
    too_long: NotRequired[bool]


class StageRecord(TypedDict):
    """A validation.

    Attributes:
        step: optimizer steps done.
        attempt: 0, and one more for each time the guard has gone back.
        stage: there if the method's stages have names.
        examples, accuracy: of the answers, greedily decoded, within the tokens that targets take.
        accuracy_any_length: the same of answers of any length; came later.
        digits: accuracy at each token of the answer, first to last, teacher-forced: of the
            examples whose answer has that token.
        samples: the first few in the order of the data, those that are right before the others.
    """

    step: int
    attempt: int
    removed_tokens: int
    stage: NotRequired[str]
    examples: int
    accuracy: float
    accuracy_any_length: NotRequired[float]
    digits: list[float]
    samples: list[Sample]


class StagesFile:
    """Appends to a stages.jsonl; a resumed run goes on in it as in metrics.csv."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: StageRecord) -> None:
        """Write one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed the run folder
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def resume_from(self, step: int, attempt: int) -> None:
        """Drop the lines of this attempt's validations after `step`, which come again.

        Raises:
            UserError: a line is damaged.
        """
        if self.path.is_file():
            kept = [record for record in read_stage_records(self.path) if is_behind(record, step, attempt)]
            write_text(self.path, "".join(map(_line, kept)))


def _line(record: StageRecord) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_stage_records(path: Path) -> list[StageRecord]:
    """The lines of a stages.jsonl in the order written, without a last one that is cut off.

    Raises:
        UserError: another line is damaged.
    """
    *lines, _ = path.read_bytes().split(b"\n")
    out: list[StageRecord] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not StageRecord.__required_keys__ <= record.keys():
                raise ValueError
            if isinstance(record["digits"], float):  # earlier versions, for answers of one token
                record["digits"] = [record["digits"]]
        except (ValueError, AttributeError):
            raise UserError(f"{path}: line {number} is damaged; remove that line, or the file") from None
        out.append(record)
    return out


@contextlib.contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Inside of this context a file of a run is read.

    Raises:
        UserError: something is missing there, or stands in the place of something else.
    """
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path}: lacks {error.args[0]}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({first_line(error)})") from None


def attempt_of(row: Mapping[str, Any]) -> int:
    """0, and one more for each time the guard has gone back."""
    return int(row.get("attempt") or 0)


def is_behind(row: Mapping[str, Any], step: int, attempt: int) -> bool:
    """Whether a run that resumes at `step` of `attempt` has this row behind it."""
    return attempt_of(row) < attempt or (attempt_of(row) == attempt and int(row["step"]) <= step)


def all_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv in the order written, without a last one that is cut off.

    Cells are text, empty where a row has no such metric.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if line.endswith("\n")))


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows that count: without those that were given up when the guard went back before them."""
    return read_attempts(path)[0]


def read_attempts(path: Path) -> tuple[list[dict[str, str]], list[list[dict[str, str]]]]:
    """The rows that count, and for each time the guard went back those that were given up then.

    The first row of an attempt is of the step at which it begins.
    """
    kept: list[dict[str, str]] = []
    given_up: list[list[dict[str, str]]] = []
    attempt = 0
    for row in all_rows(path):
        if attempt_of(row) > attempt:
            attempt, begins = attempt_of(row), int(row["step"])
            given_up.append([other for other in kept if int(other["step"]) > begins])
            kept = [other for other in kept if int(other["step"]) <= begins]
        kept.append(row)
    return kept, given_up


class Rollback(TypedDict):
    """A decision of the guard (`stepwise_pl.training.guard`): its reason, where training went back to, and what became slower."""

    action: str  # halve, wait or learning_rate
    reason: str
    does: str
    at_step: int
    at_removed_tokens: int
    to_step: int
    to_removed_tokens: int
