"""Greedy decoding, compared with transformers and with a loop of full forward passes."""

import numpy as np
import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from stepwise_pl.config.model import ModelConfig
from stepwise_pl.data.batch import CoTBatch, Part, continuation
from stepwise_pl.data.encoding import encode
from stepwise_pl.evaluation.answers import answers
from stepwise_pl.models import decoding
from stepwise_pl.models.build import build_model
from stepwise_pl.models.decoding import generate, read_prompts
from stepwise_pl.models.forward import PLAIN_HEADS, Targets, target_logits
from stepwise_pl.schedules.spread import ALL
from stepwise_pl.tasks import Multiplication
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
    """Decode one example at a time, with a full forward pass per token and the positions of training."""
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
    for count in (0, 5, ALL):
        less = batch.remove(count)
        assert generate(model, less, eos, 30) == trimmed(transformers_generate(model, less, eos, 30), eos)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("keep_position", [False, True])
def test_tokens_and_positions_are_those_of_full_passes(tokenizer, side: str, keep_position: bool) -> None:
    model = small_model(tokenizer, 1)
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(12))
    for count in (0, 4, ALL):
        less = batch.remove(count, side, keep_position)
        eos = tokenizer.eos_token_id
        assert generate(model, less, eos, 25) == naive(model, less, eos, 25)


def test_positions_matter_to_what_is_generated(tokenizer) -> None:
    model = small_model(tokenizer, 1)
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(12))
    eos = tokenizer.eos_token_id
    kept, closed = (generate(model, batch.remove(4, "left", keep), eos, 25) for keep in (True, False))
    assert kept != closed


def all_logits(model, batch: CoTBatch) -> torch.Tensor:
    """Return the logits of every position, one row at a time, without padding."""
    out = []
    for row in range(len(batch)):
        n = int(batch.attention_mask[row].sum())
        ids, positions = batch.tokens[row, :n][None], batch.position[row, :n][None]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions).logits[0]
        out.append(torch.nn.functional.pad(logits, (0, 0, 0, batch.tokens.shape[1] - n)))
    return torch.stack(out)


# The head of these types is more than a product.
CAPPED = {
    "gemma2": {"final_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0},
}


@pytest.mark.parametrize("kind", [*PLAIN_HEADS, *CAPPED])
@pytest.mark.parametrize("keep_position", [False, True])
def test_logits_and_gradients_at_targets_are_those_of_the_whole_model(
    tokenizer, kind: str, keep_position: bool
) -> None:
    torch.manual_seed(0)
    more = {"initializer_range": 0.3} | CAPPED.get(kind, {})
    more |= {} if kind == "gpt2" else {"intermediate_size": 48, "num_key_value_heads": 1}
    more |= {"head_dim": 16} if kind == "gemma2" else {}
    cfg = ModelConfig(type=kind, layers=2, heads=2, width=32, positions=128, dropout=0.0, config=more)
    model = build_model(cfg, tokenizer)
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(9)).remove(3, "left", keep_position)
    targets = Targets.of(batch)
    assert (targets.position is not None) == keep_position
    is_target = batch.is_target[:, 1:]
    whole = all_logits(model, batch)[:, :-1][is_target]
    assert float(whole.abs().max()) > 1.5  # a cap of 2 changes such logits
    logits = target_logits(model, targets)
    assert torch.equal(targets.label, batch.tokens[:, 1:][is_target])
    assert torch.allclose(logits, whole, atol=2e-4)
    gradients = []
    for some in (logits, whole):
        model.zero_grad()
        torch.nn.functional.cross_entropy(some, targets.label).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-4 * float(gradients[1].abs().max()))


def test_no_logits_are_computed_for_prompt_or_padding(tokenizer) -> None:
    model = small_model(tokenizer)
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(9)).remove(ALL)
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, out: rows.append(out.shape[:-1].numel()))
    target_logits(model, Targets.of(batch))
    assert rows == [int(batch.is_target.sum())]
    assert rows[0] < 0.6 * batch.tokens.numel()


def test_a_jump_in_the_positions_does_not_cut_attention(tokenizer) -> None:
    """Without a mask, transformers takes a jump for a new packed sequence."""
    model = small_model(tokenizer)
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.array([0])).remove(3, "left", True)
    prompt = int(batch.length_of(Part.PROMPT))
    assert batch.position[0, prompt] - batch.position[0, prompt - 1] == 4  # exactly at the gap
    before = target_logits(model, Targets.of(batch))[-1]
    batch.tokens[0, 0] = (batch.tokens[0, 0] + 1) % 10
    assert not torch.allclose(before, target_logits(model, Targets.of(batch))[-1], atol=1e-3)


def test_generation_is_bounded(tokenizer) -> None:
    model = small_model(tokenizer)
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(12))
    eos = tokenizer.eos_token_id
    assert max(map(len, generate(model, batch, eos, 3))) == 3
    # The model has 128 positions. A row gets as many tokens as it has positions left, and one that is not read.
    model.get_output_embeddings().weight.data[eos] = 0
    model.get_output_embeddings().weight.data[0] = 0
    rows = generate(model, batch, eos, 10**4)
    left = 129 - batch.length_of(Part.PROMPT)
    assert [len(row) for row in rows] == [
        n if row.count(eos) < 2 else len(row) for n, row in zip(left.tolist(), rows, strict=True)
    ]
    assert any(row.count(eos) < 2 for row in rows)


def test_rows_that_have_ended_say_nothing_about_the_cache(tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    model, eos = small_model(tokenizer), tokenizer.eos_token_id
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(2))
    targets = continuation(batch)
    whole = torch.tensor([len(row) for row in targets])
    assert generate(model, batch, eos, 100, read_prompts(batch, whole)) == targets
    assert not decoding._exact_up_to.get(model) and not caplog.messages
    # The first row has ended. The second may write one token beyond the accepted ones.
    generate(model, batch, eos, int(whole[1]) + 3, read_prompts(batch, whole - torch.tensor([0, 3])))
    assert not caplog.messages


def test_weights_that_are_not_finite_say_nothing_about_the_cache(tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    model, eos = small_model(tokenizer), tokenizer.eos_token_id
    batch = encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(4))
    weight = model.get_output_embeddings().weight
    before = weight.data.clone()
    weight.data.fill_(float("nan"))
    generate(model, batch, eos, 5)
    assert not decoding._exact_up_to.get(model) and not caplog.messages
    weight.data.copy_(before)
    generate(model, batch, eos, 5)
    assert set(decoding._exact_up_to[model].values()) == {int(batch.length_of(Part.PROMPT).max()) + 5}


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
    assert answers(rows, tokenizer) == ["3 4", "5", None, None, None]


def test_the_target_reads_as_its_own_answer(tokenizer) -> None:
    examples = TASK.load()["train"]
    batch = encode(examples, tokenizer, "train").collate(np.arange(40))
    for count in (0, 3, ALL):
        assert answers(continuation(batch.remove(count)), tokenizer) == [e.answer for e in examples.slice(0, 40)]
