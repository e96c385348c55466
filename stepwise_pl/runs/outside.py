"""Predictions of other models, from a file of JSON Lines, matched with the problems of a run by the text of the prompt."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.predictions import Prediction

MARK = "####"  # an answer may stand behind it


@dataclass
class OutsidePrediction:
    """A line of the file.

    Attributes:
        line: its number, from 1.
        prediction: what the model wrote, or its answer alone; None if it gave no answer.
        target: the right answer, if the file has it.
        right: whether the prediction is right, if the file says so.
    """

    line: int
    prompt: str
    prediction: str | None
    target: str | None = None
    right: bool | None = None


@dataclass
class Matched:
    """The predictions of a file for the problems of a run.

    Attributes:
        kept: places of the problems, among those of the run, that have a prediction.
        predictions: one for each kept problem.
        missing: number of problems without a prediction.
        extra: number of lines about other problems.
        repeated: number of lines about a problem that has a prediction already.
    """

    path: str
    kept: list[int]
    predictions: list[Prediction]
    missing: int
    extra: int
    repeated: int

    def record(self) -> dict[str, int]:
        """The counts."""
        return {
            "matched": len(self.kept),
            "missing": self.missing,
            "extra": self.extra,
            "repeated": self.repeated,
        }

    def line(self) -> str:
        """Return the numbers of problems with a prediction and without, for reading."""
        whole = len(self.kept) + self.missing
        if not (self.missing or self.extra or self.repeated):
            return f"{self.path}: one prediction for each of the {whole} problems"
        counts = [
            f"{self.missing} without one, left out for every model" if self.missing else "",
            f"{_lines(self.extra)} about other problems" if self.extra else "",
            f"{_lines(self.repeated)} too many for their problem, of which the first counts" if self.repeated else "",
        ]
        return f"{self.path}: predictions for {len(self.kept)} of {whole} problems; {'; '.join(filter(None, counts))}"


def _lines(count: int) -> str:
    return f"{count} line{'s' * (count > 1)}"


def read_outside(path: Path) -> list[OutsidePrediction]:
    """Read the file: a JSON object a line, with `prompt`, `prediction`, and perhaps `target` and `right`.

    Raises:
        UserError: the file cannot be read, holds nothing, or a line is no such object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text in UTF-8"
        raise UserError(f"predictions={path}: {reason}") from None
    out = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            out.append(_prediction(number, json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(
                f"predictions={path}: line {number} is no prediction; a line is a JSON object such as "
                '{"prompt": "2 1 * 4 3", "prediction": "8 0 4"}, and a model without an answer has null'
            ) from None
    if not out:
        raise UserError(f"predictions={path}: holds no prediction")
    return out


def _prediction(line: int, found: dict[str, Any]) -> OutsidePrediction:
    """Raise `ValueError`, `TypeError` or `KeyError` if the object is no prediction."""
    prompt, prediction, right = found["prompt"], found["prediction"], found.get("right")
    is_number = isinstance(prediction, int | float) and not isinstance(prediction, bool)
    if not isinstance(prompt, str) or not (prediction is None or is_number or isinstance(prediction, str)):
        raise TypeError
    if right is not None and not isinstance(right, bool):
        raise TypeError
    target = found.get("target")
    written = None if prediction is None else str(prediction)
    return OutsidePrediction(line, prompt, written, None if target is None else str(target), right)


def matched(
    path: str, lines: Sequence[OutsidePrediction], problems: Sequence[Prediction], normalize: Callable[[str], str]
) -> Matched:
    """Match predictions with problems by the text of the prompt; blanks do not matter.

    If a run has the same prompt several times, its lines answer the problems in order, and the last line answers those left.

    Args:
        path: the file, for messages.
        problems: the predictions of a run, which have the problems.
        normalize: makes an answer fit for comparison.

    Raises:
        UserError: no prompt is one of the run's, or a line has another target than the run.
    """
    found: dict[str, list[OutsidePrediction]] = defaultdict(list)
    for line in lines:
        found[_plain(line.prompt)].append(line)
    seen: dict[str, int] = defaultdict(int)
    kept, predictions = [], []
    for place, problem in enumerate(problems):
        prompt = _plain(problem.prompt)
        of_prompt = found.get(prompt)
        if of_prompt is None:
            continue
        line = of_prompt[min(seen[prompt], len(of_prompt) - 1)]
        seen[prompt] += 1
        kept.append(place)
        predictions.append(_judged(path, line, problem, normalize))
    if not kept:
        raise UserError(
            f"predictions={path}: no prompt is one of the run's; the first of the file is {lines[0].prompt[:60]!r}, "
            f"the first of the run {problems[0].prompt[:60]!r}"
        )
    extra = sum(len(of_prompt) for prompt, of_prompt in found.items() if prompt not in seen)
    repeated = sum(max(0, len(found[prompt]) - count) for prompt, count in seen.items())
    return Matched(path, kept, predictions, len(problems) - len(kept), extra, repeated)


def _judged(path: str, line: OutsidePrediction, problem: Prediction, normalize: Callable[[str], str]) -> Prediction:
    """A line of the file as a prediction for the problem; right if the file says so, or else if it equals the target."""
    if line.target is not None and normalize(line.target) != normalize(problem.target):
        raise UserError(
            f"predictions={path}: line {line.line}: the answer to {problem.prompt[:60]!r} is {line.target[:60]!r} here, "
            f"{problem.target[:60]!r} in the run"
        )
    written = None if line.prediction is None else normalize(line.prediction.rpartition(MARK)[2])
    is_right = line.right if line.right is not None else written == normalize(problem.target)
    return Prediction(problem.index, problem.prompt, problem.target, written, is_right, dict(problem.strata))


def _plain(prompt: str) -> str:
    return " ".join(prompt.split())
