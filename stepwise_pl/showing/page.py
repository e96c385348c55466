"""The page of `demo`, as gradio serves it."""

import errno
import logging
import os
import socket
import webbrowser
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from stepwise_pl import __version__
from stepwise_pl.cli.words import say
from stepwise_pl.common.errors import UserError
from stepwise_pl.reporting import demo_sheets as sheets
from stepwise_pl.showing.frames import SLOW, TRUE, frames, lens_of, place, replies, scale, whole
from stepwise_pl.showing.models import TRIES_FOR
from stepwise_pl.showing.panel import Panel, facts_of, title_of

if TYPE_CHECKING:
    import gradio as gr
    import uvicorn

# The ports to try.
PORTS = range(7860, 7960)
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
            if error.errno != errno.EADDRINUSE:
                break  # Another port would not help.
    raise UserError(
        f"host={host} port={number}: the page cannot be served there ({problem}); give another port or host"
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

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # A page that is open in a browser holds a connection. Its end at Ctrl-C is no error, and needs no traceback.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    return Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))


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

        parts = Parts(question, ask, clicks, number, pace, board, look, lens, is_open)
        connect(gr, panel, parts)
    page.queue(default_concurrency_limit=8)
    return page


class Parts(NamedTuple):
    """The parts of the page that change or are clicked; `clicks` are the examples, each with its text."""

    question: Any
    ask: Any
    clicks: list[tuple[Any, str]]
    number: Any
    pace: Any
    board: Any
    look: Any
    lens: Any
    is_open: Any


def connect(gr: Any, panel: Panel, on: Parts) -> None:
    """Say what happens on the page. Two calls are open to programs: `/watch` yields the board, and `/ask` gives plain data."""
    quiet = {"show_progress": "hidden", "api_visibility": "private"}

    def answer(question: str, number: float, pace: str) -> Iterator[str]:
        yield from frames(panel, question, place(panel, number), pace)

    def at_once(question: str, number: float) -> str:
        return whole(panel, question, place(panel, number))

    def look_inside(question: str, number: float) -> tuple[str, bool]:
        return lens_of(panel, question, place(panel, number)), True

    def look_again(question: str, number: float, is_open: bool) -> str:
        return lens_of(panel, question, place(panel, number)) if is_open else ""

    def for_programs(question: str, number: float = -1) -> list[dict[str, Any]]:
        return replies(panel, question, number)

    asked, problem = [on.question, on.number, on.pace], [on.question, on.number]
    typed = [on.ask.click, on.question.submit]
    plays = [gr.on(typed, answer, asked, on.board, show_progress="hidden", api_name="watch")]
    for button, text in on.clicks:
        chosen = button.click(lambda text=text: text, None, on.question, **quiet)
        plays.append(chosen.then(answer, asked, on.board, **quiet))
    # Whoever moves the slider does not wait for the last tokens of the stage before.
    moved = on.number.change(at_once, problem, on.board, trigger_mode="always_last", cancels=plays, **quiet)
    for event in (*plays, moved):
        event.then(look_again, [*problem, on.is_open], on.lens, **quiet)
    on.look.click(look_inside, problem, [on.lens, on.is_open], **quiet)
    gr.api(for_programs, api_name="ask")


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
