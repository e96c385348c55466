"""The signals that end a run or a sweep after its present step. Free of torch."""

import errno
import os
import signal
import termios

# A terminal sends these signals to every process in its foreground.
TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
# All signals that can be caught and by which a scheduler, a shell or a person ends a program.
STOPS = (*TERMINAL, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGALRM)


def is_free(number: signal.Signals) -> bool:
    """Whether a handler of ours may take the signal: it is neither ignored, as under nohup, nor taken by a launcher's code."""
    handler = signal.getsignal(number)
    # The entry point runs as __main__.
    ours = str(getattr(handler, "__module__", "")).partition(".")[0] in ("stepwise_pl", "__main__")
    return handler in (signal.SIG_DFL, signal.default_int_handler) or ours


def leave_dead_terminal() -> None:
    """Discard output from now on if the terminal is gone: the next line of progress would fail inside a step."""
    for number in (1, 2):
        try:
            termios.tcgetattr(number)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        except OSError:  # closed
            continue
