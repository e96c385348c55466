"""The result of an evaluation, for reading."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwise_pl.common.text import percent, percents, table, with_wilson
from stepwise_pl.runs.expected import judged_lines
from stepwise_pl.runs.predictions import HEAD, Prediction, Share, by_last_number, by_position, by_stratum

DIGITS_A_LINE = 10


def written_lines(summary: Mapping[str, Any]) -> list[str]:
    """Lines for reading: CoT tokens that the model wrote, beside those of the targets."""
    written, wanted = (
        f"{found['mean']:.1f} per answer ({found['least']} to {found['most']})"
        for found in (summary["cot_tokens_written"], summary["cot_tokens_of_targets"])
    )
    lines = [f"CoT tokens      written: {written}; in the targets: {wanted}"]
    if not summary["as_trained"]:
        key = "removed_steps" if "removed_steps" in summary else "removed_tokens"
        lines.append(f"{'':16}{key}= sets only the targets of loss and length: the model writes what it has learned to")
    return lines


def result_lines(predictions: list[Prediction], summary: dict[str, Any]) -> list[str]:
    """Accuracy of a split or file in all its aspects, for reading."""
    whole = Share.of(one.right for one in predictions)
    positions = by_position(predictions)
    shown = [
        f"{place}: {percent(share.accuracy)}{f' (n={share.n})' if share.n < whole.n else ''}"
        for place, share in enumerate(positions, start=1)
    ]
    lines = [
        f"answer accuracy {with_wilson(whole.accuracy, whole.n)}  [95% Wilson interval]",
        *any_length_lines(whole, predictions, summary),
        *last_number_lines(predictions),
        f"token accuracy  {summary['token_accuracy']:6.2%}",
        f"loss            {summary['loss']:.4f} (perplexity {summary['perplexity']:.3f})",
    ]
    if judged := summary.get("expected"):
        lines += judged_lines(judged)
    if summary["unfinished_answers"]:
        lines.append(
            f"no answer       {summary['unfinished_answers']} of {whole.n} were not finished within the "
            f"{summary['max_new_tokens']} tokens that a target may take, and count as wrong"
        )
    if len(positions) > 1:
        starts = range(0, len(shown), DIGITS_A_LINE)
        lines += [("digit accuracy  " if not i else " " * 16) + "  ".join(shown[i : i + DIGITS_A_LINE]) for i in starts]
    lines += [
        f"speed           {value:.1f} problems per second at batch {key.rpartition('_')[2]} ({summary['accelerator']})"
        for key, value in summary.items()
        if key.startswith("problems_per_second")
    ]
    for name, shares in by_stratum(predictions).items():
        if len(shares) > 1:
            lines += ["", *table((name, *HEAD), ([value, *share.row()] for value, share in shares.items()))]
    return [*lines, ""] if summary["strata"] else lines


def runs_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The evaluations of several runs as one table, a row for each; `found`: the summaries of each run, by its folder."""
    rows = []
    for folder, summaries in found.items():
        for summary in summaries:
            where = ", ".join(str(summary[key]) for key in ("removed_tokens", "stage") if key in summary)
            accuracy = [
                percent(summary["answer_accuracy"]),
                percents(summary["answer_interval"]),
                str(summary["examples"]),
            ]
            rows.append([folder, Path(summary["checkpoint"]).stem, str(summary["step"]), where, *accuracy])
    return table(("run", "checkpoint", "step", "removed tokens", "accuracy", "95% Wilson interval", "n"), rows)


def any_length_lines(whole: Share, predictions: Sequence[Prediction], summary: Mapping[str, Any]) -> list[str]:
    """Accuracy of answers of any length, for reading; nothing where it is the same."""
    at_all = Share.of(one.right_any_length for one in predictions)
    if at_all == whole:
        return []
    return [
        f"at any length   {with_wilson(at_all.accuracy, at_all.n)}  "
        f"({at_all.right - whole.right} right answers took more than {summary['max_new_tokens']} tokens)"
    ]


def last_number_lines(predictions: Sequence[Prediction]) -> list[str]:
    """Accuracy by the last number of the output, for reading; nothing where answers are no numbers."""
    share = by_last_number(predictions)
    if share is None:
        return []
    return [f"by last number  {with_wilson(share.accuracy, share.n)}  (as a float, at any length)"]
