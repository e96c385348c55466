"""Exports are read by transformers 4."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from stepwise_pl.common import disk
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.models.architecture import build
from stepwise_pl.models.build import build_model
from stepwise_pl.models.older_transformers import make_readable
from tests.conftest import command

TOKENIZER = build_tokenizer("symbols", "0123456789*+")
PROMPT = "1 2 * 3 4 <eos> 5"
READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
out = {"version": transformers.__version__}
for folder in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = model(**prompt).logits[0].tolist()
    text = tokenizer.decode(model.generate(**prompt)[0])
    out[folder] = {"ids": prompt["input_ids"].tolist(), "logits": logits, "text": text, "dtype": str(model.dtype)}
print("FOUND" + json.dumps(out))
""".replace("PROMPT", repr(PROMPT))
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 50.0, "partial_rotary_factor": 1.0, "short_factor": [1.5] * 8, "long_factor": [3.0] * 8,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SHAPES = {
    "gpt2": ("gpt2", None), "llama": ("llama", {"rope_type": "default", "rope_theta": 50.0}), "llama3": ("llama", LLAMA3),
    "linear": ("llama", {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0}), "phi3": ("phi3", LONG),
    "mistral": ("mistral", {"rope_type": "default", "rope_theta": 50.0}), "gpt_neox": ("gpt_neox", {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5}),
    "qwen3": ("qwen3", {"rope_type": "default", "rope_theta": 50.0}), "phi": ("phi", {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.25}),
    "gemma3": ("gemma3_text", {"full_attention": {"rope_type": "default", "rope_theta": 50.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 20.0}}),
}  # fmt: skip


def exported(name: str, folder: Path) -> None:
    kind, rope = SHAPES[name]
    model = build_model(ModelConfig(type=kind, layers=2, width=64, heads=4, positions=128), TOKENIZER)
    if rope is not None:
        model.config.rope_parameters = rope
        model = build(model.config, kind)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    settings = model.generation_config
    settings.max_new_tokens, settings.eos_token_id, settings.pad_token_id = 12, None, TOKENIZER.eos_token_id
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    make_readable(folder)


def read(python: str, folders: list[Path]) -> dict:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    out = subprocess.run([python, "-c", READ, *map(str, folders)], capture_output=True, text=True, env=env, check=False)
    assert out.returncode == 0, out.stderr[-2000:]
    return json.loads(out.stdout.rpartition("FOUND")[2])


@pytest.mark.longest
@pytest.mark.long
def test_transformers_4_answers_as_transformers_5_does(tmp_path: Path) -> None:
    """The test makes an environment with transformers 4 that shares torch with this one."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "transformers>=4.57,<5"], check=True)
    own = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(own) / "shared.pth").write_text(sysconfig.get_path("purelib"))  # Python searches it last
    folders = [tmp_path / name for name in SHAPES]
    for name, folder in zip(SHAPES, folders, strict=True):
        exported(name, folder)
    new, old = read(sys.executable, folders), read(str(python), folders)
    assert (new.pop("version")[0], old.pop("version")[0]) == ("5", "4")
    for folder in map(str, folders):
        assert {key: old[folder][key] for key in ("ids", "text", "dtype")} == {
            key: new[folder][key] for key in ("ids", "text", "dtype")
        }, folder
        torch.testing.assert_close(
            torch.tensor(old[folder]["logits"]), torch.tensor(new[folder]["logits"]), atol=1e-4, rtol=1e-4
        )


def test_a_folder_has_the_names_of_transformers_4(tmp_path: Path) -> None:
    for name in ("llama3", "phi3", "gemma3"):
        exported(name, tmp_path / name)
    config = {name: json.loads((tmp_path / name / "config.json").read_text()) for name in ("llama3", "phi3", "gemma3")}
    assert (config["llama3"]["rope_theta"], config["llama3"]["torch_dtype"]) == (50.0, "float32")
    assert config["llama3"]["rope_scaling"] == {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    assert sorted(config["phi3"]["rope_scaling"]) == ["long_factor", "short_factor", "type"]
    original = config["phi3"]["rope_parameters"]["original_max_position_embeddings"]
    assert config["phi3"]["original_max_position_embeddings"] == original
    assert (config["gemma3"]["rope_theta"], config["gemma3"]["rope_local_base_freq"]) == (50.0, 20.0)
    tokenizer = json.loads((tmp_path / "phi3" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt), disk.in_one_go(out) as folder:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    # A process that was killed leaves one; another that is still at work has one too.
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    with disk.in_one_go(out) as folder:
        start = folder.name.removesuffix(str(os.getpid()))
        for process in (ended.stdout.strip(), str(os.getppid())):
            (tmp_path / f"{start}{process}").mkdir()
        with disk.in_one_go(tmp_path / "model2"):
            pass
    with disk.in_one_go(tmp_path / "model3") as folder:
        (folder / "a").write_text("a")
    with disk.in_one_go(tmp_path / "model"):
        pass
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model", "model2", "model3", f"{start}{os.getppid()}"}


def test_an_export_takes_an_empty_folder_and_leaves_others_alone(tmp_path: Path) -> None:
    small = ("task=mult2x2", "task.digits=1", "model.layers=1", "model.width=32", "model.heads=2", "data.batch_size=8",
             "data.epoch_size=16", "trainer.duration=2steps", "task.split=ordered")  # fmt: skip
    run = tmp_path / "run"
    command("train", *small, f"run_dir={run}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    command("export", f"run={run}", f"out={tmp_path / 'empty'}")
    assert {"config.json", "README.md", "model.safetensors"} <= {path.name for path in (tmp_path / "empty").iterdir()}
    out = command("export", f"run={run}", f"out={tmp_path / 'mine'}", check=False)
    assert out.returncode == 2 and "is not empty" in out.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert not [path for path in tmp_path.iterdir() if "writing" in path.name]
