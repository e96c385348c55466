"""Check and measure on one card: `make gpu`, or `python experiments/speed/gpu [prepare|check|train] [<key>=<value> ...]`.

It installs nothing: it runs with the Python that calls it, and needs the packages of
requirements.lock there. Without a part it does both, `check` and then `train`.

prepare  unpacks the commit of the comparison into <baseline>, for a machine without git history
check    numerics, waits, graphs, resume, evaluation, FSDP2 and the benchmark, in at most 4 minutes
train    the recipe mult4x4_gpt2_2layer by the true command, in at most 6 minutes

A second call goes on: it skips the cases that are done and resumes the training. In <out> lie
results.csv (targets and ratios first), cases.jsonl, log.txt and train_*: eight files.
Everything else (the run folder, compiled code, the older commit) lies in <work>.
"""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(Path(__file__).parent), str(REPO)]

import baseline  # noqa: E402
import plan  # noqa: E402
import results  # noqa: E402
import training  # noqa: E402
from run import Runner  # noqa: E402


@dataclasses.dataclass
class Settings:
    """The settings that `key=value` changes.

    Attributes:
        out, work: the folders of results and of everything else; work is by default `work` in out.
        baseline: the sources of the older commit, by default `baseline` in work.
        device: `cuda` or `cpu`.
        sizes: `full`, or `tiny` for a look at the script on a CPU.
        check_seconds, train_seconds: the most that each part takes.
        patience: the limits of single cases are multiplied by this.
        jobs: checks side by side; 0: half of the cores, at most 8.
        only: parts of the names of the cases to run, separated by semicolons.
        compile_on_cpu: run the compiled cases on a CPU too.
        words: further words of the training's command line, separated by spaces.
        keep_checkpoints: bring the best checkpoint of the training too.
    """

    out: str = "outputs/gpu"
    work: str = ""
    baseline: str = ""
    device: str = "cuda"
    sizes: str = "full"
    check_seconds: float = 240
    train_seconds: float = 360
    patience: float = 1
    jobs: int = 0
    only: str = ""
    compile_on_cpu: bool = False
    words: str = ""
    keep_checkpoints: bool = False


def settings_of(words: list[str]) -> Settings:
    """Read the settings. Exit with one line if a word is none."""
    kinds = {name: type(default) for name, default in vars(Settings()).items()}
    given: dict[str, Any] = {}
    for word in words:
        key, is_set, value = word.partition("=")
        if key not in kinds or not is_set:
            sys.exit(
                f"error: {word}: must be a part (prepare, check, train) or one of {', '.join(f'{key}=' for key in kinds)}"
            )
        given[key] = value == "true" if kinds[key] is bool else kinds[key](value)
    settings = Settings(**given)
    settings.work = settings.work or str(Path(settings.out) / "work")
    settings.baseline = settings.baseline or str(Path(settings.work) / "baseline")
    return settings


def check(settings: Settings) -> bool:
    """Run the cases; return whether all that ran are well."""
    from stepwise_pl.config.training import TrainerConfig

    keys = frozenset(field.name for field in dataclasses.fields(TrainerConfig))
    sizes = plan.Sizes() if settings.sizes == "full" else plan.TINY
    out, work, older = (Path(folder).resolve() for folder in (settings.out, settings.work, settings.baseline))
    older.parent.mkdir(parents=True, exist_ok=True)
    reason = baseline.unpacked(older, REPO)

    def missing(case: plan.Case) -> str:
        if "cuda" in case.needs and settings.device != "cuda":
            return "needs CUDA"
        if "compile" in case.needs and "compile" not in keys:
            return "this tree has no trainer.compile"
        return (
            "compiled on CUDA only"
            if "compile" in case.needs and settings.device != "cuda" and not settings.compile_on_cpu
            else ""
        )

    runner = Runner(
        out, work, {"ours": REPO, "baseline": reason or older}, missing, time.strftime("%Y-%m-%d %H:%M:%S"),
        settings.check_seconds, sizes.large_batch,
    )  # fmt: skip

    def stop(number: int, frame: Any) -> None:
        runner.close()
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    cases = plan.cases(settings.device, sizes, keys)
    for case in cases:
        case.limit *= settings.patience
    wanted = [case for case in cases if any(part in case.name for part in settings.only.split(";"))]
    try:
        runner.run_all(wanted, settings.jobs or max(1, min(8, (os.cpu_count() or 1) // 2)))
    finally:
        runner.close()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
    print(f"results: {out / 'results.csv'}")
    return all(record.outcome not in ("failed", "error", "overran") for record in runner.records.values())


def train(settings: Settings) -> bool:
    """Train; return whether the run is over, or stopped because its time was."""
    out, work = Path(settings.out).resolve(), Path(settings.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    # A signal to this script stops the run, which saves itself.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    words = ["trainer=gpu" if settings.device == "cuda" else "trainer=cpu", *settings.words.split()]
    record = training.train(REPO, out, work, words, settings.train_seconds, settings.keep_checkpoints)
    large_batch = (plan.Sizes() if settings.sizes == "full" else plan.TINY).large_batch
    results.keep(out, work / "cases.jsonl", record, large_batch)
    print(f"{record.outcome:10} {record.name:52} {record.seconds:6.1f} s  {record.note}")
    return record.outcome in ("finished", "stopped")


def main(words: list[str]) -> int:
    """Do the parts; return the exit status: 1 if something failed."""
    parts = [word for word in words if word in ("prepare", "check", "train")]
    settings = settings_of([word for word in words if word not in parts])
    if "prepare" in parts:
        folder = Path(settings.baseline).resolve()
        folder.parent.mkdir(parents=True, exist_ok=True)
        if reason := baseline.unpacked(folder, REPO):
            sys.exit(f"error: {reason}")
        print(f"unpacked: {folder}")
        parts.remove("prepare")
        if not parts:
            return 0
    well = [check(settings) if part == "check" else train(settings) for part in parts or ("check", "train")]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
