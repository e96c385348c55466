"""The stream of training examples (a function of seed and draw), and the batches of an evaluation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from stepwise_pl.common.draws import uniform
from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.data.encoding import EncodedExamples


@dataclass
class Easy:
    """Easy examples, and their share of the training examples: `first` at the start, `last` from optimizer step `steps` on."""

    examples: EncodedExamples
    first: float
    last: float
    steps: int

    def share(self, step: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the share at each optimizer step; [n]."""
        return self.first + (self.last - self.first) * np.minimum(1.0, step / max(1, self.steps))


@dataclass
class TrainStream(Dataset[CoTBatch]):
    """Micro-batches of an endless stream of shuffled examples, each a pure function of the seed and its number.

    Every pass over the training set sees each example once, in a new random order.
    Optimizer step t takes draws t·batch_size .. (t + 1)·batch_size - 1 of the stream,
    shared out over micro-batches and ranks. So no example is left out or repeated within
    a pass, wherever an epoch ends. Easy examples, drawn uniformly, replace some draws.
    """

    examples: EncodedExamples
    batch_size: int  # per optimizer step, over all ranks and micro-batches
    micro_batches: int
    rank: int
    world_size: int
    seed: int
    pool: int = 1  # optimizer steps whose examples are grouped by length; at most half a pass
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
        """Return the example of each draw of the stream, before easy ones replace some; [n]."""
        passes, places = np.divmod(draw, len(self.examples))
        rows = np.empty_like(draw)
        for number in np.unique(passes):
            rows[passes == number] = self._order(int(number))[places[passes == number]]
        return rows

    def _order(self, number: int) -> npt.NDArray[np.int64]:
        """Return the order of the examples in pass `number`; [examples]. The last two passes asked for are kept."""
        if number not in self._orders:
            rng = np.random.default_rng([self.seed, number])
            order = rng.permutation(len(self.examples))
            if self.pool > 1 and not self._equal_lengths:
                order = self._grouped(order, number, rng)
            self._orders = {key: self._orders[key] for key in self._orders if key == number - 1} | {number: order}
        return self._orders[number]

    def _grouped(self, order: npt.NDArray[np.int64], number: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return the order of pass `number`, with examples of similar length in the same step.

        The examples of `pool` successive steps are sorted by their length without the CoT into
        about √pool groups, and within a group by their length with the CoT. So padding stays
        low while the CoT is there and when it is gone. The steps of the pool are then put in
        random order.
        """
        count = len(order)
        place = number * count + np.arange(count)  # the place in the stream; a step may go over two passes
        step = place // self.batch_size - number * count // self.batch_size
        pool = step // self.pool
        by_base = np.lexsort((self._without_cot[order], pool))
        group = np.empty(count, np.int64)  # each group fills whole steps
        group[by_base] = step // max(1, math.isqrt(self.pool))
        turn = rng.permutation(step[-1] + 1)[step]
        out = np.empty_like(order)
        # The sorted examples of each pool fill its steps, taken in random order.
        out[np.lexsort((turn, pool))] = order[np.lexsort((self._length[order], group, pool))]
        return out


class StreamLoader:
    """Yields a `TrainStream` epoch by epoch. A resumed run goes on at the batch after the last one handed out.

    Lightning saves and restores a loader that has `state_dict`, `load_state_dict` and a length.
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
            # By default an iterator draws from torch's global generator, and dropout after a
            # resume would differ.
            generator=torch.Generator().manual_seed(0),
        )
        for batch in loader:
            # Counted before the batch is used, so that a checkpoint written during the step counts it.
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"handed_out": self.handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.handed_out = state["handed_out"]


@dataclass
class EvalBatches:
    """The batches of a rank's share of a split, the longest examples first. No example is left out or counted twice.

    `draw` of a batch are the indices of its examples in the split.
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
