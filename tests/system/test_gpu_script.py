"""`make gpu`: the script runs on a CPU with small models, survives what goes wrong, goes on after a kill, and computes its ratios right."""

import collections
import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests import background
from tests.conftest import OFFLINE, REPO

SCRIPT = REPO / "experiments" / "speed" / "gpu"
NAMES = ("baseline", "checks", "measure", "plan", "results", "run", "serve", "training")
TINY = ("device=cpu", "sizes=tiny", "jobs=1", "check_seconds=600", "patience=5")


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that imports a module of the script."""
    monkeypatch.syspath_prepend(str(SCRIPT))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in NAMES:
        sys.modules.pop(name, None)


def script(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    out = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env={**os.environ, **OFFLINE}, timeout=600
    )  # fmt: skip
    assert not check or out.returncode == 0, out.stdout + out.stderr
    return out


def ends(folder: Path) -> list[dict[str, Any]]:
    """The records on the disk, each a line; a line that is cut off is left out."""
    found = []
    for line in (folder / "cases.jsonl").read_text().splitlines() if (folder / "cases.jsonl").is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").open(newline="")))


# Ratios and targets, of planted numbers


def planted(results: ModuleType, **speeds: tuple[float, float, float]) -> dict[str, Any]:
    """Records of GPT-2 at batch 256; each step with its examples per second, peak memory and share of the peak."""
    found = {}
    for step, (examples, memory, share) in speeds.items():
        values = {
            "examples": (examples, "examples/s"),
            "peak memory": (memory, "GiB"),
            "share of the matrix peak": (share, ""),
        }
        name = {"old": "cd7dcba", "bare": "bare loop"}.get(step, step)
        for case in ("gpt2, batch 32", "gpt2, batch 256", "2 layers of 768, batch 32"):
            found[f"{case}: {name}"] = results.Record(f"{case}: {name}", "measured", "", values, 1.0, "first call")
    return found


def test_ratios_and_targets_follow_from_the_numbers(part: Any) -> None:
    results = part("results")
    records = planted(
        results, compiled=(600, 4.0, 0.41), plain=(120, 5.0, 0.1), old=(100, 4.0, 0.08), bare=(150, 2.0, 0.1)
    )
    ratios = {row[2]: row[3] for row in results.ratio_rows(records) if row[1] == "gpt2, batch 32"}
    assert ratios["examples, compiled / cd7dcba"] == "6"
    assert ratios["examples, compiled / bare loop"] == "4"
    assert ratios["examples, compiled / plain"] == "5"
    assert ratios["examples, plain / cd7dcba"] == "1.2"
    assert ratios["peak memory, plain / bare loop"] == "2.5"
    found = {(row[1], row[2].split(",")[0]): row[5] for row in results.target_rows(records)}
    assert found == {
        ("gpt2, batch 32", "examples"): "reached",
        ("2 layers of 768, batch 32", "examples"): "not reached",  # 6 is less than 8
        ("gpt2, batch 256", "share of the matrix peak"): "reached",
        ("gpt2, batch 32", "peak memory"): "reached",
        ("gpt2, batch 256", "peak memory"): "reached",
        ("2 layers of 768, batch 32", "peak memory"): "reached",
    }


def test_a_target_is_missed_by_a_little_and_not_measured_without_its_parts(part: Any) -> None:
    results = part("results")
    records = planted(results, compiled=(499, 4.01, 0.399), old=(100, 4.0, 0.1))
    assert {row[5] for row in results.target_rows(records)} == {"not reached"}
    del records["gpt2, batch 32: cd7dcba"]
    records["2 layers of 768, batch 32: compiled"].outcome = "overran"
    found = {(row[1], row[2].split(",")[0]): row[5] for row in results.target_rows(records)}
    assert found["gpt2, batch 32", "examples"] == found["2 layers of 768, batch 32", "peak memory"] == "not measured"
    assert found["gpt2, batch 256", "peak memory"] == "not reached"
    assert {row[5] for row in results.target_rows({})} == {"not measured"}


def test_a_ratio_of_two_calls_says_so(part: Any) -> None:
    results = part("results")
    records = planted(results, compiled=(600, 4.0, 0.41), old=(100, 4.0, 0.08))
    records["gpt2, batch 32: cd7dcba"].call = "second call"
    notes = {row[1]: row[6] for row in results.ratio_rows(records) if row[2].startswith("examples")}
    assert notes["gpt2, batch 32"] == "its parts were measured in two calls" and not notes["gpt2, batch 256"]


def test_the_state_survives_a_line_that_is_cut_off(part: Any, tmp_path: Path) -> None:
    results = part("results")
    state = tmp_path / "cases.jsonl"
    results.add(state, results.Record("one", "measured", "", {"step": (2.5, "ms")}))
    state.write_bytes(state.read_bytes() + b'{"name": "two", "outc')
    results.add(state, results.Record("three", "passed"))
    found = results.read(state)
    assert list(found) == ["one", "three"] and found["one"].values == {"step": (2.5, "ms")}


# The plan


def test_every_case_has_its_own_name_and_a_key_that_a_tree_lacks_is_left_out(part: Any) -> None:
    plan = part("plan")
    for device in ("cpu", "cuda"):
        for keys in (frozenset(), frozenset({"compile", "tf32"})):
            cases = plan.cases(device, plan.Sizes(), keys)
            assert len({case.name for case in cases}) == len(cases) == 26
            words = [str(case.arguments) for case in cases if "compile" not in case.needs]
            assert any("trainer.compile=false" in text for text in words) == bool(keys)
            older = [str(case.arguments) for case in cases if case.tree == "baseline"]
            assert len(older) == 3 and not any("compile" in text or "tf32" in text for text in older)


def test_the_search_for_waits_sees_no_step_that_is_logged(part: Any) -> None:
    plan = part("plan")
    for case in plan.cases("cuda", plan.Sizes(), frozenset({"compile"})):
        if case.arguments.get("waits"):
            begin, steps = case.arguments["warmup"], case.arguments["steps"]
            assert not any((step + 1) % 50 == 0 for step in range(begin, begin + 2 * steps))


def test_model_flops_are_those_of_the_benchmark(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    checks, measure, benchmark = part("checks"), part("measure"), importlib.import_module("benchmark")
    words = [
        "task=mult2x2",
        "task.train_size=64",
        "model.layers=2",
        "model.width=32",
        "model.heads=2",
        "data.cache_dir=null",
    ]
    parts = checks.build.build_parts(checks.config_of(words))
    batch = parts.data.whole_step(0)
    assert measure.flops(parts.model.config, batch) == pytest.approx(benchmark.flops(parts.model, batch), rel=1e-12)


# The search for waits, and the counts, with planted ones


class Told:
    """Keeps what a case tells."""

    def __init__(self) -> None:
        self.rows: dict[str, float] = {}
        self.outcomes: list[tuple[str, str]] = []

    def row(self, measure: str, value: float, unit: str = "") -> None:
        self.rows[measure] = value

    def outcome(self, outcome: str, note: str = "") -> None:
        self.outcomes.append((outcome, note))


@pytest.mark.parametrize("waits", [0, 2])
def test_waits_are_counted_and_their_place_is_named(part: Any, monkeypatch: pytest.MonkeyPatch, waits: int) -> None:
    measure, told, modes = part("measure"), Told(), []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    watch = measure.Watch(told, "cpu", warmup=3, steps=5, waits=True)
    ended: list[tuple[str, str]] = []
    monkeypatch.setattr(watch, "_finish", lambda *end: ended.append(end))
    with warnings.catch_warnings():
        for step in range(20):
            watch.on_train_batch_start(None, None, None, step)
            if ended:
                break
            for _ in range(waits if "warn" in modes else 0):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert told.rows["waits for the device in a step"] == waits
    assert [end[0] for end in ended] == ["failed" if waits else "passed"]
    assert modes == (["warn", "default"] if waits else ["warn", "error", "default"])
    assert ended[0][1].startswith(f"{5 * waits} times" if waits else "none")
    assert ("(in test_gpu_script.py" in ended[0][1]) == bool(waits)


def test_graphs_are_counted(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def capture_begin(self, pool: int = 0) -> int:
            return pool

        def replay(self) -> None: ...

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    measure, told = part("measure"), Told()
    counts = measure.GraphCounts()
    assert Graph().capture_begin(pool=3) == 3
    for _ in range(6):
        Graph().replay()
    measure.tell_graphs(told, counts, steps=2, replays_before=2)
    assert told.rows["CUDA graphs recorded"] == 1 and told.rows["CUDA graph replays"] == 2


def test_compilations_are_counted(part: Any) -> None:
    """In a process of its own, because torch keeps the counts of a process."""
    code = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import measure
def double(x): return (2 * x).sum()
def triple(x):
    print("a break")
    return (3 * x).sum()
twice, thrice = (torch.compile(f, backend="eager", dynamic=False) for f in (double, triple))
for size in (3, 4, 5): twice(torch.ones(size))
thrice(torch.ones(3))
class Told:
    def row(self, measure, value, unit=""): print(f"{measure}={value}")
measure.tell_graphs(Told(), None, 1, 0)
"""
    out = subprocess.run([sys.executable, "-c", code, str(SCRIPT)], capture_output=True, text=True, timeout=200)
    assert out.returncode == 0, out.stderr
    assert "recompilations=2" in out.stdout and "graph breaks=1" in out.stdout


# A case that goes wrong costs itself alone


@pytest.mark.long
@pytest.mark.parametrize("forks", [True, False])
def test_a_case_that_raises_and_one_that_overruns_become_rows(part: Any, tmp_path: Path, forks: bool) -> None:
    run, plan = part("run"), part("plan")
    words = [
        "task=mult2x2",
        "task.train_size=64",
        "model.layers=1",
        "model.width=32",
        "model.heads=2",
        "data.cache_dir=null",
    ]
    cases = [
        plan.Case("machine", "machine", {"device": "cpu"}, 200, alone=True),
        plan.Case("raises", "machine", {"device": "no device"}, 200, alone=True),
        plan.Case("wrong words", "measure", {"words": ["task=no_task"], "device": "cpu"}, 200, alone=True),
        plan.Case("too few steps", "measure", {"words": [*words, "trainer.duration=2steps"], "device": "cpu"}, 200, alone=True),
        plan.Case("overruns", "bare", {"words": words, "device": "cpu", "steps": 10**9}, 10, alone=True),
        plan.Case("not here", "machine", {"device": "cpu"}, 200, "baseline", alone=True),
        plan.Case("unlike", "losses_agree", {
            "words": words, "one": ["optimizer.lr=1e-3"], "other": ["optimizer.lr=1e-2"], "first": 3, "last": 0, "most_first": 1e-4,
            "most_mean": 0.0,
        }, 200),
        plan.Case("well", "bare", {"words": words, "device": "cpu", "steps": 2}, 200, alone=True),
    ]  # fmt: skip
    trees = {"ours": REPO, "baseline": "no commit here"}
    runner = run.Runner(tmp_path / "out", tmp_path / "work", trees, lambda case: "", "now", 900, forks=forks)
    try:
        runner.run_all(cases, 1)
    finally:
        runner.close()
    found = {record.name: record for record in runner.records.values()}
    assert {name: record.outcome for name, record in found.items()} == {
        "machine": "measured", "raises": "error", "wrong words": "error", "too few steps": "error", "overruns": "overran",
        "not here": "skipped", "unlike": "failed", "well": "measured",
    }  # fmt: skip
    assert found["not here"].note == "no commit here" and "no_task" in found["wrong words"].note
    assert {row["case"]: row["outcome"] for row in rows(tmp_path / "out") if row["kind"] == "case"} == {
        name: record.outcome for name, record in found.items()
    }
    # Nothing that was killed still computes.
    server = runner.servers["ours"][0].process
    assert server.poll() is not None


@pytest.mark.long
def test_answers_of_one_model_agree_and_those_of_two_do_not(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = part("checks")
    words = ["task=mult2x2", "task.train_size=64", "task.validation_size=8", "task.test_size=16", "optimizer.lr=5e-3",
             "data.batch_size=32", "data.cache_dir=null", "trainer.validate_every_epochs=0"]  # fmt: skip
    told = Told()
    checks.answers_agree(told, words, [], [], steps=60)
    assert (
        told.outcomes == [("passed", "")]
        and told.rows["answers, within_length"] > 0
        and told.rows["evaluation, compiled"] > 0
    )
    # The second model is told to have other weights.
    told, load = Told(), torch.nn.Module.load_state_dict
    tests: list[int] = []

    def other_weights(module: torch.nn.Module, state: dict[str, torch.Tensor], **more: Any) -> Any:
        tests.append(1)
        factor = -1.0 if len(tests) == 2 else 1.0  # opposite logits
        return load(module, {name: factor * weight for name, weight in state.items()}, **more)

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", other_weights)
    checks.answers_agree(told, words, [], [], steps=60)
    assert told.outcomes[0][0] == "failed" and told.rows["answers that differ"] > 0


@pytest.mark.long
def test_a_resume_that_loses_the_moments_is_seen(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checks, told = part("checks"), Told()
    # Explicit CoT: the optimizer is not reset, which would lose the moments anyway.
    words = ["task=mult2x2", "task.train_size=64", "model.layers=1", "model.width=32", "model.heads=2", "data.cache_dir=null",
             "schedule=explicit_cot"]  # fmt: skip
    try:
        checks.resumes_exactly(told, words, steps=4)
        assert told.outcomes[-1][0] == "passed"
        load = torch.optim.AdamW.load_state_dict
        monkeypatch.setattr(
            torch.optim.AdamW, "load_state_dict", lambda self, state: load(self, {**state, "state": {}})
        )
        checks.resumes_exactly(told, words, steps=4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert told.outcomes[-1][0] == "failed" and told.rows["weights that differ"] > 0


# The whole


@pytest.mark.long
def test_it_runs_on_a_cpu_is_killed_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    words = (str(SCRIPT), "check", *TINY, f"out={out}")
    first = background.start(*words, env={**os.environ, **OFFLINE}, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while sum(record["outcome"] in ("measured", "passed") for record in ends(out)) < 3:
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(1)  # the server sees that it is alone, and ends
    done = [record["name"] for record in ends(out) if record["outcome"] in ("measured", "passed")]
    second = script(*words[1:])
    assert not any(f"measured   {name} " in second.stdout or f"passed     {name} " in second.stdout for name in done)
    times = collections.Counter(record["name"] for record in ends(out) if record["outcome"] in ("measured", "passed"))
    assert set(times.values()) == {1} and set(done) < set(times)
    found = rows(out)
    outcomes = {row["case"]: row["outcome"] for row in found if row["kind"] == "case"}
    assert outcomes["exact resume: plain"] == outcomes["FSDP2: one process and plain"] == "passed"
    assert (
        outcomes["numerics: the device and the CPU, fp32"]
        == outcomes["numerics: bf16-mixed and fp32, plain"]
        == "passed"
    )
    assert outcomes["gpt2, batch 32: plain"] == outcomes["gpt2, batch 32: bare loop"] == "measured"
    assert outcomes["no waits: gpt2, batch 32, plain"] == "skipped"
    assert outcomes["gpt2, batch 32: cd7dcba"] in ("measured", "skipped")  # skipped without git history
    speeds = {row["case"]: float(row["value"]) for row in found if row["measure"] == "examples"}
    ratio = next(row for row in found if row["kind"] == "ratio" and row["measure"] == "examples, plain / bare loop")
    expected = speeds[f"{ratio['case']}: plain"] / speeds[f"{ratio['case']}: bare loop"]
    assert float(ratio["value"]) == pytest.approx(expected, rel=1e-2)
    assert sorted(path.name for path in out.iterdir()) == ["cases.jsonl", "log.txt", "results.csv", "work"]


@pytest.mark.long
def test_the_training_stops_goes_on_and_leaves_small_files(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    small = "model.layers=1 model.heads=2 model.width=32 task=mult2x2 task.train_size=640 task.validation_size=16 task.test_size=16"
    words = ("train", "device=cpu", f"out={out}", "train_seconds=60")
    script(*words, f"words={small} trainer.duration=100000epochs trainer.validate_every_epochs=5")
    record = ends(out)[-1]
    assert record["outcome"] == "stopped" and record["values"]["steps"][0] > 0, record
    steps = record["values"]["steps"][0]
    script(
        *words[:-1],
        "train_seconds=200",
        f"words={small} trainer.duration={steps + 300:.0f}steps trainer.validate_every_epochs=1000",
    )
    record = ends(out)[-1]
    assert record["outcome"] == "finished" and record["values"]["summary: steps"][0] == steps + 300
    third = script(*words, f"words={small}")
    assert "stepwise_pl.train" not in third.stdout  # the run is over
    assert sorted(path.name for path in out.iterdir()) == [
        "cases.jsonl", "results.csv", "train_config.yaml", "train_log.txt", "train_metrics.csv", "train_stages.jsonl",
        "train_summary.json", "work",
    ]  # fmt: skip


def test_a_word_that_is_no_setting_is_one_line(tmp_path: Path) -> None:
    out = script("check", "outt=x", check=False)
    assert (
        out.returncode == 1 and out.stderr.startswith("error: outt=x: must be a part") and out.stderr.count("\n") == 1
    )


def test_the_older_commit_is_missed_in_one_line(part: Any, tmp_path: Path) -> None:
    baseline = part("baseline")
    (tmp_path / "sources").mkdir()
    reason = baseline.unpacked(tmp_path / "sources" / "older", tmp_path)
    assert reason.startswith("no commit cd7dcba here") and "baseline=" in reason
    (tmp_path / "sources" / "older" / "stepwise_pl").mkdir(parents=True)
    (tmp_path / "sources" / "older" / "stepwise_pl" / "train.py").touch()
    assert baseline.unpacked(tmp_path / "sources" / "older", tmp_path) == ""
