"""bf16-mixed, bf16-true and 32-true through training, resume, evaluation and export; gradient checkpointing."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import LoRAConfig, ModelConfig
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.models.architecture import cast_weights
from stepwise_pl.models.build import build_model, check_architecture
from stepwise_pl.models.lora import add_adapters, trained
from stepwise_pl.models.trained_run import load_run
from stepwise_pl.runs.records import read_metrics
from tests import forked
from tests.conftest import REPO, SMALL, command, small_model
from tests.system.test_resume import assert_the_same, state

TOKENIZER = build_tokenizer("symbols", "0123456789")
RUN = (*SMALL, "model.dropout=0.1", "schedule.smoothing=1", "trainer.duration=4epochs", "trainer.log_every_n_steps=1",
       "trainer.checkpoint_every_n_steps=7")  # fmt: skip
# A Llama shape has rotary frequencies in a buffer.
LLAMA = (*RUN, "model.type=llama", "+model.config.intermediate_size=128", "model.dropout=null")
WEIGHTS = {"32-true": torch.float32, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("precisions")
    for precision in WEIGHTS:
        command("train", *LLAMA, f"trainer.precision={precision}", f"run_dir={folder / precision}")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("precision", WEIGHTS)
def test_weights_are_kept_as_asked_and_learn(runs: Path, precision: str) -> None:
    found = state(runs / precision)
    assert {value.dtype for value in found["state_dict"].values()} == {WEIGHTS[precision]}
    moments = {moment["exp_avg"].dtype for moment in found["optimizer_states"][0]["state"].values()}
    assert moments == {WEIGHTS[precision]}
    losses = [float(row["train/loss"]) for row in read_metrics(runs / precision / "metrics.csv") if row["train/loss"]]
    assert losses[19] < 0.7 * losses[0]  # the first epoch ends here, with the whole CoT


@pytest.mark.long
def test_the_precisions_agree_at_the_first_step(runs: Path) -> None:
    """With the same weights and examples, the first step differs by rounding only, and it does differ."""
    first = {
        precision: float(next(row["train/loss"] for row in read_metrics(runs / precision / "metrics.csv")))
        for precision in WEIGHTS
    }
    assert len(set(first.values())) == 3
    assert list(first.values()) == pytest.approx([first["32-true"]] * 3, rel=0.02)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one(runs: Path, precision: str, tmp_path: Path) -> None:
    def run(end: str, *more: str) -> int:
        arguments = [
            f"--end={end}",
            "--",
            *LLAMA,
            f"trainer.precision={precision}",
            f"run_dir={tmp_path / 'run'}",
            *more,
        ]
        return forked.run("tests.driver", arguments, REPO, {**os.environ, "OMP_NUM_THREADS": "1"}, 300).returncode

    assert run("after the step,33,SIGKILL") == -9
    assert run("never,0,SIGKILL", "resume=true") == 0
    assert_the_same(runs / precision, tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("precision", WEIGHTS)
def test_evaluation_and_export(runs: Path, precision: str, tmp_path: Path) -> None:
    folder = runs / precision
    command("evaluate", f"run={folder}", "speed_problems=0")
    summary = json.loads((folder / "summary.json").read_text())
    found = json.loads((folder / "evaluations" / f"best-test-removed{summary['removed_tokens']}.json").read_text())
    exact = precision != "bf16-mixed"  # bf16-mixed validates in bf16, but `evaluate` uses float32
    assert not exact or found["answer_accuracy"] == pytest.approx(summary["test_accuracy"])
    test_loss = float(next(r["test/loss"] for r in read_metrics(folder / "metrics.csv") if r["test/loss"]))
    assert found["loss"] == pytest.approx(test_loss, rel=1e-5 if exact else 0.05)
    command("export", f"run={folder}", f"out={tmp_path / 'hf'}")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf").dtype == WEIGHTS[precision]


@pytest.mark.long
def test_rotary_frequencies_are_not_rounded(runs: Path) -> None:
    exact = load_run(str(runs / "32-true"), "last").model.base_model.rotary_emb.inv_freq
    model = load_run(str(runs / "bf16-true"), "last").model
    assert (model.dtype, model.base_model.rotary_emb.inv_freq.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(model.base_model.rotary_emb.inv_freq, exact)
    # Lightning's own bf16-true, or a cast of the whole model, would round them.
    cast = build_model(ModelConfig(type="llama", layers=1, heads=2, width=64), TOKENIZER)
    cast_weights(cast, torch.bfloat16)
    assert torch.equal(cast.base_model.rotary_emb.inv_freq, exact)
    assert not torch.equal(cast.to(torch.bfloat16).base_model.rotary_emb.inv_freq.float(), exact)


def test_training_in_bf16_true_sees_exact_rotary_frequencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass of a training step, under the real trainer, finds exact frequencies."""
    import lightning as L

    from stepwise_pl.config.training import DataConfig
    from stepwise_pl.data.module import CoTDataModule
    from stepwise_pl.schedules import Linear
    from stepwise_pl.tasks import Multiplication
    from stepwise_pl.training.module import StepwiseModule
    from stepwise_pl.training.precision import BFloat16Weights

    task = Multiplication(digits=2, train_size=64, validation_size=10, test_size=10)
    tokenizer = build_tokenizer("symbols", task.symbols())
    model = build_model(ModelConfig(type="llama", layers=1, heads=2, width=64), tokenizer)
    seen = []
    model.base_model.rotary_emb.register_forward_pre_hook(lambda module, _: seen.append(module.inv_freq.clone()))
    exact = model.base_model.rotary_emb.inv_freq.clone()
    trainer = L.Trainer(
        accelerator="cpu", plugins=[BFloat16Weights()], max_steps=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(StepwiseModule(model, tokenizer, Linear()), CoTDataModule(task, tokenizer, DataConfig(batch_size=8)))
    assert len(seen) == 1 and torch.equal(seen[0], exact)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_adapters_stay_in_float32() -> None:
    model = small_model(TOKENIZER)
    add_adapters(model, LoRAConfig(rank=2))
    cast_weights(model, torch.bfloat16)
    assert {parameter.dtype for parameter in trained(model).values()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {torch.bfloat16}


@pytest.mark.long
def test_adapters_in_bf16_true(runs: Path, tmp_path: Path) -> None:
    arguments = (*LLAMA, "trainer.precision=bf16-true", f"model.init_from={runs / 'bf16-true'}", "model.lora.rank=2",
                 "trainer.duration=1epochs", f"run_dir={tmp_path / 'run'}")  # fmt: skip
    command("train", *arguments)
    found = state(tmp_path / "run")["state_dict"]
    assert {value.dtype for value in found.values()} == {torch.float32}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    command("evaluate", f"run={tmp_path / 'run'}", "speed_problems=0")
    result = next((tmp_path / "run" / "evaluations").glob("*.json"))
    assert json.loads(result.read_text())["answer_accuracy"] == pytest.approx(summary["test_accuracy"])
    run = load_run(str(tmp_path / "run"), "best")
    assert {p.dtype for p in run.model.parameters()} == {torch.float32, torch.bfloat16}


# Gradient checkpointing


@pytest.mark.long
@pytest.mark.parametrize("shape", [RUN, LLAMA], ids=["gpt2 with dropout", "llama"])
def test_gradient_checkpointing_changes_nothing(shape: tuple[str, ...], tmp_path: Path) -> None:
    few = (*shape, "trainer.duration=25steps")
    command("train", *few, f"run_dir={tmp_path / 'plain'}")
    command("train", *few, "model.gradient_checkpointing=true", f"run_dir={tmp_path / 'again'}")
    plain, again = (
        [float(row["train/loss"]) for row in read_metrics(tmp_path / name / "metrics.csv") if row["train/loss"]]
        for name in ("plain", "again")
    )
    assert len(plain) == 25
    assert again == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "phi3"])
@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_checkpointing_computes_each_block_again(kind: str, rank: int, tmp_path: Path) -> None:
    """Each block runs twice in a training step, and once without gradients. The gradients stay the same."""
    size = {"layers": 2, "heads": 2, "width": 32, "positions": 64, "dropout": 0.0}
    torch.manual_seed(0)
    more = {"num_key_value_heads": 1} if kind == "mistral" else {}
    build_model(ModelConfig(type=kind, **size, config=more), TOKENIZER).save_pretrained(tmp_path)  # type: ignore[arg-type]
    gradients, calls = [], []
    for again in (False, True):
        cfg = ModelConfig(
            name=str(tmp_path),
            pretrained=True,
            tokenizer="own",
            gradient_checkpointing=again,
            lora=LoRAConfig(rank=rank),
        )
        torch.manual_seed(1)
        model = build_model(cfg, TOKENIZER).train()
        block = next(m for name, m in model.named_modules() if name.endswith((".h.0.mlp", ".layers.0.mlp")))
        count = []
        block.register_forward_pre_hook(lambda *args, count=count: count.append(1))
        ids = torch.arange(len(TOKENIZER))[None]
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        calls.append(len(count))
        model.eval()(ids)
        assert len(count) == calls[-1] + 1
    assert calls == [1, 2]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.long
def test_a_run_can_resume_with_gradient_checkpointing(tmp_path: Path) -> None:
    """A user whose memory is full resumes this way."""
    command("train", *RUN, "trainer.duration=4steps", f"run_dir={tmp_path / 'run'}")
    command(
        "train",
        f"run_dir={tmp_path / 'run'}",
        "resume=true",
        "trainer.duration=6steps",
        "model.gradient_checkpointing=true",
    )
    assert state(tmp_path / "run")["global_step"] == 6


def test_a_model_type_without_gradient_checkpointing_is_refused() -> None:
    cfg = ModelConfig(type="openai-gpt", gradient_checkpointing=True, layers=1, heads=2, width=32)
    with pytest.raises(UserError, match=r"model.gradient_checkpointing=true: transformers has none for openai-gpt"):
        build_model(cfg, TOKENIZER)
    with pytest.raises(UserError, match=r"model.gradient_checkpointing=true: transformers has none for openai-gpt"):
        check_architecture(cfg)
