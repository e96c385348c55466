"""The compiled blocks compute what the plain ones compute, at few shapes."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.training import TrainerConfig
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import encode
from stepwise_pl.methods.base import own
from stepwise_pl.models.build import build_model
from stepwise_pl.models.compiled import LEAST, CompiledBlocks, compile_blocks, widths
from stepwise_pl.models.forward import UNMASKED, Targets, head_logits, model_inputs, see, unmasked
from stepwise_pl.models.learner import Learner
from stepwise_pl.runs.records import read_metrics
from stepwise_pl.tasks import Multiplication
from tests.conftest import command, learner, small_model
from tests.system.test_resume import assert_the_same

TASK = Multiplication(digits=3, min_digits=1, train_size=40)
KINDS = ("gpt2", "llama", "mistral", "phi3", "qwen2")
# The quickstart's task with a model that learns it in part within 200 steps.
QUICK = (
    "experiment=quickstart", "seed=0", "data.epoch_size=1280", "data.batch_size=16", "trainer.duration=200steps", "trainer.log_every_n_steps=1",
    "model.dropout=0.0", "schedule=stepwise", "schedule.delta=1", "optimizer.decay=0", "trainer.validate_every_epochs=0", "optimizer.matrices=adamw",
)  # fmt: skip


@pytest.fixture(params=["captured", pytest.param("inductor", marks=pytest.mark.long)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The blocks are captured in both cases; the quick one runs the captured graph as it is, for want of time."""
    torch._dynamo.reset()
    if request.param == "captured":
        monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: lambda graph, inputs, **_: graph.forward)
    return str(request.param)


def model_of(kind: str, tokenizer: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    more = {"initializer_range": 0.3, **config}
    more |= {} if kind == "gpt2" else {"intermediate_size": 48, "num_key_value_heads": 1}
    return build_model(
        ModelConfig(type=kind, layers=2, heads=2, width=32, positions=128, dropout=0.0, config=more), tokenizer
    )


def batch_of(tokenizer: Any, rows: int = 9) -> CoTBatch:
    return encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(rows))


def loss_and_gradients(learner: Learner, view: CoTBatch) -> tuple[Tensor, dict[str, Tensor]]:
    learner.model.zero_grad()
    scored = learner.score(view)
    scored.loss.backward()
    return scored.loss.detach(), {
        name: weight.grad.clone() for name, weight in learner.model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("longest", [2, 8, 9, 67, 500, 4096])
def test_widths_begin_with_the_longest_and_waste_a_sixth_at_most(longest: int) -> None:
    found = widths(longest)
    assert found[0] == longest and found == sorted(set(found), reverse=True)
    assert len(found) <= 40
    for width in range(LEAST, longest + 1):
        used = min(each for each in found if each >= width)
        assert (used - width) / used <= 1 / 6


def test_padding_on_the_right_adds_padding_alone(tokenizer) -> None:
    batch = batch_of(tokenizer)
    wide = batch.padded(batch.tokens.shape[1] + 5)
    assert bool((wide.part[:, -5:] == Part.PAD).all())
    assert not wide.is_target[:, -5:].any() and not wide.unit_start[:, -5:].any()
    for row in range(len(batch)):
        one, other = batch.row(row), wide.row(row)
        assert all(
            torch.equal(getattr(one, name), getattr(other, name))
            for name in ("tokens", "part", "position", "unit_start")
        )
    assert batch.padded(batch.tokens.shape[1]) is batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep_position", [False, True])
def test_attention_without_a_mask_is_causal_attention(tokenizer, kind: str, keep_position: bool) -> None:
    model = model_of(kind, tokenizer)
    view = batch_of(tokenizer).remove(3, "left", keep_position)
    read = model_inputs(model, view.tokens, view.position)
    seen = see(model, read).hidden
    assert model.config._attn_implementation == "sdpa"  # as before
    masked = model.base_model(**read).last_hidden_state
    assert torch.allclose(seen, masked, atol=1e-5)
    # A later token changes no earlier state.
    read["input_ids"] = view.tokens.clone()
    read["input_ids"][:, 6:] = 3
    assert torch.allclose(see(model, read).hidden[:, :6], seen[:, :6], atol=1e-5)


def test_a_window_keeps_its_mask(tokenizer) -> None:
    model = model_of("mistral", tokenizer, sliding_window=4)
    view = batch_of(tokenizer)
    read = model_inputs(model, view.tokens, None)
    with unmasked(model, read):
        assert model.config._attn_implementation == "sdpa"
    with unmasked(model_of("mistral", tokenizer, sliding_window=4096), read):
        pass
    assert torch.allclose(see(model, read).hidden, model.base_model(**read).last_hidden_state)


def test_a_pass_with_a_cache_and_other_attention_keep_their_mask(tokenizer) -> None:
    model = small_model(tokenizer)
    read = model_inputs(model, batch_of(tokenizer).tokens, None)
    with unmasked(model, read | {"use_cache": True}):
        assert model.config._attn_implementation == "sdpa"
    with pytest.raises(KeyError), unmasked(model, read):
        assert model.config._attn_implementation == UNMASKED
        raise KeyError
    assert model.config._attn_implementation == "sdpa"  # after an error too
    model.set_attn_implementation("eager")
    with unmasked(model, read):
        assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("keep_position", [False, True])
def test_losses_and_gradients_are_those_of_plain_blocks_at_every_stage(
    tokenizer, backend: str, keep_position: bool
) -> None:
    plain = learner(small_model(tokenizer).train(), tokenizer, keep_position=keep_position)
    compiled = learner(small_model(tokenizer).train(), tokenizer, keep_position=keep_position)
    batch = batch_of(tokenizer)
    compiled.compiled_blocks = CompiledBlocks(compiled.model, batch.tokens.shape[1])
    seen = set()
    for removed in (0, 1, 2, 5, 9, 100):
        view = batch.remove(removed, "left", keep_position)
        (loss, gradients), (found, others) = (loss_and_gradients(each, view) for each in (plain, compiled))
        assert float(found) == pytest.approx(float(loss), rel=1e-5)
        assert gradients.keys() == others.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, others[name], atol=1e-4 * float(gradient.abs().max())), name
        seen.add(compiled.compiled_blocks.widened(view).tokens.shape[1])
    assert not compiled.compiled_blocks.failed
    # Without a jump in the positions they are not given: two kinds of input with `keep_position`.
    assert len(seen) <= compiled.compiled_blocks.compilations <= 2 * len(seen)
    assert plain.tokens_read == compiled.tokens_read


def test_one_model_after_another_is_compiled_in_a_process(tokenizer, monkeypatch) -> None:
    """So do the runs of a sweep, whose models may all be in memory still. torch counts their graphs together."""
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: lambda graph, inputs, **_: graph.forward)
    torch._dynamo.reset()
    view = batch_of(tokenizer, 2).remove(100)
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        # 9 tokens are one width, so that each model adds four graphs to the limit.
        models = [CompiledBlocks(small_model(tokenizer, layers=1).train(), 9) for _ in range(2)]
        for blocks in (*models, models[0]):
            for width in range(view.tokens.shape[1], view.tokens.shape[1] + 3):
                blocks.logits(Targets.of(view.padded(width)))
    assert [blocks.compilations for blocks in models] == [3] * 2


def test_evaluation_hooks_and_states_run_as_they_are(tokenizer) -> None:
    one = learner(small_model(tokenizer), tokenizer)
    view = batch_of(tokenizer)
    one.compiled_blocks = CompiledBlocks(one.model, view.tokens.shape[1])
    with torch.no_grad():
        expected = one.score(view)
    states = one.score(view, layers=(0, 1, 2))
    assert one.compiled_blocks.compilations == 0
    assert torch.allclose(states.loss, expected.loss) and states.states is not None
    assert expected.row.equal(states.row) and expected.column.equal(states.column)


def test_learned_inputs_are_read_by_compiled_blocks(tokenizer, backend: str) -> None:
    torch.manual_seed(0)
    table = torch.nn.Embedding(2, 32)
    view = batch_of(tokenizer).remove(4).insert([[own(row % 2)] for row in range(9)])
    found = []
    for is_compiled in (False, True):
        one = learner(small_model(tokenizer).train(), tokenizer)
        one.tokens = table
        one.compiled_blocks = CompiledBlocks(one.model, view.tokens.shape[1]) if is_compiled else None
        table.zero_grad()
        loss, _ = loss_and_gradients(one, view)
        assert table.weight.grad is not None
        found.append((float(loss), table.weight.grad.clone()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_a_failure_ends_the_run_or_is_said_once(tokenizer, caplog, monkeypatch) -> None:
    model, batch = small_model(tokenizer).train(), batch_of(tokenizer)
    targets = Targets.of(batch)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("no compiler here\nsecond line")

    monkeypatch.setattr(CompiledBlocks, "_compile", broken)
    with pytest.raises(UserError, match=r"trainer.compile=true: .*no compiler here"):
        CompiledBlocks(model, 60).logits(targets)
    torch._dynamo.reset()
    blocks = CompiledBlocks(model, 60, must=False)
    with caplog.at_level(logging.WARNING):
        found = [blocks.logits(targets) for _ in range(2)]
    said = [record.message for record in caplog.records if record.name == "stepwise_pl.models.compiled"]
    assert len(said) == 1 and "no compiler here" in said[0] and blocks.failed
    assert torch.equal(found[0], head_logits(model, targets)) and torch.equal(*found)


def test_a_backward_pass_that_cannot_be_compiled_is_found_before_it_begins(tokenizer, caplog, monkeypatch) -> None:
    def no_backward(graph: Any, inputs: Any) -> Any:
        raise ValueError("no backward pass here\nsecond line")

    of_torch = aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=no_backward)
    monkeypatch.setattr(
        torch._dynamo, "lookup_backend", lambda name: lambda graph, inputs, **_: of_torch(graph, inputs)
    )
    torch._dynamo.reset()
    view, plain = batch_of(tokenizer), learner(small_model(tokenizer).train(), tokenizer)
    must, may = (learner(small_model(tokenizer).train(), tokenizer) for _ in range(2))
    must.compiled_blocks = CompiledBlocks(must.model, 60)
    with pytest.raises(UserError, match=r"trainer.compile=true: .*no backward pass here"):
        must.score(view)
    torch._dynamo.reset()
    may.compiled_blocks = CompiledBlocks(may.model, 60, must=False)
    (loss, gradients), (found, others) = (loss_and_gradients(each, view) for each in (plain, may))
    assert may.compiled_blocks.failed and "no backward pass here" in caplog.text
    assert torch.allclose(loss, found)
    assert all(torch.allclose(gradient, others[name], atol=1e-4) for name, gradient in gradients.items())


def test_what_is_compiled_follows_from_the_key_the_device_and_the_model(tokenizer, caplog) -> None:
    model = small_model(tokenizer)
    assert compile_blocks("false", model, 60, "gpu") is None
    assert compile_blocks("auto", model, 60, "cpu") is None and compile_blocks("auto", model, 60, "mps") is None
    on_gpu = compile_blocks("auto", model, 60, "gpu")
    assert on_gpu is not None and on_gpu.graphs and not on_gpu.must
    # The gradients of a micro-batch would be overwritten by those of the next.
    shared = compile_blocks("auto", model, 60, "gpu", shares=2)
    assert shared is not None and not shared.graphs
    asked = compile_blocks("true", model, 60, "cpu")
    assert asked is not None and asked.must and not asked.graphs
    with caplog.at_level(logging.INFO):
        assert compile_blocks("auto", model, 60, "gpu", sharded=True) is None
    assert "not compiled: trainer.strategy=fsdp2" in caplog.text
    with pytest.raises(UserError, match="trainer.compile=true: .*opt"):
        compile_blocks("true", model_of_type("opt", tokenizer), 60, "cpu")
    model.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="trainer.compile=true: model.gradient_checkpointing"):
        compile_blocks("true", model, 60, "cpu")


def model_of_type(kind: str, tokenizer: Any) -> Any:
    return build_model(ModelConfig(type=kind, layers=1, heads=2, width=32, positions=64), tokenizer)


@pytest.mark.parametrize("typed", [True, "true", "True"])
def test_true_is_a_word(typed: Any) -> None:
    assert TrainerConfig(compile=typed).compile == "true"
    with pytest.raises(UserError, match="trainer.compile=yes: must be one of auto, true"):
        TrainerConfig(compile="yes")


def losses(folder: Path) -> list[float]:
    return [float(row["train/loss"]) for row in read_metrics(folder / "metrics.csv") if row["train/loss"]]


@pytest.mark.long
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path: Path) -> None:
    found = {}
    for asked in ("true", "false"):
        command("train", *QUICK, f"trainer.compile={asked}", f"run_dir={tmp_path / asked}")
        found[asked] = losses(tmp_path / asked)
    compiled, plain = (np.array(found[asked]) for asked in ("true", "false"))
    assert len(plain) == len(compiled) == 200
    assert np.abs(compiled[:20] / plain[:20] - 1).max() < 1e-4
    assert abs(compiled[180:].mean() / plain[180:].mean() - 1) < 0.01
    assert plain[180:].mean() < 0.8 * plain[:20].mean()  # it has learned something
    summary = json.loads((tmp_path / "true" / "summary.json").read_text())
    assert 1 <= summary["compilations"] <= 8
    assert "compilations" not in json.loads((tmp_path / "false" / "summary.json").read_text())


@pytest.mark.long
def test_a_compiled_run_that_is_resumed_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Dropout is on: its random numbers go on where they were."""
    compiled = (*QUICK, "model.dropout=0.1", "trainer.compile=true", "trainer.duration=40steps", "trainer.validate_every_epochs=1",
                "data.epoch_size=320")  # fmt: skip
    command("train", *compiled, f"run_dir={tmp_path / 'whole'}")
    command("train", *compiled, "trainer.duration=20steps", f"run_dir={tmp_path / 'parts'}")
    command("train", *compiled, f"run_dir={tmp_path / 'parts'}", "resume=true")
    assert_the_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.long
def test_two_processes_compile(tmp_path: Path) -> None:
    found = {}
    for asked in ("true", "false"):
        shared = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.duration=8steps", f"trainer.compile={asked}")
        command("train", *QUICK, *shared, f"run_dir={tmp_path / asked}")
        found[asked] = losses(tmp_path / asked)
    assert found["true"] == pytest.approx(found["false"], rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("more", [("model.type=llama",), ("trainer.precision=bf16-mixed",),
                                  ("method=coconut", "method.unit=step"), ("optimizer=muon", "optimizer.average=0.9")])  # fmt: skip
def test_other_models_methods_and_optimizers_compile(tmp_path: Path, more: tuple[str, ...]) -> None:
    found = {}
    for asked in ("true", "false"):
        run = (*QUICK, *more, "trainer.duration=6steps", f"trainer.compile={asked}", f"run_dir={tmp_path / asked}")
        command("train", *run)
        found[asked] = losses(tmp_path / asked)
    assert found["true"] == pytest.approx(found["false"], rel=0.02 if "bf16" in more[0] else 1e-4)


@pytest.mark.long
def test_adapters_compile(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    command("train", *QUICK, "trainer.duration=6steps", f"run_dir={tmp_path / 'base'}")
    on_it = (f"model.init_from={tmp_path / 'base'}", "model.lora.rank=2", "trainer.duration=6steps")
    found = {}
    for asked in ("true", "false"):
        command("train", *QUICK, *on_it, f"trainer.compile={asked}", f"run_dir={tmp_path / asked}")
        found[asked] = losses(tmp_path / asked)
    assert found["true"] == pytest.approx(found["false"], rel=1e-4)
