"""The LightningDataModule: encoded splits, an endless training stream, and evaluation batches."""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from stepwise_pl.batch import CoTBatch
from stepwise_pl.cache import encoded_splits
from stepwise_pl.config import DataConfig
from stepwise_pl.errors import UserError
from stepwise_pl.removal import uniform
from stepwise_pl.tasks import EASY, Task
from stepwise_pl.tokenizing import EncodedExamples

log = logging.getLogger(__name__)


@dataclass
class Easy:
    """Easy examples, and their share among those of training: `first` at the start, `last` at optimizer step `steps`."""

    examples: EncodedExamples
    first: float
    last: float
    steps: int

    def share(self, step: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """At each optimizer step; [n]."""
        return self.first + (self.last - self.first) * np.minimum(1.0, step / max(1, self.steps))


@dataclass
class TrainStream(Dataset[CoTBatch]):
    """Micro-batches of an endless stream of shuffled examples, each a pure function of the seed and its number.

    Pass p over the training set sees every example once, in a random order of its own.
    Optimizer step t takes draws t·batch_size .. (t + 1)·batch_size - 1 of the stream,
    shared out over micro-batches and ranks, so that no example is ever left out or
    repeated within a pass, wherever an epoch ends. An easy example, any of them with the
    same chance, takes the place of some.
    """

    examples: EncodedExamples
    batch_size: int  # per optimizer step, over all ranks and micro-batches
    micro_batches: int
    rank: int
    world_size: int
    seed: int
    pool: int = 1  # optimizer steps whose examples are grouped by length; at most half a pass, to keep passes apart
    easy: Easy | None = None

    def __post_init__(self) -> None:
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self._length = self.examples.length
        self._without_cot = self._length - self.examples.cot_length
        self.pool = min(self.pool, max(1, len(self.examples) // (2 * self.batch_size)))
        self._equal_lengths = int(np.ptp(self._length)) == int(np.ptp(self._without_cot)) == 0

    def __getitem__(self, index: int) -> CoTBatch:
        step, micro = divmod(index, self.micro_batches)
        size = self.batch_size // (self.micro_batches * self.world_size)
        first = step * self.batch_size + (micro * self.world_size + self.rank) * size
        draw = np.arange(first, first + size)
        if self.easy is None:
            return self.examples.collate(self.rows(draw), draw)
        easy = uniform(draw, self.seed, stream=1) <= self.easy.share(draw // self.batch_size)
        batches = []
        if not easy.all():
            batches.append(self.examples.collate(self.rows(draw[~easy]), draw[~easy]))
        if easy.any():
            rows = np.ceil(uniform(draw[easy], self.seed, stream=2) * len(self.easy.examples)).astype(np.int64) - 1
            batches.append(self.easy.examples.collate(rows, draw[easy]))
        return CoTBatch.stack(batches)

    def rows(self, draw: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which example each draw of the stream is, if it is no easy one; [n]."""
        passes, places = np.divmod(draw, len(self.examples))
        rows = np.empty_like(draw)
        for number in np.unique(passes):
            rows[passes == number] = self._order(int(number))[places[passes == number]]
        return rows

    def _order(self, number: int) -> npt.NDArray[np.int64]:
        if number not in self._orders:
            rng = np.random.default_rng([self.seed, number])
            order = rng.permutation(len(self.examples))
            if self.pool > 1 and not self._equal_lengths:
                order = self._grouped(order, number, rng)
            self._orders = {key: self._orders[key] for key in self._orders if key == number - 1} | {number: order}
        return self._orders[number]

    def _grouped(self, order: npt.NDArray[np.int64], number: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """The order of pass `number`, with examples of similar length in the same step.

        Among the examples of `pool` successive steps, those come together whose length
        without the CoT is similar (in about √pool groups), and within a group those whose
        length with it is: padding stays low while the CoT is there and when it is gone.
        Which step of the pool then gets which examples is random.
        """
        count = len(order)
        place = number * count + np.arange(count)  # in the stream, where steps need not end with a pass
        step = place // self.batch_size - number * count // self.batch_size
        pool = step // self.pool
        by_base = np.lexsort((self._without_cot[order], pool))
        group = np.empty(count, np.int64)  # so many whole steps each
        group[by_base] = step // max(1, math.isqrt(self.pool))
        turn = rng.permutation(step[-1] + 1)[step]
        out = np.empty_like(order)
        # Pool by pool, its steps in random order: filled with its examples, sorted.
        out[np.lexsort((turn, pool))] = order[np.lexsort((self._length[order], group, pool))]
        return out


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
    """A split, every rank its share, the longest first; no example is left out or counted twice.

    `draw` of a batch is where its examples stand in the split.
    """

    examples: EncodedExamples
    batch_size: int
    rank: int = 0
    world_size: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        count = len(self.examples) if self.limit is None else min(self.limit, len(self.examples))
        by_length = np.argsort(-self.examples.length[:count], kind="stable")  # little padding
        self.rows = by_length[self.rank :: self.world_size]

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[CoTBatch]:
        for start in range(0, len(self.rows), self.batch_size):
            yield self.examples.collate(self.rows[start : start + self.batch_size])


@dataclass(frozen=True)
class Limits:
    """How long things get, in tokens, once k units (tokens or reasoning steps) of every CoT are gone.

    Attributes:
        train_left: the longest CoT left in the training set, for k = 0 .. m_max; its last is 0.
        left: the same over all splits. At m_max everything goes, also from longer CoTs.
        longest_answer: of any split, with separator and end token.
    """

    train_left: list[int]
    left: list[int]
    longest_answer: int

    @classmethod
    def of(cls, encoded: Mapping[str, EncodedExamples], side: str) -> "Limits":
        """Measured on the splits, for removal from `side`."""
        units = range(int(encoded["train"].units.max()))
        longest = {name: [split.longest_cot(k, side) for k in units] for name, split in encoded.items()}
        return cls(
            train_left=[*longest["train"], 0],
            left=[*map(max, zip(*longest.values(), strict=True)), 0],
            longest_answer=max(int(split.answer_length.max()) for split in encoded.values()),
        )

    @property
    def max_removed(self) -> int:
        """m_max: units in the longest CoT of the training set."""
        return len(self.train_left) - 1

    @property
    def max_cot(self) -> int:
        """Tokens in the longest CoT of the training set."""
        return self.train_left[0]

    def removed_tokens(self, removed: int) -> int:
        """By how many tokens the longest CoT is shorter once `removed` units are gone."""
        return self.max_cot - self.train_left[min(removed, self.max_removed)]

    def max_new_tokens(self, removed: int) -> int:
        """Most tokens any example can need after its prompt once `removed` units are gone."""
        return self.left[min(removed, self.max_removed)] + self.longest_answer


def not_longer(examples: EncodedExamples, most: int, split: str) -> tuple[EncodedExamples, str]:
    """The examples of at most so many tokens, and what is to be said of the others; empty if there is none.

    Raises:
        UserError: all are longer.
    """
    rows = np.flatnonzero(examples.length <= most)
    count, longer = len(examples), len(examples) - len(rows)
    if not longer:
        return examples, ""
    if not len(rows):
        raise UserError(f"data.max_tokens={most}: all {count} examples of {split} are longer; give more, or null")
    note = f"{split}: {longer} of {count} examples are longer than data.max_tokens={most} and are left out"
    return examples.take(rows), note


class CoTDataModule(L.LightningDataModule):
    """Loads a task's splits, tokenises them, and serves `CoTBatch`es with the whole CoT in place.

    Tokens are removed later, in the training module, so that prefetching workers never
    hold a stale removal count.

    Args:
        unit, side: what will be removed, and from where (`Schedule`).
        max_steps: where the share of easy examples ends at `data.easy_last`.

    Attributes (after `prepare`):
        encoded: the tokenised splits, by the names in `SPLITS`, and `EASY` if there is one.
        steps_per_epoch: T, optimizer steps in an epoch.
        limits: how long CoT and answers get.
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
        max_steps: int = -1,
    ) -> None:
        super().__init__()
        self.task, self.tokenizer, self.data, self.seed, self.micro_batches = task, tokenizer, data, seed, micro_batches
        self.unit, self.side, self.max_steps = unit, side, max_steps
        self.encoded: dict[str, EncodedExamples] = {}

    def prepare(self) -> "CoTDataModule":
        """Load and tokenise once; every later call does nothing.

        Raises:
            UserError: the data cannot be read or tokenised.
        """
        if self.encoded:
            return self
        self.encoded = encoded_splits(self.task, self.tokenizer, self.unit == "step", self.data.cache_dir)
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
        self.limits = Limits.of(self.encoded, self.side)
        return self

    def digest(self) -> str:
        """Changes whenever an example, its place or its tokens do; a resumed run must find the same."""
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
        rank, world = self._ranks()
        data = self.data
        easy = Easy(self.encoded[EASY], data.easy_first, data.easy_last, self.max_steps) if self._wants_easy else None
        stream = TrainStream(
            self.encoded["train"], data.batch_size, self.micro_batches, rank, world, self.seed, data.length_pool, easy
        )
        return StreamLoader(stream, self.steps_per_epoch * self.micro_batches, data.num_workers)

    def val_dataloader(self) -> EvalBatches:
        return EvalBatches(self.encoded["validation"], self.data.eval_batch_size, *self._ranks())

    def test_dataloader(self) -> EvalBatches:
        return EvalBatches(self.encoded["test"], self.data.eval_batch_size, *self._ranks())
