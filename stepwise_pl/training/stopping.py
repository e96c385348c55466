"""End a run after its step when a signal comes, and tell the user how to resume it."""

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
def stop_explained(run_dir: Path, asked: Request, seconds: int | None = None) -> Iterator[None]:
    """Let signals end the run after its step, and tell the user how to resume it. A second Ctrl-C stops at once.

    Args:
        seconds: the time after which SIGALRM ends the run as any signal does; None: it has all the time.

    Raises:
        SystemExit: a signal has ended the run; the status is 128 plus the signal's number.
    """
    reason: int | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal reason
        again = reason in (signal.SIGINT, signal.SIGQUIT)
        reason = number if reason is None else reason
        if number == signal.SIGALRM and seconds is not None:
            log.warning("trainer.max_time is over; stopping after this step")
        if number == signal.SIGHUP:
            signals.leave_dead_terminal()
        # While a run trains, SIGTERM has another handler, which stops it after a step (`training.between_steps`).
        if signal.getsignal(signal.SIGTERM) is stop:
            raise SystemExit(128 + reason)
        if number == signal.SIGTERM:
            return  # Until training begins, Lightning's handler is in place: it has noted the signal and called this one.
        if number in (signal.SIGINT, signal.SIGQUIT):
            if again:
                raise KeyboardInterrupt
            log.warning(
                "stopping after this step; a second Ctrl-C stops at once, and loses the work since the last checkpoint"
            )
        signal.raise_signal(signal.SIGTERM)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals.STOPS:
            # A run takes Ctrl-C even if a shell has started it in the background. A worker of a sweep does not: the
            # process that hands out the jobs stops its workers.
            always = number == signal.SIGTERM or (number == signal.SIGINT and not asked.is_worker)
            if always or signals.is_free(number):
                before[number] = signal.signal(number, stop)
        if seconds is not None and not processes.is_further():
            signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except BaseException as error:
        is_stop = is_signal(error)
        begun = holds_run(run_dir) or is_begun(run_dir)
        # A user's error says what to do. A sweep explains at its end; a further process leaves it to the first.
        is_explained = isinstance(error, UserError) or bool(asked.job) or processes.is_further()
        if not is_explained and (is_stop or begun):
            log.error("%s", how_to_go_on(run_dir))
        if is_stop:
            # One process of several was asked to stop. The highest status is srun's own, so the others end as at the end of the time.
            of_others = signal.SIGTERM if seconds is None else signal.SIGALRM
            raise SystemExit(128 + (reason or of_others)) from None
        raise
    finally:
        if seconds is not None and not processes.is_further():
            signal.setitimer(signal.ITIMER_REAL, 0)
        ends = reason is not None and not asked.job
        for number, handler in before.items():
            # A closing terminal sends SIGHUP more than once. The exit status is still that of the first signal.
            signal.signal(number, signal.SIG_IGN if ends and number == signal.SIGHUP else handler)


def is_signal(error: BaseException) -> bool:
    """Whether a signal has raised this error to end the run. Lightning alone would end with status 1, which hides the signal."""
    # The class is compared by name, so that a run that has not imported Lightning yet need not do so.
    return isinstance(error, SystemExit | KeyboardInterrupt) or type(error).__name__ == "SIGTERMException"
