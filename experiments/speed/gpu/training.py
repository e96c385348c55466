"""The part `train`: a recipe by the true command, as far as its minutes go. A second call goes on."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from results import Record
from serve import last_words

RECIPE = "mult4x4_gpt2_2layer"
# Seconds kept for the start of the process, and for the checkpoint and the test at its end.
RESERVE = 25
KEPT = ("summary.json", "metrics.csv", "stages.jsonl", "config.yaml")


def train(tree: Path, out: Path, work: Path, words: list[str], seconds: float, keep_checkpoints: bool) -> Record:
    """Train within the seconds; copy the small files of the run to `out`, as `train_<name>`; return how far it came. A run that is over is left as it is.

    Args:
        words: further words of the command line, such as `trainer=gpu`.
        keep_checkpoints: copy the best checkpoint too.
    """
    run_dir = work / "train" / RECIPE
    kept = KEPT + (("checkpoints/best.ckpt",) if keep_checkpoints else ())
    path = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "STEPWISE_PL_CACHE": str(work / "cache"),
    }  # fmt: skip
    most = max(5, round(seconds - RESERVE))
    limit = f"trainer.max_time={most // 3600:02}:{most // 60 % 60:02}:{most % 60:02}"
    command = [
        sys.executable, "-m", "stepwise_pl.train", f"experiment={RECIPE}", *words, limit, "resume=auto", f"run_dir={run_dir}"
    ]  # fmt: skip
    started, status = time.monotonic(), 0
    if not (run_dir / "summary.json").is_file():  # a run that goes on has none
        print(" ".join(command), flush=True)
        with (out / "train_log.txt").open("a") as log:
            process = subprocess.Popen(
                command, cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            status = ended_within(process, seconds, lambda: copy(run_dir, kept, out))
    copy(run_dir, kept, out)
    values, note = how_far(run_dir)
    outcome = {0: "finished", 142: "stopped", 143: "stopped"}.get(status, "error")
    note = note if outcome != "error" else f"status {status}: {last_words(out / 'train_log.txt')}"
    return Record(f"train: {RECIPE}", outcome, note, values, time.monotonic() - started)


def copy(run_dir: Path, names: tuple[str, ...], out: Path) -> None:
    """Copy those files of the run that are there."""
    for name in names:
        if (run_dir / name).is_file():
            shutil.copy(run_dir / name, out / f"train_{Path(name).name}")


def ended_within(process: "subprocess.Popen[bytes]", seconds: float, meanwhile: Callable[[], None]) -> int:
    """Wait for the process; ask it to stop 8 seconds before the end, and kill it at the end. Return its status.

    Args:
        meanwhile: called every 10 seconds.
    """
    end, is_asked = time.monotonic() + seconds, False
    try:
        while (left := end - time.monotonic()) > 0:
            if left <= 8 and not is_asked:
                os.killpg(process.pid, signal.SIGTERM)
                is_asked = True
            try:
                return process.wait(min(10.0, left, 8.0 if is_asked else max(left - 8, 0.1)))
            except subprocess.TimeoutExpired:
                meanwhile()
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()
    except BaseException:
        # Ctrl-C, or a signal: the run saves itself.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        raise


def how_far(run_dir: Path) -> tuple[dict[str, tuple[float, str]], str]:
    """The last step and the last validation of the run, the result of its test if it is over, and a sentence about them."""
    found: dict[str, tuple[float, str]] = {}
    if (run_dir / "metrics.csv").is_file():
        with (run_dir / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                found["steps"] = (float(row["step"]), "")
                for key in ("epoch", "schedule/removed_tokens", "val/answer_accuracy"):
                    if row.get("val/answer_accuracy"):
                        found[f"last validation: {key}"] = (float(row[key]), "")
    if not (run_dir / "summary.json").is_file():
        return found, "not over; the next call goes on"
    summary = json.loads((run_dir / "summary.json").read_text())
    for key in ("test_accuracy", "test_examples", "removed_tokens", "steps", "seconds"):
        found[f"summary: {key}"] = (float(summary[key]), "")
    return found, "over"
