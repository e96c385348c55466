"""The trade-off of one run: accuracy and speed at each number of removed tokens, as a table, a CSV file and figures."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwise_pl.common.disk import write_text
from stepwise_pl.common.errors import go_on_without
from stepwise_pl.common.text import percent, percents, table
from stepwise_pl.reporting.figures.speed import by_batch_size, tradeoff_charts
from stepwise_pl.reporting.history import History
from stepwise_pl.reporting.static import write_figure
from stepwise_pl.runs.cells import csv_of
from stepwise_pl.runs.saved_config import comparable_config


def row_of(summary: Mapping[str, Any], slowest: Mapping[str, Any]) -> dict[str, Any]:
    """The row of an evaluation in the CSV file.

    Args:
        summary: the summary of the evaluation.
        slowest: the summary with the fewest removed tokens, to which speeds are relative.
    """
    low, high = summary["answer_interval"]
    row = {
        "removed_tokens": summary["removed_tokens"],
        **({"stage": summary["stage"]} if "stage" in summary else {}),
        "checkpoint": summary["checkpoint"],
        "step": summary["step"],
        "cot_tokens_written": summary["cot_tokens_written"]["mean"],
        "accuracy": summary["answer_accuracy"],
        "interval_low": low,
        "interval_high": high,
        "examples": summary["examples"],
    }
    base = by_batch_size(slowest)
    for batch, speed in by_batch_size(summary).items():
        row |= {f"problems_per_second_batch_{batch}": speed, f"speed_ratio_batch_{batch}": speed / base[batch]}
    return row


def lines(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table for reading, a row for each evaluation, in the order given; the first one has the fewest removed tokens."""
    base = by_batch_size(summaries[0])
    named = any("stage" in summary for summary in summaries)
    head = [*["stage"] * named, "removed tokens", "CoT written", "accuracy", "95% Wilson interval", "n"]
    for batch in base:
        head += [f"/s at batch {batch}", "speed"]
    rows = []
    for summary in summaries:
        row = [
            *[summary.get("stage", "")] * named, str(summary["removed_tokens"]), f"{summary['cot_tokens_written']['mean']:.1f}", percent(summary["answer_accuracy"]),
            percents(summary["answer_interval"]), str(summary["examples"]),
        ]  # fmt: skip
        for batch, speed in by_batch_size(summary).items():
            row += [f"{speed:.1f}", f"{speed / base[batch]:.2f}x"]
        rows.append(row)
    slowest, most = summaries[0], summaries[0]["max_cot_tokens"]
    least = f"stage {slowest['stage']}" if "stage" in slowest else f"{slowest['removed_tokens']} removed tokens"
    notes = [f"CoT written: tokens, the mean; the longest CoT of the training set has {most}"]
    notes += [f"/s: problems per second; speed: relative to {least}"] if base else []
    if base and (load := os.getloadavg()[0]) > (cores := os.cpu_count() or 1):
        notes.append(
            f"This machine does other work (load {load:.1f}, {cores} cores): speeds compare only on a quiet one."
        )
    return [*table(head, rows), *notes]


def write(summaries: Sequence[dict[str, Any]], run: Path, stem: Path) -> list[Path]:
    """Write the table as `<stem>.csv`, and for each batch size whose speed was measured a figure, as PNG and SVG.

    Args:
        summaries: evaluations of the run on the same problems, in the order of removed tokens.
        run: the run folder.
        stem: where the files go, without the ending.

    Returns:
        The files. A figure that cannot be drawn is a warning.
    """
    files = [stem.with_name(f"{stem.name}.csv")]
    write_text(files[0], csv_of([row_of(summary, summaries[0]) for summary in summaries]))
    with go_on_without(f"{stem.name}.png"):
        history = History(run, run.name, config=comparable_config(run), evaluations=list(summaries))
        for chart in tradeoff_charts(history, stem.name):
            files += write_figure(chart, [run.name], stem.parent)
    return files
