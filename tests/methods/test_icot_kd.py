"""ICoT-KD against a naive implementation: by hand, one example at a time, in full passes, without hooks or batches."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import encode
from stepwise_pl.methods import ICoTKD, Losses
from stepwise_pl.methods.icot_kd import COUPLE, EMULATE, READ
from stepwise_pl.models import decoding, static_rows
from stepwise_pl.models.blocks import blocks, kept_states, replaced_states
from stepwise_pl.models.build import build_model
from stepwise_pl.models.decoding import _exact_up_to
from stepwise_pl.models.forward import Targets
from stepwise_pl.models.learner import Learner
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.tasks import Multiplication

TASK = Multiplication(digits=2, min_digits=1, train_size=64, validation_size=10, test_size=10)
LAYERS, HEADS, WIDTH = 4, 2, 16  # with three blocks no gradient would reach the emulator's query


def made(tokenizer: Any, method: ICoTKD, kind: str = "gpt2") -> Learner:
    """A learner and a teacher with random weights. No two of the three models are alike, or a test would not tell them apart."""

    def model(seed: int) -> Any:
        config = {"initializer_range": 0.3} if kind == "gpt2" else {}
        torch.manual_seed(seed)
        return build_model(
            ModelConfig(type=kind, layers=LAYERS, heads=HEADS, width=WIDTH, config=config, dropout=0.0), tokenizer, 64
        ).eval()

    own = model(0)
    torch.manual_seed(1)
    extra = method.extra(own)
    for parameter in extra.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    method._teacher = model(2)
    return Learner(own, int(tokenizer.eos_token_id), method, extra.eval())


@pytest.fixture
def learner(tokenizer: Any) -> Learner:
    return made(tokenizer, ICoTKD(mixture=3))


@pytest.fixture
def batch(tokenizer: Any) -> CoTBatch:
    found = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(12))
    assert len(set(found.length_of(Part.PROMPT).tolist())) > 1 and len(set(found.length_of(Part.COT).tolist())) > 1
    return found


def gpt2_by_hand(
    model: Any, tokens: list[int], before: Callable[[int, list[Tensor]], list[Tensor]]
) -> tuple[list[Tensor], Tensor]:
    """Return the states before every block and the logits, [seq, vocabulary]; `before(l, states)` may change what block l reads."""
    gpt = model.transformer
    states = [gpt.wte.weight[token] + gpt.wpe.weight[place] for place, token in enumerate(tokens)]
    each = []
    for number, block in enumerate(gpt.h):
        states = before(number, states)
        each.append(torch.stack(states))
        heads: list[list[list[Tensor]]] = []  # query, key and value of each token and head
        for state in states:
            projected = block.ln_1(state) @ block.attn.c_attn.weight + block.attn.c_attn.bias
            heads.append([list(part.chunk(HEADS)) for part in projected.chunk(3)])
        after = []
        for place, state in enumerate(states):
            mixed = []
            for head in range(HEADS):
                query = heads[place][0][head]
                scores = torch.stack(
                    [query @ heads[seen][1][head] / math.sqrt(WIDTH / HEADS) for seen in range(place + 1)]
                )
                shares = scores.softmax(0)
                mixed.append(sum(share * heads[seen][2][head] for seen, share in enumerate(shares)))
            state = state + torch.cat(mixed) @ block.attn.c_proj.weight + block.attn.c_proj.bias
            hidden = block.mlp.act(block.ln_2(state) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias)
            after.append(state + hidden @ block.mlp.c_proj.weight + block.mlp.c_proj.bias)
        states = after
    return each, torch.stack([gpt.ln_f(state) @ gpt.wte.weight.T for state in states])


def rows(batch: CoTBatch) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt with its separator, CoT, and answer with its separator, of each example."""
    out = []
    for tokens, part in zip(batch.tokens.tolist(), batch.part.tolist(), strict=True):
        out.append(
            tuple(
                [t for t, p in zip(tokens, part, strict=True) if p == wanted]
                for wanted in (Part.PROMPT, Part.COT, Part.ANSWER)
            )
        )
    return out  # type: ignore[return-value]


def same(number: int, states: list[Tensor]) -> list[Tensor]:
    return states


def normal(state: Tensor) -> Tensor:
    return (state - state.mean()) / torch.sqrt(state.var(correction=0) + 1e-5)


def teacher_by_hand(learner: Learner, prompt: list[int], cot: list[int], answer: list[int]) -> list[Tensor]:
    method = learner.method
    assert isinstance(method, ICoTKD)
    each, _ = gpt2_by_hand(method._teacher, prompt + cot + answer[:1], same)
    first, second = len(prompt) - 1, len(prompt) + len(cot)
    out = []
    for layer in range(LAYERS):
        column = round(first + layer * (second - first) / (LAYERS - 1))
        block = layer
        if method.states == "first_column":
            column = first
        elif method.states == "last_column":
            column = second
        elif method.states == "top_row":
            block = LAYERS - 1
        elif method.states == "bottom_row":
            block = 0
        out.append(normal(each[block][column]))
    return out


def sequential(layers: nn.Sequential, x: Tensor) -> Tensor:
    hidden = layers[0].weight @ x + layers[0].bias
    return layers[2].weight @ hidden.clamp(min=0) + layers[2].bias


def emulator_by_hand(learner: Learner, prompt: list[int]) -> list[Tensor]:
    emulator: Any = learner.extra["emulator"]  # type: ignore[index]
    last, guesses, keys = len(prompt) - 1, [], []
    output, cell, context = torch.zeros(WIDTH), torch.zeros(WIDTH), torch.zeros(WIDTH)
    lstm = emulator["recurrence"]

    def before(layer: int, states: list[Tensor]) -> list[Tensor]:
        nonlocal output, cell, context
        weight = emulator["mixture"].weight
        shares = torch.stack([states[last] @ row / 0.05 for row in weight]).softmax(0)
        component = sum(share * row for share, row in zip(shares, weight, strict=True))
        guess = sequential(emulator["guess"][layer], torch.cat([states[last], component]))
        guesses.append(guess)
        gates = lstm.weight_ih @ (guess + context) + lstm.bias_ih + lstm.weight_hh @ output + lstm.bias_hh
        take, forget, candidate, give = gates.chunk(4)
        cell = forget.sigmoid() * cell + take.sigmoid() * candidate.tanh()
        output = give.sigmoid() * cell.tanh()
        query = emulator["query"].weight @ output + emulator["query"].bias
        context = torch.zeros(WIDTH)
        if keys:
            attention = torch.stack([key @ query for key in keys]).softmax(0)
            context = sum(share * key for share, key in zip(attention, keys, strict=True))
        keys.append(emulator["key"].weight @ output + emulator["key"].bias)
        own = emulator["out"].weight @ torch.cat([output, context]) + emulator["out"].bias
        return [*states[:last], own]

    gpt2_by_hand(emulator["model"], prompt, before)
    return guesses


def model_by_hand(learner: Learner, tokens: list[int], last: int, states: list[Tensor]) -> Tensor:
    """Return the logits of the model, which reads the states, each through its MLP, at the prompt's last token."""
    mind: Any = learner.extra["mind"]  # type: ignore[index]

    def before(layer: int, own: list[Tensor]) -> list[Tensor]:
        return [*own[:last], sequential(mind[layer], states[layer]), *own[last + 1 :]]

    return gpt2_by_hand(learner.model, tokens, before)[1]


def cross_entropy_by_hand(learner: Learner, prompt: list[int], answer: list[int], states: list[Tensor]) -> Tensor:
    logits = model_by_hand(learner, prompt + answer, len(prompt) - 1, states).log_softmax(-1)
    return -sum(logits[len(prompt) - 1 + place, token] for place, token in enumerate(answer))  # type: ignore[return-value]


@pytest.mark.parametrize("states", ["diagonal", "first_column", "last_column", "top_row", "bottom_row"])
def test_the_teachers_states_are_those_found_by_hand(tokenizer: Any, batch: CoTBatch, states: str) -> None:
    learner = made(tokenizer, ICoTKD(states=states))
    found = learner.method.teacher_states(learner, batch)  # type: ignore[attr-defined]
    for row, parts in enumerate(rows(batch)):
        torch.testing.assert_close(found[:, row], torch.stack(teacher_by_hand(learner, *parts)), rtol=1e-3, atol=1e-4)
    assert not found.requires_grad


@pytest.mark.parametrize("mixture", [1, 3])
def test_the_emulators_states_are_those_found_by_hand(tokenizer: Any, batch: CoTBatch, mixture: int) -> None:
    learner = made(tokenizer, ICoTKD(mixture=mixture))
    found = learner.method.emulated_states(learner, learner.method.view(learner, batch, Stage(0, 2)))  # type: ignore[attr-defined]
    for row, (prompt, _, _) in enumerate(rows(batch)):
        torch.testing.assert_close(found[:, row], torch.stack(emulator_by_hand(learner, prompt)), rtol=1e-3, atol=1e-4)


def test_the_losses_of_all_stages_are_those_found_by_hand(learner: Learner, batch: CoTBatch) -> None:
    expected = [torch.zeros(()) for _ in range(3)]
    for prompt, cot, answer in rows(batch):
        true, guessed = teacher_by_hand(learner, prompt, cot, answer), emulator_by_hand(learner, prompt)
        expected[READ] = expected[READ] + cross_entropy_by_hand(learner, prompt, answer, true)
        expected[EMULATE] = expected[EMULATE] + sum(
            ((a - b) ** 2).sum() / 2 for a, b in zip(true, guessed, strict=True)
        )
        expected[COUPLE] = expected[COUPLE] + cross_entropy_by_hand(learner, prompt, answer, guessed)
    for stage in (READ, COUPLE):
        losses = learner.method.loss(learner, batch, Stage(stage, 2))
        assert losses.scored is not None and not losses.more
        torch.testing.assert_close(losses.scored.loss, expected[stage], rtol=1e-4, atol=1e-3)
    losses = learner.method.loss(learner, batch, Stage(EMULATE, 2))
    assert losses.scored is None
    torch.testing.assert_close(losses.more["emulation"], expected[EMULATE], rtol=1e-4, atol=1e-3)


def test_an_example_has_the_same_losses_in_any_batch(learner: Learner, batch: CoTBatch) -> None:
    for stage in range(3):
        whole, alone = (
            [learner.method.loss(learner, part, Stage(stage, 2)) for part in parts]
            for parts in ([batch], [batch.row(number) for number in range(len(batch))])
        )
        sums = [sum(float(sum(terms(losses))) for losses in found) for found in (whole, alone)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-4)


def terms(losses: Losses) -> list[Tensor]:
    return [*([losses.scored.loss] if losses.scored is not None else []), *losses.more.values()]


def test_gradients_reach_exactly_what_a_stage_trains(learner: Learner, batch: CoTBatch) -> None:
    """The emulator's last block and final norm never get one: what it guesses before the last block is all that is used."""
    extra, teacher = learner.extra, learner.method._teacher  # type: ignore[attr-defined]
    assert extra is not None
    unused = ("model.transformer.ln_f.", f"model.transformer.h.{LAYERS - 1}.")
    parts = {
        "model": dict(learner.model.named_parameters()),
        "mind": dict(extra["mind"].named_parameters()),  # type: ignore[index]
        "emulator": {
            name: weight
            for name, weight in extra["emulator"].named_parameters()  # type: ignore[index]
            if not name.startswith(unused)
        },
    }
    for stage, trained in ((READ, {"model", "mind"}), (EMULATE, {"emulator"}), (COUPLE, {"model", "mind", "emulator"})):
        learner.model.zero_grad()
        extra.zero_grad()
        sum(terms(learner.method.loss(learner, batch, Stage(stage, 2)))).backward()  # type: ignore[union-attr]
        for part, weights in parts.items():
            # Recurrence, keys and the like change what later blocks of the emulator read.
            reached = {name for name, weight in weights.items() if weight.grad is not None and weight.grad.any()}
            assert reached == (set(weights) if part in trained else set()), (stage, part, set(weights) ^ reached)
        assert all(weight.grad is None for weight in teacher.parameters())


def test_with_the_true_states_the_emulators_loss_is_zero(learner: Learner, batch: CoTBatch, monkeypatch) -> None:
    true = learner.method.teacher_states(learner, batch)  # type: ignore[attr-defined]
    monkeypatch.setattr(learner.method, "emulated_states", lambda learner, view: true)
    losses = learner.method.loss(learner, batch, Stage(EMULATE, 2))
    assert float(losses.more["emulation"]) == 0
    # Coupled, the model then reads what it reads in the first stage.
    read, coupled = (learner.method.loss(learner, batch, Stage(stage, 2)).scored for stage in (READ, COUPLE))
    assert read is not None and coupled is not None and torch.equal(read.loss, coupled.loss)


@pytest.mark.parametrize("cached", [True, False])
def test_answers_are_those_of_full_greedy_passes_by_hand(learner: Learner, batch: CoTBatch, cached: bool) -> None:
    view = learner.method.view(learner, batch, Stage(2, 2))
    _exact_up_to[learner.model] = {} if cached else {True: -1, False: -1}
    most = 6
    with torch.no_grad():
        found = learner.generate(view, most)
        assert (min(_exact_up_to[learner.model].values()) > 0) == cached
        for row, (prompt, _, _) in enumerate(rows(batch)):
            states, written = emulator_by_hand(learner, prompt), list[int]()
            while len(written) < most and written.count(learner.eos) < 2:
                logits = model_by_hand(learner, prompt + written, len(prompt) - 1, states)
                written.append(int(logits[-1].argmax()))
            assert found[row] == written
        # A model that is known to write some tokens goes on from these.
        accepted = torch.tensor([min(2, len(row)) for row in found])
        stacked = CoTBatch.stack([with_answer(view.row(row), found[row]) for row in range(len(batch))])
        assert learner.generate(stacked, most, accepted) == found


def test_rows_of_a_fixed_shape_write_the_same(
    learner: Learner, batch: CoTBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = learner.method.view(learner, batch, Stage(2, 2))
    expected = learner.generate(view, 6)
    monkeypatch.setattr(static_rows, "BACKEND", "eager")
    torch._dynamo.reset()
    monkeypatch.delattr(decoding, "Cached")  # no other rows are allowed
    learner.decodes_compiled = True
    assert learner.generate(view, 6) == expected
    accepted = torch.tensor([min(2, len(row)) for row in expected])
    stacked = CoTBatch.stack([with_answer(view.row(row), expected[row]) for row in range(len(batch))])
    assert learner.generate(stacked, 6, accepted) == expected
    assert min(decoding._static_exact_up_to[learner.model].values()) > 0


def with_answer(view: CoTBatch, written: list[int]) -> CoTBatch:
    """A view of one example whose prompt is followed by other tokens."""
    start = int(view.length_of(Part.PROMPT)[0])
    view.tokens[0, start : start + 2] = torch.tensor(written[:2])
    return view


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "phi3", "qwen2"])
def test_states_are_kept_and_replaced_in_models_of_every_shape(tokenizer: Any, batch: CoTBatch, kind: str) -> None:
    learner = made(tokenizer, ICoTKD(), kind)
    model = learner.model
    assert len(blocks(model)) == LAYERS
    targets = Targets.of(batch)
    shown = model(input_ids=targets.tokens, output_hidden_states=True).hidden_states

    def hooks() -> int:
        """All hooks on blocks; transformers puts some of its own there."""
        return sum(len(block._forward_pre_hooks) + len(block._forward_hooks) for block in blocks(model))

    before = hooks()
    with kept_states(model, range(LAYERS + 1)) as found:
        model(input_ids=targets.tokens)
    for layer in range(LAYERS):
        torch.testing.assert_close(found[layer], shown[layer])
    norm = model.base_model.ln_f if kind == "gpt2" else model.base_model.norm
    torch.testing.assert_close(model.lm_head(norm(found[LAYERS])), model(input_ids=targets.tokens).logits)
    states, column = torch.randn(LAYERS, len(batch), WIDTH), batch.length_of(Part.PROMPT) - 1
    with replaced_states(model, states, column), kept_states(model, range(LAYERS)) as changed:
        model(input_ids=targets.tokens)
    row = torch.arange(len(batch))
    for layer in range(LAYERS):
        assert torch.equal(changed[layer][row, column], states[layer])
        for number in row.tolist():
            # No token before the prompt's last one can see it; all behind it do from the second block on.
            torch.testing.assert_close(changed[layer][number, : column[number]], found[layer][number, : column[number]])
            if layer:
                assert not torch.allclose(
                    changed[layer][number, column[number] + 1], found[layer][number, column[number] + 1]
                )
    assert hooks() == before
    # All three stages and an answer work.
    for stage in range(3):
        assert all(term.requires_grad for term in terms(learner.method.loss(learner, batch, Stage(stage, 2))))
    view = learner.method.view(learner, batch, Stage(2, 2))
    cached = learner.generate(view, 5)
    _exact_up_to[model] = {True: -1, False: -1}
    assert learner.generate(view, 5) == cached


def test_a_teacher_that_does_not_fit_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = made(tokenizer, ICoTKD()).model
    with pytest.raises(UserError, match="method.teacher is not set: give the folder"):
        ICoTKD().check(TASK)
    with pytest.raises(UserError, match="no-such-run: no such folder; train the teacher first"):
        ICoTKD(teacher=str(tmp_path / "no-such-run")).check(TASK)
    with pytest.raises(UserError, match="no config.yaml there, so it is no run; train the teacher first"):
        ICoTKD(teacher=str(tmp_path)).check(TASK)
    with pytest.raises(UserError, match="the longest example has 9999 tokens, the model [0-9]+ positions"):
        ICoTKD(teacher="random").prepare(model, tokenizer, 9999)
    assert ICoTKD(teacher="random").prepare(model, tokenizer, 20) == {"teacher": "random"}


def test_all_that_a_stage_reads_is_counted(learner: Learner, batch: CoTBatch) -> None:
    """Teacher, emulator and model; not padding, nor the last token of an example."""
    view = learner.method.view(learner, batch, Stage(0, 2))
    prompt = sum(len(prompt) for prompt, _, _ in rows(batch))
    whole, left = (int(part.attention_mask.sum()) - len(part) for part in (batch, view))
    for stage, expected in ((READ, whole + left), (EMULATE, whole + prompt), (COUPLE, prompt + left)):
        learner.tokens_read = 0
        learner.method.loss(learner, batch, Stage(stage, 2))
        assert learner.tokens_read == expected
    with torch.no_grad():
        learner.score(view)
    assert learner.tokens_read == expected
