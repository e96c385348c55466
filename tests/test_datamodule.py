"""The training stream: nothing lost, nothing twice, the same in any division of the work."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise_pl.config import DataConfig
from stepwise_pl.datamodule import CoTDataModule, EvalBatches, Limits, StreamLoader, TrainStream
from stepwise_pl.tasks import Multiplication
from stepwise_pl.tokenizing import build_tokenizer, encode

TASK = Multiplication(digits=2, min_digits=1, train_size=103, validation_size=7, test_size=9)
TOKENIZER = build_tokenizer("symbols", TASK.symbols())
TRAIN = encode(TASK.load()["train"], TOKENIZER, "train")


def stream(batch_size: int = 8, micro: int = 1, rank: int = 0, world: int = 1, seed: int = 0) -> TrainStream:
    return TrainStream(TRAIN, batch_size, micro, rank, world, seed)


@given(st.integers(1, 40), st.integers(0, 3))
@settings(max_examples=20)
def test_every_pass_sees_every_example_once_in_an_order_of_its_own(batch_size: int, seed: int) -> None:
    source = stream(batch_size, seed=seed)
    rows = np.concatenate([source.rows(source[i].draw.numpy()) for i in range(3 * len(TRAIN) // batch_size + 1)])
    passes = [rows[k * len(TRAIN) : (k + 1) * len(TRAIN)] for k in range(3)]
    for one in passes:
        assert sorted(one) == list(range(len(TRAIN)))
    assert not np.array_equal(passes[0], passes[1])


@pytest.mark.parametrize("micro,world", [(1, 2), (2, 1), (4, 1), (2, 2)])
def test_a_step_holds_the_same_examples_however_it_is_divided(micro: int, world: int) -> None:
    whole = stream(8)
    for step in range(30):
        parts = [stream(8, micro, rank, world)[step * micro + k].draw for k in range(micro) for rank in range(world)]
        assert torch.equal(torch.cat(parts).sort().values, whole[step].draw)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_goes_on_where_it_stopped(workers: int) -> None:
    def take(loader: StreamLoader, count: int) -> list[list[int]]:
        out: list[list[int]] = []
        while len(out) < count:
            for batch in loader:
                out.append(batch.draw.tolist())
                if len(out) == count:
                    break
        return out

    uninterrupted = take(StreamLoader(stream(), 5, workers), 13)
    assert [d for batch in uninterrupted for d in batch] == list(range(13 * 8))
    for stop in (1, 4, 5, 6, 12):
        first = StreamLoader(stream(), 5, workers)
        take(first, stop)
        second = StreamLoader(stream(), 5, workers)
        second.load_state_dict(first.state_dict())
        assert take(second, 13 - stop) == uninterrupted[stop:]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("limit", [None, 10])
def test_evaluation_counts_every_example_once(world: int, limit: int | None) -> None:
    seen = [row for rank in range(world) for b in EvalBatches(TRAIN, 7, rank, world, limit) for row in b.draw.tolist()]
    assert sorted(seen) == list(range(limit or len(TRAIN)))
    assert len(list(EvalBatches(TRAIN, 7))) == len(EvalBatches(TRAIN, 7))


def test_epoch_size_sets_the_steps_per_epoch() -> None:
    for epoch_size, batch, steps in ((None, 8, 12), (50, 8, 6), (1000, 8, 125), (None, 500, 1)):
        data = CoTDataModule(TASK, TOKENIZER, DataConfig(batch_size=batch, epoch_size=epoch_size)).prepare()
        assert data.steps_per_epoch == steps
        assert len(data.train_dataloader()) == steps


def test_bounds_are_those_of_the_longest_examples() -> None:
    data = CoTDataModule(TASK, TOKENIZER, DataConfig()).prepare()
    # 2x2: a prompt of 6; a row of 3, a sign, a row of 4; an answer of 4 with three tokens around it.
    assert data.limits == Limits(max_cot=8, longest_cot=8, longest_answer=7)
    assert [data.encoded["train"].longest(removed) for removed in (0, 5, 10**9)] == [21, 16, 13]
    assert [data.limits.max_new_tokens(removed) for removed in (0, 5, 10**9)] == [15, 10, 7]
