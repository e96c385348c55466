"""Loss over steps, with removed tokens below."""

import math
from collections.abc import Sequence
from typing import Any

from stepwise_pl.reporting.figures.data import Chart, Panel, Series, listed
from stepwise_pl.reporting.history import History, Row

# A curve shows about this many points. Of a longer one every n-th row is shown.
POINTS = 1000
REMOVED = "schedule/removed_tokens"
# Training logs these besides the terms of a method.
NO_LOSSES = ("train/loss", "train/token_accuracy", "train/lr", "train/examples_per_second")


def loss_chart(runs: Sequence[History]) -> Chart | None:
    """Loss over steps, and below it the removed tokens; None if no loss was logged."""
    losses: list[Series] = []
    removed: list[Series] = []
    lines, strides = [], set()
    for number, run in enumerate(runs):
        trained = [row for row in run.rows if "train/loss" in row]
        if not trained:
            continue
        stride = -(-len(trained) // POINTS)
        strides.add(stride)
        losses.append(_curve(run, number, thinned(trained, stride), "train/loss", "loss", meaning="training"))
        losses += _terms(run, number, stride)
        losses += _given_up(run, number)
        validated = [row for row in run.rows if "val/loss" in row]
        losses.append(_curve(
            run, number, validated, "val/loss", "validation loss, without offset", line="none", marker="run", meaning="validation",
        ))  # fmt: skip
        removed += _removed(run, number)
        lines.append(f"{run.label}: {trained[-1]['train/loss']:.3g} at step {trained[-1]['step']:.0f}")
    if not losses:
        return None
    caption = "Above: training loss in nats per target token (lines) and loss on validation (markers). Below: removed CoT tokens"
    caption += "; ticks: the optimizer was reset." if any(run.resets for run in runs) else "."
    if any(run.given_up for run in runs):
        caption += " Dotted: given up when the guard went back, at ×."
    if max(strides) > 1:
        caption += f" Long curves show one of up to {max(strides)} logged steps."
    return Chart(
        "loss", "Loss, and removed tokens, over steps", caption,
        f"Line chart of the training loss over optimizer steps. Last values: {listed(lines)}.", "optimizer steps",
        [Panel("loss", losses, log=True, share=2.0), Panel("removed", removed)],
    )  # fmt: skip


def _terms(run: History, number: int, stride: int) -> list[Series]:
    """The further terms that the run's method minimises (`train/auxiliary`, `train/emulation`, ...), a dotted line each."""
    keys = dict.fromkeys(key for row in run.rows for key in row if key.startswith("train/") and key not in NO_LOSSES)
    return [
        _curve(
            run, number, thinned([row for row in run.rows if key in row], stride), key, key.removeprefix("train/"),
            line="dotted", thin=True, meaning=key.removeprefix("train/"),
        )
        for key in keys
    ]  # fmt: skip


def _given_up(run: History, number: int) -> list[Series]:
    """The training loss of each attempt that the guard gave up, with × at its end."""
    out = []
    for rows in run.given_up:
        trained = [row for row in rows if "train/loss" in row]
        if not trained:
            continue
        shown = thinned(trained, -(-len(trained) // POINTS))
        out.append(_curve(run, number, shown, "train/loss", "loss, given up", line="dotted", meaning="given up"))
        end = _curve(
            run, number, shown[-1:], "train/loss", "the guard went back", line="none", marker="x", meaning="the guard went back"
        )  # fmt: skip
        out.append(end)
    return out


def _removed(run: History, number: int) -> list[Series]:
    """The staircase of removed tokens, of which the corners suffice, and the resets of the optimizer."""
    rows = [row for row in run.rows if REMOVED in row and "test/loss" not in row]
    corners = [
        row
        for place, row in enumerate(rows)
        if place in (0, len(rows) - 1)
        or row[REMOVED] != rows[place - 1][REMOVED]
        or row[REMOVED] != rows[place + 1][REMOVED]
    ]
    out = [_curve(run, number, corners, REMOVED, "CoT tokens removed", line="steps")]
    if run.resets:
        out.append(_curve(
            run, number, run.resets, REMOVED, "removed; optimizer reset", line="none", marker="|", meaning="the optimizer was reset",
        ))  # fmt: skip
    return out


def thinned(rows: Sequence[Row], stride: int) -> list[Row]:
    """Every `stride`-th of the rows, and the last."""
    return [*rows[:-1:stride], *rows[-1:]]


def _curve(run: History, number: int, rows: Sequence[Row], key: str, what: str, **style: Any) -> Series:
    return Series(
        x=[row["step"] for row in rows],
        y=[row[key] if math.isfinite(row[key]) else None for row in rows],
        runs=[number],
        cell=run.cell,
        turn=run.turn,
        name=f"{run.label}: {what}",
        hover=[
            f"{run.label}\n{what} {row[key]:.4g}\nstep {row['step']:.0f}, {row.get(REMOVED, 0):.0f} removed"
            f"{f', stage {stage}' if (stage := run.stage_of(row)) else ''}"
            for row in rows
        ],
        **style,
    )
