"""Weights from other sources: reference checkpoints, runs, Hugging Face folders."""

import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import LoRAConfig, ModelConfig
from stepwise_pl.config.plain import to_plain
from stepwise_pl.config.training import DataConfig
from stepwise_pl.data.tokenizers import small_tokenizer
from stepwise_pl.models import early
from stepwise_pl.models.architecture import own_config
from stepwise_pl.models.build import build_model, check_architecture, require_memory, restored
from stepwise_pl.models.checkpoint import kept_weights, named_weights, read_checkpoint
from stepwise_pl.models.export import example_of
from stepwise_pl.models.lora import frozen_digest
from stepwise_pl.models.trained_run import load_run
from stepwise_pl.runs.records import read_metrics
from stepwise_pl.tasks import Files, Multiplication
from stepwise_pl.training.build import build_parts
from tests.config.test_config import composed
from tests.conftest import SMALL, command, small_model

SIZE = {"layers": 2, "heads": 2, "width": 32, "positions": 64}


def reference_folder(path, model) -> None:
    """Write a folder like the reference: state_dict.bin of a module with the causal LM as base_model, and its config."""
    state = {f"base_model.{key}": value for key, value in model.state_dict().items()}
    # Older transformers kept the causal masks as buffers.
    for layer in range(2):
        state[f"base_model.transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        state[f"base_model.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    path.mkdir(exist_ok=True)
    torch.save(state, path / "state_dict.bin")
    (path / "config.json").write_text(json.dumps({"base_model": "gpt2", "tokenizer_name": "gpt2"}))


def test_reference_checkpoints_load(tokenizer, tmp_path) -> None:
    torch.manual_seed(1)
    source = build_model(ModelConfig(**SIZE), tokenizer)
    reference_folder(tmp_path, source)
    loaded = build_model(ModelConfig(**SIZE, init_from=str(tmp_path)), tokenizer)
    ids = torch.arange(10)[None]
    assert torch.equal(loaded.eval()(ids).logits, source.eval()(ids).logits)
    with pytest.raises(UserError, match="made from base model gpt2.*do not fit"):
        build_model(ModelConfig(**{**SIZE, "width": 16}, init_from=str(tmp_path)), tokenizer)


class Evil:
    """An object that touches a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_code_in_a_checkpoint_is_run(tokenizer, tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"base_model": "gpt2"}')
    for save in (lambda o, p: torch.save(o, p), lambda o, p: p.write_bytes(pickle.dumps(o))):
        save({"base_model.x": Evil(tmp_path / "touched")}, tmp_path / "state_dict.bin")
        with pytest.raises(UserError, match="damaged, or not a checkpoint of weights only"):
            build_model(ModelConfig(**SIZE, init_from=str(tmp_path)), tokenizer)
        assert not (tmp_path / "touched").exists()


def test_hugging_face_folders_load(tokenizer, tmp_path) -> None:
    source = build_model(ModelConfig(**SIZE), tokenizer)
    source.save_pretrained(tmp_path)
    for cfg in (
        ModelConfig(init_from=str(tmp_path)),
        ModelConfig(name=str(tmp_path), pretrained=True, tokenizer="own", dropout=0.25),
    ):
        loaded = build_model(cfg, tokenizer)
        ids = torch.arange(10)[None]
        assert torch.equal(loaded.eval()(ids).logits, source.eval()(ids).logits)
        if cfg.dropout:
            assert {m.p for m in loaded.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
        assert loaded.dtype == torch.float32


def test_architecture_settings_reach_the_model(tokenizer) -> None:
    model = build_model(ModelConfig(**SIZE, dropout=0.3, config={"n_inner": 48}), tokenizer)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    assert model.config.n_inner == 48
    assert model.config.vocab_size == len(tokenizer) == 17
    assert model.config.eos_token_id == tokenizer.eos_token_id
    own = build_model(ModelConfig(**SIZE), tokenizer)
    assert {m.p for m in own.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}  # GPT-2's own


def test_weights_of_another_vocabulary_are_refused(tokenizer, tmp_path) -> None:
    other = small_tokenizer(("a", "b", "c"))
    build_model(ModelConfig(**SIZE), other).save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"was trained with another vocabulary \(6 tokens, ours has 17\)"):
        build_model(ModelConfig(init_from=str(tmp_path)), tokenizer)
    assert build_model(ModelConfig(init_from=str(tmp_path)), other).config.vocab_size == 6
    # The order in which a task names its words does not matter.
    assert small_tokenizer(("c", "b", "a")).get_vocab() == other.get_vocab()


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"type": "gtp2"}, "model.type=gtp2: transformers has no causal LM of this type"),
        ({"config": {"n_iner": 3}}, "model.config.n_iner: a gpt2 config has no such key"),
        ({"name": "/nowhere", "pretrained": True, "tokenizer": "x"}, "model.name=/nowhere: cannot be loaded"),
        ({"init_from": "/nowhere"}, "model.init_from=/nowhere: no such folder"),
    ],
)
def test_errors_name_the_key(tokenizer, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(ModelConfig(**settings), tokenizer)


def test_a_folder_without_weights(tokenizer, tmp_path) -> None:
    with pytest.raises(UserError, match="neither state_dict.bin nor"):
        build_model(ModelConfig(**SIZE, init_from=str(tmp_path)), tokenizer)


def test_gelu_in_one_kernel_is_gpt2s(tokenizer, tmp_path) -> None:
    """The kernel serves random weights, and a folder that asks for `gelu_new`, as GPT-2's does."""
    from transformers import AutoModelForCausalLM

    model = small_model(tokenizer)
    assert model.config.activation_function == "gelu_pytorch_tanh"
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation_function": "gelu_new"}))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ours = build_model(ModelConfig(name=str(tmp_path), pretrained=True, tokenizer="own"), tokenizer).eval()
    assert (theirs.config.activation_function, ours.config.activation_function) == ("gelu_new", "gelu_pytorch_tanh")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, ours(tokens).logits, atol=1e-5)


@pytest.mark.long
def test_an_explicit_cot_run_serves_to_start_from(tmp_path) -> None:
    """A run starts from the weights of the best checkpoint, under another schedule. Another size of model is refused."""
    explicit = tmp_path / "explicit"
    command("train", *SMALL, "schedule=explicit_cot", f"run_dir={explicit}", "trainer.duration=3epochs")
    run = load_run(str(explicit), "best")
    cfg = dataclasses.replace(run.config.model, init_from=str(explicit))
    started = build_model(cfg, run.tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(started.parameters(), run.model.parameters(), strict=True))
    command(
        "train",
        *SMALL,
        f"model.init_from={explicit}",
        f"run_dir={tmp_path / 'next'}",
        "trainer.log_every_n_steps=1",
        "trainer.duration=1steps",
    )
    (first, *_), last = (read_metrics(tmp_path / "next" / "metrics.csv"), read_metrics(explicit / "metrics.csv"))
    random = next(float(row["train/loss"]) for row in last if row["train/loss"])
    ended = [float(row["val/loss"]) for row in last if row["val/loss"]][-1]
    assert abs(float(first["train/loss"]) - ended) < 0.25 * abs(random - ended)
    with pytest.raises(UserError, match=r"do not fit the model \(model.width is 64 there, 32 here\)"):
        build_model(dataclasses.replace(cfg, width=32), run.tokenizer)


@pytest.mark.parametrize("kind", ["random", "pretrained", "a run", "adapters"])
def test_a_model_is_built_once(kind: str, run_dir, tmp_path, monkeypatch) -> None:
    """Only one model with weights is built from the check of the configuration to the parts of a run."""
    model = {
        "random": [], "pretrained": [f"model.name={tmp_path / 'hf'}", "model.pretrained=true", f"model.tokenizer={tmp_path / 'hf'}"],
        "a run": [f"model.init_from={run_dir}"], "adapters": [f"model.init_from={run_dir}", "model.lora.rank=2"],
    }[kind]  # fmt: skip
    command("export", f"run={run_dir}", f"out={tmp_path / 'hf'}")
    built: list[str] = []
    before = PreTrainedModel.__init__

    def counted(self, *args, **kwargs) -> None:
        before(self, *args, **kwargs)
        if type(self).__name__ == "GPT2LMHeadModel":
            built.append(torch.get_default_device().type)

    monkeypatch.setattr(PreTrainedModel, "__init__", counted)
    config = composed(*SMALL, *model)
    early.check(config)
    parts = build_parts(config)
    # `from_pretrained` builds on the meta device and puts the weights that it reads in place.
    expected = {"pretrained": ["meta", "meta"], "random": ["meta", "cpu"]}.get(kind, ["cpu"])
    assert built == expected
    assert {parameter.device.type for parameter in parts.model.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    "settings,line",
    [
        ({"layers": 10**18}, "model.layers=1000000000000000000: must be at most 1000"),
        ({"config": {"n_layer": 10**9}}, "model.config.n_layer=1000000000: must be at most 1000"),
        (
            {"type": "mixtral", "config": {"num_local_experts": 10**9}},
            "model.config.num_local_experts=1000000000: must be at most 1000",
        ),
    ],
)
def test_a_slip_in_the_number_of_layers_takes_no_memory(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        check_architecture(ModelConfig(**settings))
    assert str(refused.value) == line


def test_a_slip_in_the_number_of_workers_starts_none() -> None:
    with pytest.raises(UserError, match=r"data\.num_workers=1000000000: must be at least 0 and at most 256"):
        DataConfig(num_workers=10**9)


def test_a_model_that_no_memory_holds_is_refused_before_it_is_built() -> None:
    weights = check_architecture(ModelConfig(positions=10**12, width=4, heads=1))
    with pytest.raises(UserError, match=r"has 4,000,000 million weights, 14,901 GiB, and this machine a memory of"):
        require_memory(weights, 4)


def test_the_kept_weights_of_a_foreign_checkpoint_are_its_own() -> None:
    weights = {"model.a": torch.ones(2)}
    assert kept_weights({"state_dict": weights}) == weights


def test_a_file_in_place_of_a_checkpoint_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.ckpt: no such checkpoint"):
        read_checkpoint(tmp_path / "nowhere.ckpt")
    (tmp_path / "text.ckpt").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.ckpt: damaged, or not a checkpoint of weights only"):
        read_checkpoint(tmp_path / "text.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match=r"list\.ckpt: is not a checkpoint"):
        read_checkpoint(tmp_path / "list.ckpt")


def test_weights_of_other_names_are_no_weights_of_ours(tmp_path) -> None:
    weights = {"base_model.a": torch.ones(1), "step": torch.ones(1)}
    assert named_weights(weights, "base_model.", tmp_path).keys() == {"a"}
    with pytest.raises(UserError, match=r"holds no weights whose names begin with model\."):
        named_weights(weights, "model.", tmp_path)


def test_a_run_whose_model_folder_is_gone_is_named(tokenizer, tmp_path) -> None:
    state = {"state_dict": {"model.a": torch.ones(1)}, "stepwise": {}}
    with pytest.raises(UserError, match=f"{tmp_path / 'model'}: cannot be read"):
        restored(tmp_path, state, tmp_path / "last.ckpt", tokenizer)


def test_a_checkpoint_of_an_unknown_configuration_names_the_version_that_reads_it(tokenizer, tmp_path) -> None:
    for config in ({}, {"model": {"no_such_key": 1}, "trainer": {}}):
        state = {"state_dict": {"model.a": torch.ones(1)}, "stepwise": {"config": config}}
        with pytest.raises(UserError, match=r"last\.ckpt: was written by "):
            restored(tmp_path, state, tmp_path / "last.ckpt", tokenizer)


def test_adapters_of_a_model_that_has_changed_are_refused(tokenizer, tmp_path) -> None:
    small_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    cfg = ModelConfig(init_from=str(tmp_path / "base"), lora=LoRAConfig(rank=2))
    model = build_model(cfg, tokenizer)
    config = {
        "model": to_plain(cfg), "trainer": {"precision": "32-true"}, "derived": {"frozen": frozen_digest(model)}
    }  # fmt: skip
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items() if "lora" in name}
    state = {"state_dict": weights, "stepwise": {"config": config}}
    restored(tmp_path, state, tmp_path / "last.ckpt", tokenizer)
    small_model(tokenizer, seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=f"holds adapters of a model that has changed since: {tmp_path / 'base'}"):
        restored(tmp_path, state, tmp_path / "last.ckpt", tokenizer)


def test_the_readme_of_an_export_does_without_data_that_is_gone(tmp_path, caplog) -> None:
    example = example_of(Multiplication(digits=1))
    assert example is not None and example.prompt.count("*") == 1
    assert example_of(Files(train=str(tmp_path / "gone.txt"))) is None
    assert "the README shows no prompt of the data" in caplog.text


@pytest.mark.parametrize(
    "kind,sizes",
    [
        ("gptj", {"rotary_dim": 8, "n_embd": 32, "n_head": 4}),
        ("bamba", {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 64}),
        ("zamba2", {"n_mamba_heads": 4, "mamba_headdim": 16, "mamba_ngroups": 1, "chunk_size": 64}),
        ("gemma3n_text", {"num_kv_shared_layers": 1, "num_key_value_heads": 1, "num_hidden_layers": 4}),
    ],
)
def test_sizes_keep_their_proportion_in_the_published_model(kind: str, sizes: dict[str, int]) -> None:
    config = own_config(ModelConfig(type=kind, layers=4, heads=4, width=32, positions=64), vocabulary=20, eos=0)
    assert {name: getattr(config, name) for name in sizes} == sizes
