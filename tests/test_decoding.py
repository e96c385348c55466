"""Greedy decoding against transformers and against a loop of full forward passes."""

import numpy as np
import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from stepwise_pl.batch import CoTBatch, Part
from stepwise_pl.decoding import answers, continuation, forward, generate
from stepwise_pl.removal import REMOVE_ALL, remove
from stepwise_pl.tasks import Multiplication
from stepwise_pl.tokenizing import encode
from tests.conftest import small_model

TASK = Multiplication(digits=3, min_digits=1, train_size=40)


class SecondEnd(StoppingCriteria):
    """Stop a row at its second generated end token."""

    def __init__(self, eos: int, width: int) -> None:
        self.eos_token_id = eos  # has transformers pad ended rows
        self.eos, self.width = eos, width

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, self.width :] == self.eos).sum(1) >= 2


def transformers_generate(model, batch: CoTBatch, eos: int, bound: int) -> torch.Tensor:
    prompts = [batch.tokens[row][batch.part[row] == Part.PROMPT] for row in range(len(batch))]
    width = max(map(len, prompts))
    tokens = torch.full((len(batch), width), eos)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    model.generation_config.eos_token_id = None
    out = model.generate(
        tokens, attention_mask=mask, do_sample=False, max_new_tokens=bound, pad_token_id=eos,
        stopping_criteria=StoppingCriteriaList([SecondEnd(eos, width)]),
    )  # fmt: skip
    return out[:, width:]


def naive(model, batch: CoTBatch, eos: int, bound: int) -> list[list[int]]:
    """One example and one full forward pass per token, with the positions that training would give."""
    out = []
    for row in range(len(batch)):
        n = int(batch.attention_mask[row].sum())
        table = batch.position[row, :n].tolist()
        table += [table[-1] + 1 + i for i in range(bound)]
        tokens = batch.tokens[row][batch.part[row] == Part.PROMPT].tolist()
        prompt = len(tokens)
        while len(tokens) - prompt < bound and tokens[prompt:].count(eos) < 2:
            ids = torch.tensor([tokens])
            logits = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=torch.tensor([table[: len(tokens)]])
            ).logits
            tokens.append(int(logits[0, -1].argmax()))
        out.append(tokens[prompt:])
    return out


def trimmed(rows: torch.Tensor, eos: int) -> list[list[int]]:
    out = []
    for row in rows.tolist():
        ends = [i for i, token in enumerate(row) if token == eos]
        out.append(row[: ends[1] + 1] if len(ends) > 1 else row)
    return out


@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_those_of_transformers(tokenizer, seed: int) -> None:
    model = small_model(tokenizer, seed)
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(40))
    assert len(set(batch.length_of(Part.PROMPT).tolist())) > 2  # unequal prompts, so padding matters
    eos = tokenizer.eos_token_id
    for count in (0, 5, REMOVE_ALL):
        less = remove(batch, count)
        assert trimmed(generate(model, less, eos, 30), eos) == trimmed(transformers_generate(model, less, eos, 30), eos)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("keep_position", [False, True])
def test_tokens_and_positions_are_those_of_full_passes(tokenizer, side: str, keep_position: bool) -> None:
    model = small_model(tokenizer, 1)
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(12))
    for count in (0, 4, REMOVE_ALL):
        less = remove(batch, count, side, keep_position)
        eos = tokenizer.eos_token_id
        assert trimmed(generate(model, less, eos, 25), eos) == naive(model, less, eos, 25)


def test_positions_matter_to_what_is_generated(tokenizer) -> None:
    model = small_model(tokenizer, 1)
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(12))
    eos = tokenizer.eos_token_id
    kept, closed = (generate(model, remove(batch, 4, "left", keep), eos, 25) for keep in (True, False))
    assert trimmed(kept, eos) != trimmed(closed, eos)


def test_a_jump_in_the_positions_does_not_cut_attention(tokenizer) -> None:
    """transformers takes a jump for a new packed sequence when it is given no mask."""
    model = small_model(tokenizer)
    batch = remove(encode(TASK.load()["train"], tokenizer, "train").collate(np.array([0])), 3, "left", True)
    prompt = int(batch.length_of(Part.PROMPT))
    assert batch.position[0, prompt] - batch.position[0, prompt - 1] == 4  # exactly at the gap
    before = forward(model, batch)[0, -1]
    batch.tokens[0, 0] = (batch.tokens[0, 0] + 1) % 10
    assert not torch.allclose(before, forward(model, batch)[0, -1], atol=1e-3)


def test_padding_changes_nothing(tokenizer) -> None:
    model = small_model(tokenizer)
    encoded = encode(TASK.load()["train"], tokenizer, "train")
    together = forward(model, encoded.collate(np.arange(10)))
    for row in range(10):
        alone = forward(model, encoded.collate(np.array([row])))[0]
        assert torch.allclose(together[row, : len(alone)], alone, atol=1e-4)


def test_generation_is_bounded(tokenizer) -> None:
    model = small_model(tokenizer)
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(4))
    assert generate(model, batch, tokenizer.eos_token_id, 3).shape == (4, 3)
    # The model has 128 positions, whatever is asked for.
    assert generate(model, batch, tokenizer.eos_token_id, 10**6).shape[1] <= 128


def test_answers_are_read_between_the_end_tokens(tokenizer) -> None:
    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    texts = [
        "1 2 <eos> #### 3 4 <eos>",
        "<eos> #### 5 <eos> <eos>",
        "1 <eos> 2 <eos>",
        "1 <eos> #### 2",
        "#### 1 <eos> 2 <eos>",
    ]
    rows = [ids(text) for text in texts]
    assert [answers(torch.tensor([row]), tokenizer)[0] for row in rows] == ["3 4", "5", None, None, None]


def test_the_target_reads_as_its_own_answer(tokenizer) -> None:
    examples = TASK.load()["train"]
    batch = encode(examples, tokenizer, "train").collate(np.arange(40))
    for count in (0, 3, REMOVE_ALL):
        target = continuation(remove(batch, count), tokenizer.eos_token_id)
        assert answers(target, tokenizer) == [e.answer for e in examples.slice(0, 40)]
