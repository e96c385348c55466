"""Static rows: tokens are those of a cache that grows, of full passes and of transformers; few programs are compiled."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.config.model import ModelConfig
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.methods import Stepwise
from stepwise_pl.models import decoding, static_rows
from stepwise_pl.models.build import build_model
from stepwise_pl.models.decoding import generate, read_prompts
from stepwise_pl.models.forward import accepted_by
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.static_rows import Shape, StaticRows, can_be_static
from stepwise_pl.schedules.spread import ALL
from stepwise_pl.tasks import Multiplication
from tests.conftest import small_model
from tests.models.test_decoding import naive, transformers_generate, trimmed

TASK = Multiplication(digits=3, min_digits=1, train_size=40)
# Heads in groups, a bias at queries and keys, tied weights, positions in the attention.
KINDS = {
    "gpt2": {}, "llama": {"num_key_value_heads": 1}, "qwen2": {"num_key_value_heads": 2}, "gpt_neox": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile with Dynamo alone, which takes the step apart as the whole compiler does. Tests with inductor replace it."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(static_rows, "BACKEND", "eager")
    yield
    torch._dynamo.reset()


@pytest.fixture
def examples(tokenizer: PreTrainedTokenizerBase) -> EncodedExamples:
    return encode(TASK.load()["train"], tokenizer, "train")


def model_of(kind: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(1)
    cfg = ModelConfig(
        type=kind, layers=2, heads=4, width=32, positions=128, dropout=0.0, config={"initializer_range": 0.3} | KINDS[kind]
    )  # fmt: skip
    return build_model(cfg, tokenizer).eval()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Our own lines of the log. The compiler writes many."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("stepwise_pl")]


def programs() -> int:
    """The number of programs that were compiled since the test began."""
    return int(counters["stats"]["unique_graphs"])


def decoded(
    monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, view: CoTBatch, eos: int, bound: int, accepted: torch.Tensor
) -> list[list[int]]:  # fmt: skip
    """Return the tokens of static rows; other rows are refused."""
    with monkeypatch.context() as patch:
        patch.delattr(decoding, "Cached")
        return generate(model, view, eos, bound, read_prompts(view, accepted), compiled=True)


def unequal(examples: EncodedExamples) -> CoTBatch:
    """Return ten examples whose prompts differ in length."""
    batch = examples.collate(np.argsort(examples.prompt_length)[::4])
    assert len(batch) == 10 and len(set(batch.length_of(Part.PROMPT).tolist())) > 2
    return batch


def naive_after(model: PreTrainedModel, alone: CoTBatch, eos: int, bound: int, accepted: int) -> list[int]:
    """Return what `naive` writes after the first accepted tokens of one example, with these tokens."""
    first = int(alone.num_given[0])
    known = alone.tokens[0, first : first + accepted].tolist()
    alone.part[0, : first + accepted] = Part.PROMPT
    return [*known, *naive(model, alone, eos, bound - accepted)[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_a_growing_cache_and_of_full_passes(
    kind: str, tokenizer, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, eos = model_of(kind, tokenizer), tokenizer.eos_token_id
    assert can_be_static(model)
    batch = unequal(examples)
    for count, keep_position in product((0, 4, ALL), (False, True)):
        view = batch.remove(count, "left", keep_position)
        # Of the two end tokens the first is accepted at most.
        for accepted in (
            torch.zeros(10, dtype=torch.long),
            torch.arange(10) % 3 if count < ALL else torch.ones(10).long(),
        ):
            expected = generate(model, view, eos, 25, read_prompts(view, accepted))
            assert decoded(monkeypatch, model, view, eos, 25, accepted) == expected
            for row in (0, 4, 9):  # a short, a middle and a long prompt
                # `naive` counts the end tokens that it writes itself.
                if eos not in expected[row][: int(accepted[row])]:
                    assert expected[row] == naive_after(model, view.row(row), eos, 25, int(accepted[row]))
    # One shape, with and without accepted tokens, at every number of removed tokens.
    assert programs() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_transformers(
    kind: str, tokenizer, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, eos = model_of(kind, tokenizer), tokenizer.eos_token_id
    for rows in (5, 40):
        view = examples.collate(np.arange(rows)).remove(5)
        expected = trimmed(transformers_generate(model, view, eos, 30), eos)
        assert decoded(monkeypatch, model, view, eos, 30, torch.zeros(rows, dtype=torch.long)) == expected


def test_each_row_has_the_logits_that_it_has_alone(tokenizer, examples: EncodedExamples) -> None:
    model = small_model(tokenizer, 2)
    view = examples.collate(np.arange(11))
    reading = read_prompts(view)
    inputs = Learner(model, tokenizer.eos_token_id, Stepwise()).inputs
    with torch.inference_mode():
        together = StaticRows(model, reading, inputs, more=6)
        assert together.memory.mask.shape == (16, 64)
        alone = StaticRows(model, read_prompts(view.row(0)), inputs, more=6)
        for step in range(6):
            logits = together.logits().clone()
            assert logits.shape[0] == 11
            torch.testing.assert_close(alone.logits(), logits[:1], rtol=1e-4, atol=1e-4)
            token = torch.full((11,), step + 3)
            position = reading.known[:, 0] + step
            together.add(token, position)
            alone.add(token[:1], position[:1])


def test_few_programs_serve_many_batches(tokenizer, examples: EncodedExamples, caplog) -> None:
    model, eos = small_model(tokenizer, 3), tokenizer.eos_token_id
    shapes = set()
    for rows, count in product((1, 2, 3, 4, 5, 9, 16, 17, 30, 40), (0, 3, ALL)):
        view = examples.collate(np.arange(rows)).remove(count)
        assert generate(model, view, eos, 20, compiled=True) == generate(model, view, eos, 20)
        shapes.add(Shape.of(model, rows, int(view.num_given.max()) + 20))
        static_rows.release(model)  # new tensors need no new program
    assert {shape.rows for shape in shapes} == {1, 4, 16, 64} and {shape.length for shape in shapes} == {64}
    assert programs() == 4
    assert not said(caplog)


@pytest.mark.parametrize("older", [False, True])
def test_more_programs_are_compiled_than_torch_allows_on_its_own(
    older: bool, tokenizer, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    if older:
        compiler = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model, **settings: compiler(model, **settings))
        accepted_by.cache_clear()
    eos = tokenizer.eos_token_id
    for seed in range(2):
        model = small_model(tokenizer, layers=1 + seed)
        for rows in (1, 2, 6):
            view = examples.collate(np.arange(rows))
            expected = generate(model, view, eos, 5)
            with torch._dynamo.config.patch(recompile_limit=2):
                assert decoded(monkeypatch, model, view, eos, 5, torch.zeros(rows).long()) == expected
    assert programs() == 6 and not said(caplog)
    accepted_by.cache_clear()


def test_sizes_are_few() -> None:
    model = torch.nn.Linear(1, 1)
    model.dtype, model.device = torch.float32, torch.device("cpu")  # type: ignore[assignment]
    rows = {Shape.of(model, count, 1).rows for count in range(1, 1025)}  # type: ignore[arg-type]
    assert sorted(rows) == [1, 4, 16, 64, 128, 256, 512, 1024]
    lengths = {Shape.of(model, 1, count).length for count in range(1, 1025)}  # type: ignore[arg-type]
    assert sorted(lengths) == [64, 128, 256, 512, 1024]
    for count in range(1, 1025):
        shape = Shape.of(model, count, count)  # type: ignore[arg-type]
        assert shape.rows >= count and shape.length >= count


def test_weights_that_have_changed_need_no_new_program(tokenizer, examples: EncodedExamples) -> None:
    model, eos = small_model(tokenizer, 4), tokenizer.eos_token_id
    view = examples.collate(np.arange(6))
    with torch.no_grad():
        # transformers leaves hooks in a model that was asked for its states.
        model(view.tokens, output_hidden_states=True)
    before = generate(model, view, eos, 20, compiled=True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    after = generate(model, view, eos, 20, compiled=True)
    assert after == naive(model, view, eos, 20) != before
    # Training makes the model anew of other tensors.
    model.load_state_dict(
        {key: value.clone() for key, value in small_model(tokenizer, 5).state_dict().items()}, assign=True
    )
    model.tie_weights()
    assert generate(model, view, eos, 20, compiled=True) == naive(model, view, eos, 20)
    assert programs() == 1


@pytest.mark.parametrize(
    "kind,more",
    [("mamba", {}), ("mistral", {"sliding_window": 8}), ("gemma2", {"head_dim": 16}), ("bloom", {})],
)
def test_other_types_are_decoded_without_static_rows(
    kind: str, more: dict, tokenizer, examples: EncodedExamples, caplog
) -> None:
    torch.manual_seed(0)
    cfg = ModelConfig(type=kind, layers=2, heads=2, width=32, positions=128, dropout=0.0, config=more)
    model, eos = build_model(cfg, tokenizer).eval(), tokenizer.eos_token_id
    assert not can_be_static(model)
    view = examples.collate(np.arange(5))
    plain = generate(model, view, eos, 12)
    caplog.clear()
    assert generate(model, view, eos, 12, compiled=True) == plain
    assert programs() == 0 and not said(caplog)


def test_a_model_with_hooks_is_decoded_without_static_rows(tokenizer, examples: EncodedExamples) -> None:
    model, eos = small_model(tokenizer, 6), tokenizer.eos_token_id
    view = examples.collate(np.arange(5))
    plain = generate(model, view, eos, 12, compiled=True)
    handle = model.transformer.h[1].register_forward_pre_hook(lambda module, args: (args[0] * -1, *args[1:]))
    hooked = generate(model, view, eos, 12, compiled=True)
    assert hooked == naive(model, view, eos, 12) != plain
    handle.remove()
    assert generate(model, view, eos, 12, compiled=True) == plain


def test_static_rows_that_change_answers_are_found_out(
    tokenizer, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    model, eos = small_model(tokenizer, 7), tokenizer.eos_token_id
    view = examples.collate(np.arange(5))

    def wrong(self: StaticRows, token: torch.Tensor, position: torch.Tensor) -> None:
        right(self, token, position + 1)

    right = StaticRows.add
    monkeypatch.setattr(StaticRows, "add", wrong)
    for _ in range(2):
        assert generate(model, view, eos, 20, compiled=True) == naive(model, view, eos, 20)
    (message,) = said(caplog)  # said once
    assert "compiled cache changes its answers; answers are decoded without it" in message


def test_a_compiler_that_fails_is_done_without(
    tokenizer, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def refuse(graph: object, inputs: object) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(static_rows, "BACKEND", refuse)
    model, eos = small_model(tokenizer, 8), tokenizer.eos_token_id
    view = examples.collate(np.arange(5))
    assert generate(model, view, eos, 20, compiled=True) == naive(model, view, eos, 20)
    (message,) = said(caplog)
    assert "compiled cache cannot be used" in message and "no C compiler" in message


def test_a_device_that_is_asked_seldom_writes_the_same(
    tokenizer, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, eos = small_model(tokenizer, 9), tokenizer.eos_token_id
    view = examples.collate(np.arange(12))
    model.get_output_embeddings().weight.data[eos] *= 3  # rows end early, and at unequal lengths
    expected = naive(model, view, eos, 40)
    assert 1 < max(map(len, expected)) < 40
    for every, compiled in product((1, 3, 8, 64), (False, True)):
        monkeypatch.setattr(decoding, "_asked_every", lambda wanted, every=every: every)
        assert generate(model, view, eos, 40, compiled=compiled) == expected


def test_who_is_told_of_each_pass_is_told_of_one_for_each_token(tokenizer, examples: EncodedExamples) -> None:
    model, eos = small_model(tokenizer, 9), tokenizer.eos_token_id
    view = examples.collate(np.arange(1))
    generate(model, view, eos, 20, compiled=True)
    passes: list[int] = []
    (tokens,) = generate(model, view, eos, 20, on_pass=lambda: passes.append(1), compiled=True)
    assert len(passes) == len(tokens)


def test_the_learner_decodes_with_static_rows_if_it_is_told_so(tokenizer, examples: EncodedExamples) -> None:
    model = small_model(tokenizer, 10)
    view = examples.collate(np.arange(7)).remove(2)
    plain, compiled = (
        Learner(model, tokenizer.eos_token_id, Stepwise(), decodes_compiled=compiled) for compiled in (False, True)
    )
    expected = plain.generate(view, 15)
    assert programs() == 0
    assert compiled.generate(view, 15) == expected
    assert programs() == 1


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_compiled_machine_code_are_those_of_full_passes(
    kind: str, tokenizer, examples: EncodedExamples, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(static_rows, "BACKEND", "inductor")
    model, eos = model_of(kind, tokenizer), tokenizer.eos_token_id
    for rows in (3, 11):
        view = examples.collate(np.arange(rows)).remove(4, "left", keep_position=True)
        expected = naive(model, view, eos, 25)
        assert decoded(monkeypatch, model, view, eos, 25, torch.zeros(rows, dtype=torch.long)) == expected
    assert programs() == 2 and not said(caplog)
