"""A stop that is asked for while a run trains waits for the end of the step."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from stepwise_pl.training.lightning_gaps import validates_after
from stepwise_pl.training.ranks import any_of


def take_signals(trainer: L.Trainer, note: Callable[[], None]) -> None:
    """From here on a SIGTERM is noted, and the run stops after a whole step (`stop_between_steps`).

    Lightning's own handler would stop a run after a micro-batch, with a step half done that
    cannot be saved. It also lets several processes talk to each other wherever the signal
    finds them, such as inside a gather of shared weights, which then waits for ever.

    Raises:
        SIGTERMException: the signal has come before training began.
    """
    if threading.current_thread() is threading.main_thread():

        def handle(number: int, frame: FrameType | None) -> None:
            note()

        signal.signal(signal.SIGTERM, handle)
    if any_of(trainer, trainer.received_sigterm):
        raise SIGTERMException


def stop_between_steps(trainer: L.Trainer, batch_idx: int, stop_asked: bool) -> None:
    """Stop after a whole step, all processes after the same, once one of them was asked to. A validation that is due comes first.

    Raises:
        SIGTERMException: a stop was asked for.
    """
    step_ends = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    if step_ends and not validates_after(trainer, batch_idx) and any_of(trainer, stop_asked):
        raise SIGTERMException


def stop_if_asked(trainer: L.Trainer, stop_asked: bool) -> None:
    """Stop after a validation, or after the last step, all processes together, once one of them was asked to.

    Raises:
        SIGTERMException: a stop was asked for.
    """
    if any_of(trainer, stop_asked):
        raise SIGTERMException
