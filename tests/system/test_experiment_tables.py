"""The tables and the csv files of experiments/ agree, and a changed number is noticed."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import readme
from experiments.methods import collect, figures, runs
from experiments.methods import tables as methods
from experiments.methods.runs import Run, Validation
from experiments.tables import all_tables
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import read_yaml, save_yaml
from tests.conftest import REPO

EXPERIMENTS = REPO / "experiments"


def check(experiments: Path, script: str = "tables.py", *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(experiments / script), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(experiments.parent), str(REPO)])},
        capture_output=True,
        text=True,
    )


def test_every_table_is_what_its_csv_files_give() -> None:
    found = all_tables()
    assert {"methods", "robustness", "quickstart"} <= {folder.name for folder in found}
    assert [line for folder, tables in found.items() for line in readme.differences(folder, tables())] == []


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """A copy of the experiments, whose files a test may change."""
    yield shutil.copytree(EXPERIMENTS, tmp_path / "experiments", ignore=shutil.ignore_patterns("*.png", "__pycache__"))


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_changed_number_in_a_csv_file_is_noticed_and_written(copy: Path) -> None:
    """Only the tables that show the number are named. The next call writes it, and then nothing differs."""
    change(
        copy / "robustness" / "results.csv", "stepwise,1,high_heavy,236,232,232", "stepwise,1,high_heavy,236,118,118"
    )
    done = check(copy, "tables.py", "--check")
    assert (done.returncode, done.stdout) == (1, "robustness: parts\n"), done.stderr
    assert "66.5, 98.3, 72.9" in (copy / "robustness" / readme.NAME).read_text(encoding="utf-8")
    assert check(copy).returncode == 0
    assert "66.5, 50.0, 72.9" in (copy / "robustness" / readme.NAME).read_text(encoding="utf-8")
    assert check(copy, "tables.py", "--check").returncode == 0
    assert check(copy, "robustness/tables.py", "--check").returncode == 0


def test_a_changed_number_in_a_readme_is_noticed(copy: Path) -> None:
    change(copy / "quickstart" / readme.NAME, "99.8% [99.3, 99.9]", "99.9% [99.3, 99.9]")
    done = check(copy, "tables.py", "--check")
    assert (done.returncode, done.stdout) == (1, "quickstart: runs\n"), done.stderr


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("arm,seed,", "arm,sead,", "results.csv: has no column seed"),
        ("stepwise,1,high_heavy,236,232,232", "stepwise,1,high_heavy,236,many,232", "no table can be made of its csv files (ValueError: "),
        ("stepwise,1,high_heavy,236,232,232", "stepwise,1,high_heavy,236,232", "has more or fewer cells than the first line"),
        ("", "", "results.csv: is cut off"),
    ],
)  # fmt: skip
def test_a_damaged_csv_file_is_one_line_and_changes_no_readme(copy: Path, old: str, new: str, message: str) -> None:
    path = copy / "robustness" / "results.csv"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else text[:-3], encoding="utf-8")
    before = {readme_file: readme_file.read_text(encoding="utf-8") for readme_file in copy.glob(f"*/{readme.NAME}")}
    done = check(copy)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert str(copy / "robustness") in done.stderr and message in done.stderr
    assert {file: file.read_text(encoding="utf-8") for file in before} == before


def test_a_table_without_a_marker_and_a_marker_without_a_table_are_named(tmp_path: Path) -> None:
    (tmp_path / readme.NAME).write_text("<!-- table: old -->\n<!-- end -->\n")
    lines = readme.differences(tmp_path, {"fresh": "| a |\n"})
    assert len(lines) == 2 and "<!-- table: fresh -->" in lines[0] and "old: no such table" in lines[1]


def test_a_table_with_a_missing_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="too many or too few"):
        readme.table(["a", "b"], [["1"]])


def run_of(accuracies: list[float], removed: list[int], schedule: str = "adaptive", tokens: int = 4) -> Run:
    validations = [
        Validation(step, 100 * step, gone, accuracy, 500)
        for step, (accuracy, gone) in enumerate(zip(accuracies, removed, strict=True), start=1)
    ]
    return Run("parity", "stepwise", 0, 1.0, 1000, removed[-1], tokens, {"schedule": schedule}, validations)


def test_tokens_are_counted_until_the_last_but_one_stage_is_good_again() -> None:
    assert run_of([1, 0.5, 0.95, 0.5, 1], [0, 3, 3, 4, 4]).read_until_last == 300
    assert run_of([1, 0.5, 0.94, 0.5, 1], [0, 3, 3, 4, 4]).read_until_last is None
    # The run ends at the very validation that would let the last token go.
    assert run_of([1, 0.5, 0.96], [0, 3, 3]).read_until_last == 300
    assert run_of([1, 1], [0, 2]).read_until_last is None


def test_a_fall_counts_if_it_lasts_to_the_end_and_more_than_one_validation() -> None:
    assert run_of([1, 0.5, 1, 0.5, 0.5], [0, 1, 1, 2, 2]).fell_at == 2
    assert run_of([1, 0.5, 0.5, 1], [0, 1, 1, 2]).fell_at is None
    assert run_of([1, 1, 0.5], [0, 1, 2]).fell_at is None
    # Accuracy that was never better has not fallen.
    assert run_of([0.5, 0.5, 0.5], [4, 4, 4]).fell_at is None
    # Of 500 problems, 72% may well be 75% of the best.
    assert run_of([1, 0.72, 0.72], [0, 1, 1]).fell_at is None


def test_a_collected_run_replaces_its_rows_and_leaves_all_others(run_dir: Path, tmp_path: Path) -> None:
    """Twice the same run is once; rows of a run whose folder is gone stay as they are."""
    arm = "made_for_this_test"
    name = f"methods_cpu_parity_{arm}"
    for file in collect.FILES:
        shutil.copy(EXPERIMENTS / "methods" / f"{file}.csv", tmp_path)
    before = {file: (tmp_path / f"{file}.csv").read_text() for file in collect.FILES}
    collect.main([f"{name}={run_dir}"], tmp_path)
    once = {file: (tmp_path / f"{file}.csv").read_text() for file in collect.FILES}
    collect.main([f"{name}={run_dir}"], tmp_path)
    assert {file: (tmp_path / f"{file}.csv").read_text() for file in collect.FILES} == once
    for file, text in before.items():
        assert once[file].startswith(text)
    summary = json.loads((run_dir / "summary.json").read_text())
    (run,) = runs.read_runs(tmp_path)["parity"][arm]
    assert (run.test, run.tested) == (pytest.approx(summary["test_accuracy"], abs=1e-6), summary["test_examples"])
    assert (run.removed, run.tokens) == (summary["removed_tokens"], summary["max_cot_tokens"])
    with (run_dir / "metrics.csv").open(newline="") as file:
        looks = [row for row in csv.DictReader(file) if row["val/answer_accuracy"]]
    assert [one.step for one in run.validations] == [round(float(row["step"])) for row in looks]
    with pytest.raises(UserError, match="both are"):
        collect.main([f"{name}={run_dir}", f"{name}={run_dir}"], tmp_path)
    with pytest.raises(UserError, match="methods_cpu_"):
        collect.main([f"quickstart={run_dir}"], tmp_path)
    # A run that cannot be read leaves every file as it was, also those that come before the one it lacks.
    for broken, message in (("environment.json", "environment.json"), ("metrics.csv", "metrics.csv")):
        other = shutil.copytree(run_dir, tmp_path / f"lr=1,without {broken}")
        (other / broken).unlink()
        with pytest.raises((UserError, OSError), match=message):
            collect.main([f"{name}={other}"], tmp_path)
    with pytest.raises(UserError, match=r"nowhere/summary.json: cannot be read"):
        collect.main([f"{name}={tmp_path / 'nowhere'}"], tmp_path)
    # Nor does a run with changed settings stand as its recipe, unless it is named. A teacher is no such setting.
    other = shutil.copytree(run_dir, tmp_path / "other")
    (other / "summary.json").write_text(json.dumps(summary | {"name": name}))
    config = read_yaml(run_dir / "config.yaml")
    for keys, is_refused in ((["method.teacher"], False), (["method.teacher", "optimizer.lr"], True)):
        config["derived"]["changed"] = keys
        save_yaml(config, other / "config.yaml")
        if is_refused:
            with pytest.raises(UserError, match=rf"other: optimizer.lr is not as in the recipe; give {name}="):
                collect.main([str(other)], tmp_path)
            collect.main([f"{name}={other}"], tmp_path)
        else:
            collect.main([str(other)], tmp_path)
        assert {file: (tmp_path / f"{file}.csv").read_text() for file in collect.FILES} == once
    # A folder may have `=` in its name.
    collect.main([f"{name}={shutil.copytree(run_dir, tmp_path / 'lr=1')}"], tmp_path)
    assert {file: (tmp_path / f"{file}.csv").read_text() for file in collect.FILES} == once


def test_a_task_with_one_seed_missing_has_a_dash_in_its_place() -> None:
    arms = {"stepwise": [run_of([1, 1], [0, 4])], "codi": [run_of([0.5, 0.5], [4, 4], "linear")]}
    arms["codi"][0].seed = 1
    for of_arm in arms.values():
        of_arm[0].about |= {
            "collapsed": "false",
            "collapsed_at": "",
            "steps": "2",
            "tokens_read": "200",
            "teacher_tokens_read": "",
        }
    lines = methods.accuracy_table(arms).splitlines()
    assert "test accuracy, seeds 0, 1" in lines[0]
    assert lines[2].startswith("| stepwise | 100.0%, – | ") and lines[3].startswith("| codi | –, 100.0% | ")


def test_the_mean_curve_lies_between_the_seeds_and_ends_where_the_shortest_seed_ends() -> None:
    one, other = run_of([0, 1, 1, 1], [0, 1, 3, 4]), run_of([0, 0, 0.5], [0, 1, 2])
    tokens, accuracies, shares = figures.means([one, other])
    assert (tokens[0], tokens[-1]) == (100, 300)
    assert (accuracies[0], accuracies[-1]) == (0, 0.75)
    assert (shares[0], shares[-1]) == (0, (3 + 2) / 2 / 4)
    for at, accuracy in zip(tokens, accuracies, strict=True):
        seeds = [figures.at(run.validations, at)[0] for run in (one, other)]
        assert min(seeds) <= accuracy <= max(seeds)
    # Half-way between two validations.
    assert figures.at(one.validations, 150) == (0.5, 0)


def test_every_task_with_several_arms_has_its_figure_in_the_readme(tmp_path: Path) -> None:
    text = (EXPERIMENTS / "methods" / readme.NAME).read_text(encoding="utf-8")
    for task, arms in runs.read_runs().items():
        if len(arms) > 1:
            assert f"](accuracy-{task}.png)" in text
            png, _ = figures.draw(task, arms, runs.read_speeds(task), tmp_path)
            assert png.name == f"accuracy-{task}.png" and png.stat().st_size > 10_000
