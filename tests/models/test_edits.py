"""Edits of states against a naive reference: one example at a time, no cache, no padding, a hook written by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.methods import LATENT, Coconut, Codi, Method, Pause, SimCoT, Stepwise
from stepwise_pl.models.blocks import blocks
from stepwise_pl.models.edits import Edit
from stepwise_pl.models.learner import Learner, Scored
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.tasks import Multiplication
from tests.methods.test_thoughts import made

TASK = Multiplication(digits=3, min_digits=1, train_size=64, validation_size=10, test_size=10)
ROWS = 6
METHODS: dict[str, Callable[[], Method]] = {
    "stepwise": Stepwise,
    "told its stage": lambda: Stepwise(unit="step", tell_stage=True),
    "pause": lambda: Pause(unit="step", tokens=2),
    "coconut": lambda: Coconut(thoughts=2),
    "sim_cot": lambda: SimCoT(thoughts=2),
    "codi": lambda: Codi(thoughts=3),
}


class Planted(Stepwise):
    """A method whose states stand at the last token of the prompt, as those of ICoT-KD do."""

    def prompt_states(self, learner: Learner, view: CoTBatch) -> Tensor:
        drawn = torch.Generator().manual_seed(int(view.draw[0]))
        return torch.randn(2, len(view), 16, generator=drawn)


@pytest.fixture(scope="module")
def examples() -> EncodedExamples:
    return encode(TASK.load()["train"], build_tokenizer("symbols", TASK.symbols()), "train", by_step=True)


def views_of(learner: Learner, examples: EncodedExamples, rows: Sequence[int]) -> CoTBatch:
    last = learner.method.last_stage(Limits.of({"train": examples}, "left"))
    return learner.method.view(learner, examples.collate(np.array(rows)), Stage(min(1, last), last))


def rows_of(examples: EncodedExamples) -> list[int]:
    """Problems of all lengths."""
    rows: list[int] = np.argsort(examples.length)[np.linspace(0, len(examples) - 1, ROWS).astype(int)].tolist()
    return rows


def logits_of(scored: Scored, row: int) -> Tensor:
    """The logits of a row's targets."""
    return scored.logits[(scored.row == row).to(scored.logits.device)]


def by_hand(learner: Learner, ids: list[int], layer: int, column: int, change: Callable[[Tensor], Tensor]) -> Any:
    """The logits after each token of one example, with one state changed by a hook in every pass that reaches its column."""
    model = learner.model

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = (args[0] if args else kwargs["hidden_states"]).clone()
        if state.shape[1] > column:
            state[0, column] = change(state[0, column])
        return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})

    handle = blocks(model)[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        vectors: list[Tensor] = []
        for number in ids:
            if number >= 0:
                vectors.append(model.get_input_embeddings().weight[number])
            elif number == LATENT:
                read = model.base_model(inputs_embeds=torch.stack(vectors)[None]).last_hidden_state[:, -1]
                vectors.append(learner.method.thought(learner, read)[0])
            else:
                vectors.append(learner.tokens.weight[-2 - number])  # type: ignore[union-attr]
        return model(inputs_embeds=torch.stack(vectors)[None]).logits[0]
    finally:
        handle.remove()


def ids_of(view: CoTBatch, row: int) -> tuple[list[int], int]:
    """The tokens of a row, and how many of them are given."""
    tokens: list[int] = view.tokens[row, : int(view.attention_mask[row].sum())].tolist()
    return tokens, int(view.num_given[row])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("layer", [0, 1])
def test_an_edited_state_reaches_what_the_reference_says(name: str, kind: str, layer: int, tokenizer, examples) -> None:
    """One column of each row is edited: in the prompt, at each thought, and in what is written; rows without it stay as they are."""
    learner = made(tokenizer, METHODS[name](), examples, kind)
    view = views_of(learner, examples, rows_of(examples))
    length, given = view.attention_mask.sum(1), view.num_given
    prompt = view.length_of(Part.PROMPT)
    with torch.inference_mode():
        plain = learner.score(view)
        for column in (
            prompt - 2,
            prompt - 1,
            prompt,
            prompt + 1,
            given - 1,
            given,
            length - 2,
            torch.full_like(prompt, 8),
        ):
            column = torch.where(torch.arange(ROWS) == 2, -1, column)
            column = torch.where(column < length - 1, column, -1)
            scored = learner.score(
                view, edits=[Edit(layer, column[:, None], lambda row, number, state: -2 * state + 1)]
            )
            for row in range(ROWS):
                ids, first = ids_of(view, row)
                if column[row] < 0:
                    torch.testing.assert_close(logits_of(scored, row), logits_of(plain, row))
                    continue
                expected = by_hand(learner, ids[:-1], layer, int(column[row]), lambda state: -2 * state + 1)[
                    first - 1 :
                ]
                torch.testing.assert_close(logits_of(scored, row), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*METHODS, "planted"])
def test_states_that_are_read_and_put_back_change_nothing(name: str, tokenizer, examples) -> None:
    learner = made(tokenizer, METHODS[name]() if name in METHODS else Planted(unit="step"), examples)
    view = views_of(learner, examples, rows_of(examples))
    columns = torch.arange(view.tokens.shape[1] - 1).expand(ROWS, -1)
    columns = torch.where(columns < view.attention_mask.sum(1, keepdim=True) - 1, columns, -1)
    found = [torch.zeros(*columns.shape, 16) for _ in range(2)]

    def keep(layer: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def change(row: Tensor, number: Tensor, state: Tensor) -> Tensor:
            assert not found[layer][row, number].any()  # each token once
            found[layer][row, number] = state
            return state

        return change

    with torch.inference_mode():
        plain = learner.score(view)
        learner.score(view, edits=[Edit(layer, columns, keep(layer)) for layer in range(2)])
        hidden = learner.hidden(view, (0, 1))
        again = learner.score(
            view, edits=[Edit(layer, columns, lambda r, n, _, layer=layer: found[layer][r, n]) for layer in range(2)]
        )
    torch.testing.assert_close(again.logits, plain.logits, rtol=0, atol=1e-5)
    there = columns >= 0
    for layer in range(2):
        assert found[layer][there].abs().sum(-1).min() > 0
        # `Learner.hidden` is what the blocks read, the method's own states included.
        torch.testing.assert_close(hidden[layer][there], found[layer][there])


@pytest.mark.parametrize("name", [*METHODS, "planted"])
def test_all_states_of_another_prompt_give_its_answer(name: str, tokenizer, examples) -> None:
    """With the whole CoT gone, the prompt at all layers is all that differs; thoughts follow from it."""
    learner = made(tokenizer, METHODS[name]() if name in METHODS else Planted(unit="step"), examples)
    last = learner.method.last_stage(Limits.of({"train": examples}, "left"))
    prompts = [examples.prompt_and_target(row)[0] for row in range(len(examples))]
    row = next(row for row in range(len(prompts)) if len(prompts[row]) == 8)
    other = next(one for one in range(row + 1, len(prompts)) if len(prompts[one]) == 8)
    a, b = (learner.method.view(learner, examples.collate(np.array([one])), Stage(last, last)) for one in (row, other))
    columns = torch.arange(8)[None]
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda row, number, state: found.setdefault(layer, state)

    with torch.inference_mode():
        # The logits that predict the first token of the answer: that is the same for both.
        plain, target = (
            learner.score(each, edits=[Edit(0, columns, lambda r, n, state: state)]).logits[0] for each in (a, b)
        )
        learner.score(b, edits=[Edit(layer, columns, keep(layer)) for layer in range(2)])
        patched = learner.score(
            a, edits=[Edit(layer, columns, lambda r, n, _, layer=layer: found[layer]) for layer in range(2)]
        ).logits[0]
    torch.testing.assert_close(patched, target, rtol=0, atol=1e-5)
    assert (plain - target).abs().max() > 1e-2


def test_edits_of_one_layer_follow_each_other(tokenizer, examples) -> None:
    learner = made(tokenizer, Stepwise(unit="step"), examples)
    view = views_of(learner, examples, rows_of(examples))
    column = (view.length_of(Part.PROMPT) - 1)[:, None]
    with torch.inference_mode():
        twice = learner.score(
            view, edits=[Edit(1, column, lambda r, n, s: s + 1), Edit(1, column, lambda r, n, s: 2 * s)]
        )
        once = learner.score(view, edits=[Edit(1, column, lambda r, n, s: 2 * s + 2)])
    torch.testing.assert_close(twice.logits, once.logits)
