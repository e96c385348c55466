"""An exported model in llama.cpp, as docs/hub.md shows."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import OFFLINE, REPO, command

PAGE = (REPO / "docs" / "hub.md").read_text().partition("## In llama.cpp")[2]
INSTALL, CONVERT = re.findall(r"```\n(.*)\n(.*)\n```", PAGE)[0]
# Random weights that are large: every prompt has another answer.
TRAINED = (
    "task=mult2x2", "task.digits=1", "task.split=ordered", "model.layers=2", "model.heads=2", "model.width=64", "data.batch_size=16",
    "data.epoch_size=32", "optimizer.lr=1e-5", "schedule=no_cot", "trainer.duration=2steps", "+model.config.initializer_range=0.3",
)  # fmt: skip
ASK = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompts, most = "outputs/my-model", json.loads(sys.argv[1]), 6
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
found = []
for prompt in prompts:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    said = server.handle_completions({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5})
    with torch.no_grad():
        own = model(ids).logits[0, -1].log_softmax(-1)
    first = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most)
    found.append({
        "tokens": [ids.shape[1], said["usage"]["prompt_tokens"]],
        "off": max(abs(own[each["id"]].item() - each["logprob"]) for each in first),
        "texts": [tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True), answer(prompt, most)],
    })
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the two packages of the page, which shares all else with this one."""
    env = tmp_path_factory.mktemp("gguf") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
    python = [str(env / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(python, capture_output=True, text=True, check=True).stdout.strip()
    (Path(own) / "shared.pth").write_text(sysconfig.get_path("purelib"))
    words = shlex.split(INSTALL)
    assert words[:2] == ["pip", "install"]
    locked = ["--quiet", "--constraint", str(REPO / "requirements.lock")]
    subprocess.run([str(env / "bin" / "python"), "-m", "pip", "install", *locked, *words[2:]], check=True)
    return env / "bin"


def convert(tools: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program, *words = shlex.split(CONVERT)
    env = {**os.environ, **OFFLINE, "PYTHONPATH": ""}
    return subprocess.run([str(tools / program), *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_llama_cpp_writes_what_the_export_writes(tools: Path, shared_data: Path, tmp_path: Path, kind: str) -> None:
    tokenizer = f"model.tokenizer={shared_data / 'gpt2-tokenizer'}"
    command("train", *TRAINED, f"model.type={kind}", tokenizer, "run_dir=outputs/mine", cwd=tmp_path)
    command("export", "run=outputs/mine", "out=outputs/my-model", cwd=tmp_path)
    converted = convert(tools, tmp_path)
    assert converted.returncode == 0, converted.stderr[-2000:]
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    prompts = [f" {first} * {second} <|endoftext|><|endoftext|>" for first in range(2, 9) for second in (2, 5, 8)]
    env = {**os.environ, **OFFLINE, "PYTHONPATH": ""}
    out = subprocess.run(
        [str(tools / "python"), "-c", example + ASK, json.dumps(prompts)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    found = json.loads(next(line for line in out.stdout.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))
    assert all(one == other for one, other in (each["tokens"] for each in found))
    assert max(each["off"] for each in found) < 0.02
    # Where two tokens are as likely to the third decimal, rounding may choose the other one.
    alike = [one == other for one, other in (each["texts"] for each in found)]
    assert sum(alike) >= len(alike) - 2 and len({each["texts"][0] for each in found}) > 12


@pytest.mark.long
@pytest.mark.parametrize("tokenizer", ["symbols", "bytes"])
def test_the_converter_refuses_a_tokenizer_that_llama_cpp_does_not_know(
    tools: Path, byte_folder: Path, tmp_path: Path, tokenizer: str
) -> None:
    tokenizer = str(byte_folder) if tokenizer == "bytes" else tokenizer
    command("train", *TRAINED, f"model.tokenizer={tokenizer}", "run_dir=outputs/mine", cwd=tmp_path)
    command("export", "run=outputs/mine", "out=outputs/my-model", cwd=tmp_path)
    converted = convert(tools, tmp_path)
    assert converted.returncode != 0 and "BPE pre-tokenizer was not recognized" in converted.stderr
