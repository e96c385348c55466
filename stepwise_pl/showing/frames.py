"""The page of `demo`, event by event: the board frame by frame, another stage, the lens."""

import math
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.text import milliseconds
from stepwise_pl.reporting import demo_sheets as sheets
from stepwise_pl.reporting.demo_sheets import Column
from stepwise_pl.showing.panel import Panel

# In slow motion, tokens follow each other after at least this many seconds, and the whole takes at most that many.
LEAST_GAP, LONGEST = 0.25, 12.0
SLOW, TRUE = "slowed down", "at true pace"


def scale(panel: Panel) -> list[int]:
    """The numbers of the slider: those of the stages if they are evenly spaced, else places from 0 on."""
    numbers = [voice.number for voice in panel.voices]
    gaps = {after - before for before, after in pairwise(numbers)}
    return numbers if len(gaps) == 1 and min(gaps) > 0 else list(range(len(numbers)))


def place(panel: Panel, number: float) -> int:
    """The place of a number of the slider among the stages."""
    numbers = scale(panel)
    return min(range(len(numbers)), key=lambda at: abs(numbers[at] - number))


def frames(panel: Panel, question: str, number: int, pace: str) -> Iterator[str]:
    """Ask all models, then yield the board whenever a thought or a token came, on one clock for all models."""
    if not question.strip():
        yield sheets.error("the question is empty; type a problem")
        return
    yield sheets.note("asking …")
    try:
        columns = panel.answers(question, number, again=True)
    except UserError as error:
        yield sheets.error(str(error))
        return
    times = sorted({moment.milliseconds for column in columns if column.watched for moment in column.watched.moments})
    factor = 1.0 if pace == TRUE else slowdown(columns)
    begun = time.monotonic()
    for at in times:
        wait = at * factor / 1000 - (time.monotonic() - begun)
        if wait > 0:
            time.sleep(wait)
        elif at != times[-1] and -wait > LEAST_GAP:
            continue  # The browser is behind: the next frame shows this token too.
        yield sheets.board(columns, f"{pace_said(factor)}: {milliseconds(at)} ms after the prompt", at)
    yield sheets.board(columns, said_of(columns))


def slowdown(columns: list[Column]) -> float:
    """By how much tokens are shown slower than measured: each is seen, and the whole takes at most `LONGEST` seconds."""
    gaps = [
        after - before
        for column in columns
        if column.watched
        for before, after in pairwise((0.0, *(moment.milliseconds for moment in column.watched.moments)))
    ]
    longest = max(column.time for column in columns)
    usual = sorted(gaps)[len(gaps) // 2]
    return max(1.0, min(1000 * LEAST_GAP / max(usual, 1e-3), 1000 * LONGEST / longest))


def pace_said(factor: float) -> str:
    """`62 times slower than measured`, or `as fast as measured`."""
    return "as fast as measured" if factor == 1 else f"{factor:.3g} times slower than measured"


def said_of(columns: list[Column]) -> str:
    """The line above answers that are all there."""
    return "Done. Each model was asked alone, one after the other." if len(columns) > 1 else "Done."


def whole(panel: Panel, question: str, number: int) -> str:
    """The board at once; empty if nothing is asked yet. Models that have answered the question already are not asked again."""
    if not question.strip():
        return ""
    try:
        columns = panel.answers(question, number, again=False)
    except UserError as error:
        return sheets.error(str(error))
    return sheets.board(columns, said_of(columns))


def lens_of(panel: Panel, question: str, number: int) -> str:
    """The logit lens on the problem, or the line that says why there is none."""
    if not question.strip():
        return sheets.error("the question is empty; type a problem")
    try:
        grid = panel.grid(question, number)
    except UserError as error:
        return sheets.error(str(error))
    return sheets.lens(grid, f"Logit lens, {grid.removed_tokens} CoT tokens removed ({grid.checkpoint})")


def replies(panel: Panel, question: Any, number: Any) -> list[dict[str, Any]]:
    """The answer of each model, for programs, which may send anything: the columns as plain data; `number` -1: the last stage.

    A question that cannot be asked gives one entry with its `error`.
    """
    try:
        if not isinstance(question, str):
            raise UserError("the question must be a text")
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise UserError("the number must be one of the slider, or -1 for the last stage")
        columns = panel.answers(question, len(panel.voices) - 1 if number < 0 else place(panel, number), again=True)
    except UserError as error:
        return [{"key": "run", "error": str(error)}]
    return [sheets.plain(column) for column in columns]
