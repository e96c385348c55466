"""LoRA: the weights that are trained and kept, and the real commands on a small run."""

import builtins
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import LoRAConfig, ModelConfig
from stepwise_pl.config.training import OptimizerConfig
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.models.build import build_model
from stepwise_pl.models.lora import add_adapters, frozen_digest, merge_adapters, trained
from stepwise_pl.models.trained_run import load_run
from stepwise_pl.training.optimizers import build_optimizer
from tests import forked
from tests.conftest import REPO, SMALL, command, small_model
from tests.system.test_entry_points import answers_of
from tests.system.test_resume import assert_the_same, state

pytest.importorskip("peft")
TOKENIZER = build_tokenizer("symbols", "0123456789")
IDS = torch.arange(12)[None]


def with_adapters(cfg: LoRAConfig, seed: int = 0, **config: object):
    model = small_model(TOKENIZER, **config)
    add_adapters(model, cfg)
    generator = torch.Generator().manual_seed(seed)
    return model, generator


def test_adapters_change_nothing_at_first_and_can_be_merged() -> None:
    base = small_model(TOKENIZER)
    model, generator = with_adapters(LoRAConfig(rank=3))
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    changed = model(IDS).logits
    assert not torch.allclose(changed, base(IDS).logits, atol=0.1)
    merge_adapters(model)
    torch.testing.assert_close(model(IDS).logits, changed, rtol=1e-4, atol=1e-4)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_merged_weight_is_that_of_the_paper() -> None:
    """The merged weight is W + alpha / r · B A, computed here. GPT-2 stores W transposed."""
    model, generator = with_adapters(LoRAConfig(rank=2, alpha=6, targets=["attn.c_attn"]))
    own = trained(model)
    assert len(own) == 2 * model.config.n_layer
    with torch.no_grad():
        for parameter in own.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    a, b = (own[f"transformer.h.1.attn.c_attn.lora_{part}.default.weight"].detach().clone() for part in "AB")
    before = small_model(TOKENIZER).transformer.h[1].attn.c_attn.weight
    merge_adapters(model)
    torch.testing.assert_close(model.transformer.h[1].attn.c_attn.weight, before + (6 / 2 * b @ a).T)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "phi3", "qwen2"])
def test_by_default_every_linear_layer_but_the_head_has_one(kind: str) -> None:
    cfg = ModelConfig(type=kind, layers=2, heads=2, width=32, positions=64)
    model = build_model(cfg, TOKENIZER)
    layers = {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and module is not model.get_output_embeddings()
    }
    add_adapters(model, LoRAConfig(rank=2))
    assert {name.split(".lora_")[0] for name in trained(model)} == set(layers)
    assert all(parameter.dtype == torch.float32 for parameter in trained(model).values())


def test_the_optimizer_sees_nothing_else() -> None:
    model, _ = with_adapters(LoRAConfig(rank=2))
    optimizer = build_optimizer(model, OptimizerConfig())
    seen = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert seen == {id(parameter) for parameter in trained(model).values()}


def test_the_digest_is_that_of_the_frozen_weights() -> None:
    model, _ = with_adapters(LoRAConfig(rank=2))
    before = frozen_digest(model)
    with torch.no_grad():
        next(iter(trained(model).values())).add_(1)
        assert frozen_digest(model) == before
        model.transformer.ln_f.bias[3] += 1e-6
    assert frozen_digest(model) != before
    assert frozen_digest(small_model(TOKENIZER)) is None


def test_missing_layers_are_named() -> None:
    with pytest.raises(UserError, match=r"model.lora.targets=\['q_proj'\]: Target modules .* not found"):
        add_adapters(small_model(TOKENIZER), LoRAConfig(rank=2, targets=["q_proj"]))


def test_missing_peft_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def gone(name: str, *args, **kwargs):
        if name == "peft":
            raise ImportError(name)
        return there(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", gone)
    with pytest.raises(UserError, match=r"model.lora.rank=2: needs peft: pip install peft"):
        add_adapters(small_model(TOKENIZER), LoRAConfig(rank=2))


def test_new_positions_are_refused_because_they_would_not_be_trained(tmp_path: Path) -> None:
    small_model(TOKENIZER).save_pretrained(tmp_path)
    cfg = ModelConfig(name=str(tmp_path), pretrained=True, tokenizer="own", lora=LoRAConfig(rank=2))
    assert trained(build_model(cfg, TOKENIZER, positions=128))
    with pytest.raises(
        UserError, match=r"model.lora.rank=2: the longest example has 129 tokens, the model 128 positions"
    ):
        build_model(cfg, TOKENIZER, positions=129)


# --- the commands

LORA = (*SMALL, "model.lora.rank=4", "model.dropout=0.1", "model.lora.dropout=0.1", "schedule.smoothing=1", "trainer.duration=4epochs",
        "trainer.checkpoint_every_n_steps=7")  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Train a run with the whole CoT; a curriculum of removal starts from it."""
    folder = tmp_path_factory.mktemp("base") / "explicit"
    command("train", *SMALL, "schedule=explicit_cot", f"run_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapted") / "run"
    command("train", *LORA, f"model.init_from={base}", f"run_dir={folder}")
    return folder


def test_checkpoints_hold_the_adapters_alone(base: Path, adapted: Path) -> None:
    found = state(adapted)
    assert all(".lora_" in key for key in found["state_dict"])
    moments = found["optimizer_states"][0]["state"]
    assert len(moments) == len(found["state_dict"])
    size, of_base = ((folder / "checkpoints" / "best.ckpt").stat().st_size for folder in (adapted, base))
    assert size < of_base


def test_adapters_learn(base: Path, adapted: Path) -> None:
    """Adapters alone learn the removal: the loss stays far below that of the model that still writes its CoT."""
    command("evaluate", f"run={base}", "removed_tokens=2", "speed_problems=0")
    before = json.loads((base / "evaluations" / "best-test-removed2.json").read_text())
    command("evaluate", f"run={adapted}", "speed_problems=0")
    after = json.loads((adapted / "evaluations" / "best-test-removed2.json").read_text())
    assert after["loss"] < 0.7 * before["loss"]
    summary = json.loads((adapted / "summary.json").read_text())
    assert after["answer_accuracy"] == pytest.approx(summary["test_accuracy"])


@pytest.mark.long
@pytest.mark.parametrize("moment,step", [("after the step", 21), ("in validation", 40)])
def test_killed_and_resumed_is_uninterrupted(base: Path, adapted: Path, tmp_path: Path, moment: str, step: int) -> None:
    def run(end: str, *more: str) -> int:
        arguments = [f"--end={end}", "--", *LORA, f"model.init_from={base}", f"run_dir={tmp_path / 'run'}", *more]
        return forked.run("tests.driver", arguments, REPO, {**os.environ, "OMP_NUM_THREADS": "1"}, 300).returncode

    assert run(f"{moment},{step},SIGKILL") == -9
    assert run("never,0,SIGKILL", "resume=true") == 0
    assert_the_same(adapted, tmp_path / "run")


def test_an_export_is_merged(adapted: Path, tmp_path: Path) -> None:
    command("export", f"run={adapted}", f"out={tmp_path / 'hf'}")
    answers_of(tmp_path / "hf", adapted)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert not any("lora" in key for key in exported.state_dict())
    own = load_run(str(adapted), "best").model
    torch.testing.assert_close(exported(IDS).logits, own(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_a_run_can_start_from_one_with_adapters(base: Path, adapted: Path, tmp_path: Path) -> None:
    own = load_run(str(adapted), "best")
    cfg = dataclasses.replace(own.config.model, init_from=str(adapted), lora=LoRAConfig())
    model = build_model(cfg, own.tokenizer).eval()
    torch.testing.assert_close(model(IDS).logits, own.model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters())
    # Adapters can stand on top of merged adapters.
    command("train", *LORA, f"model.init_from={adapted}", f"run_dir={tmp_path / 'run'}", "trainer.duration=2steps")
    command("evaluate", f"run={tmp_path / 'run'}", "checkpoint=last", "speed_problems=0")


@pytest.mark.long
def test_other_weights_beneath_are_refused(base: Path, tmp_path: Path) -> None:
    """Adapters are useless beside other weights than those of their training."""
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    folder = tmp_path / "run"
    command("train", *LORA, f"model.init_from={moved}", f"run_dir={folder}", "trainer.duration=2steps")
    checkpoint = torch.load(moved / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["state_dict"]["model.transformer.ln_f.bias"] += 0.1
    torch.save(checkpoint, moved / "checkpoints" / "best.ckpt")
    for arguments, message in (
        (["evaluate", f"run={folder}"], "holds adapters of a model that has changed since"),
        (["export", f"run={folder}"], "holds adapters of a model that has changed since"),
        (["train", f"run_dir={folder}", "resume=true", "trainer.duration=4steps"], "the weights that LoRA leaves as they are have changed"),
    ):  # fmt: skip
        out = command(*arguments, check=False)
        assert (out.returncode, message in out.stderr) == (2, True), out.stderr[-2000:]
    shutil.rmtree(moved)
    out = command("evaluate", f"run={folder}", check=False)
    assert (out.returncode, f"model.init_from={moved}: no such folder" in out.stderr) == (2, True)
