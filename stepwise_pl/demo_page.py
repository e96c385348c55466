"""The page of `demo`, as gradio serves it."""

import os
import socket
import time
import webbrowser
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stepwise_pl import __version__
from stepwise_pl.cli.words import say
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.text import milliseconds
from stepwise_pl.demo_models import TRIES_FOR
from stepwise_pl.demo_panel import Panel, facts_of, title_of
from stepwise_pl.reporting import demo_sheets as sheets
from stepwise_pl.reporting.demo_sheets import Column

if TYPE_CHECKING:
    import gradio as gr
    import uvicorn

# The ports to try.
PORTS = range(7860, 7960)
# In slow motion, tokens follow each other after at least this many seconds, and the whole takes at most that many.
LEAST_GAP, LONGEST = 0.25, 12.0
SLOW, TRUE = "slowed down", "at true pace"
LEAD = (
    "Type a problem as people write it. Each thought and each token then appears with the milliseconds since the prompt was "
    "given and the forward passes so far."
)
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "DejaVu Sans Mono", "monospace")
# The parts of gradio's theme that take the colours of the report. These follow the system, in light and in dark.
COLORS = {
    "body_background_fill": "--paper", "body_text_color": "--ink", "body_text_color_subdued": "--soft",
    "background_fill_primary": "--paper", "background_fill_secondary": "--panel", "block_background_fill": "--paper",
    "block_border_color": "--line", "block_label_text_color": "--soft", "block_title_text_color": "--soft",
    "block_label_background_fill": "--paper", "block_info_text_color": "--soft", "border_color_primary": "--line",
    "border_color_accent": "--link", "input_background_fill": "--panel", "input_border_color": "--line",
    "input_border_color_focus": "--link", "input_placeholder_color": "--soft", "slider_color": "--link",
    "color_accent": "--link", "link_text_color": "--link", "loader_color": "--link",
    "button_primary_background_fill": "--link", "button_primary_background_fill_hover": "--link",
    "button_primary_text_color": "--paper", "button_primary_border_color": "--link",
    "button_secondary_background_fill": "--panel", "button_secondary_background_fill_hover": "--grid",
    "button_secondary_text_color": "--ink", "button_secondary_border_color": "--line",
    "checkbox_background_color": "--paper", "checkbox_background_color_selected": "--link",
    "checkbox_border_color": "--line", "checkbox_border_color_selected": "--link",
    "checkbox_label_background_fill": "--panel", "checkbox_label_background_fill_selected": "--panel",
    "checkbox_label_text_color": "--ink", "checkbox_label_text_color_selected": "--ink", "error_text_color": "--wrong",
}  # fmt: skip


def serve(panel: Panel, host: str, port: int | None, *, is_opened: bool) -> None:
    """Serve the page until Ctrl-C.

    Args:
        is_opened: open the page in the browser of this machine.

    Raises:
        UserError: the port is taken, or the address is none of this machine.
    """
    page = build(panel)
    with listening(host, port) as door:
        url = f"http://{f'[{host}]' if ':' in host else host}:{door.getsockname()[1]}"
        say(f"the page is at {url} ; Ctrl-C ends it")
        if is_opened:
            webbrowser.open(url)
        server_of(page).run(sockets=[door])


def listening(host: str, port: int | None) -> socket.socket:
    """Return a socket that takes connections, at the port or at the first free one of `PORTS`.

    Raises:
        UserError: the port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem: OSError | None = None
    for number in PORTS if port is None else (port,):
        try:
            return socket.create_server((host, number), family=family)
        except OSError as error:
            problem = error
    raise UserError(
        f"host={host} port={port if port is not None else PORTS[0]}: the page cannot be served there ({problem}); give another port or host"
    )


def server_of(page: "gr.Blocks") -> "uvicorn.Server":
    """Return a server of the page.

    It is none of gradio's own, which asks itself over the network whether it is there, and gives up on a busy machine or behind a
    proxy.
    """
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    app = gr.mount_gradio_app(
        FastAPI(), page, "/", footer_links=[], theme=theme(), head=f"<style>{sheets.style()}</style>", ssr_mode=False, pwa=False,
        enable_monitoring=False, show_error=False,
    )  # fmt: skip
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))


def theme() -> Any:
    """The theme of gradio with the fonts and colours of the report. It loads no font."""
    import gradio as gr

    colors = {name: f"var({value})" for name, value in COLORS.items()}
    known = vars(gr.themes.Base())
    dark = {f"{name}_dark": value for name, value in colors.items() if f"{name}_dark" in known}
    fonts, mono = [gr.themes.Font(name) for name in FONTS], [gr.themes.Font(name) for name in MONO]
    return gr.themes.Base(font=fonts, font_mono=mono, radius_size="sm").set(**colors, **dark)


def build(panel: Panel) -> "gr.Blocks":
    """Return the page, not yet served."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it while it is imported, too
    import gradio as gr

    folder = panel.voices[0].folder
    with gr.Blocks(title=title_of(folder), analytics_enabled=False, fill_width=True) as page:
        sheet(gr, sheets.header(title_of(folder), f"{LEAD} {panel.form}".strip(), facts_of(folder, panel.voices)))
        with gr.Row(elem_classes="ask-row"):
            question = gr.Textbox(label="Problem", placeholder=(panel.examples or [""])[0], scale=4, elem_id="question")
            ask = gr.Button("Ask", variant="primary", scale=0, elem_id="ask")
        clicks = examples_row(gr, panel)
        with gr.Row(elem_classes="controls"):
            number = slider(gr, panel)
            pace = gr.Radio([SLOW, TRUE], value=SLOW, label="Tokens appear", elem_id="pace", scale=1)
        board = sheet(gr, "", "board")
        look = gr.Button("Logit lens: what each layer would say", visible=panel.has_lens, elem_id="look")
        lens = sheet(gr, "", "lens")
        is_open = gr.State(False)
        sheet(gr, sheets.footer(__version__, panel.models.device.type, TRIES_FOR))

        def answer(question: str, number: float, pace: str) -> Iterator[str]:
            yield from frames(panel, question, place(panel, number), pace)

        def at_once(question: str, number: float) -> str:
            return whole(panel, question, place(panel, number))

        def look_inside(question: str, number: float) -> tuple[str, bool]:
            return lens_of(panel, question, place(panel, number)), True

        def look_again(question: str, number: float, is_open: bool) -> str:
            return lens_of(panel, question, place(panel, number)) if is_open else ""

        def for_programs(question: str, number: float = -1) -> list[dict[str, Any]]:
            return replies(panel, question, int(number))

        asked = [question, number, pace]
        plays = []
        for button, text in clicks:
            chosen = button.click(lambda text=text: text, None, question, api_visibility="private")
            plays.append(chosen.then(answer, asked, board, show_progress="hidden", api_visibility="private"))
        plays.append(
            gr.on([ask.click, question.submit], answer, asked, board, show_progress="hidden", api_name="watch")
        )
        for play in plays:
            play.then(look_again, [question, number, is_open], lens, show_progress="hidden", api_visibility="private")
        moved = number.change(at_once, [question, number], board, show_progress="hidden", trigger_mode="always_last",
                              cancels=plays, api_visibility="private")  # fmt: skip
        moved.then(look_again, [question, number, is_open], lens, show_progress="hidden", api_visibility="private")
        look.click(look_inside, [question, number], [lens, is_open], show_progress="hidden", api_visibility="private")
        gr.api(for_programs, api_name="ask")
    page.queue(default_concurrency_limit=8)
    return page


def sheet(gr: Any, html: str, name: str | None = None) -> Any:
    """A part of the page in the look of the report."""
    return gr.HTML(html, elem_id=name, elem_classes="sheet", js_on_load=None, apply_default_css=False)


def examples_row(gr: Any, panel: Panel) -> list[tuple[Any, str]]:
    """Buttons with problems, each with its text."""
    with gr.Row(elem_classes="examples", visible=bool(panel.examples)):
        return [(gr.Button(text, size="sm", elem_classes="example"), text) for text in panel.examples]


def slider(gr: Any, panel: Panel) -> Any:
    """The slider over the stages; it is hidden if there is one alone."""
    numbers = scale(panel)
    return gr.Slider(
        numbers[0], max(numbers[-1], numbers[0] + 1), value=numbers[-1], step=numbers[1] - numbers[0] if len(numbers) > 1 else 1,
        label=panel.label, visible=len(numbers) > 1, elem_id="stage", scale=3, buttons=[],
    )  # fmt: skip


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
    times = sorted({moment.milliseconds for one in columns if one.watched for moment in one.watched.moments})
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
    """How many times slower than measured tokens are shown: so that each is seen, and that the end comes soon."""
    gaps = [
        moment.milliseconds - before
        for one in columns
        if one.watched
        for before, moment in zip(
            (0.0, *(m.milliseconds for m in one.watched.moments)), one.watched.moments, strict=False
        )
    ]
    longest = max(one.time for one in columns)
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


def replies(panel: Panel, question: str, number: int) -> list[dict[str, Any]]:
    """What each model says, for programs: the columns as plain data; `number` -1: the last stage.

    A question that cannot be asked gives one entry with its `error`.
    """
    try:
        columns = panel.answers(question, len(panel.voices) - 1 if number < 0 else place(panel, number), again=True)
    except UserError as error:
        return [{"key": "run", "error": str(error)}]
    return [sheets.plain(column) for column in columns]
