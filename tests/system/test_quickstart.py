"""The quickstart at its full length. It takes minutes, so it belongs to `make long`."""

import json

import pytest

from tests.conftest import command


@pytest.mark.longest
@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_quickstart_ends_without_cot_and_with_right_answers(tmp_path, seed: int) -> None:
    command("train", "experiment=quickstart", f"seed={seed}", f"run_dir={tmp_path}", timeout=1500, OMP_NUM_THREADS="2")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["removed_tokens"] == summary["max_cot_tokens"] == 10
    assert summary["test_examples"] == 500
    assert summary["test_accuracy"] >= 0.95
