"""`resume=auto`, `trainer.max_time` and the batch script of docs/gpus.md: a job that goes on by itself."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.duration import seconds_of
from tests.conftest import OFFLINE, REPO, SMALL, command

SHORT = (*SMALL, "trainer.duration=8steps")


@pytest.mark.parametrize(
    "text,seconds", [("02:50:00", 10_200), ("0:00:01", 1), ("1-00:00:00", 86_400), (" 100:00:30 ", 360_030)]
)
def test_a_time_is_read_as_slurm_writes_it(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10200", "2:99:00", "00:00:00", "2h", "", "-1:00:00", "1:00", "１:00:00"])
def test_no_time_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="^trainer.max_time=.*: must be hours:minutes:seconds"):
        seconds_of(text)


def test_auto_begins_and_goes_on(tmp_path: Path) -> None:
    run = ("train", *SHORT, "resume=auto", f"run_dir={tmp_path / 'run'}")
    command(*run)
    command(*run, "trainer.duration=12steps")
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())["sessions"]
    assert [start["from_step"] for start in starts] == [0, 8]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 12
    plain = command("train", *SHORT, f"run_dir={tmp_path / 'run'}", check=False)
    assert plain.returncode == 2 and "holds a run already" in plain.stderr
    unnamed = command("train", *SHORT, "resume=auto", cwd=tmp_path, check=False, PYTHONPATH=str(REPO))
    assert unnamed.stderr == "error: resume=auto: needs run_dir=<folder>, so that every start means the same run\n"


def test_auto_takes_a_key_of_the_groups_of_its_run(tmp_path: Path) -> None:
    """A key of a schedule that is not the default one is known at a restart."""
    words = [word for word in SHORT if not word.startswith("schedule.")]
    run = ("train", *words, "schedule=adaptive", "schedule.keep=0.9", "resume=auto", f"run_dir={tmp_path}")
    command(*run)
    command("train", "schedule.keep=0.8", "trainer.duration=12steps", "resume=auto", f"run_dir={tmp_path}")
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 12


@pytest.mark.long
def test_a_run_stops_when_its_time_is_over_and_goes_on(tmp_path: Path) -> None:
    run = ("train", *SMALL, "resume=auto", f"run_dir={tmp_path / 'run'}")
    out = command(*run, "trainer.duration=1000000steps", "trainer.max_time=00:01:00", check=False)
    assert out.returncode == 142, out.stderr[-2000:]
    assert out.stderr.count("trainer.max_time is over; stopping after this step") == 1
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    again = command(*run, "trainer.duration=1000000steps", "trainer.max_time=00:00:01", check=False)
    assert again.returncode == 142
    sweep = command(
        "train", "-m", *SMALL, "seed=0,1", "trainer.max_time=01:00:00", cwd=tmp_path, check=False, PYTHONPATH=str(REPO)
    )
    assert sweep.returncode == 2 and "trainer.max_time: is about one run" in sweep.stderr


# Runs the command without its own options. The first time it sends SIGUSR1 once the run has measured something.
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
echo started >> "$NOTES"
"$@" &
process=$!
if [ "$(grep -c started "$NOTES")" -eq 1 ]; then
    until [ -s "$RUN/metrics.csv" ]; do sleep 0.2; done
    kill -USR1 $process
fi
wait $process
"""

# Slurm would start the script again later.
SCONTROL = """#!/bin/bash
echo "$@" >> "$NOTES"
bash "$SCRIPT"
exit 0
"""


@pytest.mark.long
def test_the_batch_script_of_the_documents_requeues_the_job_until_it_is_over(tmp_path: Path) -> None:
    text = (REPO / "docs" / "gpus.md").read_text()
    (script,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    of_docs = "experiment=mult9x9_gpt2 trainer=ddp trainer.devices=8 trainer.num_nodes=2 run_dir=outputs/mult9x9"
    assert of_docs in script
    run = tmp_path / "run"
    words = " ".join((*SMALL, "trainer.duration=300steps", "trainer.log_every_n_steps=1", f"run_dir={run}"))
    script = script.replace(of_docs, words).replace("srun python", f"srun {sys.executable}")
    for name, content in (("job.sh", script), ("bin/srun", SRUN), ("bin/scontrol", SCONTROL)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o700 | stat.S_IXUSR)
    env = {
        **os.environ, **OFFLINE, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes"),
        "RUN": str(run), "SCRIPT": str(tmp_path / "job.sh"), "SLURM_JOB_ID": "17",
    }  # fmt: skip
    out = subprocess.run(
        ["bash", str(tmp_path / "job.sh")], cwd=REPO, env=env, capture_output=True, text=True, timeout=400
    )
    assert out.returncode == 138, out.stderr[-2000:]  # the first start's own status
    assert (tmp_path / "notes").read_text().splitlines() == ["started", "requeue 17", "started"]
    assert json.loads((run / "summary.json").read_text())["steps"] == 300
