"""Print results and errors for the person at the keyboard."""

import contextlib
import sys
import time

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from stepwise_pl.cli.overrides import parsed, setting
from stepwise_pl.common import processes
from stepwise_pl.common.disk import disk_error
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.known import choices
from stepwise_pl.config.mistakes import explain, no_choice

# A process that leaves an error to another waits so many seconds: the other one may have started later.
SILENCE = 30


def error_line(error: Exception) -> str | None:
    """The one-line message of an error that the user can put right; None for a defect."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain(error)
    if isinstance(error, UserError):
        return str(error)
    if "Config group override must be" in str(error):  # Hydra raises a bare ValueError
        return _no_name(str(error))
    return disk_error(error)


def _no_name(otherwise: str) -> str:
    """The error line for a group that has null, a number or a list for its choice; `otherwise` if no group has."""
    for word in sys.argv[1:]:
        given, found = setting(word), parsed(word)
        if given is not None and given.key in choices() and found is not None and not isinstance(found.value(), str):
            if found.value() is None:
                return f"{given.key} is not set: choose one with {given.key}=<name>; --help lists them"
            return no_choice(given.key, given.value, choices()[given.key])
    return otherwise


def say(text: str) -> None:
    """Print for the person at the keyboard."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fail(message: str) -> int:
    """Print one line for the person at the keyboard; return the exit status. One process of each machine prints it."""
    if processes.leaves_errors_to_another():
        # torchrun ends all processes as soon as one has ended. The other process must have said the error by then.
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(SILENCE)
        return 2
    # Blanks inside a line stay, because a message may show how to type a value.
    sys.stderr.write(f"error: {' '.join(line.strip() for line in message.splitlines())}\n")
    sys.stderr.flush()
    return 2
