"""The benchmark of `make bench` counts operations correctly, and its results can be compared."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stepwise_pl.data.encoding import encode
from stepwise_pl.models.forward import Targets, target_logits
from stepwise_pl.tasks import Multiplication
from tests.conftest import REPO, small_model

SPEED = REPO / "experiments" / "speed"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SPEED / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("count", [0, 5, 100])
def test_model_flops_agree_with_the_count_of_torch(tokenizer, count: int) -> None:
    """The count is of a forward and a backward pass. torch also counts attention to later tokens; the test subtracts it."""
    benchmark = module("benchmark")
    model = small_model(tokenizer, width=64, heads=4)
    model.set_attn_implementation("eager")  # torch can count the products of this one
    batch = (
        encode(Multiplication(digits=2, train_size=8).load()["train"], tokenizer, "train")
        .collate(np.arange(8))
        .remove(count)
    )
    with FlopCounterMode(display=False) as counter:
        targets = Targets.of(batch)
        torch.nn.functional.cross_entropy(target_logits(model, targets), targets.label).backward()
    rows, seq = targets.tokens.shape
    later = 6 * 2 * 2 * 64 * rows * (seq * seq - seq * (seq + 1) / 2)
    assert benchmark.flops(model, batch) == pytest.approx(counter.get_total_flops() - later, rel=0.01)


@pytest.mark.long
def test_a_result_is_written_and_compared(tmp_path: Path) -> None:
    run = [sys.executable, str(SPEED / "benchmark.py"), f"out={tmp_path}", "only=data"]
    out = subprocess.run(run, capture_output=True, text=True, cwd=REPO, timeout=200)
    assert out.returncode == 0, out.stderr
    rows = list(csv.DictReader((tmp_path / "results.csv").open(newline="")))
    values = {(row["measure"], row["case"]): float(row["value"]) for row in rows if row["value"]}
    assert 0 < values["data preparation", "100,000 problems of 4x4"] < 60
    slower = tmp_path / "slower.csv"
    with slower.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "value": row["value"] and str(2 * float(row["value"]))} for row in rows)
        writer.writerow({"measure": "training", "case": "new", "value": "1", "unit": "tokens/s"})
    compared = subprocess.run(
        [sys.executable, str(SPEED / "compare.py"), str(tmp_path / "results.csv"), str(slower)],
        capture_output=True, text=True,
    )  # fmt: skip
    lines = compared.stdout.splitlines()
    assert [line.split()[-2] for line in lines if line.startswith("data")] == ["2.00"]
    assert lines[-1] == "only in new: training, new"


def test_every_case_has_its_own_name() -> None:
    assert len(module("benchmark").cases()) == 4 * 3 + 3 * 3 + 2 * 2 * 3 + 2 + 2
