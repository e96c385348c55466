"""Models from a folder, a GGUF file or the Hub, also if the Hub cannot be reached."""

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stepwise_pl.common import hub
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.models.build import build_model
from tests.conftest import REPO, command

gguf = pytest.importorskip("gguf")
NOBODY = "http://127.0.0.1:9"  # a port nobody listens on


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Forget whether the Hub can be reached."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub.reachable.cache_clear()
    yield monkeypatch
    hub.reachable.cache_clear()


@pytest.mark.parametrize("address", ["notaurl", "http://", "http://[", "//x"])
def test_an_address_that_is_none_is_not_reachable(asked: pytest.MonkeyPatch, address: str) -> None:
    asked.setenv("HF_ENDPOINT", address)
    assert not hub.reachable()


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_hub_that_answers_is_reachable(asked: pytest.MonkeyPatch, status: int) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.handle_request).start()
        asked.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert hub.reachable()
    assert hub.source("gpt2") == {"pretrained_model_name_or_path": "gpt2", "local_files_only": False}


def test_a_hub_that_does_not_answer_is_not_reachable(asked: pytest.MonkeyPatch) -> None:
    asked.setenv("HF_ENDPOINT", NOBODY)
    assert not hub.reachable()
    assert hub.source("gpt2")["local_files_only"]
    hub.reachable.cache_clear()
    asked.setenv("HF_HUB_OFFLINE", "1")
    asked.setenv("HF_ENDPOINT", "would fail in another way")
    assert not hub.reachable()


@pytest.mark.long
@pytest.mark.parametrize(
    "entry,arguments,key",
    [
        ("train", ["model=gpt2", "task=mult9x9"], "model.name=gpt2"),
        ("train", ["model=mistral7b", "model.tokenizer=symbols", "model.pretrained=false", "model.tokenizer=gpt2"], "model.tokenizer=gpt2"),
        ("train", ["model=gpt2", "model.tokenizer=FOLDER"], "model.name=gpt2"),
        ("check_data", ["model=gpt2", "task=mult2x2"], "model.name=gpt2"),
        ("check_data", ["model=tiny", "task=mult2x2", "model.tokenizer=gpt2"], "model.tokenizer=gpt2"),
    ],
)  # fmt: skip
def test_without_network_the_message_is_quick_and_names_the_options(
    entry: str, arguments: list[str], key: str, tmp_path: Path
) -> None:
    build_tokenizer("symbols", ("1",)).save_pretrained(tmp_path / "words")
    arguments = [argument.replace("FOLDER", str(tmp_path / "words")) for argument in arguments]
    # The command must not import anything heavy first: it is as quick as the start of Python and Hydra.
    script = (
        f"import sys; sys.argv = {[entry, *arguments, *([f'run_dir={tmp_path}/run'] if entry == 'train' else [])]!r}\n"
        f"from stepwise_pl import {entry}\n"
        f"try: {entry}.main()\n"
        "finally: print(sorted({'torch', 'transformers', 'lightning'} & sys.modules.keys()))"
    )
    env = {"PATH": "", "HOME": str(tmp_path), "HF_ENDPOINT": NOBODY, "PYTHONPATH": str(REPO)}
    started = time.monotonic()
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert time.monotonic() - started < 15  # transformers alone would retry for 23 s for each of model and tokenizer
    line = out.stderr.strip().splitlines()[-1]
    assert (out.returncode, out.stdout.strip()) == (2, "[]"), out.stderr
    assert line.startswith(f"error: {key}: cannot be loaded (the Hub cannot be reached")
    for option in ("local folder", ".gguf file", "model.pretrained=false", "model.tokenizer", "symbols"):
        assert option in line


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "~/nowhere", "a/b/c", "nowhere.gguf", "README.md"])
def test_a_path_is_not_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("it was"))
    with pytest.raises(UserError, match=f"model.name={name}: cannot be loaded .*file"):
        build_model(ModelConfig(name=name, pretrained=True, tokenizer="own"), build_tokenizer("symbols", ("1",)))
    with pytest.raises(UserError, match=f"model.tokenizer={name}: cannot be loaded .*file"):
        build_tokenizer(name, ())


# GGUF


def words() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with an end token, trained on one line."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|endoftext|>", "<bos>", "<end>"], initial_alphabet=sorted(alphabet)
    )
    tokenizer.train_from_iterator(["twelve times twelve is one hundred and forty four " * 3], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<|endoftext|>", bos_token="<bos>", eos_token="<end>"
    )


def as_gguf(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write a Llama and its tokenizer as llama.cpp's converter does: it interleaves the halves of queries and keys."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3] * 3 + [1] * (len(vocabulary) - 3))  # control, normal
    writer.add_token_merges([" ".join(pair) for pair in merges_of(tokenizer)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm", "q_proj": "attn_q", "k_proj": "attn_k",
        "v_proj": "attn_v", "o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate",
        "up_proj": "ffn_up", "down_proj": "ffn_down", "lm_head": "output",
    }  # fmt: skip
    for key, value in model.state_dict().items():
        parts = key.split(".")
        layer = f"blk.{parts[2]}." if "layers" in parts else ""
        if parts[-2] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if parts[-2] == "q_proj" else config.num_key_value_heads
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(f"{layer}{names[parts[-2]]}.weight", value.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def merges_of(tokenizer: PreTrainedTokenizerFast) -> list[list[str]]:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]  # type: ignore[no-any-return]


def test_a_gguf_file_gives_model_and_tokenizer(tmp_path: Path) -> None:
    tokenizer = words()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    as_gguf(model, tokenizer, tmp_path / "tiny.gguf")
    name = str(tmp_path / "tiny.gguf")
    loaded = build_tokenizer(name, ())
    text = " twelve times 12 <end> is one <end> #### 144 <end>"
    assert (loaded.eos_token, loaded(text)["input_ids"]) == ("<end>", tokenizer(text)["input_ids"])
    ours = build_model(ModelConfig(name=name, pretrained=True, tokenizer=name), loaded)
    assert (ours.dtype, ours.config.max_position_embeddings) == (torch.float32, 96)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
        # The tokenizer keeps no trace of the GGUF file, and is saved and loaded as any other.
        ours.save_pretrained(tmp_path / "saved")
        loaded.save_pretrained(tmp_path / "saved")
        assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert torch.equal(again(ids).logits, ours(ids).logits)
        assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text)["input_ids"] == ids[0].tolist()


@pytest.mark.long
def test_a_run_from_a_gguf_file_can_be_evaluated_and_exported(tmp_path: Path) -> None:
    """The commands work with and without adapters."""
    tokenizer = words()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    as_gguf(LlamaForCausalLM(config), tokenizer, tmp_path / "tiny.gguf")
    for rank in (0, 2):
        folder = tmp_path / str(rank)
        command(
            "train", "model=smollm2", f"model.name={tmp_path / 'tiny.gguf'}", f"model.lora.rank={rank}", "task=mult2x2",
            "task.train_size=50", "task.validation_size=4", "task.test_size=4", "data.batch_size=4", "trainer.duration=2steps",
            f"run_dir={folder}",
        )  # fmt: skip
        command("evaluate", f"run={folder}", "speed_problems=0")
        command("export", f"run={folder}", f"out={folder / 'hf'}")
        exported = AutoModelForCausalLM.from_pretrained(folder / "hf")
        assert exported.config.model_type == "llama"
        assert "quantization_config" not in exported.config.to_dict()


def test_a_gguf_file_without_the_packages_that_read_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="to read GGUF files, pip install gguf accelerate"):
        build_tokenizer(str(tmp_path / "x.gguf"), ())


def test_a_damaged_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF, but not for long")
    with pytest.raises(UserError, match="model.tokenizer=.*x.gguf: cannot be loaded"):
        build_tokenizer(str(tmp_path / "x.gguf"), ())
