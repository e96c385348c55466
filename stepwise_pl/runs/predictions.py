"""A model's answers, one by one: what is written beside an evaluation, and what is counted from it."""

import hashlib
import json
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stepwise_pl.common.disk import write_text
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.statistics import wilson
from stepwise_pl.common.text import percents

PART = "part"  # the stratum that says to which part of a suite a problem belongs
_LITERALS = (
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
)  # texts and integers of a pickle
FEW = 30  # examples; the accuracy of fewer says little


@dataclass
class Prediction:
    """One problem and its answer.

    Attributes:
        index: place in the split.
        target, prediction: answers as they are compared (`normalize_answer`); a prediction
            that was not finished is None.
        right: it is the target, and was finished within the tokens that a target may take.
        within_length: it was finished within those tokens.
        cot_tokens: how many tokens of CoT the model wrote; None: not recorded.
        strata: values of the properties by which accuracy is broken down (`Task.strata`).
    """

    index: int
    prompt: str
    target: str
    prediction: str | None
    right: bool
    strata: dict[str, str] = field(default_factory=dict)
    within_length: bool = True
    cot_tokens: int | None = None

    @property
    def right_any_length(self) -> bool:
        """Whether it is the target, however long it took."""
        return self.prediction is not None and self.prediction == self.target


class Share(NamedTuple):
    """How many of n are right."""

    right: int
    n: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @classmethod
    def of(cls, right: Iterable[bool]) -> "Share":
        outcomes = list(right)
        return cls(sum(outcomes), len(outcomes))

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson(self.accuracy, self.n)

    def record(self) -> dict[str, object]:
        """For a summary."""
        return {"n": self.n, "accuracy": self.accuracy, "interval": self.interval}

    def row(self) -> list[str]:
        """For a table whose columns are `HEAD`; says when n is small."""
        return [str(self.n), f"{self.accuracy:.1%}", percents(self.interval), "few" if self.n < FEW else ""]


def by_stratum(predictions: Sequence[Prediction]) -> dict[str, dict[str, Share]]:
    """Who is right, by property and by its value; values in numeric order where they hold numbers."""
    outcomes: dict[str, dict[str, list[bool]]] = {}
    for one in predictions:
        for name, value in one.strata.items():
            outcomes.setdefault(name, {}).setdefault(value, []).append(one.right)

    def numeric(value: str) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", value)]

    return {
        name: {value: Share.of(values[value]) for value in sorted(values, key=numeric)}
        for name, values in outcomes.items()
    }


def by_position(predictions: Sequence[Prediction]) -> list[Share]:
    """For each place in the answer, counted in words from its start: who has the right word there.

    Of the examples whose target has that place; nothing is right that was not finished within
    the tokens a target may take. For multiplication words are digits, the
    least significant first.
    """
    outcomes: list[list[bool]] = []
    for one in predictions:
        words = one.prediction.split() if one.prediction is not None and one.within_length else []
        for place, word in enumerate(one.target.split()):
            if place == len(outcomes):
                outcomes.append([])
            outcomes[place].append(place < len(words) and words[place] == word)
    return [Share.of(right) for right in outcomes]


def why_stale(run: Path, file: Path, summary: Mapping[str, Any]) -> str:
    """Why an evaluation is not about the checkpoint that the run has now; empty if it is, or if the checkpoint is gone.

    Args:
        file: of the evaluation.
        summary: its content, or that of the summary beside it.
    """
    checkpoint = run / "checkpoints" / Path(str(summary.get("checkpoint"))).name
    if not checkpoint.is_file():
        return ""
    now = step_of(checkpoint)
    if now is not None and "step" in summary and summary["step"] != now:
        return f"is of step {summary['step']}, and {checkpoint.name} is of step {now}"
    if "checkpoint_digest" in summary:
        is_other = summary["checkpoint_digest"] != digest_of(checkpoint)
    else:  # Times tell only where nothing else does: a copied folder has new ones.
        is_other = now is None and checkpoint.stat().st_mtime > file.stat().st_mtime
    return f"is older than {checkpoint.name}, with which the run has gone on" if is_other else ""


def digest_of(checkpoint: Path) -> str | None:
    """Changes whenever the content of a checkpoint does; None if it cannot be read.

    The archive lists a check sum of each of its parts, so that only the list is read, however large the weights are.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            parts = [(part.filename, part.file_size, part.CRC) for part in archive.infolist()]
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def step_of(checkpoint: Path) -> int | None:
    """The optimizer steps that a checkpoint has behind it; None if it cannot be read.

    The number is read off the instructions of the pickle inside, none of which is carried out: reports do without torch.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        values = (value for operation, value, _ in pickletools.genops(pickled) if operation.name in _LITERALS)
        return next(int(str(next(values))) for value in values if value == "global_step")
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile):
        return None


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """One JSON object a line, in one go."""
    write_text(path, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in predictions))


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote. Raises `UserError` if the file is missing or damaged."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; evaluate the run again") from None
    out = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            found = json.loads(line)
            # Written before lengths were: an answer was decoded no further than it might take.
            found.setdefault("within_length", found["prediction"] is not None)
            out.append(Prediction(**found))
        except (ValueError, TypeError, AttributeError, KeyError):
            raise UserError(f"{path}: line {number} is no prediction; evaluate the run again") from None
    return out


HEAD = ("n", "accuracy", "95% Wilson interval", "")  # of `Share.row`
