"""The answers of a model, one by one: their file beside an evaluation, and the accuracies counted from them."""

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
from stepwise_pl.common.text import percent, percents

PART = "part"  # the stratum that names the part of a suite that a problem belongs to
# Instructions of a pickle that hold a text or an integer.
_LITERALS = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1")
FEW = 30  # problems; the accuracy on fewer says little
# A number anywhere in a text, as CODI's code reads it. `.5` is read as 5.
_NUMBER = re.compile(r"-?\d+\.?\d*")
# A text that is one number written as usual. `6 6 1 2`, a number digit by digit, is none, and neither is 0612.
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d*)?")


@dataclass
class Prediction:
    """One problem and its answer.

    Attributes:
        index: place of the problem in the split.
        target: the answer wanted, normalised (`normalize_answer`).
        prediction: the answer of the model, normalised; None if the model did not finish it.
        right: whether the prediction equals the target and was finished within the tokens that a target may take.
        strata: values of the properties by which accuracy is broken down (`Task.strata`).
        within_length: whether the prediction was finished within those tokens.
        cot_tokens: number of CoT tokens that the model wrote; None if that was not recorded.
        unfinished: what the model wrote behind `####`, or at all without one, if it did not finish an answer; else empty.
    """

    index: int
    prompt: str
    target: str
    prediction: str | None
    right: bool
    strata: dict[str, str] = field(default_factory=dict)
    within_length: bool = True
    cot_tokens: int | None = None
    unfinished: str = ""

    @property
    def right_any_length(self) -> bool:
        """Whether the prediction equals the target, however many tokens it took."""
        return self.prediction is not None and self.prediction == self.target

    @property
    def right_last_number(self) -> bool:
        """Whether the last number in the answer, finished or not, equals the target's, both read as a float."""
        written = last_number(self.unfinished if self.prediction is None else self.prediction)
        return written is not None and written == last_number(self.target)


class Share(NamedTuple):
    """A number of right answers among n."""

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
        """The entries of a summary."""
        return {"n": self.n, "accuracy": self.accuracy, "interval": self.interval}

    def row(self) -> list[str]:
        """The row of a table with the columns `HEAD`. The last column warns of a small n."""
        return [str(self.n), percent(self.accuracy), percents(self.interval), "few" if self.n < FEW else ""]


def by_stratum(predictions: Sequence[Prediction]) -> dict[str, dict[str, Share]]:
    """Right answers by property and by its value. Values that hold numbers are in numeric order."""
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
    """Right words at each place of the answer, among the problems whose target is that long.

    A prediction that was not finished within the tokens that a target may take has no right word.
    For multiplication, words are digits, the least significant first.
    """
    outcomes: list[list[bool]] = []
    for one in predictions:
        words = one.prediction.split() if one.prediction is not None and one.within_length else []
        for place, word in enumerate(one.target.split()):
            if place == len(outcomes):
                outcomes.append([])
            outcomes[place].append(place < len(words) and words[place] == word)
    return [Share.of(right) for right in outcomes]


def last_number(text: str) -> float | None:
    """The last number in a text, once all commas are gone; None if there is none."""
    numbers = _NUMBER.findall(text.replace(",", ""))
    return float(numbers[-1]) if numbers else None


def by_last_number(predictions: Iterable[Prediction]) -> Share | None:
    """Right answers as the code of CODI (arXiv 2502.21074) and SIM-CoT counts them: the last number of the output, as a float.

    So `72.0`, `$72.` and `72 apples` are 72, and an answer counts however many tokens it took, even if it was cut off.
    Different from CODI's code: only the text behind `####` is read if the model wrote that mark.

    Returns:
        None unless every target is one number written as usual.
    """
    listed = list(predictions)
    if not all(_WHOLE_NUMBER.fullmatch(prediction.target) for prediction in listed):
        return None
    return Share.of(prediction.right_last_number for prediction in listed)


def why_stale(run: Path, file: Path, summary: Mapping[str, Any]) -> str:
    """Say why an evaluation is not about the checkpoint that the run has now.

    Args:
        run: the run folder.
        file: the file of the evaluation.
        summary: the content of that file, or of the summary beside it.

    Returns:
        The end of a sentence that begins with the name of the evaluation; empty if the evaluation is up to date or its
        checkpoint is gone.
    """
    checkpoint = run / "checkpoints" / Path(str(summary.get("checkpoint"))).name
    if not checkpoint.is_file():
        return ""
    now = step_of(checkpoint)
    if now is not None and "step" in summary and summary["step"] != now:
        return f"is of step {summary['step']}, and {checkpoint.name} is of step {now}"
    if "checkpoint_digest" in summary:
        is_other = summary["checkpoint_digest"] != digest_of(checkpoint)
    else:  # A copied folder has new times, so times decide only if there is nothing else to go by.
        is_other = now is None and checkpoint.stat().st_mtime > file.stat().st_mtime
    return f"is older than {checkpoint.name}, with which the run has gone on" if is_other else ""


def digest_of(checkpoint: Path) -> str | None:
    """A digest of the content of a checkpoint; None if the file cannot be read.

    The archive lists a check sum of each of its parts. Only this list is read, because the weights may be large.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            parts = [(part.filename, part.file_size, part.CRC) for part in archive.infolist()]
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def step_of(checkpoint: Path) -> int | None:
    """The optimizer steps of a checkpoint; None if the file cannot be read.

    The number is found among the instructions of the pickle inside. None of them is executed, and reports need no torch.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        values = (value for operation, value, _ in pickletools.genops(pickled) if operation.name in _LITERALS)
        return next(int(str(next(values))) for value in values if value == "global_step")
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile):
        return None


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write one JSON object a line. The file is replaced as a whole."""
    write_text(path, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in predictions))


def read_predictions(path: Path) -> list[Prediction]:
    """Read a file of `write_predictions`.

    Raises:
        UserError: the file is missing or damaged.
    """
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
            # Old files lack lengths. Answers were then decoded no further than a target may reach.
            found.setdefault("within_length", found["prediction"] is not None)
            out.append(Prediction(**found))
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            raise UserError(f"{path}: line {number} is no prediction; evaluate the run again") from None
    return out


HEAD = ("n", "accuracy", "95% Wilson interval", "")  # of `Share.row`
