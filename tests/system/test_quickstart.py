"""The quickstart at its full length. It takes minutes, so it belongs to `make long`."""

import json

import pytest

from stepwise_pl.runs.stages import read_stages
from tests.conftest import command


@pytest.mark.long
@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.longest), pytest.param(2, marks=pytest.mark.longest)]
)
def test_accuracy_holds_while_tokens_leave(tmp_path, seed: int) -> None:
    # One thread, the default here: 6 minutes beside other work. With two, beside another test, it once came to 74 examples per second.
    out = command("train", "experiment=quickstart", f"seed={seed}", f"run_dir={tmp_path}", timeout=1100)
    assert "collapsed" not in out.stdout + out.stderr
    stages, given_up = read_stages(tmp_path / "metrics.csv")
    assert [stage.removed_tokens for stage in stages] == list(range(9)) and not given_up
    assert all(stage.accuracy >= 0.95 for stage in stages)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("removed-*")) == [
        f"removed-{removed}.ckpt" for removed in range(9)
    ]  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["removed_tokens"], summary["max_cot_tokens"], summary["test_examples"]) == (8, 8, 1_000)
    assert summary["test_accuracy"] >= 0.99
