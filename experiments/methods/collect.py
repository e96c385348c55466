"""Put the measurements of finished runs into the csv files beside this file. Rows of all other runs stay.

    python experiments/methods/collect.py <run folder> ...
    python experiments/methods/collect.py methods_cpu_prosqa_explicit_cot=<run folder>

A run is called as its recipe, or what stands before `=`. A run that is collected once more replaces its rows. A run whose settings
are not those of its recipe needs a name before `=`. The teacher of ICoT-KD is a run folder, and no such setting.

results.csv  the last validation of each stage, and the test (experiments/collect.py has the columns)
curves.csv   every validation, over steps and over tokens read
runs.csv     a row for each run: what was trained, how long, and what the guard says of it
levels.csv   the last checkpoint at every level, of runs that have `evaluate checkpoint=last removed_tokens=all` behind them
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import collect
from experiments.methods.arms import task_and_arm
from experiments.readme import read_rows, replaced, told, write_rows
from stepwise_pl.common.disk import read_json
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.runs.records import damage_told, read_metrics

HERE = Path(__file__).parent
KEY = ("run", "seed")
LEVELS = "evaluations/levels-last-test.csv"
CURVES = ("run", "seed", "step", "tokens_read", "removed_tokens", "accuracy", "examples")
RUNS = (
    "run", "seed", "method", "schedule", "max_cot_tokens", "steps", "tokens_read", "teacher_tokens_read", "collapsed", "collapsed_at",
    "date", "commit", "machine",
)  # fmt: skip
LEVEL_COLUMNS = ("run", "seed", "removed_tokens", "cot_tokens_written", "accuracy", "examples")
Rows = Iterator[dict[str, Any]]


def curves(name: str, run: Path, summary: dict[str, Any]) -> Rows:
    """Every validation of a run."""
    for row in read_metrics(run / "metrics.csv"):
        if row["val/answer_accuracy"]:
            yield {
                "run": name, "seed": summary["seed"], "step": round(float(row["step"])),
                "tokens_read": round(float(row["tokens_read"])),
                "removed_tokens": round(float(row["schedule/removed_tokens"])),
                "accuracy": f"{float(row['val/answer_accuracy']):.3f}", "examples": round(float(row["val/examples"])),
            }  # fmt: skip


def about(name: str, run: Path, summary: dict[str, Any]) -> Rows:
    """The one row of a run in runs.csv. `collapsed` is true if the run ended so, `collapsed_at` tells of the first time."""
    config = read_yaml(run / "config.yaml")
    session = read_json(run / "environment.json")["sessions"][0]
    machine = session["machine"]
    at = summary["collapsed_at"]
    yield {
        **{key: summary[key] for key in ("seed", "method", "max_cot_tokens", "steps", "tokens_read")},
        "run": name, "schedule": config["schedule"]["kind"],
        "teacher_tokens_read": summary.get("loaded", {}).get("teacher_tokens_read", ""),
        "collapsed": str(summary["collapsed"]).lower(), "collapsed_at": "" if at is None else at,
        "date": session["started"][:10], "commit": session["git"]["commit"][:7],
        "machine": f"{machine['processor']}, {machine['cores']} cores",
    }  # fmt: skip


def levels(name: str, run: Path, summary: dict[str, Any]) -> Rows:
    """The accuracy at every level, where it was evaluated."""
    if (run / LEVELS).is_file():
        for row in read_rows(run / LEVELS):
            numbers = {key: float(row[key]) for key in ("cot_tokens_written", "accuracy")}
            yield {
                "run": name,
                "seed": summary["seed"],
                **{key: row[key] for key in ("removed_tokens", "examples")},
                **numbers,
            }


def results(name: str, run: Path, summary: dict[str, Any]) -> Rows:
    """The rows of experiments/collect.py."""
    yield from collect.rows_of(run, name)


FILES: dict[str, tuple[tuple[str, ...], Callable[[str, Path, dict[str, Any]], Rows]]] = {
    "results": (collect.COLUMNS, results),
    "curves": (CURVES, curves),
    "runs": (RUNS, about),
    "levels": (LEVEL_COLUMNS, levels),
}


def main(given: list[str], folder: Path = HERE) -> None:
    """Put the runs into the csv files of a folder.

    Raises:
        UserError: a run is none of this experiment, given twice, or cannot be read. Then no file is changed.
    """
    found: dict[tuple[str, int], tuple[Path, dict[str, Any]]] = {}
    for text in given:
        # A folder may have `=` in its name.
        name, _, path = ("", "", text) if Path(text).is_dir() or "=" not in text else text.partition("=")
        summary = read_json(Path(path) / "summary.json")
        with damage_told(Path(path)):
            recipe = summary["name"].split("/")[0]
            key = name or recipe, summary["seed"]
            changed = set(read_yaml(Path(path) / "config.yaml")["derived"].get("changed") or ()) - {"method.teacher"}
        if not name and changed:
            raise UserError(
                f"{path}: {', '.join(sorted(changed))} is not as in the recipe; give {recipe}={path} if the run may stand for it"
            )
        task_and_arm(key[0])
        if key in found:
            raise UserError(f"{found[key][0]} and {path}: both are {key[0]}, seed {key[1]}")
        found[key] = Path(path), summary
    files: dict[Path, tuple[Sequence[str], Sequence[Mapping[str, object]]]] = {}
    for file, (columns, rows_of) in FILES.items():
        path = folder / f"{file}.csv"
        fresh: list[dict[str, Any]] = []
        for (name, _), (run, summary) in found.items():
            with damage_told(run):
                fresh += rows_of(name, run, summary)
        files[path] = columns, replaced(read_rows(path) if path.is_file() else [], fresh, KEY)
    for path, (columns, rows) in files.items():
        write_rows(path, columns, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders that hold a summary.json, or <name>=<run folder>")
    with told():
        main(parser.parse_args().runs)
