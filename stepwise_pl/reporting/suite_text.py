"""The results of runs on a suite as text and as CSV: parts by runs."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from stepwise_pl.common.text import percent, percents, table
from stepwise_pl.runs.predictions import Share
from stepwise_pl.runs.suites import FEWEST, TEST, PartResult

HEAD = (
    "part", "run", "checkpoint", "step", "removed_tokens", "max_cot_tokens", "n", "right", "accuracy", "accuracy_low",
    "accuracy_high", "right_any_length", "loss", "loss_low", "loss_high", "paired", "left_out",
)  # fmt: skip
# The beginning of every such file.
CSV_START = b"part,run,checkpoint,"


def accuracy_cell(result: PartResult) -> str:
    """`82.4% [79.1%, 85.3%] n=500`; `n=12, too few` below `FEWEST` problems."""
    if result.share is None:
        return "n=0"
    if result.is_too_small:
        return f"n={result.share.n}, too few"
    return f"{percent(result.share.accuracy)} {percents(result.share.interval)} n={result.share.n}"


def any_length_cell(result: PartResult) -> str:
    """`85.1% [81.7%, 87.9%]`: the accuracy at any length; empty if it is that of `accuracy_cell`, and below `FEWEST` problems."""
    if result.share is None or result.is_too_small or result.any_length == result.share.right:
        return ""
    share = Share(result.any_length, result.share.n)
    return f"{percent(share.accuracy)} {percents(share.interval)}"


def loss_cell(result: PartResult) -> str:
    """`+12.3 [+9.1, +15.4]`: the loss in points with its interval; empty without one, and below `FEWEST` problems."""
    if result.loss is None or result.interval is None or result.is_too_small:
        return ""
    low, high = (100 * end for end in result.interval)
    return f"{100 * result.loss:+.1f} [{low:+.1f}, {high:+.1f}]"


def suite_lines(results: Sequence[PartResult], suite_size: int) -> list[str]:
    """Return the parts of one run as a table, the test problems first; `suite_size`: the problems that were asked for in each."""
    shown = [result for result in results if not _is_missing(result)]
    rows = [[result.part, accuracy_cell(result), any_length_cell(result), loss_cell(result)] for result in shown]
    head = ["part", "accuracy", "at any length", "points lost"]
    if not any(row[2] for row in rows):
        head, *rows = ([*row[:2], row[3]] for row in (head, *rows))
    return [
        "",
        *table(head, rows),
        *left_out_lines({"": results}),
        *notes([results], suite_size),
        "",
    ]


def side_by_side(found: Mapping[str, tuple[Mapping[str, Any], Sequence[PartResult]]]) -> list[str]:
    """Return the parts of several runs as one table of accuracies, with the points that each run loses below them.

    Args:
        found: summary and results of each run, by its folder.
    """
    legend = [
        [f"{number}  {name}", str(summary["checkpoint"]), str(summary["step"]), _removed(summary), _written(summary)]
        for number, (name, (summary, _)) in enumerate(found.items(), start=1)
    ]
    by_run = [{result.part: result for result in results} for _, results in found.values()]
    parts = list(
        dict.fromkeys(part for results in by_run for part, result in results.items() if not _is_missing(result))
    )
    head = ("part", *(f"run {number}" for number in range(1, len(found) + 1)))
    accuracies, any_length, losses = (
        [[part, *(cell(results[part]) if part in results else "" for results in by_run)] for part in parts]
        for cell in (accuracy_cell, any_length_cell, loss_cell)
    )
    # The accuracy of each part always has a row. The other rows are left out if they are empty.
    blocks = {"accuracy": accuracies} | {
        name: filled
        for name, rows in (("accuracy at any length", any_length), ("points lost", losses))
        if (filled := [row for row in rows if any(row[1:])])
    }
    lines = [
        *table(("run", "checkpoint", "step", "removed tokens", "CoT tokens written"), legend),
        "",
        *table(head, [row for name, rows in blocks.items() for row in ([name, *[""] * len(found)], *rows)]),
        *left_out_lines({f"run {number}, ": results for number, (_, results) in enumerate(found.values(), start=1)}),
        *notes([results for _, results in found.values()], next(iter(found.values()))[0]["suite_size"]),
    ]
    if len({summary["data_digest"] for summary, _ in found.values()}) > 1:
        lines.append(
            "The runs have not all answered the same problems: one cannot read them all, or its task is another one."
        )
    return lines


def _is_missing(result: PartResult) -> bool:
    """Whether a run can read no problem of the part. A line says so in place of a row."""
    return result.share is None and bool(result.why)


def _num_problems(result: PartResult) -> int:
    return result.share.n if result.share is not None else 0


def _removed(summary: Mapping[str, Any]) -> str:
    stage = f", {summary['stage']}" if "stage" in summary else ""
    return f"{summary['removed_tokens']} of {summary['max_cot_tokens']}{stage}"


def _written(summary: Mapping[str, Any]) -> str:
    return f"{summary['cot_tokens_written']['mean']:.1f}"


def left_out_lines(found: Mapping[str, Sequence[PartResult]]) -> list[str]:
    """Return a line for each reason why problems are left out; `found`: the results by the beginning of their lines.

    Parts that are missing for the same reason share a line. Runs share their lines if all miss the same parts for the same reasons.
    """
    reasons = {run: [result.why for result in results] for run, results in found.items()}
    first, *others = reasons.values()
    is_same = all(reason == first for reason in others)
    lines: dict[tuple[str, str], list[str]] = {}
    for run, results in found.items() if not is_same else [("", next(iter(found.values())))]:
        for result in results:
            if result.why:
                lines.setdefault((run, result.why), []).append(result.part)
    return [f"{run}{', '.join(parts)}: {why}" for (run, why), parts in lines.items()]


def notes(found: Sequence[Sequence[PartResult]], suite_size: int) -> list[str]:
    """Return the lines that explain the numbers: kinds of intervals, and parts with few problems.

    Args:
        found: the results of each run.
        suite_size: the problems that were asked for in each part.
    """
    every = [result for results in found for result in results]
    lines = ["accuracy: 95% Wilson interval; points lost: against the run's own test problems, 95% interval"]
    kinds = {result.is_paired for result in every if loss_cell(result)}
    if kinds == {True}:
        lines[0] += ", paired (Bonett and Price 2012)"
    elif kinds == {False}:
        lines[0] += " (Newcombe 1998)"
    elif kinds:
        lines[0] += "; paired for parts made of test problems (Bonett and Price 2012), else Newcombe 1998"
    small = [
        result for result in every if result.part != TEST and not result.why and _num_problems(result) < suite_size
    ]
    if any(not result.is_paired for result in small):
        lines.append(f"Where n is below {suite_size} there are no more such problems that were not trained on.")
    elif small:
        lines.append(f"Where n is below {suite_size} there are no more test problems that have this form.")
    if any(result.share is not None and result.is_too_small for result in every):
        lines.append(f"A part of fewer than {FEWEST} problems has no percentage.")
    return lines


def csv_text(found: Mapping[str, tuple[Mapping[str, Any], Sequence[PartResult]]]) -> str:
    """Return the results of runs as CSV, a row for each part and run; accuracies and losses are between -1 and 1.

    Args:
        found: summary and results of each run, by its folder.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEAD)
    parts = list(dict.fromkeys(result.part for _, results in found.values() for result in results))
    for part in parts:
        for run, (summary, results) in found.items():
            for result in results:
                if result.part == part:
                    writer.writerow([part, run, *_numbers(summary, result)])
    return file.getvalue()


def _numbers(summary: Mapping[str, Any], result: PartResult) -> list[Any]:
    about = [summary[key] for key in ("checkpoint", "step", "removed_tokens", "max_cot_tokens")]
    share, has_numbers = result.share, not result.is_too_small
    counts = [share.n, share.right] if share is not None else [0, 0]
    accuracy = [share.accuracy, *share.interval] if share is not None and has_numbers else ["", "", ""]
    has_loss = has_numbers and result.loss is not None and result.interval is not None
    loss = [result.loss, *result.interval] if has_loss and result.interval is not None else ["", "", ""]
    paired = str(result.is_paired).lower() if result.part != TEST else ""
    return [*about, *counts, *accuracy, result.any_length, *loss, paired, result.why]
