"""The file of an evaluation: whether it is about the checkpoint that the run has now."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stepwise_pl.runs.predictions import digest_of, why_stale


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """An evaluation of a checkpoint of step 40."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "evaluations").mkdir()
    torch.save({"global_step": 40, "weight": torch.ones(3)}, tmp_path / "checkpoints/best.ckpt")
    file = tmp_path / "evaluations/best-test-removed2.json"
    file.write_text("{}")
    return file


def why(evaluation: Path, **summary: Any) -> str:
    return why_stale(evaluation.parents[1], evaluation, {"checkpoint": "best.ckpt", **summary})


def test_an_evaluation_of_another_step_is_stale(evaluation: Path) -> None:
    assert why(evaluation, step=40) == ""
    assert why(evaluation, step=20) == "is of step 20, and best.ckpt is of step 40"


def test_an_evaluation_of_other_weights_of_the_same_step_is_stale(evaluation: Path) -> None:
    checkpoint = evaluation.parents[1] / "checkpoints/best.ckpt"
    digest = digest_of(checkpoint)
    assert digest is not None and why(evaluation, step=40, checkpoint_digest=digest) == ""
    torch.save({"global_step": 40, "weight": torch.zeros(3)}, checkpoint)
    assert why(evaluation, step=40, checkpoint_digest=digest).startswith("is older than best.ckpt")


def test_an_evaluation_whose_checkpoint_is_gone_is_kept(evaluation: Path) -> None:
    assert why(evaluation, checkpoint="last.ckpt", step=20) == ""


def test_a_file_that_is_no_checkpoint_has_no_digest(evaluation: Path) -> None:
    assert digest_of(evaluation) is None and digest_of(evaluation / "nowhere") is None
