"""Signals end a run after its step, and the user is told how it goes on."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from stepwise_pl.common import processes, signals
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.request import Request
from stepwise_pl.runs.folder import how_to_go_on
from stepwise_pl.runs.marks import holds_run, is_begun

log = logging.getLogger("stepwise_pl")


@contextlib.contextmanager
def stop_explained(run_dir: Path, asked: Request) -> Iterator[None]:
    """Let signals end the run after its step, and say how it goes on. A second Ctrl-C does not wait for the step.

    Raises:
        SystemExit: a signal has ended the run; the status is 128 and its number.
    """
    reason: int | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal reason
        again = reason in (signal.SIGINT, signal.SIGQUIT)
        reason = number if reason is None else reason
        if number == signal.SIGHUP:
            signals.leave_dead_terminal()
        # While a run trains, SIGTERM has another handler, which stops it after a step (`training.between_steps`).
        if signal.getsignal(signal.SIGTERM) is stop:
            raise SystemExit(128 + reason)
        if number == signal.SIGTERM:
            return  # Lightning's handler, in place until training begins, calls this one and has taken note.
        if number in (signal.SIGINT, signal.SIGQUIT):
            if again:
                raise KeyboardInterrupt
            log.warning(
                "stopping after this step; Ctrl-C again stops at once, and what came after the last checkpoint is lost"
            )
        signal.raise_signal(signal.SIGTERM)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals.STOPS:
            # A Ctrl-C is taken also where a shell has started the run in its background. A job of another process does
            # not take it, because that process tells its jobs.
            always = number == signal.SIGTERM or (number == signal.SIGINT and not asked.is_worker)
            if always or signals.is_free(number):
                before[number] = signal.signal(number, stop)
    try:
        yield
    except BaseException as error:
        is_stop = is_signal(error)
        begun = holds_run(run_dir) or is_begun(run_dir)
        # A user's error says itself what to do, and a sweep says it at its end.
        told = isinstance(error, UserError) or bool(asked.job) or processes.is_further()
        if not told and (is_stop or begun):
            log.error("%s", how_to_go_on(run_dir))
        if is_stop:
            raise SystemExit(128 + (reason or signal.SIGTERM)) from None
        raise
    finally:
        ends = reason is not None and not asked.job
        for number, handler in before.items():
            # A terminal that closes hangs up more than once: the process still ends with the status of the first signal.
            signal.signal(number, signal.SIG_IGN if ends and number == signal.SIGHUP else handler)


def is_signal(error: BaseException) -> bool:
    """Whether this is how a signal ends a run: Lightning makes an exit of status 1 of some, by which nobody would know."""
    # By name: whoever has not got to Lightning yet need not wait for its import.
    return isinstance(error, SystemExit | KeyboardInterrupt) or type(error).__name__ == "SIGTERMException"
