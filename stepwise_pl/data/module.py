"""The LightningDataModule: encoded splits, an endless training stream, and evaluation batches."""

import hashlib
import logging
from collections.abc import Sequence

import lightning as L
import numpy as np
from transformers import PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.duration import Duration
from stepwise_pl.config.training import DataConfig, TrainerConfig
from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.data.cache import encoded_splits
from stepwise_pl.data.encoding import EncodedExamples
from stepwise_pl.data.limits import Limits, not_longer
from stepwise_pl.data.stream import Easy, EvalBatches, StreamLoader, TrainStream
from stepwise_pl.tasks import EASY, Task

log = logging.getLogger(__name__)


class CoTDataModule(L.LightningDataModule):
    """Loads a task's splits, tokenises them, and serves `CoTBatch`es with the whole CoT in place.

    Tokens are removed later, in the training module, so that prefetching workers never
    hold a stale removal count.

    Args:
        unit, side: the unit of removal and its side of the CoT (`Method`).
        duration: the length of the run, at whose end the share of easy examples reaches `data.easy_last`.
        values: the quantities that the batches hold (`Method.quantities`).

    Attributes:
        eval_batch_size: examples scored at a time.

    Attributes (after `prepare`):
        encoded: the tokenised splits by name: `SPLITS`, and `EASY` if the run uses it.
        steps_per_epoch: T, optimizer steps in an epoch.
        steps: optimizer steps of the whole run.
        limits: the lengths of CoT and answers.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        data: DataConfig,
        seed: int = 0,
        micro_batches: int = 1,
        unit: str = "token",
        side: str = "left",
        duration: Duration | None = None,
        values: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.task, self.tokenizer, self.data, self.seed, self.micro_batches = task, tokenizer, data, seed, micro_batches
        self.unit, self.side, self.values = unit, side, tuple(values)
        self.duration = duration or Duration.parse(TrainerConfig().duration)
        self.encoded: dict[str, EncodedExamples] = {}
        # Training sets it to what fits into the memory of the device, if it is to.
        self.eval_batch_size = data.scored_at_a_time
        self._whole: TrainStream | None = None  # its batches are whole optimizer steps

    def prepare(self) -> "CoTDataModule":
        """Load and tokenise once. A later call does nothing.

        Raises:
            UserError: the data cannot be read or tokenised.
        """
        if self.encoded:
            return self
        self.encoded = encoded_splits(self.task, self.tokenizer, self.unit == "step", self.data.cache_dir, self.values)
        if not self._wants_easy:
            self.encoded.pop(EASY, None)
        elif not len(self.encoded.get(EASY, ())):
            raise UserError(
                "data.easy_first, data.easy_last: the task has no easy examples; task.zeros=0.5 makes them for multiplication"
            )
        for split in ("train", EASY):
            if self.data.max_tokens is not None and split in self.encoded:
                self.encoded[split], note = not_longer(self.encoded[split], self.data.max_tokens, split)
                if note:
                    log.warning("%s", note)
        self.steps_per_epoch = self.data.steps_per_epoch(len(self.encoded["train"]))
        self.steps = self.duration.steps(self.steps_per_epoch, self.data.batch_size)
        self.limits = Limits.of(self.encoded, self.side)
        return self

    def digest(self) -> str:
        """Return a hash of all tokens and their places. A resumed run must find the same."""
        digest = hashlib.sha256()
        for split in self.encoded:
            for array in (self.encoded[split].tokens, self.encoded[split].start, self.encoded[split].step_start):
                if array is not None:
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    @property
    def _wants_easy(self) -> bool:
        return self.data.easy_first > 0 or self.data.easy_last > 0

    def setup(self, stage: str) -> None:
        self.prepare()

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> StreamLoader:
        stream = self._stream(self.micro_batches, *self._ranks())
        return StreamLoader(stream, self.steps_per_epoch * self.micro_batches, self.data.num_workers)

    def _stream(self, micro_batches: int, rank: int, world_size: int) -> TrainStream:
        data = self.data
        easy = Easy(self.encoded[EASY], data.easy_first, data.easy_last, self.steps) if self._wants_easy else None
        return TrainStream(
            self.encoded["train"], data.batch_size, micro_batches, rank, world_size, self.seed, data.length_pool, easy
        )

    def whole_step(self, step: int) -> CoTBatch:
        """Return the examples of an optimizer step, over all its micro-batches and ranks, with the whole CoT in place."""
        if self._whole is None:
            self._whole = self._stream(1, 0, 1)
        return self._whole[step]

    def val_dataloader(self) -> EvalBatches:
        return EvalBatches(self.encoded["validation"], self.eval_batch_size, *self._ranks())

    def test_dataloader(self) -> EvalBatches:
        return EvalBatches(self.encoded["test"], self.eval_batch_size, *self._ranks())
