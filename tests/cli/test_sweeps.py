"""Sweeps through the real command line: killed, resumed, spread over processes, with failing jobs; and their tables."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from stepwise_pl.config.plain import read_yaml, save_yaml
from stepwise_pl.reporting.figures.sweeps import grid_of, ordered
from stepwise_pl.reporting.sweep import refresh
from stepwise_pl.reporting.sweep_text import cell_lines
from stepwise_pl.runs import sweep_folder
from stepwise_pl.runs.stages import StageAccuracy, removed_at
from stepwise_pl.runs.sweep_folder import Job, Sweep
from tests import background, forked
from tests.conftest import OFFLINE, REPO, SMALL, command
from tests.system.test_resume import assert_the_same, metrics, state

JOBS = (*SMALL, "trainer.checkpoint_every_n_steps=1000")
BROKEN = "+model.config.n_inner=64,many,128"  # the second is found to be no number when transformers reads it


def outcomes(folder: Path) -> list[str]:
    return [job["outcome"] for job in json.loads((folder / "sweep.json").read_text())["jobs"]]


def sessions(run: Path) -> list[int]:
    return [one["from_step"] for one in json.loads((run / "environment.json").read_text())["sessions"]]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def driven(*arguments: str, end: str = "never,0,SIGKILL") -> subprocess.CompletedProcess[str]:
    """Train, and end as tests/driver.py is told."""
    env = {**os.environ, **OFFLINE}
    return forked.run("tests.driver", [f"--end={end}", "--", *arguments], REPO, env, 300)


# --- one process


@pytest.mark.long
@pytest.mark.parametrize(
    "how,code",
    [("SIGINT", 130), *(pytest.param(*case, marks=pytest.mark.long) for case in (("SIGKILL", -9), ("SIGTERM", 143)))],
)
def test_a_sweep_that_is_stopped_goes_on(tmp_path: Path, how: str, code: int) -> None:
    """In the second of three jobs: the first is not touched again, the second ends as if nothing had been, the third begins."""
    folder = tmp_path / "sweep"
    arguments = (
        "-m",
        *JOBS,
        "trainer.log_every_n_steps=1",
        "trainer.duration=8steps,30steps,12steps",
        f"run_dir={folder}",
    )
    out = driven(*arguments, end=f"after the step,26,{how}")
    assert out.returncode == code, out.stderr[-2000:]
    if how != "SIGKILL":
        assert "1 finished, 1 stopped, 1 waiting of 3 jobs" in out.stdout
        assert f"run_dir={folder} resume=true\n" in out.stdout
        assert out.stderr.endswith("stopped; the same command with resume=true goes on\n")
    else:
        out = command("sweep", str(folder))  # what its process could not do any more
        assert "1 finished, 1 stopped, 1 waiting of 3 jobs" in out.stdout
    assert outcomes(folder) == ["finished", "stopped", "waiting"]
    first, second, third = (folder / f"duration-{steps}steps" / "seed0" for steps in (8, 30, 12))
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.name not in (".lock", "job.json")}
    out = driven(*arguments, "resume=true")
    assert out.returncode == 0, out.stderr[-2000:]
    assert f"sweep of 3 jobs in {folder}: 1 finished already, 1 to go on with, 1 to begin\n" in out.stdout
    assert f"[1/3] finished already: {first}\n" in out.stderr
    assert "[1/3] tokenised data" not in out.stderr and "[3/3] " in out.stderr
    assert before == {p: p.stat().st_mtime_ns for p in first.rglob("*") if p.name not in (".lock", "job.json")}
    assert len(sessions(second)) == 2 and sessions(second)[1] >= 20
    assert sessions(third) == [0]
    assert outcomes(folder) == ["finished"] * 3
    assert driven(*JOBS, "trainer.log_every_n_steps=1", "trainer.duration=30steps", f"run_dir={tmp_path / 'whole'}").returncode == 0  # fmt: skip
    assert_the_same(tmp_path / "whole", second)


@pytest.mark.long
def test_a_job_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = ("train", "-m", *JOBS, BROKEN, "trainer.duration=4steps", f"run_dir={folder}")
    out = command(*arguments, check=False)
    assert out.returncode == 2
    reason = "model.config.n_inner=many: does not fit a gpt2 config"
    assert f"failed          model.config.n_inner=many: {reason}" in out.stdout
    assert out.stderr.splitlines()[-1].startswith("error: 1 of 3 jobs failed")
    assert "Traceback" not in out.stderr
    assert f"[2/3] error: {reason}" in out.stderr
    assert [line[:5] for line in out.stdout.splitlines() if line.startswith("[")] == ["[1/3]", "[3/3]"]
    assert outcomes(folder) == ["finished", "failed", "finished"]
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert jobs[1]["error"].startswith(reason) and jobs[0]["error"] is None
    assert [row["failed"] for row in rows(folder)] == ["0", "1", "0"]
    # A report of it says so too, its runs in the order of the jobs.
    command("report", str(folder), f"out={tmp_path / 'report.html'}")
    page = (tmp_path / "report.html").read_text()
    assert (
        "<h1>sweep: 2 runs of multiplication 1×1</h1>" in page and "of 3 jobs of the sweep 2 finished, 1 failed" in page
    )
    assert f"model.config.n_inner=many failed: {reason}" in page
    # Tried again, the others left alone.
    out = command(*arguments, "resume=true", check=False)
    assert out.returncode == 2
    assert "2 finished already, 0 to go on with, 1 to begin" in out.stdout
    # A job of another command is not among those that this one would go on with.
    command(*(one for one in arguments if one != BROKEN), BROKEN.replace("many", "32"), "resume=true")
    out = command("sweep", str(folder))
    assert "3 finished, 1 failed of 4 jobs" in out.stdout
    assert (
        " resume=true\n" not in out.stdout
        and "and the earlier command with resume=true, for 1 other jobs" in out.stdout
    )
    assert [len(sessions(folder / jobs[i]["run"])) for i in (0, 2)] == [1, 1]


@pytest.mark.long
def test_a_defect_in_one_job_is_shown_and_does_not_stop_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    out = driven(
        "-m", *JOBS, "trainer.duration=4steps,8steps,12steps", f"run_dir={folder}", end="after the step,5,exception"
    )
    assert out.returncode == 2
    assert "Traceback" in out.stderr and "RuntimeError: stopped here" in out.stderr
    assert "failed          trainer.duration=8steps: RuntimeError: stopped here\n" in out.stdout
    assert outcomes(folder) == ["finished", "failed", "finished"]


@pytest.mark.long
def test_seeds_and_steps_can_be_added(tmp_path: Path) -> None:
    """Under the default name, which seeds are no part of; with resume=true the number of steps may be another."""

    def sweep(*more: str) -> str:
        out = command("train", "-m", *JOBS, "schedule.delta=1,2", *more, cwd=tmp_path, PYTHONPATH=str(REPO))
        return out.stdout

    sweep("trainer.duration=2steps")
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert re.match(r"mult2x2-tiny-stepwise\+delta-1_2-[0-9a-f]{10}\+", folder.name)
    for path in folder.rglob("config.yaml"):  # a key that came later does not undo what is finished
        older = read_yaml(path)
        del older["optimizer"]["matrices"]
        save_yaml(older, path)
    assert "2 finished already" in sweep("trainer.duration=2steps", "seed=0,1", "resume=true")
    assert "0 finished already, 4 to go on with" in sweep("trainer.duration=4steps", "seed=0,1", "resume=true")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("summary.json")) == [
        f"delta-{delta}/seed{seed}" for delta in (1, 2) for seed in (0, 1)
    ]
    assert {sessions(path.parent)[-1] for path in folder.rglob("summary.json")} == {2}
    assert {row["runs"] for row in rows(folder)} == {"2"}
    sweep("trainer.duration=2steps")  # anew
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}-2"}
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def refused(*arguments: str, cwd: Path) -> str:
    out = command("train", *JOBS, "trainer.duration=2steps", *arguments, cwd=cwd, check=False, PYTHONPATH=str(REPO))
    assert (out.returncode, "Traceback" in out.stderr, out.stdout) == (2, False, ""), out.stderr
    return out.stderr.strip().splitlines()[-1]


@pytest.mark.long
def test_what_cannot_be_swept_is_refused_before_anything_begins(tmp_path: Path) -> None:
    assert "schedule.delta=-1: must be" in refused("-m", "schedule.delta=4,-1", cwd=tmp_path)
    assert "schedule.dleta: no such key" in refused("-m", "schedule.dleta=4,8", cwd=tmp_path)
    assert "objective=speed: must be one of val_accuracy" in refused("-m", "objective=speed", cwd=tmp_path)
    assert "--multirun with trainer.devices=2" in refused("-m", "seed=0,1", "trainer.devices=2", cwd=tmp_path)
    assert "no such hydra/launcher; choose from basic" in refused("-m", "hydra/launcher=fast", cwd=tmp_path)
    assert "run_dir: is one for the whole sweep" in refused("-m", "run_dir=a,b", cwd=tmp_path)
    assert "a glob(...) matches no choice" in refused("-m", "schedule=glob(nothing*)", cwd=tmp_path)
    assert "nothing to resume, sweep.json is not there" in refused("-m", "seed=0,1", "resume=true", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    command("train", "-m", *JOBS, "trainer.duration=2steps", "run_dir=mine", cwd=tmp_path, PYTHONPATH=str(REPO))
    assert "holds a sweep already; resume=true goes on" in refused("-m", "run_dir=mine", cwd=tmp_path)
    assert "holds a sweep; give its command again" in refused("run_dir=mine", "resume=true", cwd=tmp_path)
    assert "holds a run; choose another folder" in refused("-m", "run_dir=mine/seed0", cwd=tmp_path)
    assert "data.batch_size was 32, is 16" in refused("-m", "run_dir=mine", "resume=true", "data.batch_size=16", cwd=tmp_path)  # fmt: skip
    (tmp_path / "mine" / "sweep.json").write_text("{")
    out = command("sweep", "mine", cwd=tmp_path, check=False, PYTHONPATH=str(REPO))
    assert (out.returncode, "sweep.json: damaged" in out.stderr, "Traceback" in out.stderr) == (2, True, False)
    out = command("sweep", "nowhere", cwd=tmp_path, check=False, PYTHONPATH=str(REPO))
    assert (out.returncode, "no sweep.json there" in out.stderr) == (2, True)


# --- several processes


def two_workers(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return background.start(
        "-m", "stepwise_pl.train", "-m", *JOBS, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"run_dir={folder}", *arguments,
        env={**os.environ, **OFFLINE}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(
    "launcher,module",
    [("submitit_local", "hydra_plugins.hydra_submitit_launcher"), ("ray", "hydra_plugins.hydra_ray_launcher")],
)
def test_launchers_of_clusters_on_one_machine(tmp_path: Path, launcher: str, module: str) -> None:
    """The test needs the launchers: pip install 'stepwise_pl[slurm,ray]'."""
    pytest.importorskip(module)
    out = subprocess.run(
        [sys.executable, "-m", "stepwise_pl.train", "-m", *JOBS, "seed=0,1", "trainer.duration=2steps",
         f"hydra/launcher={launcher}", f"run_dir={tmp_path / 'sweep'}"],
        cwd=REPO, env={**os.environ, **OFFLINE}, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert [job["outcome"] for job in jobs] == ["finished", "finished"]
    command("train", *JOBS, "seed=1", "trainer.duration=2steps", f"run_dir={tmp_path / 'alone'}")
    swept, alone = (metrics(run) for run in (tmp_path / "sweep" / "seed1", tmp_path / "alone"))
    assert swept == alone


@pytest.mark.long
def test_jobs_in_processes_of_their_own(tmp_path: Path) -> None:
    """The runs are those of single commands, with a W&B run each; one fails; the table is there."""
    folder = tmp_path / "sweep"
    process = two_workers(
        folder,
        BROKEN,
        "seed=0,1",
        "trainer.duration=45steps",
        "logger=wandb",
        "logger.offline=true",
        "logger.project=p",
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, err[-3000:]
    assert "4 finished, 2 failed of 6 jobs" in out
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: 2 of 6 jobs failed")
    lines = [line for line in out.splitlines() if line.startswith("[")]
    assert sorted(line.partition("]")[0] for line in lines) == ["[1/6", "[2/6", "[5/6", "[6/6"]
    jobs = [sweep_folder.Job(**job) for job in json.loads((folder / "sweep.json").read_text())["jobs"]]
    assert [job.outcome for job in jobs] == ["finished"] * 2 + ["failed"] * 2 + ["finished"] * 2
    workers = {sweep_folder.process_here(job.process) for job in jobs}
    assert process.pid not in workers and len(workers) == 2
    runs = [folder / job.run for job in jobs if job.outcome == "finished"]
    assert len({json.loads((run / "wandb.json").read_text())["id"] for run in runs}) == 4
    assert all(len(list(run.rglob("run-*.wandb"))) == 1 for run in runs)
    for steps in ([row["step"] for row in metrics(run)] for run in runs):
        assert steps == [row["step"] for row in metrics(runs[0])]
    command(
        "train", *JOBS, "+model.config.n_inner=128", "seed=1", "trainer.duration=45steps", f"run_dir={tmp_path / 'one'}"
    )
    assert_the_same(tmp_path / "one", folder / "model.config.n_inner-128" / "seed1")
    assert [row["finished"] for row in rows(folder)] == ["2", "0", "2"]
    # All that is done is done: nothing but the failed is begun again.
    process = two_workers(folder, BROKEN, "seed=0,1", "trainer.duration=45steps", "resume=true", "logger=wandb", "logger.offline=true")  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.count("finished already: ") == 4
    assert all(len(sessions(run)) == 1 for run in runs)


def wait_for(process: subprocess.Popen[str], ready: Any) -> None:
    for _ in range(3000):
        if ready() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()


def gone(workers: list[int]) -> bool:
    for _ in range(100):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes")
@pytest.mark.parametrize(
    "how,code",
    [("Ctrl-C", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.long), pytest.param("SIGKILL", -9, marks=pytest.mark.long)],
)  # fmt: skip
def test_several_processes_stop_together(tmp_path: Path, how: str, code: int) -> None:
    """Ctrl-C goes to all of them, the others to the first alone: each job ends after a step, saved, and no process is left."""
    folder = tmp_path / "sweep"
    process = two_workers(folder, "seed=0,1,2,3", "trainer.duration=100000epochs", "trainer.validate_every_epochs=3")
    begun = [folder / f"seed{seed}" for seed in (0, 1)]
    wait_for(process, lambda: all((run / "checkpoints" / "last.ckpt").is_file() for run in begun))
    workers = [
        worker
        for run in begun
        if (worker := sweep_folder.process_here(json.loads((run / "job.json").read_text())["process"]))
    ]
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(getattr(signal, how))
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    assert gone(workers)
    if how != "SIGKILL":
        assert "2 stopped, 2 waiting of 4 jobs" in out
        assert err.splitlines()[-1] == "stopped; the same command with resume=true goes on"
        assert "Traceback" not in err
    assert [job.outcome for job in sweep_folder.read_sweep(folder).jobs] == ["stopped"] * 2 + ["waiting"] * 2
    steps = [state(run)["global_step"] for run in begun]
    for run, step in zip(begun, steps, strict=True):
        assert step == int(metrics(run)[-1]["step"]) // 5 * 5 + step % 5  # it stopped after a step, and kept it
        assert step > 60 or step % 60 == 0
    # In one process again, to an end that is near.
    out = command("train", "-m", *JOBS, f"run_dir={folder}", "seed=0,1,2,3", f"trainer.duration={max(steps) + 2}steps", "resume=true",
                  "trainer.validate_every_epochs=3").stdout  # fmt: skip
    assert "0 finished already, 2 to go on with" in out and "4 finished of 4 jobs" in out
    assert [sessions(run)[1] for run in begun] == steps


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes")
def test_a_worker_that_is_killed_ends_the_sweep_with_one_line(tmp_path: Path) -> None:
    """As it may be where memory is short. joblib gives up then; the sweep goes on with resume=true."""
    folder = tmp_path / "sweep"
    process = two_workers(folder, "seed=0,1", "trainer.duration=100000epochs")
    last = folder / "seed1" / "checkpoints" / "last.ckpt"
    wait_for(process, last.is_file)
    again = two_workers(folder, "seed=0,1", "trainer.duration=100000epochs", "resume=true")
    assert "another process is at work in it" in again.communicate(timeout=200)[1].splitlines()[-1]
    worker = sweep_folder.process_here(json.loads((folder / "seed1" / "job.json").read_text())["process"])
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, err[-3000:]
    assert err.splitlines()[-1].startswith("error: a process of the sweep was killed (is there enough memory?)")
    assert "2 stopped of 2 jobs" in out


# --- what comes of it


@pytest.mark.long
def test_the_sweeper_gets_the_objective(tmp_path: Path) -> None:
    spy = ("+hydra.callbacks.spy._target_=tests.spy.Spy", "trainer.duration=4steps")
    command("train", "-m", *JOBS, *spy, "seed=0,1", f"run_dir={tmp_path / 'a'}", SPY=str(tmp_path / "one"))
    command("train", "-m", *JOBS, *spy, "seed=0,1", f"run_dir={tmp_path / 'b'}", "objective=[test_accuracy,removed_at_95,seconds]",
            SPY=str(tmp_path / "several"))  # fmt: skip
    for folder, name in (("a", "one"), ("b", "several")):
        summaries = [json.loads((tmp_path / folder / f"seed{seed}" / "summary.json").read_text()) for seed in (0, 1)]
        got = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        if name == "one":
            assert got == [["COMPLETED", summary["val_accuracy"]] for summary in summaries]
        else:
            assert got == [
                ["COMPLETED", [s["test_accuracy"], -1 if s["removed_at_95"] is None else s["removed_at_95"], s["seconds"]]]
                for s in summaries
            ]  # fmt: skip


def test_optunas_sweeper_gets_it_too(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    folder = tmp_path / "sweep"
    out = command(
        "train", "-m", *JOBS, "schedule.smoothing=interval(0.5,4)", "trainer.duration=4steps", "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "hydra.sweeper.direction=maximize", f"run_dir={folder}",
    )  # fmt: skip
    summaries = [json.loads(path.read_text()) for path in folder.rglob("summary.json")]
    best = read_yaml(folder / "optimization_results.yaml")["best_value"]
    assert len(summaries) == 3 and best == max(one["val_accuracy"] for one in summaries)
    assert "3 finished of 3 jobs" in out.stdout


@pytest.mark.long
def test_validation_accuracy_is_that_of_the_best_checkpoint(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (score,) = (one["best_score"] for one in saved.values() if "best_score" in one)
    assert summary["val_accuracy"] == pytest.approx(score - 2 * summary["removed_tokens"], abs=1e-6)


@given(st.dictionaries(st.integers(0, 30), st.integers(0, 20)), st.sampled_from([0.5, 0.95, 1.0]))
def test_tokens_removed_at_an_accuracy(right: dict[int, int], accuracy: float) -> None:
    stages = [StageAccuracy(removed, removed, count / 20, 20) for removed, count in right.items()]
    found = removed_at(stages, accuracy)
    enough = {removed for removed, count in right.items() if count >= accuracy * 20}
    assert found == (max(enough) if enough else None)


def write_run(run: Path, accuracy: float, collapsed: bool, stages: list[tuple[int, float]]) -> None:
    """The files of a finished run that a sweep reads: of 40 test and 20 validation problems, 6 tokens of CoT."""
    run.mkdir(parents=True)
    removed = stages[-1][0]
    (run / "config.yaml").write_text("derived:\n  max_cot_tokens: 6\n  examples_per_token: 640.0\n")
    (run / "summary.json").write_text(json.dumps({
        "test_accuracy": accuracy, "test_examples": 40, "removed_tokens": removed, "collapsed": collapsed, "seconds": 2.0 + removed,
        **({"collapsed_at": removed} if collapsed and removed else {}),  # came later
    }))  # fmt: skip
    with (run / "metrics.csv").open("w") as file:
        file.write("step,attempt,schedule/removed_tokens,val/answer_accuracy,val/examples\n")
        for step, (tokens, right) in enumerate(stages):
            file.write(f"{step},0,{tokens},{right},20\n")


RUN = st.tuples(
    st.integers(0, 40), st.booleans(), st.lists(st.integers(0, 20), min_size=1, max_size=9), st.sampled_from("FFFFXS")
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(RUN, min_size=1, max_size=3), min_size=1, max_size=3))
def test_the_table_is_what_the_run_folders_say(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[tuple[int, bool, list[int], str]]]
) -> None:
    folder = tmp_path_factory.mktemp("sweep")
    jobs = []
    for delta, runs in enumerate(cells, start=1):
        for seed, (right, collapsed, validated, outcome) in enumerate(runs):
            job = Job(f"delta-{delta}/seed{seed}", [], {"schedule.delta": str(delta), "seed": str(seed)})
            jobs.append(job)
            if outcome == "F":
                stages = [(min(i // 2, 6), count / 20) for i, count in enumerate(validated)]
                write_run(folder / job.run, right / 40, collapsed, stages)
                sweep_folder.write_job(folder, job)
            elif outcome == "X":
                job.outcome, job.error = "failed", "no luck"
                sweep_folder.write_job(folder, job)
    sweep_folder.write_sweep(Sweep(folder, "a", [], ["schedule.delta", "seed"], "1 on nowhere", len(jobs), jobs))
    _, found = refresh(folder)
    written = rows(folder)
    for line, runs in zip(cell_lines(found)[1:], cells, strict=True):
        down = sum(run[1] for run in runs if run[3] == "F")  # at the end, and so at some time
        assert f" {down} ({down}) " in line or not any(run[3] == "F" for run in runs)
    assert [row["schedule.delta"] for row in written] == [str(i) for i in range(1, len(cells) + 1)]
    for row, runs in zip(written, cells, strict=True):
        done = [run for run in runs if run[3] == "F"]
        assert (int(row["runs"]), int(row["finished"])) == (len(runs), len(done))
        assert int(row["failed"]) == sum(run[3] == "X" for run in runs)
        assert int(row["collapsed"]) == sum(run[1] for run in done)
        assert [at != "none" for at in row["collapsed_at"].split()] == [run[1] and len(run[2]) > 2 for run in done]
        if not done:
            assert row["test_accuracy"] == row["interval"] == row["seconds"] == ""
            continue
        accuracies = [run[0] / 40 for run in done]
        assert float(row["test_accuracy"]) == pytest.approx(sum(accuracies) / len(done))
        if len(set(accuracies)) > 1:
            low, high = stats.t.interval(
                0.95, len(done) - 1, loc=sum(accuracies) / len(done), scale=stats.sem(accuracies)
            )
            assert row["interval"] == "t over seeds"
        else:
            test = stats.binomtest(done[0][0], 40).proportion_ci(0.95, method="wilson")
            low, high = test.low, test.high
            assert row["interval"] == "Wilson"
        assert float(row["interval_low"]) == pytest.approx(max(low, 0), abs=1e-6)
        assert float(row["interval_high"]) == pytest.approx(min(high, 1), abs=1e-6)
        at_95 = []
        for _, _, validated, _ in done:
            last = {min(i // 2, 6): count for i, count in enumerate(validated)}  # the later one counts
            at_95.append(str(max((removed for removed, count in last.items() if count >= 19), default="none")))
        assert row["removed_at_95"].split() == at_95
        gone_at_end = [min((len(run[2]) - 1) // 2, 6) for run in done]
        assert row["removed_tokens"].split() == [str(count) for count in gone_at_end]
        assert float(row["seconds"]) == pytest.approx(2 + sum(gone_at_end) / len(done))
        assert (float(row["examples_per_token"]), int(row["max_cot_tokens"])) == (640, 6)


@pytest.mark.long
def test_a_real_table_agrees_with_its_runs_and_has_its_figures(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    out = command("train", "-m", *JOBS, "trainer.duration=25steps", "schedule.delta=2,1/2", "schedule.smoothing=inf,2", "seed=3,4",
                  f"run_dir={folder}").stdout  # fmt: skip
    for name in ("sweep.png", "sweep.svg", "sweep-grid.png", "sweep-grid.svg"):
        assert (folder / name).stat().st_size > 1000, name
    grid = (folder / "sweep-grid.svg").read_text()
    assert grid.count("n=2") == 4 or "<!-- n=2" in grid
    data = json.loads((folder / "sweep.json").read_text())
    assert data["swept"] == ["schedule.delta", "schedule.smoothing", "seed"]
    assert [job["swept"] for job in data["jobs"][:2]] == [
        {"schedule.delta": "2", "schedule.smoothing": "inf", "seed": seed} for seed in ("3", "4")
    ]
    for place, row in enumerate(rows(folder)):
        found = []
        for seed in (3, 4):
            run = folder / data["jobs"][2 * place + seed - 3]["run"]
            config, summary = read_yaml(run / "config.yaml"), json.loads((run / "summary.json").read_text())
            assert (str(config["schedule"]["delta"]), config["seed"]) == (row["schedule.delta"], seed)
            assert config["schedule"]["smoothing"] == float(row["schedule.smoothing"])
            assert config["derived"]["examples_per_token"] == float(row["examples_per_token"])
            found.append(summary["test_accuracy"])
        assert float(row["test_accuracy"]) == pytest.approx(sum(found) / 2)
        assert f"{sum(found) / 2:.1%}" in next(
            line for line in out.splitlines() if line.split()[:2] == [row["schedule.delta"], row["schedule.smoothing"]]
        )
    # As well later, from the folder alone, wherever that lies.
    folder.rename(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere" / "sweep.csv").read_text()
    (tmp_path / "elsewhere" / "sweep.csv").unlink()
    (tmp_path / "elsewhere" / "sweep-grid.png").unlink()
    again = command("sweep", str(tmp_path / "elsewhere")).stdout
    assert (tmp_path / "elsewhere" / "sweep.csv").read_text() == before
    assert (tmp_path / "elsewhere" / "sweep-grid.png").is_file()
    table = [line for line in out.splitlines() if " 2 of 2 " in line and line[0] != "["]
    assert len(table) == 4 and table == [line for line in again.splitlines() if " 2 of 2 " in line]


def test_axes_are_ordered_by_number() -> None:
    assert ordered(["8", "1/2", "inf", "0.25"]) == ["0.25", "1/2", "8", "inf"]
    assert ordered(["left", "right", "1"]) == ["left", "right", "1"]
    assert ordered(["30steps", "8steps", "12 steps"]) == ["8steps", "12 steps", "30steps"]
    assert ordered(["2epochs", "30steps", "8steps"]) == ["2epochs", "30steps", "8steps"]


def test_a_grid_has_two_keys_and_most_of_its_places() -> None:
    from stepwise_pl.runs.cells import Cell, SweepRun

    def cell(**swept: int) -> Cell[SweepRun]:
        return Cell(0, {key: str(value) for key, value in swept.items()}, [], [])

    def cells(*places: tuple[int, int]) -> list[Cell[SweepRun]]:
        return [cell(a=a, b=b) for a, b in places]

    assert grid_of(cells((1, 1), (1, 2), (2, 1), (2, 2))) == ("a", "b")
    assert grid_of(cells((1, 1), (2, 2), (3, 3))) is None  # drawn at random
    assert grid_of([cell(a=1), cell(a=2)]) is None
