"""Stop a run between two optimizer steps, never inside one."""

import signal
import threading
from types import FrameType

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from stepwise_pl.training.lightning_gaps import validates_after
from stepwise_pl.training.ranks import any_of


class Stop:
    """Notes SIGTERM, and ends the run between two steps; all processes stop together once any of them was asked to.

    Attributes:
        is_asked: this process was asked to stop.
    """

    def __init__(self) -> None:
        self.is_asked = False

    def take_signals(self, trainer: L.Trainer) -> None:
        """Take the place of Lightning's handler of SIGTERM.

        Lightning's handler would stop the run after a micro-batch: the step would be half done,
        and could not be saved. That handler also makes the processes talk to each other at once.
        If the signal came inside a gather of shared weights, they would wait for ever.

        Raises:
            SIGTERMException: the signal came before training began.
        """
        if threading.current_thread() is threading.main_thread():

            def handle(number: int, frame: FrameType | None) -> None:
                self.is_asked = True

            signal.signal(signal.SIGTERM, handle)
        if any_of(trainer, trainer.received_sigterm):
            raise SIGTERMException

    def obey_after_step(self, trainer: L.Trainer, batch_idx: int) -> None:
        """Stop if this batch ends an optimizer step, unless a validation is due: the validation comes first.

        Raises:
            SIGTERMException: a process was asked to stop.
        """
        step_ends = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if step_ends and not validates_after(trainer, batch_idx):
            self.obey(trainer)

    def obey(self, trainer: L.Trainer) -> None:
        """Stop if any process was asked to.

        Raises:
            SIGTERMException: a process was asked to stop.
        """
        if any_of(trainer, self.is_asked):
            raise SIGTERMException
