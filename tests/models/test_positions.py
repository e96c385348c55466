"""Tasks with examples longer than a model's positions."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.models.architecture import grow_positions, position_table
from stepwise_pl.models.build import build_model, check_architecture, positions_of
from tests.conftest import command, small_model

TOKENIZER = build_tokenizer("symbols", "0123456789")


@pytest.mark.parametrize("positions", [129, 200, 256, 300])
def test_new_rows_are_copies_of_the_last_ones(positions: int) -> None:
    model = small_model(TOKENIZER)
    before = model.transformer.wpe.weight.detach().clone()
    ids = torch.arange(128).remainder(len(TOKENIZER))[None]
    logits = model(ids).logits
    assert grow_positions(model, positions)
    table = model.transformer.wpe
    assert (model.config.n_positions, table.num_embeddings, len(table.weight)) == (positions,) * 3
    again = min(128, positions - 128)
    expected = [before[128 - again + i % again] for i in range(positions - 128)]
    assert torch.equal(table.weight, torch.cat([before, torch.stack(expected)]))
    assert torch.equal(model(ids).logits, logits)  # shorter texts give the same logits as before
    longer = torch.arange(positions).remainder(len(TOKENIZER))[None]
    model(longer).logits.sum().backward()
    assert table.weight.grad[128:].abs().sum(1).gt(0)[:-1].all()  # and the new rows are trained
    assert not grow_positions(model, positions)


def test_pretrained_positions_grow_with_the_task(tmp_path: Path) -> None:
    small_model(TOKENIZER).save_pretrained(tmp_path)
    cfg = ModelConfig(name=str(tmp_path), pretrained=True, tokenizer="own")
    assert positions_of(cfg) is None
    assert build_model(cfg, TOKENIZER, positions=100).config.n_positions == 128
    assert build_model(cfg, TOKENIZER, positions=140).config.n_positions == 140
    from_it = ModelConfig(init_from=str(tmp_path))
    assert build_model(from_it, TOKENIZER, positions=140).config.n_positions == 140


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_random_weights_have_as_many_as_needed(kind: str) -> None:
    cfg = ModelConfig(type=kind, layers=2, heads=2, width=32, positions=64)
    assert build_model(cfg, TOKENIZER, positions=40).config.max_position_embeddings == 64
    model = build_model(cfg, TOKENIZER, positions=90)
    assert model.config.max_position_embeddings == 90
    assert model(torch.arange(90).remainder(len(TOKENIZER))[None]).logits.shape[1] == 90


@pytest.mark.parametrize("kind", ["llama", "mistral", "phi3", "opt", "gpt_neo"])
def test_pretrained_models_that_cannot_grow_are_refused_beyond_their_positions(kind: str, tmp_path: Path) -> None:
    """Rotary models have not been trained at larger angles. OPT's table and GPT-Neo's masks have another meaning."""
    config = AutoConfig.for_model(
        kind, num_hidden_layers=2, num_attention_heads=2, hidden_size=32, max_position_embeddings=64, vocab_size=20,
        bos_token_id=1, eos_token_id=1, pad_token_id=1, **({"attention_types": [[["global"], 2]]} if kind == "gpt_neo" else {}),
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    cfg = ModelConfig(name=str(tmp_path), pretrained=True, tokenizer="own")
    assert positions_of(cfg) == 64
    model = build_model(cfg, TOKENIZER, positions=64)
    assert position_table(model) is None
    with pytest.raises(UserError, match="the longest example has 65 tokens, the model 64 positions"):
        build_model(cfg, TOKENIZER, positions=65)


@pytest.mark.long
def test_20x20_digits_train_and_export(tmp_path: Path) -> None:
    """An example has 1,299 tokens. The models are a random one, and one of 512 positions from a smaller task."""
    few = (
        "task.train_size=8",
        "task.validation_size=1",
        "task.test_size=1",
        "data.batch_size=2",
        "trainer.duration=1steps",
    )
    size = ("model.layers=1", "model.width=32", "model.heads=2")
    command("train", "task=mult3x3", *few, *size, f"run_dir={tmp_path / 'small'}")
    for name, more in (("random", ()), ("grown", (f"model.init_from={tmp_path / 'small'}",))):
        folder = tmp_path / name
        out = command("train", "task=mult20x20", *few, *size, *more, f"run_dir={folder}")
        assert ("the model's 512 positions have grown to 1299" in out.stderr) == (name == "grown")
        assert json.loads((folder / "model" / "config.json").read_text())["n_positions"] == 1299
        command("evaluate", f"run={folder}", "speed_problems=0")
        command("export", f"run={folder}", f"out={folder / 'hf'}")
        assert AutoModelForCausalLM.from_pretrained(folder / "hf").transformer.wpe.num_embeddings == 1299
    command("train", f"run_dir={tmp_path / 'grown'}", "resume=true", "trainer.duration=2steps")
    assert json.loads((tmp_path / "grown" / "summary.json").read_text())["steps"] == 2


def test_evaluation_does_not_grow_a_trained_model(run_dir: Path, tmp_path: Path) -> None:
    """Positions that were never trained would give meaningless answers."""
    prompt = " ".join("1" * 300)
    (tmp_path / "long.txt").write_text(f"{prompt} * 1||{prompt} #### 1\n")
    out = command("evaluate", f"run={run_dir}", f"file={tmp_path / 'long.txt'}", "removed_tokens=0", check=False)
    assert (out.returncode, "tokens, the model 512 positions" in out.stderr) == (2, True), out.stderr


def test_the_architecture_is_checked_without_memory() -> None:
    """The model has 70 billion parameters. The check builds it on the meta device."""
    cfg = ModelConfig(type="llama", layers=80, heads=64, width=8192, config={"intermediate_size": 28672})
    check_architecture(cfg)
