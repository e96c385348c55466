"""Measure what training and answering cost, and put it into speeds.csv. Nothing else may run on the machine meanwhile.

    python experiments/methods/measure.py [out=<csv file>] <run folder> ...
    python experiments/methods/measure.py methods_cpu_modular_sum_coconut=<run folder>

Each number comes from a command in a process of its own, with one thread, on a copy of the run folder:

answers     `evaluate limit=200 speed_problems=200 batch_size=200`: 200 test problems one at a time, and all in one batch
first step  the pace that the run's own command tells after its first 20 steps, or 5 seconds
last step   the same, from the last checkpoint on

A run that was measured on this machine before gets a new row in place of the old one. A number that no command tells stays empty.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from experiments.methods.arms import task_and_arm
from experiments.readme import read_rows, replaced, write_rows
from stepwise_pl.common.disk import read_json
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.runs.provenance import environment

HERE = Path(__file__).parent
KEY = ("task", "arm", "seed", "machine")
COLUMNS = (
    "task", "arm", "seed", "machine", "date", "checkpoint", "removed_tokens", "problems", "answers_per_second", "batch_size",
    "answers_per_second_in_batches", "first_step_seconds", "last_step_seconds", "training_seconds",
)  # fmt: skip
PROBLEMS = 200
# The pace is told after 20 measured steps, and the first step is not measured.
STEPS = 25
PACE = re.compile(r"at ([\d.e+-]+) s a step")
# Keys that a measurement decides, whatever the run's own command says.
DECIDED = ("run_dir", "resume", "name", "trainer.duration", "trainer.max_tokens_read", "logger.wandb")


def run_command(command: str, *words: str) -> str:
    """Run a command of the package with one thread. Return what it printed.

    Raises:
        RuntimeError: it failed; its last lines stand in the message.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"stepwise_pl.{command}", *words], text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command} {' '.join(words)}:\n" + "\n".join(done.stdout.splitlines()[-5:]))
    return done.stdout


def copy_of(run: Path, folder: Path) -> Path:
    """A copy of a run folder without the checkpoints of former stages and without its evaluations."""
    return Path(
        shutil.copytree(run, folder / "copy", ignore=shutil.ignore_patterns("removed-*", "evaluations", "inside"))
    )


def pace(run: Path, folder: Path, *more: str) -> float | None:
    """Seconds a step of the run's own command, in another folder; None if it did not tell."""
    words = read_json(run / "environment.json")["sessions"][0]["command"][1:]
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in DECIDED]
    # Only a run with such a budget knows the key to be set.
    budget = ["trainer.max_tokens_read=null"] if "max_tokens_read" in read_yaml(run / "config.yaml")["trainer"] else []
    told = PACE.search(run_command("train", *kept, *budget, "logger.wandb=false", f"run_dir={folder}", *more))
    return float(told[1]) if told else None


def measure(name: str, run: Path) -> dict[str, Any]:
    """The row of a run.

    Raises:
        RuntimeError: a command failed.
    """
    summary, machine = read_json(run / "summary.json"), environment()["machine"]
    task, arm = task_and_arm(name or summary["name"].split("/")[0])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy = copy_of(run, folder)
        run_command(
            "evaluate", f"run={copy}", f"limit={PROBLEMS}", f"speed_problems={PROBLEMS}", f"batch_size={PROBLEMS}"
        )
        (file,) = (copy / "evaluations").glob("*.json")
        answers = read_json(file)
        first = pace(run, folder / "first", f"trainer.duration={STEPS}steps")
        last = pace(run, copy, f"trainer.duration={summary['steps'] + STEPS}steps", "resume=true")
    return {
        "task": task, "arm": arm, "seed": summary["seed"], "machine": f"{machine['processor']}, {machine['cores']} cores",
        "date": date.today().isoformat(), "checkpoint": answers["checkpoint"], "removed_tokens": answers["removed_tokens"],
        "problems": PROBLEMS, "answers_per_second": answers["problems_per_second_batch_1"], "batch_size": PROBLEMS,
        "answers_per_second_in_batches": answers[f"problems_per_second_batch_{PROBLEMS}"],
        "first_step_seconds": "" if first is None else first, "last_step_seconds": "" if last is None else last,
    }  # fmt: skip


def main(words: list[str]) -> None:
    """Measure runs one after the other; each row is written as soon as it is known."""
    out = next((Path(word.removeprefix("out=")) for word in words if word.startswith("out=")), HERE / "speeds.csv")
    for word in words:
        if not word.startswith("out="):
            name, _, run = word.rpartition("=")
            row = measure(name, Path(run))
            write_rows(out, COLUMNS, replaced(read_rows(out) if out.is_file() else [], [row], KEY))
            print(", ".join(f"{key} {value}" for key, value in row.items() if key not in KEY))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: measure.py [out=<csv file>] <run folder> ...")
    main(sys.argv[1:])
