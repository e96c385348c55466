"""Splits of generated problems: distinct, disjoint, the same every time, with a note if they are small."""

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.encoding import encode
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.tasks.addition import Addition
from stepwise_pl.tasks.base import SPLITS, Example, Task, chunks
from stepwise_pl.tasks.parity import Parity
from stepwise_pl.tasks.prosqa import ProsQA
from stepwise_pl.tasks.sampling import EVERY, SampledTask, deal, distinct, needed, row_keys, spaced
from stepwise_pl.tasks.word_problems import WordProblems
from tests.config.test_config import composed

TASKS = [
    (Parity, {"bits": 20}),
    (Parity, {"bits": 70, "min_bits": 1}),
    (Addition, {}),
    (Addition, {"operands": 3, "digits": 20}),
    (WordProblems, {}),
    (WordProblems, {"min_steps": 1, "max_steps": 8}),
    (ProsQA, {}),
]
TINY = [
    *((Parity, {"bits": bits}, 2**bits) for bits in (2, 3, 8)),
    (Parity, {"bits": 5, "min_bits": 1}, 2 + 4 + 8 + 16 + 32),
    (Addition, {"operands": 3, "digits": 1}, 9**3),
    (Addition, {"operands": 4, "digits": 1}, 9**4),
]
SMALL = {"validation_size": 100, "test_size": 50}


def all_examples(task: Task) -> dict[str, list[Example]]:
    return {name: [e for chunk in chunks(split, 999) for e in chunk] for name, split in task.load().items()}


@given(st.lists(st.integers(0, 30), max_size=300), st.integers(1, 40))
def test_distinct_problems_are_the_first_of_each_in_the_stream(draws: list[int], count: int) -> None:
    chunks_of_7 = [draws[i : i + 7] for i in range(0, len(draws), 7)] + [[0]] * 40
    stream = iter([np.array(chunk) for chunk in chunks_of_7])
    naive = list(dict.fromkeys(number for chunk in chunks_of_7 for number in chunk))
    out = distinct(lambda: next(stream), lambda rows: (rows * 97).astype(np.uint64), count)
    assert out.tolist() == naive[:count]


def test_a_stream_without_new_problems_ends() -> None:
    def ones() -> Iterator[np.ndarray]:
        while True:
            yield np.ones((10, 3), np.uint8)

    stream = ones()
    assert distinct(lambda: next(stream), row_keys, 2).tolist() == [[1, 1, 1]]


@given(st.integers(1, 500), st.integers(1, 200), st.integers(1, 60), st.integers(1, 60))
def test_dealing_takes_a_fifth_at_most_by_place_alone(n: int, train: int, validation: int, test: int) -> None:
    asked = {"train": train, "validation": validation, "test": test}
    splits = deal(np.arange(n), asked)
    dealt = [number for part in splits.values() for number in part.tolist()]
    assert len(set(dealt)) == len(dealt)
    for name in ("validation", "test"):
        assert len(splits[name]) <= min(asked[name], -(-n // EVERY))
    assert all(len(splits[name]) for name in SPLITS) or n < 3
    if n >= needed(asked):
        assert {name: len(part) for name, part in splits.items()} == asked
    other = deal(np.arange(n + 100), {**asked, "train": train + 7})
    assert len(splits["train"]) == train or len(dealt) == n  # a problem is left out only if train is full
    for name in ("validation", "test"):
        assert other[name][: len(splits[name])].tolist() == splits[name].tolist()


def test_keys_are_equal_for_equal_rows_only() -> None:
    rows = np.random.default_rng(0).integers(0, 3, (20_000, 3, 3), dtype=np.uint8)
    keys, texts = row_keys(rows).tolist(), [row.tobytes() for row in rows]
    assert len(set(keys)) == len(set(texts)) == len(set(zip(keys, texts, strict=True)))


def test_spaced() -> None:
    assert spaced(np.array([[49, 43, 50], [32, 32, 57]], np.uint8)) == ["1 + 2", "    9"]
    assert spaced(np.empty((0, 3), np.uint8)) == []


@pytest.mark.parametrize("cls,fields", TASKS)
def test_splits_are_disjoint_distinct_and_do_not_depend_on_the_training_size(
    cls: type[SampledTask], fields: dict
) -> None:
    small, large = (all_examples(cls(**fields, **SMALL, train_size=size)) for size in (30, 6_000))
    assert {name: len(part) for name, part in large.items()} == {"train": 6_000, "validation": 100, "test": 50}
    prompts = [e.prompt for part in large.values() for e in part]
    assert len(set(prompts)) == len(prompts)
    assert small["validation"] == large["validation"]
    assert small["test"] == large["test"]
    assert small["train"] == large["train"][:30]
    assert small == all_examples(cls(**fields, **SMALL, train_size=30))
    assert small["test"] != all_examples(cls(**fields, **SMALL, train_size=30, seed=1))["test"]


@pytest.mark.parametrize("cls,fields,space", TINY)
def test_tiny_spaces_are_dealt_out_whole_with_a_note(cls: type[SampledTask], fields: dict, space: int) -> None:
    splits = cls(**fields, validation_size=2_000, test_size=2_000).load()
    examples = {name: split.slice(0, len(split)) for name, split in splits.items()}
    assert len({e.prompt for part in examples.values() for e in part}) == space == sum(map(len, examples.values()))
    assert all(examples.values())
    for name, asked in (("train", 50_000), ("validation", 2_000), ("test", 2_000)):
        assert f"{name}: {len(splits[name])} of the {asked} problems asked for; there" in "\n".join(splits.notes)
        assert name == "train" or len(splits[name]) <= -(-space // EVERY)
    smaller = all_examples(cls(**fields, train_size=1, validation_size=2_000, test_size=2_000))
    assert (smaller["validation"], smaller["test"]) == (examples["validation"], examples["test"])


def test_two_prompts_cannot_fill_three_splits() -> None:
    splits = Parity(bits=1).load()
    assert [len(splits[name]) for name in SPLITS] == [1, 1, 0]
    assert splits.notes[-1].startswith("test: 0 of the 1000 problems")


def test_enough_problems_give_no_note() -> None:
    assert Parity().load().notes == ()


def test_a_space_is_used_to_its_last_prompt() -> None:
    splits = Parity(bits=16, train_size=2**16 - 2_000).load()
    assert not splits.notes
    assert sum(len(splits[name]) for name in SPLITS) == 2**16


@pytest.mark.parametrize("cls,fields", TASKS)
def test_every_example_encodes_with_the_small_tokenizer(cls: type[SampledTask], fields: dict) -> None:
    task = cls(**fields, **SMALL, train_size=1_000)
    train = task.load()["train"]
    encoded = encode(train, build_tokenizer("symbols", task.symbols()), "train", by_step=True)
    assert encoded.units.tolist() == [len(e.steps) for e in train.slice(0, 1_000)]
    assert encoded.cot_length.tolist() == [len(e.cot.split()) for e in train.slice(0, 1_000)]


@pytest.mark.parametrize("cls,fields", TASKS)
def test_steps_begin_at_words(cls: type[SampledTask], fields: dict) -> None:
    for e in cls(**fields, **SMALL, train_size=200).load()["train"].slice(0, 200):
        assert e.steps[0] == 0
        assert e == Example.of_steps(e.prompt, [e.cot[i:j].strip() for i, j in pairwise((*e.steps, None))], e.answer)


@pytest.mark.parametrize("cls", [Parity, Addition, WordProblems, ProsQA])
@pytest.mark.parametrize(
    "bad",
    [{"train_size": 0}, {"train_size": 10**9}, {"validation_size": 0}, {"test_size": 10**8}, {"seed": -1}],
    ids=str,
)
def test_bad_sizes_are_named(cls: type[SampledTask], bad: dict) -> None:
    with pytest.raises(UserError, match=f"task.{next(iter(bad))}="):
        cls(**bad)


@pytest.mark.parametrize("cls", [Parity, Addition, WordProblems, ProsQA])
def test_the_yaml_composes_to_the_defaults(cls: type[SampledTask]) -> None:
    assert composed(f"task={cls.kind}").task == cls()


@pytest.mark.parametrize("cls", [Parity, Addition, WordProblems, ProsQA])
def test_the_docstring_holds_an_example_line(cls: type[SampledTask]) -> None:
    assert re.search(r"Example line for `.*:\n    `[^`]+\|\|[^`]+ #### [^`]+`", cls.__doc__ or "")
