"""The example of docs/extending.md, as a user types it."""

import json
import re
import shlex
from pathlib import Path

import torch

from tests.conftest import REPO, command

TEXT = (REPO / "docs" / "extending.md").read_text()


def test_the_example_trains_resumes_evaluates_and_reports(tmp_path: Path) -> None:
    files = re.findall(r"^`(my_plugin/\S+)`:\n\n```\w+\n(.*?)```", TEXT, re.S | re.M)
    assert len(files) == 3
    for name, content in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (block,) = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    said = {}
    for line in block.splitlines():
        words = shlex.split(line)
        assert words[:2] == ["python", "-m"]
        said[line] = command(words[2].removeprefix("stepwise_pl."), *words[3:], cwd=tmp_path).stdout
    shown = " ".join(next(iter(said.values())).split())
    assert "maximum, mult11x11_gpt2" in shown and "no_cot, slow_stairs, staircase, stepwise" in shown
    run = tmp_path / "outputs" / "maximum"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["removed_tokens"], summary["test_examples"]) == (120, 4, 100)
    assert summary["test_accuracy"] > 0.5
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["callbacks"]["CountBatches"] == {"batches": 120}
    assert list((run / "evaluations").glob("*.json"))
    assert "at step 60: trainer.duration=120steps (was 60steps)" in (tmp_path / "outputs" / "maximum.html").read_text()


def test_the_files_that_the_document_links_to_are_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (REPO / "docs" / target).exists(), target
