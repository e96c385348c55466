"""Tokens and part boundaries, with the small tokenizer and with GPT-2's."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.batch import Part
from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.tasks import GSM8K, Example, Multiplication
from stepwise_pl.tasks.base import ExampleList, parse_line


def parts_of(encoded, row: int) -> list[list[int]]:
    batch = encoded.collate(np.array([row]))
    return [batch.tokens[0][batch.part[0] == part].tolist() for part in (Part.PROMPT, Part.COT, Part.ANSWER)]


def test_small_layout_is_67_tokens_for_4x4(tokenizer) -> None:
    encoded = encode(Multiplication(digits=4, train_size=50).load()["train"], tokenizer, "train")
    assert set(map(tuple, np.array([encoded.cot_start, encoded.cot_length, encoded.answer_length]).T)) == {(10, 46, 11)}
    assert len(tokenizer) == 17
    example = Multiplication(digits=4, train_size=50).load()["train"].slice(7, 8)[0]
    prompt, cot, answer = (tokenizer.convert_ids_to_tokens(ids) for ids in parts_of(encoded, 7))
    assert prompt == [*example.prompt.split(), "<eos>"]
    assert cot == example.cot.split()
    assert answer == ["<eos>", "####", *example.answer.split(), "<eos>"]


@pytest.mark.parametrize("digits,cot", [(4, 47), (5, 75), (7, 149), (9, 247)])
def test_gpt2_ids_are_those_of_the_reference(gpt2_tokenizer, digits: int, cot: int) -> None:
    examples = Multiplication(digits=digits, train_size=20).load()["train"]
    encoded = encode(examples, gpt2_tokenizer, "train")
    eos = gpt2_tokenizer.eos_token
    for row, e in enumerate(examples.slice(0, 20)):
        # One string, as the reference writes it, with its `#### ` kept in the answer.
        text = f" {e.prompt} {eos} {e.cot} {eos} #### {e.answer} {eos}"
        prompt, z, answer = parts_of(encoded, row)
        assert prompt + z + answer == gpt2_tokenizer(text)["input_ids"]
        assert (len(z), prompt[-1], answer[0], answer[-1]) == (cot, 50256, 50256, 50256)
        assert gpt2_tokenizer.convert_ids_to_tokens(answer[1:3]) == ["Ġ#", "###"]


def test_real_gsm8k_lines_encode_as_one_string(gpt2_tokenizer, shared_data) -> None:
    lines = (shared_data / "gsm8k" / "icot_valid.txt").read_text(encoding="utf-8").splitlines()
    examples = ExampleList(map(parse_line, lines))
    assert len(examples) == 500
    encoded = encode(examples, gpt2_tokenizer, "validation")
    eos = gpt2_tokenizer.eos_token
    for row in range(0, 500, 7):
        e = examples[row]
        expected = gpt2_tokenizer(f" {e.prompt} {eos} {e.cot} {eos} #### {e.answer} {eos}")["input_ids"]
        assert sum(parts_of(encoded, row), []) == expected


def test_unequal_lengths_are_padded(tokenizer) -> None:
    examples = ExampleList(
        [Example("1 * 2", "2 0", "2 0"), Example("3", "", "4"), Example("1 2 3 4 5", "6 7 8 9", "0")]
    )
    encoded = encode(examples, tokenizer, "train")
    batch = encoded.collate(np.array([2, 0, 1]), np.array([7, 8, 9]))
    assert batch.length_of(Part.PROMPT).tolist() == [6, 4, 2]
    assert batch.length_of(Part.COT).tolist() == [4, 2, 0]
    assert batch.length_of(Part.ANSWER).tolist() == [4, 5, 4]
    assert batch.attention_mask.sum(1).tolist() == [14, 11, 6]
    assert batch.draw.tolist() == [7, 8, 9]
    assert torch.equal(batch.position, torch.arange(14) * batch.attention_mask)


def test_end_token_and_unknown_words_are_refused(tokenizer, gpt2_tokenizer) -> None:
    good = Example("1", "2", "3")
    with pytest.raises(UserError, match=r"train example 2: has 4 end tokens '<\|endoftext\|>'"):
        encode(ExampleList([good, Example("1 <|endoftext|>", "2", "3")]), gpt2_tokenizer, "train")
    with pytest.raises(UserError, match="test example 3: the tokenizer does not know 'apples'"):
        encode(ExampleList([good, good, Example("1 apples", "2", "3")]), tokenizer, "test")


def test_small_tokenizer_is_a_standard_one(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = " 1 * ( 9 ) + 4 <eos> #### 7 <eos>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again("1 + 2 #### 3")["input_ids"]) == "1 + 2 #### 3"
    # `encode` takes a shortcut for this tokenizer. The ids are the same.
    examples = Multiplication(digits=3, train_size=5).load()["train"]
    assert encode(examples, again, "train").tokens.tolist() == sum(
        (
            tokenizer(f" {e.prompt} <eos> {e.cot} <eos> #### {e.answer} <eos>")["input_ids"]
            for e in examples.slice(0, 5)
        ),
        [],
    )


def test_messages_name_the_way_out(tmp_path) -> None:
    with pytest.raises(UserError, match="model.tokenizer=.*local folder"):
        build_tokenizer(str(tmp_path / "nowhere"), ())
    with pytest.raises(UserError, match="no fixed set of words"):
        build_tokenizer("symbols", ())


def units_of(encoded: EncodedExamples, row: int) -> list[list[int]]:
    """Return the tokens of each reasoning step of the CoT."""
    batch = encoded.collate(np.array([row]))
    cot = batch.part[0] == Part.COT
    tokens, starts = batch.tokens[0][cot].tolist(), batch.unit_start[0][cot].nonzero().flatten().tolist()
    assert not batch.unit_start[0][~cot].any()
    assert starts[:1] == ([0] if tokens else [])
    return [tokens[a:b] for a, b in pairwise([*starts, len(tokens)])]


@pytest.mark.parametrize("cot", ["equations", "natural_language"])
def test_reasoning_steps_of_gsm8k_are_found_in_gpt2_tokens(gpt2_tokenizer, shared_data, cot: str) -> None:
    source = str(shared_data / "gsm8k" / "openai_train.jsonl")
    examples = GSM8K(train=source, test=None, test_size=200, validation_size=100, cot=cot).load()["test"]
    encoded = encode(examples, gpt2_tokenizer, "test", by_step=True)
    for row, e in enumerate(examples.slice(0, 200)):
        units = units_of(encoded, row)
        # An empty CoT is a token of white space with this tokenizer: one unit.
        steps = [e.cot[a:b] for a, b in pairwise([*e.steps, len(e.cot)])] or [""]
        assert [gpt2_tokenizer.decode(unit).strip() for unit in units] == [step.strip() for step in steps]
        for removed in range(len(units) + 2):
            left = {"left": units[removed:], "right": units[: max(0, len(units) - removed)]}
            for side, rest in left.items():
                assert encoded.cot_left(removed, side)[row] == sum(map(len, rest))
        assert encoded.units[row] == len(units)
    assert encoded.units.max() >= 4


def test_reasoning_steps_with_the_small_tokenizer(tokenizer) -> None:
    examples = Multiplication(digits=3, min_digits=1, train_size=200).load()["train"]
    encoded = encode(examples, tokenizer, "train", by_step=True)
    for row, e in enumerate(examples.slice(0, 200)):
        steps = [e.cot[a:b].split() for a, b in pairwise([*e.steps, len(e.cot)])]
        assert [tokenizer.convert_ids_to_tokens(unit) for unit in units_of(encoded, row)] == steps
    assert set(encoded.units.tolist()) == {1, 2, 3}


def test_a_cot_without_steps_is_refused_if_steps_are_removed(tokenizer) -> None:
    examples = ExampleList([Example("1", "", "2"), Example.of_steps("1", ["2 + 3", "4"], "2"), Example("1", "2", "3")])
    with pytest.raises(UserError, match=r"train example 3: its CoT has no reasoning steps.*task.step_start"):
        encode(examples, tokenizer, "train", by_step=True)
    encoded = encode(ExampleList(examples[:2]), tokenizer, "train", by_step=True)
    assert encoded.units.tolist() == [0, 2]  # an empty CoT has no steps, and that is valid
    assert encoded.cot_left(1).tolist() == [0, 1]


@pytest.mark.parametrize("by_step", [False, True])
def test_taken_examples_do_not_change(tokenizer, by_step: bool) -> None:
    examples = Multiplication(digits=3, min_digits=1, train_size=200).load()["train"]
    encoded = encode(examples, tokenizer, "train", by_step)
    rows = np.array([150, 3, 3, 199, 0])
    some = encoded.take(rows)
    assert len(some) == 5 and np.array_equal(some.length, encoded.length[rows])
    before, after = encoded.collate(rows), some.collate(np.arange(5))
    for key in ("tokens", "part", "position", "unit_start"):
        assert torch.equal(getattr(before, key), getattr(after, key)), key
    assert np.array_equal(some.cot_left(2), encoded.cot_left(2)[rows])
    assert len(encoded.take(np.array([], np.int64))) == 0
