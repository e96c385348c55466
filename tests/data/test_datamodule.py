"""The training stream: no example is lost or repeated, and any division of the work gives the same examples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.training import DataConfig
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.data.limits import Limits, not_longer
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.data.stream import Easy, EvalBatches, StreamLoader, TrainStream
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.tasks import GSM8K, Example, ExampleList, Multiplication

TASK = Multiplication(digits=2, min_digits=1, train_size=103, validation_size=7, test_size=9)
TOKENIZER = build_tokenizer("symbols", TASK.symbols())
TRAIN = encode(TASK.load()["train"], TOKENIZER, "train")


def stream(batch_size: int = 8, micro: int = 1, rank: int = 0, world: int = 1, seed: int = 0) -> TrainStream:
    return TrainStream(TRAIN, batch_size, micro, rank, world, seed, pool=3)


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


@pytest.mark.long
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


EASY_EXAMPLES = encode(
    ExampleList([Example(f"{a} * 0", "0 0 + 0 0 0" if a % 2 else "0", "0") for a in range(10)]), TOKENIZER, "easy"
)


def with_easy(first: float, last: float, steps: int, micro: int = 1, rank: int = 0, world: int = 1) -> TrainStream:
    return TrainStream(TRAIN, 40, micro, rank, world, 3, 1, Easy(EASY_EXAMPLES, first, last, steps))


def texts(batch: CoTBatch) -> dict[int, str]:
    """Return the examples by their number in the stream."""
    return {
        draw: TOKENIZER.decode(tokens[part != Part.PAD])
        for draw, tokens, part in zip(batch.draw.tolist(), batch.tokens, batch.part, strict=True)
    }


def test_easy_examples_take_the_place_of_others_less_and_less() -> None:
    plain, mixed = TrainStream(TRAIN, 40, 1, 0, 1, 3), with_easy(1.0, 0.2, 100)
    shares, chosen = [], []
    for step in range(140):
        before, after = texts(plain[step]), texts(mixed[step])
        assert sorted(after) == sorted(before) == list(range(40 * step, 40 * step + 40))
        easy = {draw: text for draw, text in after.items() if " * 0 <eos>" in text}
        assert all(after[draw] == before[draw] for draw in after if draw not in easy)
        shares.append(len(easy) / 40)
        chosen += easy.values()
    assert shares[0] == 1.0
    for start in range(0, 140, 20):
        expected = np.mean([max(0.2, 1 - 0.8 * t / 100) for t in range(start, start + 20)])
        assert abs(np.mean(shares[start : start + 20]) - expected) < 4 * np.sqrt(0.25 / 800)
    counts = np.unique(chosen, return_counts=True)[1]
    assert len(counts) == 10 and counts.min() > 0.8 * counts.mean()


@pytest.mark.parametrize("micro,world", [(2, 1), (2, 2)])
def test_easy_examples_are_the_same_however_a_step_is_divided(micro: int, world: int) -> None:
    whole = with_easy(0.5, 0.5, 1)
    for step in range(5):
        parts = [
            with_easy(0.5, 0.5, 1, micro, rank, world)[step * micro + k] for k in range(micro) for rank in range(world)
        ]
        assert {key: text for part in parts for key, text in texts(part).items()} == texts(whole[step])


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


def test_limits_are_those_of_the_longest_examples() -> None:
    data = CoTDataModule(TASK, TOKENIZER, DataConfig()).prepare()
    # 2x2: a prompt of 6; a row of 3, a sign, a row of 4; an answer of 4 with three tokens around it.
    assert data.limits == Limits(train_left=[*range(8, -1, -1)], left=[*range(8, -1, -1)], longest_answer=7)
    assert [data.encoded["train"].longest(removed) for removed in (0, 5, 10**9)] == [21, 16, 13]
    assert [data.limits.max_new_tokens(removed) for removed in (0, 5, 10**9)] == [15, 10, 7]
    assert [data.limits.removed_tokens(removed) for removed in (0, 5, 10**9)] == [0, 5, 8]


def test_limits_in_reasoning_steps() -> None:
    for side, left in (("left", [8, 5, 0]), ("right", [8, 3, 0])):  # `row` and `+ row`, of 3 and 5 tokens
        data = CoTDataModule(TASK, TOKENIZER, DataConfig(), unit="step", side=side).prepare()
        assert data.limits == Limits(train_left=left, left=left, longest_answer=7)
        assert [data.limits.removed_tokens(removed) for removed in (0, 1, 2, 9)] == [0, 8 - left[1], 8, 8]


def numbers(count: int) -> EncodedExamples:
    """Return examples with prompts and CoTs of very unequal lengths."""
    rng = np.random.default_rng(0)

    def text(most: int) -> str:
        return " ".join("1" * int(rng.integers(1, most)))

    return encode(ExampleList([Example(text(60), text(40), "1") for _ in range(count)]), TOKENIZER, "train")


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_grouping_by_length_only_reorders(batch_size: int, pool: int, count: int) -> None:
    examples = numbers(count)
    plain, grouped = (TrainStream(examples, batch_size, 1, 0, 1, 5, size) for size in (1, pool))
    for number in range(3):
        draws = np.arange(number * count, (number + 1) * count)
        one, other = plain.rows(draws), grouped.rows(draws)
        assert sorted(other) == list(range(count))
        # Every pool holds the same examples as without grouping.
        pools = (draws // batch_size - draws[0] // batch_size) // grouped.pool
        for number_of_pool in np.unique(pools):
            assert sorted(one[pools == number_of_pool]) == sorted(other[pools == number_of_pool])


def padding(examples: EncodedExamples, source: TrainStream, removed: int) -> float:
    """Return the share of padding in one pass, with `removed` CoT tokens gone."""
    left = examples.length - examples.cot_length + examples.cot_left(removed)
    steps = range(len(examples) // source.batch_size)
    batches = [left[source.rows(source.batch_size * step + np.arange(source.batch_size))] for step in steps]
    return 1 - sum(b.sum() for b in batches) / sum(b.max() * len(b) for b in batches)


def test_grouping_saves_padding_with_and_without_cot() -> None:
    examples = numbers(3000)
    plain, grouped = (TrainStream(examples, 10, 1, 0, 1, 5, pool) for pool in (1, 100))
    for removed in (0, 20, 40):
        assert padding(examples, grouped, removed) < 0.1 < 0.3 < padding(examples, plain, removed)
    passes = [grouped.rows(np.arange(number * 3000, (number + 1) * 3000)).reshape(-1, 10) for number in (0, 1)]
    # Batches come in random order: their lengths do not follow their place. The next pass has other batches.
    mean = examples.length[passes[0]].mean(1)
    assert abs(np.corrcoef(mean, np.arange(300))[0, 1]) < 0.2
    together = {frozenset(batch.tolist()) for batch in passes[0]} & {frozenset(batch.tolist()) for batch in passes[1]}
    assert not together


def test_a_small_set_is_not_one_pool() -> None:
    """A pool is at most half a pass. Otherwise every pass would have the same batches."""
    for count, pool in ((3000, 100), (1000, 50), (100, 5), (10, 1)):
        assert TrainStream(numbers(count), 10, 1, 0, 1, 5, 100).pool == pool


def test_grouping_leaves_equal_lengths_alone() -> None:
    task = Multiplication(digits=2, train_size=103)
    examples = encode(task.load()["train"], TOKENIZER, "train")
    draws = np.arange(500)
    plain, grouped = (TrainStream(examples, 8, 1, 0, 1, 5, pool).rows(draws) for pool in (1, 100))
    assert np.array_equal(plain, grouped)


def test_padding_on_gsm8k_stays_under_ten_percent(shared_data, gpt2_tokenizer) -> None:
    task = GSM8K(train=str(shared_data / "gsm8k" / "openai_train.jsonl"), test=None, test_size=500)
    train = encode(task.load()["train"], gpt2_tokenizer, "train")
    source = TrainStream(train, 32, 1, 0, 1, 0, DataConfig().length_pool)
    assert all(padding(train, source, removed) < 0.1 for removed in (0, 10, 20, 40, 80, 10**6))
    assert padding(train, TrainStream(train, 32, 1, 0, 1, 0, 1), 0) > 0.4


def test_longer_examples_are_left_out_of_training_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    whole = CoTDataModule(TASK, TOKENIZER, DataConfig(cache_dir=None)).prepare()
    most = int(np.median(whole.encoded["train"].length))
    short = CoTDataModule(TASK, TOKENIZER, DataConfig(cache_dir=None, max_tokens=most)).prepare()
    lengths = whole.encoded["train"].length
    assert short.encoded["train"].length.tolist() == lengths[lengths <= most].tolist()
    assert (
        f"train: {(lengths > most).sum()} of {len(lengths)} examples are longer than data.max_tokens={most}"
        in caplog.text
    )
    assert len(short.encoded["test"]) == len(whole.encoded["test"]) and short.digest() != whole.digest()
    assert short.steps_per_epoch == max(1, len(short.encoded["train"]) // 32)
    with pytest.raises(UserError, match="data.max_tokens=3: all 103 examples of train are longer"):
        CoTDataModule(TASK, TOKENIZER, DataConfig(cache_dir=None, max_tokens=3)).prepare()


def test_evaluation_takes_the_longest_first() -> None:
    examples = numbers(50)
    lengths = [length for batch in EvalBatches(examples, 7) for length in batch.attention_mask.sum(1).tolist()]
    assert lengths == sorted(examples.length.tolist(), reverse=True)


def test_examples_that_are_too_long_are_left_out_and_counted() -> None:
    assert not_longer(TRAIN, int(TRAIN.length.max()), "train") == (TRAIN, "")
    most = int(TRAIN.length.min())
    kept, note = not_longer(TRAIN, most, "train")
    longer = int((TRAIN.length > most).sum())
    assert set(kept.length.tolist()) == {most} and len(kept) + longer == 103
    assert note == f"train: {longer} of 103 examples are longer than data.max_tokens={most} and are left out"
    with pytest.raises(UserError, match="data.max_tokens=1: all 103 examples of train are longer"):
        not_longer(TRAIN, 1, "train")
