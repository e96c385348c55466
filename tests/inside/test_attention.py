"""Attention: the mean over problems of what a naive computation by hand gives, whatever the padding and the method."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stepwise_pl.common.errors import UserError
from stepwise_pl.inside.attention import attention_rows, kept_attention, mean_attention, most_places
from stepwise_pl.inside.places import Place, columns, places_of
from stepwise_pl.inside.subject import Subject
from stepwise_pl.methods import Coconut, Codi, ICoTKD, Method, Pause, Stepwise
from stepwise_pl.runs.inside import Attention, read_rows, write_rows
from tests.inside.looking import KINDS, PRODUCTS, subject

WHERE = ("removed-1", 1, 1)


def weights_by_hand(one: Subject, states: Tensor, layer: int) -> Tensor:
    """The attention of a block of a GPT-2 from the states before it, [seq, width] -> [heads, seq, seq]."""
    block, config = one.learner.model.transformer.h[layer], one.learner.model.config
    mean, spread = states.mean(-1, keepdim=True), states.var(-1, unbiased=False, keepdim=True)
    normed = (states - mean) / (spread + config.layer_norm_epsilon).sqrt() * block.ln_1.weight + block.ln_1.bias
    query, key, _ = (normed @ block.attn.c_attn.weight + block.attn.c_attn.bias).split(config.n_embd, dim=-1)
    size = config.n_embd // config.n_head
    found = torch.zeros(config.n_head, len(states), len(states))
    for head in range(config.n_head):
        part = slice(head * size, (head + 1) * size)
        for row in range(len(states)):
            scores = torch.stack([query[row, part] @ key[column, part] / math.sqrt(size) for column in range(row + 1)])
            found[head, row, : row + 1] = scores.exp() / scores.exp().sum()
    return found


CASES: dict[str, tuple[Method, int]] = {
    "stepwise": (Stepwise(), 1), "told": (Stepwise(tell_stage=True), 2), "coconut": (Coconut(unit="token", thoughts=2), 2),
    "pause": (Pause(tokens=2), 1), "codi": (Codi(unit="token", thoughts=3), 0), "icot_kd": (ICoTKD(teacher="random"), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_the_mean_is_that_of_a_naive_computation(name: str) -> None:
    method, stage = CASES[name]
    one = subject(method=method, stage=stage, task=PRODUCTS)
    places = places_of(one.batches(100), one.side, None)
    assert len({len(text.prompt) for text in one.texts}) > 1  # prompts of several lengths: batches have padding
    found = mean_attention(one, places, 7)
    expected = torch.zeros_like(found)
    for whole, view in one.batches(1):
        # The states before each block: those of a single problem, read without padding, in the passes of its method.
        states = one.learner.hidden(view, (0, 1))[:, 0]
        column = [int(columns(place, view, whole, one.side)) for place in places]
        for layer in (0, 1):
            expected[layer] += weights_by_hand(one, states[layer], layer)[:, column][:, :, column].double()
    torch.testing.assert_close(found, expected / len(one.texts), rtol=1e-4, atol=1e-5)
    assert one.learner.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_rows_sum_to_one_over_what_is_seen(kind: str) -> None:
    one = subject(kind, stage=1)
    places = places_of(one.batches(100), one.side, None)  # with prompts of one length these are all tokens
    found = mean_attention(one, places, 100)
    assert found.shape == (2, 2, len(places), len(places))
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2, len(places), dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert torch.equal(found.triu(1), torch.zeros_like(found)) and bool((found >= 0).all())


def test_a_batch_has_the_weights_of_each_problem_alone() -> None:
    one = subject("llama", stage=1, task=PRODUCTS)
    places = places_of(one.batches(100), one.side)
    torch.testing.assert_close(mean_attention(one, places, 30), mean_attention(one, places, 1), rtol=1e-4, atol=1e-6)


def test_few_problems_are_read_at_a_time_if_their_weights_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    one = subject(stage=1)
    places = places_of(one.batches(100), one.side)
    expected, read = mean_attention(one, places, 100), []
    monkeypatch.setattr("stepwise_pl.inside.attention.MOST_WEIGHTS", 4 * 2 * 2 * 14**2)  # 2 layers, 2 heads, 14 tokens
    score = one.learner.score
    monkeypatch.setattr(one.learner, "score", lambda view, **more: (read.append(len(view)), score(view, **more))[1])
    torch.testing.assert_close(mean_attention(one, places, 100), expected, rtol=1e-5, atol=1e-6)
    assert read == [4] * 15


def test_what_is_put_in_at_the_prompts_end_changes_what_is_looked_at() -> None:
    """The emulator's states of ICoT-KD are seen by attention: other states, other weights."""
    method = ICoTKD(teacher="random")
    one = subject(method=method, stage=2)
    places = places_of(one.batches(100), one.side)
    before = mean_attention(one, places, 100)
    with torch.no_grad():
        for parameter in one.learner.extra["mind"].parameters():  # type: ignore[index, union-attr]
            parameter += 0.5
    assert not torch.allclose(mean_attention(one, places, 100), before, atol=1e-3)


def test_the_rows_of_a_place_sum_to_one_with_the_rest(tmp_path: Path) -> None:
    one = subject(stage=1)
    places = places_of(one.batches(100), one.side, 2)
    found = mean_attention(one, places, 100)
    write_rows(tmp_path, attention_rows(found, places, WHERE), Attention)
    rows = read_rows(tmp_path, Attention)
    assert {row.layer for row in rows} == {1, 2} and {row.head for row in rows} == {0, 1}
    for layer, head, place in ((1, 0, "prompt -1"), (2, 1, "answer 2"), (1, 1, "cot 1")):
        of_place = {row.to: row.weight for row in rows if (row.layer, row.head, row.place) == (layer, head, place)}
        number = list(map(str, places)).index(place)
        assert list(of_place) == [*map(str, places[: number + 1]), "rest"]
        assert sum(of_place.values()) == pytest.approx(1, abs=1e-5)
        assert of_place["rest"] > 0.01  # the first words of the prompt
        assert of_place[place] == pytest.approx(float(found[layer - 1, head, number, number]), rel=1e-5)


def test_the_table_is_bounded() -> None:
    for layers, heads, checkpoints, rows in ((4, 8, 6, 200_000), (12, 12, 9, 200_000), (2, 2, 1, 40)):
        most = most_places(layers, heads, checkpoints, rows)
        attention = torch.full((layers, heads, most, most), 1.0 / most)
        count = checkpoints * len(attention_rows(attention, [Place("cot", number) for number in range(most)], WHERE))
        assert count <= rows
        assert checkpoints * layers * heads * (most + 1) * (most + 4) // 2 > rows
    assert most_places(12, 12, 9, 1) == 2
    assert most_places(12, 12, 9, 10**30) > 10**12


def test_a_model_without_attention_is_refused_in_one_line() -> None:
    one = subject("mamba", task=PRODUCTS)
    with pytest.raises(UserError, match="a mamba has no attention that can be read .*; there is no attention.csv"):
        mean_attention(one, [Place("prompt", -1)], 100)


def test_a_block_that_hands_out_no_weights_is_noticed() -> None:
    one = subject()
    with pytest.raises(UserError, match="2 of its 2 layers hand out none"), kept_attention(one.learner.model):
        one.learner.score(next(one.batches(3))[1])  # in the quick way of the model


def test_no_hook_stays_behind() -> None:
    one = subject()
    view = next(one.batches(3))[1]
    before = one.learner.score(view).logits
    mean_attention(one, [Place("prompt", -1)], 100)
    assert not any(module._forward_hooks for module in one.learner.model.modules())
    assert np.array_equal(one.learner.score(view).logits.detach(), before.detach())
