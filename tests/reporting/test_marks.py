"""The marks in figures that accuracy is compared with, names on the page, and captions that explain only what is drawn."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.training import ExpectedConfig
from stepwise_pl.methods import Auxiliary
from stepwise_pl.report import ReportConfig
from stepwise_pl.reporting.figures.accuracy import accuracy_chart, mean_accuracy_chart
from stepwise_pl.reporting.figures.budget import budget_chart, examples_chart
from stepwise_pl.reporting.figures.data import Chart, Series
from stepwise_pl.reporting.figures.speed import speed_charts
from stepwise_pl.reporting.history import History, read_runs, shortened
from stepwise_pl.reporting.interactive import spec
from stepwise_pl.reporting.page import Figures, kicker, render
from stepwise_pl.reporting.static import write_figure
from stepwise_pl.reporting.tables import HEAD, RECIPE, key_numbers
from stepwise_pl.schedules import Linear
from tests.reporting.handmade import BAND, STEPS, write_evaluation, write_run

EXPLICIT, NO_COT = Linear(remove_at_most=0), Linear(remove_all_beyond=0)


def series(chart: Chart | None, meaning: str) -> list[Series]:
    assert chart is not None
    return [one for one in chart.panels[0].series if one.meaning == meaning]


def page_of(runs: list[History], **more: float) -> str:
    return render(runs, Figures.of(runs), [], "now", "report", **more)


@pytest.fixture
def with_baselines(tmp_path: Path) -> list[History]:
    write_run(tmp_path / "run")
    write_run(tmp_path / "explicit", (0.7, 0.8), (0, 0), schedule=EXPLICIT)
    write_run(tmp_path / "none", (0.1, 0.2), (2, 2), schedule=NO_COT)
    return read_runs([tmp_path / name for name in ("run", "explicit", "none")])


def test_each_baseline_is_a_line_at_its_last_validation(with_baselines: list[History]) -> None:
    chart = accuracy_chart(with_baselines)
    found = series(chart, "level of a baseline")
    assert [(list(one.x), list(one.y), one.labels, one.runs) for one in found] == [
        ([0, 2], [0.8, 0.8], ["", "explicit CoT"], [1]),
        ([0, 2], [0.2, 0.2], ["no CoT", ""], [2]),
    ]
    assert chart is not None and "Long dashes, across the chart" in chart.caption
    # Over examples a baseline is a line already, with its name at the end.
    over_examples = examples_chart(with_baselines)
    assert over_examples is not None
    assert [one.labels for one in over_examples.panels[0].series if one.line == "solid"] == [
        [],
        ["", "explicit CoT"],
        ["", "no CoT"],
    ]


def test_without_a_baseline_no_line_is_explained(tmp_path: Path) -> None:
    chart = accuracy_chart(read_runs([write_run(tmp_path / "run")]))
    assert chart is not None and "dashes" not in chart.caption and not series(chart, "level of a baseline")


def test_accuracy_over_examples_has_every_validation_and_marks_where_tokens_left(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run", (0.9, 0.5, 0.8, 0.95), (0, 1, 1, 2))])
    size = run.config["data.batch_size"]
    chart = examples_chart([run])
    assert chart is not None
    drawn = next(one for one in chart.panels[0].series if one.line == "solid")
    assert (drawn.x, drawn.y) == ([size * STEPS * k for k in (1, 2, 3, 4)], [0.9, 0.5, 0.8, 0.95])
    (ticks,) = series(chart, "CoT tokens left")
    assert ticks.x == [size * STEPS * k for k in (2, 4)] and "Ticks below" in chart.caption
    over_tokens = budget_chart([run])
    assert over_tokens is not None and "Ticks" not in over_tokens.caption
    assert over_tokens.panels[0].series[0].x == [1000 * STEPS * k for k in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "ended,changed,counts,shown",
    [
        (True, (), "answer", True), (False, (), "answer", True), (True, ("optimizer.lr",), "answer", False),
        (False, ("optimizer.lr",), "answer", False), (False, None, "answer", False), (False, (), "last_number", False),
    ],
)  # fmt: skip
def test_the_band_of_the_recipe_is_drawn_if_the_run_is_that_of_the_recipe(
    ended: bool, changed: tuple[str, ...] | None, counts: str, shown: bool, tmp_path: Path
) -> None:
    expected = ExpectedConfig(accuracy=[0.9, 1.0], source="a table", counts=counts)
    (run,) = read_runs([write_run(tmp_path / "run", expected=expected, ended=ended, changed=changed)])
    for chart in (accuracy_chart([run]), examples_chart([run]), budget_chart([run])):
        found = series(chart, "band of the recipe")
        assert [(one.low, one.high, one.runs) for one in found] == ([([0.9] * 2, [1.0] * 2, [0])] if shown else [])
        assert chart is not None and ("Grey area" in chart.caption) is shown
    cell = dict(zip(HEAD, key_numbers(run), strict=True))[RECIPE]
    assert cell == ("inside 90.0–100.0%" if shown and ended else "90.0–100.0%" if shown else "–")
    assert (RECIPE.replace("'", "&#39;") in page_of([run])) is shown


def test_a_run_outside_the_band_says_so(tmp_path: Path) -> None:
    runs = read_runs([
        write_run(tmp_path / "a", (0.9, 0.5, 0.6), expected=BAND),
        write_run(tmp_path / "b", (0.9, 0.5, 0.95), expected=ExpectedConfig(accuracy=[0.5, 0.9], source="a table")),
    ])  # fmt: skip
    texts = [dict(zip(HEAD, key_numbers(run), strict=True))[RECIPE] for run in runs]
    assert texts == ["BELOW 90.0–100.0%", "above 50.0–90.0%"]
    assert len(series(accuracy_chart(runs), "band of the recipe")) == 2


def test_the_mean_over_seeds_has_the_band_once(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / f"seed{seed}", expected=BAND, seed=seed) for seed in (0, 1)])
    (band,) = series(mean_accuracy_chart(runs), "band of the recipe")
    assert (band.runs, list(band.x)) == ([0, 1], [0, 2])


def test_a_band_is_an_area_for_both_painters(tmp_path: Path) -> None:
    chart = accuracy_chart(read_runs([write_run(tmp_path / "run", expected=BAND)]))
    assert chart is not None
    (area,) = (trace for trace in spec(chart)["data"] if trace.get("fill"))
    assert (area["x"], area["y"], area["fill"]) == ([0, 2, 2, 0], [0.9, 0.9, 1.0, 1.0], "toself")
    svg = next(file for file in write_figure(chart, ["run"], tmp_path) if file.suffix == ".svg").read_text()
    assert "band of the recipe" in svg and "PolyCollection" in svg


def test_a_stale_evaluation_is_in_no_figure(tmp_path: Path) -> None:
    """The checkpoint has been written again since: what was measured is not about the weights that are there."""
    run = write_run(tmp_path / "run")
    fresh = write_evaluation(run, 0, 0.9, 10.0)
    stale = write_evaluation(run, 2, 0.4, 30.0)
    (run / "checkpoints" / "removed-2.ckpt").write_text("other weights")
    assert (run / "checkpoints" / "removed-2.ckpt").stat().st_mtime_ns >= stale.stat().st_mtime_ns
    (history,) = read_runs([run])
    (chart,) = speed_charts([history])
    assert [(list(one.x), list(one.y)) for one in chart.panels[0].series] == [([10.0], [0.9])]
    assert any(stale.name in note and "left out" in note for note in history.notes)
    assert not any(fresh.name in note for note in history.notes)


def test_the_caption_of_speed_explains_what_is_drawn_and_nothing_else(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", method=Auxiliary())
    write_evaluation(one, 0, 0.9, 10.0)
    (chart,) = speed_charts(read_runs([one]))
    for word in ("frontier", "Dotted", "Dashed", "Lines join"):
        assert word not in chart.caption
    write_evaluation(one, 2, 0.8, 20.0)
    (chart,) = speed_charts(read_runs([one]))
    assert (
        "Lines join" in chart.caption
        and "Numbers are removed CoT tokens" in chart.caption
        and "frontier" not in chart.caption
    )
    # The second run is beaten everywhere: the frontier is one point, and no line.
    write_evaluation(other, 0, 0.95, 40.0)
    (chart,) = speed_charts(read_runs([one, other]))
    assert not series(chart, "frontier of all runs") and "frontier" not in chart.caption
    write_evaluation(other, 0, 0.85, 40.0)
    (chart,) = speed_charts(read_runs([one, other]))
    assert series(chart, "frontier of all runs") and "Dashed: the frontier" in chart.caption


# Names.

PARTS = st.text(st.characters(exclude_characters="/\x00", codec="ascii"), min_size=1, max_size=120)


@given(st.sets(st.lists(PARTS, min_size=1, max_size=6).map("/".join), min_size=1, max_size=6))
def test_names_are_short_as_far_as_they_still_differ(names: set[str]) -> None:
    given = sorted(names)
    short = shortened(given)
    assert len(set(short)) == len(given)
    for name, one in zip(given, short, strict=True):
        assert len(one) <= len(name) and (len(name) > 48 or one == name)
    if len(given) == 1 and given[0].count("/") <= 1:
        assert len(short[0]) <= 97


def test_the_ends_of_a_long_name_are_kept() -> None:
    assert shortened(["a" * 100 + "/seed0", "a" * 100 + "/seed1"]) == [
        f"{'a' * 24}…{'a' * 23}/seed{seed}" for seed in (0, 1)
    ]
    # These differ in the middle alone.
    pair = ["q" * 60 + "a" + "q" * 60, "q" * 60 + "b" + "q" * 60]
    assert shortened(pair) == pair
    (path,) = shortened(["/".join(f"folder{number}" for number in range(40))])
    assert path.startswith("folder0/…/") and path.endswith("/folder38/folder39") and len(path) <= 96


def test_a_long_name_stands_in_full_once(tmp_path: Path) -> None:
    name = "n" * 200
    runs = read_runs([write_run(tmp_path / name), write_run(tmp_path / "short")])
    text = page_of(runs)
    assert "Names in full" in text and text.count(name) == 1
    assert "Names in full" not in page_of(read_runs([tmp_path / "short"]))


def test_the_page_is_called_after_the_methods_of_its_runs(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", method=Auxiliary())])
    assert (kicker(runs), kicker(runs[1:])) == ("methods stepwise, auxiliary", "method auxiliary")
    assert '<p class="kicker">method auxiliary</p>' in page_of(read_runs([tmp_path / "b"]))


def test_only_a_page_that_is_watched_loads_itself_again(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a")])
    assert 'id="live"' not in page_of(runs)
    assert 'data-every="7"' in page_of(runs, every=7)
    for every in (0, 0.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match="^every="):
            ReportConfig(runs=["a"], every=every)


def test_a_stage_with_a_name_is_called_a_stage_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", method=Auxiliary())
    sample = {"prompt": "1 * 1", "target": "1", "prediction": "1", "right": True}
    records = [
        {
            "step": STEPS * number, "attempt": 0, "removed_tokens": removed, "stage": name, "examples": 100, "accuracy": 0.9,
            "digits": [0.9], "samples": [sample],
        }
        for number, (removed, name) in enumerate(((0, "read"), (1, "emulate"), (2, "couple")), start=1)
    ]  # fmt: skip
    (run / "stages.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    histories = read_runs([run])
    text = re.sub(r"<[^>]+>|\s+", " ", page_of(histories).partition('<script type="application/json"')[0])
    assert re.search(r"Stage +read, 0 removed", text) and not re.search(
        r"(?i)\bstage +stage +(read|emulate|couple)", text
    )
    hover = json.dumps(Figures.of(histories).specs)
    assert "stage read" in hover and not re.search(r"(?i)stage stage", hover)
