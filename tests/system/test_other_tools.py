"""An exported model opens in TransformerLens and nnsight, as docs/inside.md shows."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import OFFLINE, REPO, command
from tests.environments import EXTRAS, environment


@pytest.mark.long
def test_the_example_gives_the_same_logits_in_both(tmp_path: Path) -> None:
    """The test makes an environment with both tools, in the versions of the extra, that shares all else with this one."""
    python = environment(tmp_path / "env", *EXTRAS["tools"]) / "python"
    few = (
        "task.train_size=300",
        "task.validation_size=20",
        "task.test_size=20",
        "data.batch_size=4",
        "optimizer.decay=0",
    )
    command(
        "train",
        "experiment=quickstart",
        *few,
        "trainer.duration=5steps",
        "run_dir=outputs/looked-at",
        "schedule=no_cot",
        cwd=tmp_path,
    )
    command("export", "run=outputs/looked-at", "out=outputs/exported", cwd=tmp_path)
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (REPO / "docs/inside.md").read_text(), re.S)
        if "nnsight" in block
    )
    said = """
import json
print("SAID" + json.dumps([pattern.sum(-1).flatten().tolist(), list(in_trace.shape), float(logits.std())]))
"""
    (tmp_path / "example.py").write_text(example + said)  # nnsight reads the source of the file
    env = {**os.environ, **OFFLINE, "PYTHONPATH": ""}
    out = subprocess.run([str(python), "example.py"], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-3000:]
    rows, shape, spread = json.loads(out.stdout.rpartition("SAID")[2])
    assert rows == pytest.approx([1.0] * 80, abs=1e-5)  # 8 heads, 10 tokens
    assert shape == [1, 10, 8] and spread > 0.01
