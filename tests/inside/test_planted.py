"""A model whose weights are set by hand: it is known where it holds what, and what it uses."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from stepwise_pl.config.model import ModelConfig
from stepwise_pl.data.encoding import encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.inside.ablation import Settings, ablations
from stepwise_pl.inside.directions import Problems
from stepwise_pl.inside.interchange import Portion, interchange, patch_places, patch_rows, right_pairs
from stepwise_pl.inside.pairs import TokenPairs, find_pairs, tokens_of
from stepwise_pl.inside.places import Place, places_of
from stepwise_pl.inside.subject import Source, Subject
from stepwise_pl.inside.swaps import swap_rows, swaps
from stepwise_pl.models.build import build_model
from stepwise_pl.models.learner import Learner
from stepwise_pl.tasks import Example, ExampleList, Splits, Task
from tests.conftest import learner

DIGITS = "0123456789"
WIDTH, HEAD = 64, 32
SOURCE = Source("removed-2", 2, 2)
# The prompt is `a b <eos>`; then come `<eos> #### a <eos>`.
A, B, END, FIRST, MARK = range(5)
USED, UNUSED = range(40, 50), range(50, 60)


@dataclass
class Copy(Task):
    """Two digits; the answer is the first: `3 7||3 7 #### 3`."""

    kind: str = "copy"

    def load(self, reserved: tuple[str, ...] = ()) -> Splits:
        prompts = [f"{a} {b}" for a in DIGITS for b in DIGITS]
        random.Random(0).shuffle(prompts)
        parts = {"train": prompts[:50], "validation": prompts[50:60], "test": prompts[60:]}
        return Splits({name: ExampleList(map(self.example, part)) for name, part in parts.items()})

    def example(self, prompt: str) -> Example:
        return Example(prompt, prompt, prompt[0])

    def solved(self, prompts: list[str]) -> list[Example | None]:  # type: ignore[override]
        return [self.example(prompt) for prompt in prompts]


def planted() -> Learner:
    """GPT-2 with two blocks. The embedding of a token is a unit vector, that of a position another.

    Block 1 copies `a` into the directions USED, at the end of the prompt and at the first token of the answer, and `b` into
    UNUSED, at the end of the prompt. Block 2 reads USED at the end of the prompt, and writes it where the answer is predicted.
    """
    tokenizer = build_tokenizer("symbols", tuple(DIGITS))
    shape = ModelConfig(type="gpt2", layers=2, heads=2, width=WIDTH, positions=16, dropout=0.0)
    model = build_model(shape, tokenizer, 16).eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    body = model.transformer
    vocabulary = model.config.vocab_size
    position = range(24, 24 + 16)
    assert vocabulary <= position[0]
    body.wte.weight.data[:, :vocabulary] = torch.eye(vocabulary)
    body.wpe.weight.data[:, position[0] : position[-1] + 1] = torch.eye(16)
    for norm in (body.ln_f, *(norm for block in body.h for norm in (block.ln_1, block.ln_2))):
        norm.weight.data.fill_(1)
    digits = [tokenizer.get_vocab()[digit] for digit in DIGITS]

    def head(
        block: int, number: int, queries: list[int], key: int, read: list[int], write: list[int], gain: float
    ) -> None:
        """A head that attends from some positions to one, and copies some directions there to others."""
        attention = body.h[block].attn
        first = number * HEAD
        weight = attention.c_attn.weight.data
        for query in queries:
            weight[position[query], first] = 6.0
        weight[position[key], WIDTH + first] = 6.0
        for place, (one, other) in enumerate(zip(read, write, strict=True)):
            weight[one, 2 * WIDTH + first + place] = 1.0
            attention.c_proj.weight.data[first + place, other] = gain

    head(0, 0, [END, FIRST], A, digits, list(USED), 0.2)
    head(0, 1, [END], B, digits, list(UNUSED), 0.2)
    head(1, 0, [MARK], END, list(USED), digits, 10.0)
    return learner(model, tokenizer)


@pytest.fixture(scope="module")
def subject_of() -> "type[object]":
    one = planted()
    tokenizer = build_tokenizer("symbols", tuple(DIGITS))
    limits = Limits(train_left=[2, 1, 0], left=[2, 1, 0], longest_answer=4)

    def make(texts: list[Example], stage: int = 2) -> Subject:
        return Subject(one, tokenizer, limits, stage, texts, encode(ExampleList(texts), tokenizer, "problems"))

    return make  # type: ignore[return-value]


@pytest.fixture(scope="module")
def pairs(subject_of) -> TokenPairs:
    task = Copy()
    return tokens_of(find_pairs(task, task.load(), 12, 0), subject_of)


def test_the_model_answers_and_its_answer_follows_the_first_word_alone(pairs: TokenPairs) -> None:
    differ = pairs.changed == -3
    assert differ.sum() == (~differ).sum() == 12
    assert right_pairs(pairs, 256).tolist() == np.flatnonzero(differ).tolist()
    rows = {swap.changed: swap for swap in swap_rows(swaps(pairs, 7), pairs, SOURCE)}
    assert (rows["prompt -3"].should_move, rows["prompt -3"].moved, rows["prompt -3"].right) == (1, 1, 1)
    assert (rows["prompt -2"].should_move, rows["prompt -2"].moved, rows["prompt -2"].right) == (0, 0, 1)
    assert rows["prompt -3"].distance > 0.9 and rows["prompt -2"].distance < 0.01
    assert all(row.target == "answer 2" and row.pairs == 12 for row in rows.values())


def test_a_patch_moves_the_answer_exactly_where_the_model_keeps_what_it_uses(pairs: TokenPairs) -> None:
    places = patch_places(pairs, 256)
    assert list(map(str, places)) == ["prompt -3", "prompt -2", "prompt -1", "answer 0", "answer 1", "answer 2"]
    moves = interchange(pairs, right_pairs(pairs, 256), places, [0, 1], 5)
    rows = patch_rows(moves, pairs, SOURCE)
    found = {(row.place, row.layer): row for row in rows}
    # The state at the answer's own token is read too late to matter.
    assert len(rows) == len(found) == 10
    for where, row in found.items():
        is_used = where in (("prompt -3", 0), ("prompt -1", 1))
        assert (row.moved, row.kept) == ((1, 0) if is_used else (0, 1)), where
        assert row.effect == pytest.approx(float(is_used), abs=0.02), where
        assert (row.changed, row.target, row.pairs) == ("prompt -3", "answer 2", 12)
        assert row.low < row.moved + 1e-9 and row.moved - 1e-9 < row.high and row.high - row.low < 0.3


def test_before_the_changed_word_a_patch_has_no_effect(pairs: TokenPairs) -> None:
    """`interchange` leaves these out. Here they are made: pairs with another second word, patched at the first."""
    rows = np.flatnonzero(pairs.changed == -2)
    forced = TokenPairs(
        pairs.first, pairs.second, pairs.forced, pairs.changed, (Place("answer", 2),), np.zeros(len(pairs), np.int64)
    )
    portion = Portion.of(forced, rows, [Place("prompt", -3), Place("prompt", -2)], [0, 1])
    assert portion.affected(0).tolist() == [] and portion.affected(1).tolist() == list(range(12))
    # The answers are the same. Another token stands for that of B, so that a logit difference may move.
    portion.tokens[1] = (portion.tokens[0] + 1) % 10
    with torch.inference_mode():
        logits = portion.learner.score(portion.view).logits.reshape(12, 4, -1)[:, 2].double()
        chosen = logits.gather(1, portion.tokens.T)
        portion.apart = torch.stack([chosen[:, 1] - chosen[:, 0], chosen[:, 0] - chosen[:, 1]])
        for layer in (0, 1):
            moves = portion.patched(0, layer, torch.arange(12))
            assert not moves.moved.any() and moves.kept.all()
            np.testing.assert_allclose(moves.effect, 0, atol=1e-6)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_probe_decodes_both_words_and_the_ablation_says_which_is_used(
    everywhere: bool, subject_of, tmp_path: Path
) -> None:
    splits = Copy().load()
    texts = [split.slice(0, len(split)) for split in splits.values()]
    problems = Problems(subject_of(sum(texts, [])), np.arange(50), np.arange(50, 60), np.arange(60, 100))
    places = places_of(problems.subject.batches(256))
    assert list(map(str, places)) == ["prompt -1", "answer 0", "answer 1", "answer 2"]
    found = ablations(problems, SOURCE, places, [0, 1], Settings(tmp_path, everywhere=everywhere))
    assert list(tmp_path.iterdir()) == []
    by_place = {(row.target, row.place, row.layer): row for row in found}
    assert len(found) == (3 if not everywhere else 3 * 6)  # at the answer's own place it is too late
    for target, is_used in (("cot 0", True), ("answer 2", True), ("cot 1", False)):
        row = by_place[target, "prompt -1", 1]
        assert (row.decoded, row.dimensions, row.whole, row.num_scored) == (1, 9, 1, 40)
        assert row.constant < 0.25
        assert row.random_low > 0.8 and row.random_low <= row.random_mean <= row.random_high
        assert row.accuracy < 0.3 if is_used else row.accuracy == 1, target
    if everywhere:  # the same directions at a place at which nobody reads them
        row = by_place["cot 0", "answer 0", 1]
        assert (row.decoded, row.accuracy) == (1, 1)
        assert by_place["cot 0", "prompt -1", 0].decoded < 0.3


def test_with_cot_left_all_that_is_written_can_be_scored(subject_of, tmp_path: Path) -> None:
    """The model does not write CoTs, so their tokens are wrong; a target that is written is scored itself."""
    splits = Copy().load()
    texts = [split.slice(0, len(split)) for split in splits.values()]
    problems = Problems(subject_of(sum(texts, []), 1), np.arange(50), np.arange(50, 60), np.arange(60, 100))
    places = places_of(problems.subject.batches(256))
    for written, scored in ((False, ["answer", "answer", "answer 2"]), (True, ["written", "cot 1", "answer 2"])):
        found = ablations(problems, SOURCE, places, [1], Settings(tmp_path, written=written))
        assert [row.scored for row in found] == scored
        assert found[1].whole <= 1 and not np.isnan(found[0].whole)
    # A token that is read is probed before its place alone.
    assert [Place.parse(row.place).rank < Place("cot", 1).rank for row in found] == [True, True, True]
