"""The report: what it says against the files it was made from, runs that lack things, and the page in a real browser."""

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import t as student

from stepwise_pl.cli.names import NOW
from stepwise_pl.reporting.figures.speed import Measured, frontier
from stepwise_pl.reporting.history import labels, read_run
from stepwise_pl.reporting.style import style_of
from stepwise_pl.runs.records import read_stage_records
from tests.conftest import SMALL, command, made_once
from tests.reporting.conftest import opened
from tests.system.test_resume import start

BASE = (*(one for one in SMALL if not one.startswith("schedule")), "trainer.duration=4epochs")
DELTAS, LAMBDAS, SEEDS = ("1", "1/2"), ("2", "inf"), (0, 1)
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"


class Page(HTMLParser):
    """Title, tables by caption, texts of list items, the figures' data, and how often each tag occurs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.items: list[str] = []
        self.ids: list[str] = []
        self.tags: dict[str, int] = {}
        self.figures: dict[str, Any] = {}
        self._rows: list[list[str]] = []
        self._open: list[str] = []
        self._script: str | None = None
        self._text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.ids += [str(found["id"])] if "id" in found else []
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("caption", "td", "th", "li", "h1"):
            self._text = ""
        if tag == "script":
            self._script, self._text = found.get("id"), ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        text = " ".join(self._text.split())
        if tag in ("td", "th"):
            self._rows[-1].append(text)
        if tag == "caption":
            self.tables[text] = self._rows
        if tag == "li":
            self.items.append(text)
        if tag == "h1":
            self.title = text
        if tag == "script" and self._script == "figures":
            self.figures = json.loads(self._text)


def reported(tmp_path: Path, *arguments: str) -> Page:
    out = tmp_path / "report.html"
    command("report", *arguments, f"out={out}")
    return Page(out.read_text())


def table(page: Page, caption: str) -> list[dict[str, str]]:
    """The one table with this in its caption, as a dict a row."""
    (rows,) = (rows for text, rows in page.tables.items() if caption in text)
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def traces(page: Page, figure: str, name: str) -> list[dict[str, Any]]:
    return [one for one in page.figures[figure]["data"] if one.get("name") == name]


def make_runs(root: Path) -> None:
    """A sweep, both baselines, a collapse gone back from, and a run that was killed."""
    sweep = [f"{key}={','.join(map(str, values))}" for key, values in
             (("schedule.delta", DELTAS), ("schedule.smoothing", LAMBDAS), ("seed", SEEDS))]  # fmt: skip
    command("train", "-m", *BASE, *sweep, cwd=root, PYTHONPATH=str(Path(__file__).parent.parent))
    (root / "outputs").rename(root / "sweep")
    for name in ("explicit_cot", "no_cot"):
        command("train", *BASE, f"schedule={name}", f"run_dir={root / 'baselines' / name}")
        command("evaluate", f"run={root / 'baselines' / name}", "speed_problems=2")
    accuracy = "--accuracy=0.0 if attempt == 0 and step >= 40 else 0.9"
    out = start(root / "back", "guard=halve", "trainer.duration=6epochs", options=(accuracy,))
    assert out.returncode == 0, out.stderr[-2000:]
    assert start(root / "killed", end="after the step,30,SIGKILL").returncode == -9


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once("report", make_runs, tmp_path_factory)


@pytest.fixture(scope="module")
def page_file(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    reported(folder, str(runs))
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(page_file: Path) -> Page:
    return Page(page_file.read_text())


def ended(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.rglob("summary.json"))


def test_the_table_says_what_the_summaries_say(runs: Path, page: Page) -> None:
    rows = {row["run"]: row for row in table(page, "What was run")}
    assert len(rows) == len(DELTAS) * len(LAMBDAS) * len(SEEDS) + 4
    assert len(ended(runs)) == len(rows) - 1
    seen = []
    for run in ended(runs):
        summary = json.loads((run / "summary.json").read_text())
        (row,) = (row for label, row in rows.items() if read_run(run).path.name in label and matches(label, run))
        seen.append(row["run"])
        right, n = round(summary["test_accuracy"] * summary["test_examples"]), summary["test_examples"]
        interval = binomtest(right, n).proportion_ci(method="wilson")
        assert row["test accuracy"] == f"{right / n:.1%}"
        assert row["95% Wilson interval"] == f"[{interval.low:.1%}, {interval.high:.1%}] n={n}"
        assert row["CoT tokens removed"] == f"{summary['removed_tokens']} of 2"
        counts = (row["steps"], row["examples"], row["seconds"])
        assert counts == (f"{summary['steps']:,}", f"{summary['examples_seen']:,}", f"{summary['seconds']:,.0f}")
        assert row["seed"] == str(summary["seed"])
    assert len(set(seen)) == len(seen)
    by_name = {label: rows[label] for label in ("back", "killed", "baselines/explicit_cot", "baselines/no_cot")}
    assert [row["schedule"] for row in by_name.values()][2:] == ["explicit CoT", "no CoT"]
    assert [row["outcome"] for row in by_name.values()] == ["ended, 1 rollback", "not ended", "ended", "ended"]
    assert by_name["killed"]["test accuracy"] == "–"
    assert "killed: no summary yet: it is still running, or was stopped, at step 30" in page.items


def matches(label: str, run: Path) -> bool:
    """Whether a label of a sweep's run says what its configuration says; others are named by their folder."""
    if "sweep" not in run.parts:
        return label.endswith(run.name)
    text = (run / "config.yaml").read_text()
    delta, smoothing = (re.search(rf"  {key}: '?([\w./]+)", text)[1] for key in ("delta", "smoothing"))  # type: ignore[index]
    swept = [f"schedule.delta={delta}", f"schedule.smoothing={smoothing.lstrip('.').removesuffix('.0')}"]
    return label.split("/")[-2] == NOW.folder_name(swept)


def test_accuracy_is_that_of_the_last_validation_of_each_stage(runs: Path, page: Page) -> None:
    (drawn,) = traces(page, "accuracy", "baselines/explicit_cot")
    last = [row for row in rows_of(runs / "baselines" / "explicit_cot") if row["val/loss"]][-1]
    accuracy, n = float(last["val/answer_accuracy"]), int(last["val/examples"])
    interval = binomtest(round(accuracy * n), n).proportion_ci(method="wilson")
    assert (drawn["x"], drawn["y"]) == ([0], [accuracy])
    assert drawn["error_y"]["array"][0] == pytest.approx(interval.high - accuracy, abs=1e-6)
    assert drawn["error_y"]["arrayminus"][0] == pytest.approx(accuracy - interval.low, abs=1e-6)


def swept(runs: Path) -> dict[tuple[str, str], list[Path]]:
    """The finished runs of the sweep by λ and Δ, in the order of their seeds."""
    cells: dict[tuple[str, str], list[Path]] = {}
    for path in sorted((runs / "sweep").rglob("summary.json")):
        text = (path.parent / "config.yaml").read_text()
        delta, smoothing = (re.search(rf"  {key}: '?([\w./]+)", text)[1] for key in ("delta", "smoothing"))  # type: ignore[index]
        cells.setdefault((smoothing.lstrip(".").removesuffix(".0"), delta), []).append(path.parent)
    assert len(cells) == 4 and {len(one) for one in cells.values()} == {2}
    return cells


def test_means_are_over_runs_that_differ_in_the_seed_alone(runs: Path, page: Page) -> None:
    data = page.figures["accuracy-mean"]["data"]
    drawn = {one["name"]: one for one in data if ": seed " not in one["name"] and not one["name"].endswith(": level")}
    keys = [item for item in page.items if item.endswith(" seeds)") or item.endswith(" seed)")]
    table_rows = {row["runs"]: row for row in table(page, "Means over runs")}
    # The sweep, the baselines, and what was gone back from; the run that was killed is in the table alone.
    assert len(drawn) == len(keys) == 7 and len(table_rows) == 8
    assert {key.partition(" (")[2] for key in keys} == {"2 seeds)", "1 seed)"}
    assert {name for name, one in drawn.items() if one["line"]["dash"] == "solid"} == {
        name for name in drawn if "delta-" in name
    }
    for folders in swept(runs).values():
        label = f"sweep/{folders[0].parent.relative_to(runs / 'sweep')}"
        (one,) = (trace for name, trace in drawn.items() if label.endswith(name.rpartition("/")[2]))
        last: dict[int, list[float]] = {}
        for folder in folders:
            of_run = {
                float(row["schedule/removed_tokens"]): float(row["val/answer_accuracy"])
                for row in rows_of(folder)
                if row["val/loss"]
            }
            for removed, accuracy in of_run.items():
                last.setdefault(round(removed), []).append(accuracy)
        last = {removed: both for removed, both in sorted(last.items()) if len(both) == 2}
        assert one["x"] == list(last) and one["y"] == pytest.approx([sum(both) / 2 for both in last.values()])
        for both, up in zip(last.values(), one["error_y"]["array"], strict=True):
            if both[0] != both[1]:
                half = student.interval(0.95, 1, scale=abs(both[0] - both[1]) / 2)[1]
                assert up == pytest.approx(min(half, 1 - sum(both) / 2))
        row = table_rows[one["name"]]
        accuracies = [json.loads((folder / "summary.json").read_text())["test_accuracy"] for folder in folders]
        assert row["test accuracy, mean"] == f"{sum(accuracies) / 2:.1%}"
        assert row["of each seed"] == ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
        colors = {
            tuple(traces(page, "accuracy", f"{one['name']}/{folder.name}")[0]["line"]["color"]) for folder in folders
        }
        assert colors == {tuple(one["line"]["color"])}
        assert [traces(page, "accuracy", f"{one['name']}/{folder.name}")[0]["line"]["dash"] for folder in folders] == [
            "solid",
            "dash",
        ]
    assert len({one["line"]["color"] + one["marker"]["symbol"] for one in drawn.values()}) == 7


def test_rollbacks_resets_and_what_was_given_up_are_marked(page: Page) -> None:
    (kept,) = traces(page, "accuracy", "back")
    assert kept["y"] == [0.9, 0.9, 0.9] and kept["x"] == [0, 1, 2]
    dotted, end = traces(page, "accuracy", "back: given up")
    assert dotted["line"]["dash"] == "dot"
    assert list(zip(dotted["x"], dotted["y"], strict=True))[-2:] == [(1, 0.0), (2, 0.0)]
    assert (end["x"], end["y"], end["marker"]["symbol"]) == ([2], [0.0], "x-thin")
    assert "The guard went back" in end["hovertext"][0] and "1/2 of the configured pace" in end["hovertext"][0]
    # Of the loss, the dotted part ends where the guard went back from; tokens left after steps 60 and 100 (logged every step).
    (given_up,) = traces(page, "loss", "back: loss, given up")
    assert (given_up["x"][0], given_up["x"][-1]) == (21, 80)
    (resets,) = traces(page, "loss", "back: removed; optimizer reset")
    assert list(zip(resets["x"], resets["y"], strict=True)) == [(61, 1), (101, 2)]
    (item,) = (item for item in page.items if item.startswith("answer accuracy has collapsed"))
    assert "Back from step 80 (2 removed) to step 20 (0 removed): tokens leave at 1/2 of the configured pace." in item


def test_the_curve_is_the_logged_loss(runs: Path, page: Page) -> None:
    rows = [row for row in rows_of(runs / "baselines" / "no_cot") if row["train/loss"]]
    (drawn,) = traces(page, "loss", "baselines/no_cot: loss")
    assert drawn["x"] == [int(row["step"]) for row in rows]
    assert drawn["y"] == [float(row["train/loss"]) for row in rows]
    (removed,) = traces(page, "loss", "baselines/no_cot: CoT tokens removed")
    assert set(removed["y"]) == {2} and removed["line"]["shape"] == "hv"


def test_speed_is_what_evaluate_measured_with_baselines_named(runs: Path, page: Page) -> None:
    for name, file, said in (
        ("explicit_cot", "best-test-removed0.json", "explicit CoT"), ("no_cot", "best-test-removed2.json", "no CoT")
    ):  # fmt: skip
        found = json.loads((runs / "baselines" / name / "evaluations" / file).read_text())
        for batch in (1, 200):
            (drawn,) = traces(page, f"speed-batch{batch}", f"baselines/{name}")
            assert drawn["x"] == [found[f"problems_per_second_batch_{batch}"]]
            assert (drawn["y"], drawn["text"]) == ([found["answer_accuracy"]], [said])


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_frontier_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    measured = [Measured(0, float(speed), {"answer_accuracy": accuracy / 5}) for speed, accuracy in points]
    found = [(one.speed, one.accuracy) for one in frontier(measured)]
    wanted = {
        (float(speed), accuracy / 5)
        for speed, accuracy in points
        if not any((s >= speed and a >= accuracy) and (s, a) != (speed, accuracy) for s, a in points)
    }
    assert set(found) == wanted and found == sorted(found)


def test_digits_are_those_of_the_last_record_of_each_stage(runs: Path, page: Page) -> None:
    by_run = {
        figure["data"][0]["meta"]["runs"][0]: figure["data"][0]
        for slug, figure in page.figures.items()
        if slug.startswith("digits-")
    }
    order = [row["run"] for row in table(page, "What was run")]
    drawn = by_run[order.index("killed")]
    records = read_stage_records(runs / "killed" / "stages.jsonl")
    assert drawn["x"] == [str(one["removed_tokens"]) for one in records]
    assert [list(column) for column in zip(*drawn["z"], strict=True)] == [one["digits"] for one in records]
    # Of an attempt that was given up nothing is shown.
    records = [one for one in read_stage_records(runs / "back" / "stages.jsonl") if one["attempt"] or one["step"] == 20]
    last = {str(one["removed_tokens"]): one["digits"] for one in records}
    drawn = by_run[order.index("back")]
    assert dict(zip(drawn["x"], map(list, zip(*drawn["z"], strict=True)), strict=True)) == last


def test_answers_are_those_of_the_records(runs: Path, page: Page) -> None:
    rows = page.tables["Answers of killed"]
    wanted = []
    for record in read_stage_records(runs / "killed" / "stages.jsonl"):
        accuracy = f"{record['accuracy']:.1%}"
        where = f"{record['removed_tokens']} CoT tokens removed, step {record['step']}"
        wanted.append([f"{where}: {accuracy} of {record['examples']} right"])
        for one in record["samples"]:
            outcome = "✓ right" if one["right"] else "✗ wrong"
            wanted.append([outcome, one["prompt"], one["target"], one["prediction"] or "not finished"])
    assert rows[1:] == wanted and len(wanted) > 4


def test_the_sweep_is_a_heat_map_of_means_over_seeds(runs: Path, page: Page) -> None:
    drawn, written = page.figures["sweep-1"]["data"]
    assert "sweep-2" not in page.figures
    cells = {
        where: [json.loads((folder / "summary.json").read_text())["test_accuracy"] for folder in folders]
        for where, folders in swept(runs).items()
    }
    assert (drawn["x"], drawn["y"]) == (["1/2", "1"], ["2", "inf"])
    for y, smoothing in enumerate(drawn["y"]):
        for x, delta in enumerate(drawn["x"]):
            mean = sum(cells[smoothing, delta]) / 2
            assert drawn["z"][y][x] == pytest.approx(mean)
            place = y * len(drawn["x"]) + x
            assert (written["x"][place], written["y"][place]) == (drawn["x"][x], drawn["y"][y])
            assert written["text"][place] == f"{mean:.1%}<br>n=2"
            assert written["textfont"]["color"][place] == ("#ffffff" if mean < 0.5 else "#000000")


def test_only_what_differs_is_compared(page: Page, runs: Path, tmp_path: Path) -> None:
    few = reported(tmp_path, *(str(path) for path in (runs / "baselines").iterdir()))
    rows = table(few, "Keys of the configuration that differ")
    assert list(rows[0]) == ["run", "schedule.remove_all_beyond", "schedule.remove_at_most"]
    assert {tuple(row.values()) for row in rows} == {("explicit_cot", "null", "0"), ("no_cot", "0", "null")}
    assert {"schedule.delta", "schedule.smoothing", "seed"} < set(table(page, "Keys of the configuration")[0])


@pytest.mark.long
def test_figures_are_written_as_files(runs: Path, tmp_path: Path) -> None:
    page = reported(tmp_path, str(runs), f"figures={tmp_path / 'new' / 'figures'}")
    folder = tmp_path / "new" / "figures"
    assert {path.stem for path in folder.iterdir()} == set(page.figures)
    assert len(list(folder.iterdir())) == 2 * len(page.figures)
    for path in folder.glob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000
    for path in folder.glob("*.svg"):
        assert ET.parse(path).getroot().tag.endswith("svg")
    assert "explicit CoT" in (folder / "speed-batch1.svg").read_text()


def test_what_is_missing_or_damaged_is_told(runs: Path, tmp_path: Path) -> None:
    """Each run has lost something else; the others are reported as ever."""
    source = runs / "baselines" / "explicit_cot"
    damage: dict[str, tuple[str, str | None, str]] = {
        "config": ("config.yaml", None, "no config.yaml"),
        "yaml": ("config.yaml", "a: [", "config.yaml cannot be read"),
        "environment": ("environment.json", "{}", "environment.json cannot be read"),
        "metrics": ("metrics.csv", None, "no metrics.csv"),
        "cells": (
            "metrics.csv",
            "step,schedule/removed_tokens\n1,y\n",
            "metrics.csv cannot be read (could not convert",
        ),
        "foreign": ("metrics.csv", "a,b\n1,2\n", "metrics.csv cannot be read (a row has no step)"),
        "binary": ("metrics.csv", "\0\0\n\udcff", "metrics.csv cannot be read"),
        "stages": ("stages.jsonl", '{"step": 1}\n', "stages.jsonl cannot be read"),
        "old": ("stages.jsonl", None, "no stages.jsonl: no accuracy of digits, no answers"),
        "summary": ("summary.json", "[]", "summary.json cannot be read"),
        "numbers": ("summary.json", '{"test_accuracy": null, "removed_tokens": "x"}', "test_accuracy is null"),
        "text": ("evaluations/best-test-removed0.json", '{"as_trained": true, "examples": "x"}', 'examples is "x"'),
        "evaluation": (
            "evaluations/best-test-removed0.json",
            "{",
            "evaluations/best-test-removed0.json cannot be read",
        ),
    }
    for name, (file, text, _) in damage.items():
        shutil.copytree(source, tmp_path / "all" / name)
        path = tmp_path / "all" / name / file
        path.unlink()
        if text is not None:
            path.write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    others = [str(tmp_path / name) for name in ("empty", "file", "nowhere")]
    page = reported(tmp_path, str(tmp_path / "all"), *others)
    assert {row["run"] for row in table(page, "What was run")} == set(damage)
    for name, (_, _, said) in damage.items():
        assert any(item.startswith(name) and said in item for item in page.items), (name, page.items)
    said = [item for item in page.items if str(tmp_path) in item]
    assert said == [f"{others[0]}: no run in this folder or below", *(f"{one}: no such folder" for one in others[1:])]
    assert len(traces(page, "accuracy", "old")) == 1
    # A row that is being written is left out.
    with (tmp_path / "all" / "old" / "metrics.csv").open("a") as file:
        file.write("7")
    assert max(row["step"] for row in read_run(tmp_path / "all" / "old").rows) == 80


def test_a_run_without_anything_is_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("seed: 3\n")
    page = reported(tmp_path, str(tmp_path / "run"))
    (row,) = table(page, "What was run")
    assert (row["seed"], row["steps"], row["outcome"]) == ("3", "–", "not ended")
    assert page.figures == {}


def test_answers_of_one_token_have_a_page(tmp_path: Path) -> None:
    small = (
        "model=tiny",
        "model.layers=1",
        "model.heads=2",
        "model.width=32",
        "data.batch_size=32",
        "data.epoch_size=640",
    )
    command("train", "task=parity", "task.bits=4", "task.train_size=8", "task.validation_size=4", "task.test_size=4", *small,
            "trainer.duration=1epochs", f"run_dir={tmp_path / 'run'}")  # fmt: skip
    (record,) = read_stage_records(tmp_path / "run" / "stages.jsonl")
    page = reported(tmp_path, str(tmp_path / "run"))
    assert page.figures["digits-1"]["data"][0]["z"] == [record["digits"], [1.0]][: len(record["digits"])]
    # As it was written once.
    path = tmp_path / "run" / "stages.jsonl"
    path.write_text(json.dumps({**record, "digits": record["digits"][0]}) + "\n")
    assert read_stage_records(path) == [record]


def test_a_job_that_failed_says_why(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "killed", tmp_path / "run")
    (tmp_path / "run" / "job.json").write_text(json.dumps({"outcome": "failed", "error": "the training loss is nan"}))
    page = reported(tmp_path, str(tmp_path / "run"), str(runs / "back"))
    assert sum("it failed: the training loss is nan" in item for item in page.items) == 1
    assert [row["outcome"] for row in table(page, "What was run")] == ["failed", "ended, 1 rollback"]


def test_the_command_tells_mistakes_in_one_line(tmp_path: Path) -> None:
    for arguments, message in (
        ((), "no folder is given: python -m stepwise_pl.report <run or sweep folder> ..."),
        (("nowhere",), "nothing to report: nowhere: no such folder. Give folders of runs"),
        ((str(tmp_path),), f"nothing to report: {tmp_path}: no run in this folder or below"),
        (("nowhere", "outt=x.html"), "outt: no such key. Did you mean out?"),
        (("nowhere", "out="), "out=: must be the name of a file"),
    ):
        out = command("report", *arguments, check=False)
        assert (out.returncode, len(out.stderr.strip().splitlines())) == (2, 1), out.stderr
        assert out.stderr.startswith("error: ") and message in out.stderr


def test_the_page_is_well_formed_and_complete_in_itself(runs: Path, page: Page, tmp_path: Path) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert page.tags["h1"] == page.tags["title"] == 1 and page.tags["caption"] == page.tags["table"]
    assert page.tags["script"] == 3  # data, plotly once, and the page's own
    html = reported_text(tmp_path, str(runs / "back"))
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", own)
    for slug in page.figures:
        assert slug in page.ids


def reported_text(tmp_path: Path, *arguments: str) -> str:
    command("report", *arguments, f"out={tmp_path / 'one.html'}")
    return (tmp_path / "one.html").read_text()


NAMES = st.sets(
    st.lists(st.text("ab+", min_size=1, max_size=5), min_size=2, max_size=3).map(tuple), min_size=2, max_size=8
)


@given(NAMES)
def test_labels_tell_runs_apart(names: set[tuple[str, ...]]) -> None:
    paths = [Path("/runs", *parts, "run") for parts in sorted(names)]
    assert len(set(labels(paths))) == len(paths)


def test_labels_of_a_sweep_say_what_was_swept() -> None:
    paths = [Path(f"/o/n/delta-{d}+lr-1+width-8/seed{s}") for d in (4, 8) for s in (0, 1)]
    assert labels(paths) == ["delta-4/seed0", "delta-4/seed1", "delta-8/seed0", "delta-8/seed1"]


def test_49_cells_look_different() -> None:
    assert len({style_of(cell) for cell in range(49)}) == 49


# In a browser.


@pytest.fixture(scope="module")
def hostile(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose folder, configuration, rollback, prompts and predictions hold HTML."""
    root = tmp_path_factory.mktemp("hostile")
    run = root / "<img src=x onerror=window.hacked=3> & $x$"
    shutil.copytree(runs / "back", run)
    lines = [json.loads(line) for line in (run / "stages.jsonl").read_text().splitlines()]
    for line in lines:
        line["samples"][0] |= {"prompt": HOSTILE, "prediction": HOSTILE, "target": "{{ 7 * 7 }}"}
    (run / "stages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((run / "summary.json").read_text())
    summary["rollbacks"][0]["reason"] = summary["name"] = HOSTILE
    (run / "summary.json").write_text(json.dumps(summary))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("name: gpt2", f"name: '{HOSTILE}'"))
    return run


def runs_in(tab: Any, figure: str, count: int) -> list[int]:
    """Runs that have a trace drawn in the figure, once there are so many of them."""
    tab.locator(f"#{figure}").scroll_into_view_if_needed()
    script = """([id, count]) => {
      const shown = document.getElementById(id)._fullData.filter((one) => one.visible === true);
      const runs = [...new Set(shown.flatMap((one) => one.meta.runs))].sort((a, b) => a - b);
      return runs.length === count ? {runs} : null;
    }"""
    found: list[int] = tab.wait_for_function(script, arg=[figure, count]).json_value()["runs"]
    return found


@pytest.fixture(scope="module")
def seen(browser: Any, page_file: Path) -> Iterator[SimpleNamespace]:
    found = opened(browser, page_file)
    yield found
    found.tab.close()
    assert (found.said, len(found.asked)) == ([], 1)  # no complaint, and no request but the page itself


@pytest.fixture
def tab(seen: SimpleNamespace) -> Iterator[Any]:
    """The page of all runs, left as it was found."""
    yield seen.tab
    seen.tab.emulate_media(color_scheme="light", media="screen")
    seen.tab.set_viewport_size({"width": 1280, "height": 720})


def test_every_figure_is_drawn(tab: Any, page: Page) -> None:
    drawn = tab.evaluate(
        "[...document.querySelectorAll('.plot')].map((one) => [one.id, one.querySelectorAll('.scatterlayer .trace, .heatmaplayer image').length,"
        " one.getAttribute('role'), one.getAttribute('aria-label').length])"
    )
    assert {slug for slug, *_ in drawn} == set(page.figures)
    for slug, count, role, alt in drawn:
        assert count >= 1 and role == "img" and alt > 40, slug


def test_runs_are_toggled_everywhere(tab: Any) -> None:
    every = list(range(12))
    assert runs_in(tab, "loss", 12) == every
    box = tab.locator("[data-shows='0']")
    box.focus()
    tab.keyboard.press("Space")  # as with a mouse
    for figure in ("loss", "accuracy"):
        assert runs_in(tab, figure, 11) == every[1:]
    assert tab.locator("[data-run='0']:visible").count() == 0
    tab.get_by_role("button", name="none").click()
    assert runs_in(tab, "loss", 0) == [] and tab.locator("[data-run]:visible").count() == 0
    tab.get_by_role("button", name="all", exact=True).click()
    assert runs_in(tab, "loss", 12) == every and tab.locator("[data-run='0']:visible").count() > 3


def test_stages_are_gone_through(tab: Any) -> None:
    part = tab.locator(".examples").first
    stages = part.locator("tbody").count()
    assert stages > 1 and part.locator("tbody:visible").count() == 1
    assert part.locator("tbody:visible").get_attribute("data-stage") == str(stages - 1)
    part.get_by_role("button", name="earlier stage").click()
    assert part.locator("tbody:visible").get_attribute("data-stage") == str(stages - 2)
    part.locator("select").select_option("0")
    assert part.locator("tbody:visible").get_attribute("data-stage") == "0"


def lightness(color: str) -> float:
    """Of rgb(...): relative luminance as in WCAG 2."""
    channels = [int(one) / 255 for one in re.findall(r"\d+", color)[:3]]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrasts(tab: Any) -> dict[str, float]:
    """Of the page's texts, the figures' texts and the lines of runs, with the page behind them."""
    colors = tab.evaluate(
        """() => {
          const of = (query, key) => [...document.querySelectorAll(query)].map((one) => getComputedStyle(one)[key]);
          return {
            page: of("body", "backgroundColor"), text: of("body, figcaption, caption, a, .right, .wrong", "color"),
            figure: of("#loss .xtick text, #loss .ytitle", "fill"), line: of("#loss .js-line", "stroke"),
          };
        }"""
    )
    paper = lightness(colors.pop("page")[0])

    def contrast(color: str) -> float:
        bright, dark = max(paper, lightness(color)), min(paper, lightness(color))
        return (bright + 0.05) / (dark + 0.05)

    return {kind: min(map(contrast, found)) for kind, found in colors.items()} | {"paper": paper}


@pytest.mark.parametrize("scheme,media", [("light", "screen"), ("dark", "screen"), ("dark", "print")])
def test_it_is_legible_in_the_light_in_the_dark_and_on_paper(tab: Any, scheme: str, media: str) -> None:
    tab.emulate_media(color_scheme=scheme, media=media)
    tab.locator("#loss").scroll_into_view_if_needed()
    ink = "getComputedStyle(document.querySelector('#loss .ytitle')).fill === getComputedStyle(document.body).color"
    tab.wait_for_function(ink)  # the figure has followed
    found = contrasts(tab)
    assert (found["paper"] < 0.05) is (scheme == "dark" and media == "screen")
    assert found["text"] >= 4.5 and found["figure"] >= 4.5
    assert found["line"] >= 2  # Okabe and Ito's yellow and sky blue are light; shapes tell runs apart as well
    if media == "print":
        assert tab.locator("nav:visible, .toggles button:visible, .pick:visible").count() == 0


def test_it_prints_and_is_as_before_afterwards(tab: Any) -> None:
    tab.locator("#loss").scroll_into_view_if_needed()
    fits = "Math.abs(document.querySelector('#loss .main-svg').clientWidth - document.querySelector('#loss').clientWidth) < 20"
    tab.wait_for_function(fits)  # another test may have had another screen
    assert tab.evaluate("document.querySelector('#loss').clientWidth") > 800  # wider than paper
    pdf = tab.pdf(format="A4")
    assert pdf[:5] == b"%PDF-" and len(pdf) > 50_000
    tab.wait_for_function(fits)


def test_a_narrow_screen_scrolls_tables_not_the_page(tab: Any) -> None:
    tab.set_viewport_size({"width": 360, "height": 700})
    tab.locator("#loss").scroll_into_view_if_needed()
    tab.wait_for_function("document.querySelector('#loss .main-svg').clientWidth <= 360")
    tab.wait_for_function("document.documentElement.scrollWidth <= 360")  # every figure has followed


@pytest.mark.long
def test_text_of_runs_is_text(browser: Any, hostile: Path, runs: Path, tmp_path: Path) -> None:
    """Also where plotly or matplotlib would read it as something else."""
    command("report", str(hostile), str(runs / "killed"), f"out={tmp_path / 'page.html'}", f"figures={tmp_path / 'f'}")
    found = opened(browser, tmp_path / "page.html")
    tab = found.tab
    tab.locator("#accuracy").hover(position={"x": 200, "y": 60})
    assert tab.evaluate("window.hacked") is None and (found.said, len(found.asked)) == ([], 1)
    assert tab.locator("img").count() == 0
    text = tab.locator("main").inner_text()
    for wanted in (HOSTILE, "{{ 7 * 7 }}", hostile.name):
        assert wanted in text
    shown_label = tab.evaluate("document.getElementById('accuracy')._fullData[0].hovertext[0]")
    assert "&lt;img" in shown_label and "<img" not in shown_label
    assert hostile.name in "".join(ET.parse(tmp_path / "f" / "accuracy.svg").getroot().itertext())
    tab.close()


def test_one_run_has_a_page_of_its_own(browser: Any, runs: Path, tmp_path: Path) -> None:
    command("report", str(runs / "baselines" / "no_cot"), f"out={tmp_path / 'page.html'}")
    found = opened(browser, tmp_path / "page.html")
    assert found.tab.locator("[data-shows]").count() == 0
    tiles: Sequence[str] = found.tab.locator(".tiles dd").all_inner_texts()
    summary = json.loads((runs / "baselines" / "no_cot" / "summary.json").read_text())
    assert tiles[0].startswith(f"{summary['test_accuracy']:.1%}") and tiles[1] == "2 of 2"
    assert (found.said, len(found.asked)) == ([], 1)
    found.tab.close()
