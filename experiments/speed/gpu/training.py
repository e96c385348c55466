"""The part `train`: a recipe by the true command, as far as its minutes go. A second call goes on."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPE = "mult4x4_gpt2_2layer"
# Seconds kept for the start of the process, and for the checkpoint and the test at its end.
RESERVE = 25
KEPT = ("summary.json", "metrics.csv", "stages.jsonl", "config.yaml")


def train(tree: Path, out: Path, work: Path, words: list[str], seconds: float, keep_checkpoints: bool) -> dict[str, Any]:
    """Train within the seconds; copy the small files of the run to `out`, as `train_<name>`; return how far it came.

    Args:
        words: further words of the command line, such as `trainer=gpu`.
        keep_checkpoints: copy the best checkpoint too.
    """
    run_dir = work / "train"
    run_dir.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "STEPWISE_PL_CACHE": str(work / "cache"),
    }  # fmt: skip
    most = max(5, round(seconds - RESERVE))
    limit = f"trainer.max_time={most // 3600:02}:{most // 60 % 60:02}:{most % 60:02}"
    command = [
        sys.executable, "-m", "stepwise_pl.train", f"experiment={RECIPE}", *words, limit, "resume=auto", f"run_dir={run_dir / RECIPE}"
    ]  # fmt: skip
    print(" ".join(command), flush=True)
    started = time.monotonic()
    with (out / "train_log.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True)
        status = ended_within(process, seconds)
    kept = KEPT + (("checkpoints/best.ckpt",) if keep_checkpoints else ())
    for name in kept:
        if (run_dir / RECIPE / name).is_file():
            shutil.copy(run_dir / RECIPE / name, out / f"train_{Path(name).name}")
    reached = {"status": status, "seconds": round(time.monotonic() - started, 1), **how_far(run_dir / RECIPE)}
    (out / "train_reached.json").write_text(json.dumps(reached, indent=1) + "\n")
    return reached


def ended_within(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    """Wait for the process; ask it to stop 8 seconds before the end, and kill it at the end. Return its status."""
    for wait, sent in ((max(1.0, seconds - 8), signal.SIGTERM), (8.0, signal.SIGKILL)):
        try:
            return process.wait(wait)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, sent)
        except BaseException:  # Ctrl-C, or a signal: the run saves itself
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
            raise
    return process.wait()


def how_far(run_dir: Path) -> dict[str, Any]:
    """The last row of metrics.csv that has a validation, the last step, and the result of the test if the run is over."""
    found: dict[str, Any] = {}
    if (run_dir / "metrics.csv").is_file():
        with (run_dir / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                found["step"] = row["step"]
                if row.get("val/answer_accuracy"):
                    found["validation"] = {key: row.get(key) for key in ("step", "epoch", "val/answer_accuracy", "schedule/removed_tokens")}
    if (run_dir / "summary.json").is_file():
        summary = json.loads((run_dir / "summary.json").read_text())
        found["summary"] = {key: summary.get(key) for key in ("test_accuracy", "test_examples", "removed_tokens", "steps", "seconds")}
    return found
