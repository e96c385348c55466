"""The LightningDataModule: encoded splits, an endless training stream, and evaluation batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from stepwise_pl.batch import CoTBatch
from stepwise_pl.config import DataConfig
from stepwise_pl.errors import UserError
from stepwise_pl.tasks import SPLITS, Task
from stepwise_pl.tokenizing import EncodedExamples, encode


@dataclass
class TrainStream(Dataset[CoTBatch]):
    """Micro-batches of an endless stream of shuffled examples, each a pure function of the seed and its number.

    Pass p over the training set sees every example once, in a random order of its own.
    Optimizer step t takes draws t·batch_size .. (t + 1)·batch_size - 1 of the stream,
    shared out over micro-batches and ranks, so that no example is ever left out or
    repeated within a pass, wherever an epoch ends.
    """

    examples: EncodedExamples
    batch_size: int  # per optimizer step, over all ranks and micro-batches
    micro_batches: int
    rank: int
    world_size: int
    seed: int

    def __post_init__(self) -> None:
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def __getitem__(self, index: int) -> CoTBatch:
        step, micro = divmod(index, self.micro_batches)
        size = self.batch_size // (self.micro_batches * self.world_size)
        first = step * self.batch_size + (micro * self.world_size + self.rank) * size
        draw = np.arange(first, first + size)
        return self.examples.collate(self.rows(draw), draw)

    def rows(self, draw: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which example each draw of the stream is; [n]."""
        passes, places = np.divmod(draw, len(self.examples))
        rows = np.empty_like(draw)
        for number in np.unique(passes):
            rows[passes == number] = self._order(int(number))[places[passes == number]]
        return rows

    def _order(self, number: int) -> npt.NDArray[np.int64]:
        if number not in self._orders:
            order = np.random.default_rng([self.seed, number]).permutation(len(self.examples))
            self._orders = {key: self._orders[key] for key in self._orders if key == number - 1} | {number: order}
        return self._orders[number]


class StreamLoader:
    """One epoch after another of a `TrainStream`; a resumed run goes on at the batch after the last one handed out.

    Lightning saves and restores loaders that have `state_dict`, `load_state_dict` and a length.
    """

    def __init__(self, stream: TrainStream, batches_per_epoch: int, num_workers: int) -> None:
        self.stream, self.batches_per_epoch, self.num_workers = stream, batches_per_epoch, num_workers
        self.handed_out = 0

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[CoTBatch]:
        stop = (self.handed_out // self.batches_per_epoch + 1) * self.batches_per_epoch
        loader: DataLoader[CoTBatch] = DataLoader(
            self.stream,
            batch_size=None,
            sampler=range(self.handed_out, stop),
            num_workers=self.num_workers,
            # A generator of its own: by default a new iterator draws from torch's global
            # one, and dropout after a resume would differ.
            generator=torch.Generator().manual_seed(0),
        )
        for batch in loader:
            self.handed_out += 1  # before the batch is used: a checkpoint written during the step counts it
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"handed_out": self.handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.handed_out = state["handed_out"]


@dataclass
class EvalBatches:
    """A split in order, every rank its share; no example is left out or counted twice."""

    examples: EncodedExamples
    batch_size: int
    rank: int = 0
    world_size: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        count = len(self.examples) if self.limit is None else min(self.limit, len(self.examples))
        self.rows = np.arange(self.rank, count, self.world_size)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[CoTBatch]:
        for start in range(0, len(self.rows), self.batch_size):
            yield self.examples.collate(self.rows[start : start + self.batch_size])


@dataclass(frozen=True)
class Limits:
    """How long things get, in tokens.

    Attributes:
        max_cot: m_max, the longest CoT of the training set.
        longest_cot, longest_answer: of any split, the latter with separator and end token.
    """

    max_cot: int
    longest_cot: int
    longest_answer: int

    def max_new_tokens(self, removed: int) -> int:
        """Most tokens any example can need after its prompt once `removed` CoT tokens are gone."""
        return max(self.longest_cot - removed, 0) + self.longest_answer


class CoTDataModule(L.LightningDataModule):
    """Loads a task's splits, tokenises them, and serves `CoTBatch`es with the whole CoT in place.

    Tokens are removed later, in the training module, so that prefetching workers never
    hold a stale removal count.

    Attributes (after `prepare`):
        encoded: the tokenised splits, by the names in `SPLITS`.
        steps_per_epoch: T, optimizer steps in an epoch.
        limits: how long CoT and answers get.
    """

    def __init__(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, data: DataConfig, seed: int = 0, micro_batches: int = 1
    ) -> None:
        super().__init__()
        self.task, self.tokenizer, self.data, self.seed, self.micro_batches = task, tokenizer, data, seed, micro_batches
        self.encoded: dict[str, EncodedExamples] = {}

    def prepare(self) -> "CoTDataModule":
        """Load and tokenise once; every later call does nothing.

        Raises:
            UserError: the data cannot be read or tokenised.
        """
        if self.encoded:
            return self
        splits = self.task.load()
        for split in SPLITS:
            if not len(splits[split]):
                raise UserError(f"the {split} split has no example")
            self.encoded[split] = encode(splits[split], self.tokenizer, split)
        self.steps_per_epoch = max(1, (self.data.epoch_size or len(self.encoded["train"])) // self.data.batch_size)
        encoded = self.encoded.values()
        self.limits = Limits(
            max_cot=int(self.encoded["train"].cot_length.max()),
            longest_cot=max(int(split.cot_length.max()) for split in encoded),
            longest_answer=max(int(split.answer_length.max()) for split in encoded),
        )
        return self

    def setup(self, stage: str) -> None:
        self.prepare()

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> StreamLoader:
        rank, world = self._ranks()
        stream = TrainStream(self.encoded["train"], self.data.batch_size, self.micro_batches, rank, world, self.seed)
        return StreamLoader(stream, self.steps_per_epoch * self.micro_batches, self.data.num_workers)

    def val_dataloader(self) -> EvalBatches:
        return EvalBatches(self.encoded["validation"], self.data.eval_batch_size, *self._ranks())

    def test_dataloader(self) -> EvalBatches:
        return EvalBatches(self.encoded["test"], self.data.eval_batch_size, *self._ranks())
