"""The parts of a suite that runs were asked: their accuracies, and what each run loses against its own test problems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepwise_pl.common.statistics import newcombe, paired_difference
from stepwise_pl.runs.predictions import PART, Prediction, Share

FEWEST = 50  # problems; an accuracy on fewer is not printed
TEST = "test"  # the part of unchanged problems


@dataclass(frozen=True)
class PartResult:
    """The result of a run in a part of a suite.

    Attributes:
        share: the right answers; None if the part has no problem.
        any_length: the answers that are right at any length, of as many problems.
        loss: accuracy on the run's own test problems minus accuracy in the part; None for the test problems and without problems.
        interval: the 95% interval of the loss.
        is_paired: whether the part is made of test problems. The loss is then against those alone, and its interval is
            paired (`paired_difference`); else it is against the whole test split (`newcombe`).
        why: why problems are left out; empty if none is.
    """

    part: str
    share: Share | None
    loss: float | None = None
    interval: tuple[float, float] | None = None
    is_paired: bool = False
    why: str = ""
    any_length: int = 0

    def record(self) -> dict[str, Any]:
        """Return the entry of a summary."""
        right, n = self.share or (0, 0)
        counts = {"right": right, "right_any_length": self.any_length, "n": n}
        loss = {"loss": self.loss, "loss_interval": self.interval, "paired": self.is_paired}
        return {"part": self.part, **counts, **loss, "left_out": self.why}

    @property
    def is_too_small(self) -> bool:
        """Whether the part has too few problems for an accuracy."""
        return self.share is None or self.share.n < FEWEST


def part_results(predictions: Sequence[Prediction], asked: Mapping[str, Any]) -> list[PartResult]:
    """Return the results of a run, part by part, the test problems first.

    Args:
        asked: the summary of the evaluation: `suite_sizes`, `suite_pairs` and `suite_left_out`. Old summaries lack the
            last two.
    """
    of_part: dict[str, dict[int, Prediction]] = {}
    for prediction in predictions:
        of_part.setdefault(prediction.strata[PART], {})[prediction.index] = prediction
    pairs, left_out = asked.get("suite_pairs", ()), asked.get("suite_left_out", {})
    test = of_part.get(TEST, {})
    return [
        _result(part, of_part.get(part, {}), test, part in pairs, left_out.get(part, ""))
        for part in asked["suite_sizes"]
    ]


def suite_results(summary: Mapping[str, Any]) -> list[PartResult]:
    """Return the results that the summary of an evaluation holds (`PartResult.record`)."""
    return [
        PartResult(
            part["part"],
            Share(part["right"], part["n"]) if part["n"] else None,
            part["loss"],
            part["loss_interval"],
            part["paired"],
            part["left_out"],
            part["right_any_length"],
        )
        for part in summary["suite_results"]
    ]


def _result(
    part: str, answers: Mapping[int, Prediction], test: Mapping[int, Prediction], is_paired: bool, why: str
) -> PartResult:
    """Return the result of a part; `answers`, `test`: the answers there and to the test problems, by the place of the problem."""
    if not answers:
        return PartResult(part, None, is_paired=is_paired, why=why)
    share = Share.of(answer.right for answer in answers.values())
    any_length = sum(answer.right_any_length for answer in answers.values())
    if part == TEST or not test:
        return PartResult(part, share, why=why, any_length=any_length)
    if is_paired:
        both = [(test[index].right, answer.right) for index, answer in answers.items()]
        only_test, only_part = both.count((True, False)), both.count((False, True))
        loss = (only_test - only_part) / len(both)
        interval = paired_difference(only_test, only_part, len(both))
        return PartResult(part, share, loss, interval, True, why, any_length)
    own = Share.of(answer.right for answer in test.values())
    interval = newcombe((own.accuracy, own.n), (share.accuracy, share.n))
    return PartResult(part, share, own.accuracy - share.accuracy, interval, False, why, any_length)
