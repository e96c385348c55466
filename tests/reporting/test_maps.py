"""Maps over two swept keys and laws: what is drawn and said, on runs made up here, and on a sweep that was trained."""

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.reporting.figures.maps import compact, map_slug, place_text, sweep_map
from stepwise_pl.reporting.static import write_figure
from stepwise_pl.reporting.sweep_laws import Law, law_lines, law_rows, laws_of, require_numbers
from stepwise_pl.reporting.sweep_maps import swept_key
from stepwise_pl.runs.cells import Cell, SweepRun
from stepwise_pl.runs.measures import MEASURES, MeasuredRun
from stepwise_pl.runs.sweep_folder import FAILED, FINISHED, RUNNING, WAITING, Job, write_job
from stepwise_pl.sweep import SweepConfig
from tests.conftest import REPO, SMALL, command, made_once


def run(
    value: float | None, seed: int = 0, outcome: str = FINISHED, never_at_95: bool = False, **config: object
) -> MeasuredRun:
    """A job; `a_b` in the name of a key stands for `a.b`."""
    keys = {key.replace("_", "."): str(text) for key, text in config.items()}
    return MeasuredRun(keys, str(seed), "", outcome, value, never_at_95)


# --- maps


def test_a_place_says_mean_n_and_the_range_of_its_seeds() -> None:
    share, tokens = MEASURES["removed_share"], MEASURES["removed_at_95"]
    assert place_text([run(0.5), run(1.0, 1)], share) == "75.0%\nn=2\n50.0%–100.0%"
    assert place_text([run(0.5), run(0.5, 1)], share) == "50.0%\nn=2"
    assert place_text([run(3), run(0, 1, never_at_95=True)], tokens) == "1.5\nn=2\n0–3\n1 below 95%"
    assert place_text([run(3), run(None, 1)], tokens) == "3\nn=1 of 2"
    assert place_text([run(None), run(None, 1)], tokens) == "none\nn=0 of 2"
    # Jobs that have not ended say nothing of the measure.
    assert place_text([run(3), run(None, 1, RUNNING)], tokens) == "3\nn=1"
    assert place_text([run(None, 0, WAITING), run(None, 1, FAILED)], tokens) == place_text([], tokens) == ""


def test_a_map_has_its_axes_by_number_and_a_panel_for_each_combination_of_the_other_keys() -> None:
    runs = [
        run(bits + layers / 10 + width, seed, task_bits=bits, model_layers=layers, model_width=width)
        for bits in (16, 4, 8) for layers in (2, 1) for width in (64, 32) for seed in (0, 1)
        if (bits, layers, width) != (8, 1, 32)
    ]  # fmt: skip
    drawn = sweep_map(runs, "seconds", "task.bits", "model.layers", "mine")
    assert drawn is not None
    assert [panel.title for panel in drawn.panels] == ["model.width=64", "model.width=32"]
    for panel, width in zip(drawn.panels, (64, 32), strict=True):
        assert (panel.x, panel.y) == (["4", "8", "16"], ["1", "2"])
        wanted = [[bits + layers / 10 + width for bits in (4, 8, 16)] for layers in (1, 2)]
        if width == 32:
            assert panel.values[0].pop(1) is None and panel.texts[0][1] == ""
            wanted[0].pop(1)
        assert [found for row in panel.values for found in row] == pytest.approx(
            [found for row in wanted for found in row]
        )
    assert drawn.high == pytest.approx(16 + 0.2 + 64) and not drawn.percent
    assert (drawn.slug, drawn.x_label, drawn.y_label) == (
        "map-seconds-task.bits-model.layers",
        "task.bits",
        "model.layers",
    )


def test_groups_stand_in_the_order_given() -> None:
    runs = [
        run(0.5, task=task, schedule=schedule) for task in ("mult3x2", "mult2x2") for schedule in ("no_cot", "linear")
    ]
    drawn = sweep_map(runs, "removed_share", "task", "schedule", "mine")
    assert drawn is not None and (drawn.x, drawn.y) == (["mult3x2", "mult2x2"], ["no_cot", "linear"])
    assert (drawn.percent, drawn.high, [panel.title for panel in drawn.panels]) == (True, 1.0, [""])


def test_runs_of_another_length_are_not_averaged_with_the_others() -> None:
    """A sweep may have gone on with a longer `trainer.duration`, which then is a key of some runs."""
    runs = [run(1.0, a=1, b=1), run(0.0, 1, a=1, b=1, trainer_duration="8steps")]
    drawn = sweep_map(runs, "removed_share", "a", "b", "mine")
    assert drawn is not None
    assert {panel.title: panel.values for panel in drawn.panels} == {"": [[1.0]], "trainer.duration=8steps": [[0.0]]}


def test_runs_that_did_not_sweep_a_key_are_left_out() -> None:
    """A sweep may have gone on with a command that sweeps another key as well."""
    runs = [run(1.0, a=1), run(0.5, a=2, b=1), run(0.0, a=4, b=1)]
    drawn = sweep_map(runs, "removed_share", "a", "b", "mine")
    assert drawn is not None and drawn.panels[0].values == [[0.5, 0.0]]
    assert [(law.combination, law.runs + law.missing) for law in laws_of(runs, "b")] == [
        ({"a": "2"}, 1),
        ({"a": "4"}, 1),
        ({}, 1),
    ]


def test_a_map_is_drawn_once_a_run_has_ended_and_its_frame_has_the_places_to_come() -> None:
    waiting = [run(None, outcome=WAITING, a=a, b=b) for a in (2, 1) for b in (1, 2)]
    assert sweep_map(waiting, "removed_share", "a", "b", "mine") is None
    drawn = sweep_map([*waiting, run(0.0, a=3, b=1)], "removed_share", "a", "b", "mine")
    assert drawn is not None and drawn.panels[0].texts == [["", "", "0.0%\nn=1"], ["", "", ""]]


def test_a_map_of_runs_without_a_number_says_so_and_is_drawn(tmp_path: Path) -> None:
    drawn = sweep_map([run(None, seed, a=1, b=1) for seed in (0, 1)], "examples", "a", "b", "mine")
    assert drawn is not None and (drawn.panels[0].values, drawn.panels[0].texts) == ([[None]], [["none\nn=0 of 2"]])
    assert drawn.alt.endswith("Means: none.") and drawn.high > 0
    assert {path.name for path in write_figure(drawn, [], tmp_path)} == {"map-examples-a-b.png", "map-examples-a-b.svg"}


def test_numbers_of_zero_have_a_scale_of_colours() -> None:
    drawn = sweep_map([run(0, a=1, b=1)], "removed_at_95", "a", "b", "mine")
    assert drawn is not None and drawn.high > 0


def test_names_of_files_are_safe() -> None:
    assert (
        map_slug("seconds", "+model.config.n_inner", "task.values[0]/x y")
        == "map-seconds-model.config.n_inner-task.values_0__x_y"
    )


@pytest.mark.parametrize(
    "number,text",
    [(0, "0"), (8, "8"), (1.5, "1.5"), (999, "999"), (999.6, "1k"), (12_800, "12.8k"), (999_600, "1M"), (3_567_734, "3.57M"), (2e9, "2G")],
)  # fmt: skip
def test_numbers_are_short(number: float, text: str) -> None:
    assert compact(number) == text


# --- keys


def test_a_key_that_was_not_swept_is_refused_with_those_that_were() -> None:
    cells: list[Cell[SweepRun]] = [Cell(0, {"task.terms": "3", "+model.config.n_inner": "64"}, [], [])]
    assert swept_key("x", "task.terms", cells) == "task.terms"
    assert (
        swept_key("x", "model.config.n_inner", cells)
        == swept_key("x", "+model.config.n_inner", cells)
        == "+model.config.n_inner"
    )
    for named, message in (
        ("task.term", "x=task.term: was not swept; the swept keys are task.terms, model.config.n_inner"),
        (
            "seed",
            "x=seed: maps and laws are about all seeds together; the swept keys are task.terms, model.config.n_inner",
        ),
    ):
        with pytest.raises(UserError) as refused:
            swept_key("x", named, cells)
        assert str(refused.value) == message
    with pytest.raises(UserError, match="x=a: was not swept; no key besides the seed was swept"):
        swept_key("x", "a", [Cell(0, {}, [], [])])


@pytest.mark.parametrize(
    "values,message",
    [
        (["adaptive", "no_cot"], "fit=a: adaptive is no number; a power law needs a key whose values are numbers"),
        (["2", "inf"], "fit=a: has the value inf; a power law needs finite numbers above 0"),
        (["0", "1"], "fit=a: has the value 0; a power law needs finite numbers above 0"),
        (["8steps", "2epochs"], "fit=a: its values have several units (epochs, steps); a power law needs one"),
        (["nan"], "fit=a: has the value nan; a power law needs finite numbers above 0"),
        (["1/0"], "fit=a: 1/0 is no number; a power law needs a key whose values are numbers"),
    ],
)
def test_a_law_needs_numbers(values: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        require_numbers([run(1.0, a=value) for value in values], "a")
    assert str(refused.value) == message
    require_numbers([run(1.0, a=value) for value in ("1/2", "2", "3.5")], "a")
    require_numbers([run(1.0, a=value) for value in ("8steps", "16 steps")], "a")


# --- laws


def laws(values: Sequence[tuple[float, float | None]], **more: object) -> Law:
    """The law of pairs of key and value."""
    (law,) = laws_of([run(value, seed, key=key, **more) for seed, (key, value) in enumerate(values)], "key")
    return law


def test_a_law_is_told_with_its_interval_and_its_runs() -> None:
    random = np.random.default_rng(5)
    law = laws(
        [(key, 7 * key**1.5 * math.exp(0.1 * random.standard_normal())) for key in (2, 4, 8, 16) for _ in range(3)]
    )
    assert law.no_law == "" and law.fit is not None and law.fit.low < 1.5 < law.fit.high
    (line,) = law_lines([law], "key")
    assert line == (
        f"all  b={law.fit.exponent:.3g} [{law.fit.low:.3g}, {law.fit.high:.3g}], a={law.fit.factors['all']:.3g}; "
        "12 runs at 4 values of key"
    )


@pytest.mark.parametrize(
    "values,line",
    [
        ([(2, 1.0), (2, 1.1), (4, 2.0), (4, 2.1)], "no law: 2 values of the key, where a law needs 3"),
        ([(2, 5.0), (4, 5.1), (8, 4.9), (16, 5.0), (32, 5.02)], "no law: the exponent may be 0: b=-"),
        ([(2, 1.0), (4, 1.0), (8, 1.0), (16, 1.0)], "no law: the exponent may be 0: b="),
        ([(2, 1.0), (4, 2.1), (8, 7.9), (16, 63.0), (32, 1100.0)], "no power law: the slope changes: "),
        ([(2, 1.0), (4, 2.0), (8, 0.0)], "no law: 1 of 3 runs have no number above 0 (1 with 0), a third or more, which may lack it for a reason"),
        ([(2, 1.0), (4, None), (8, 0.0), (16, 4.0)], "no law: 2 of 4 runs have no number above 0 (1 with 0, 1 with none), a third or more"),
        ([(2, None)], "no law: 1 of 1 runs have no number above 0 (1 with none)"),
    ],
)  # fmt: skip
def test_no_law_is_told_with_its_reason(values: list[tuple[float, float | None]], line: str) -> None:
    law = laws(values)
    (told,) = law_lines([law], "key")
    assert told.startswith(f"all  {line}") and law.no_law
    (row,) = law_rows([law], "seconds", "key")
    assert (row["law"], row["reason"]) == ("no", law.no_law)


def test_few_missing_runs_are_left_out_and_counted() -> None:
    runs = [run(float(key), key=key) for key in (1, 2, 4, 8, 16)]
    runs += [run(None, outcome=FAILED, key=32), run(0.0, key=32)]
    (law,) = laws_of(runs, "key")
    assert law_lines([law], "key") == [
        "all  b=1 [1, 1], a=1; 5 runs at 5 values of key; 2 of 7 runs have no number above 0 (1 with 0, 1 failed), left out"
    ]
    # Jobs that have yet to end are not missing.
    (law,) = laws_of([*runs[:5], *(run(None, outcome=WAITING, key=64) for _ in range(9))], "key")
    assert law_lines([law], "key") == ["all  b=1 [1, 1], a=1; 5 runs at 5 values of key; 9 not ended"]
    (law,) = laws_of([run(None, outcome=WAITING, key=64)], "key")
    assert law_lines([law], "key") == ["all  no law: no run has ended; 1 not ended"]


def test_three_runs_cannot_be_tested_for_a_bend() -> None:
    assert law_lines([laws([(1, 1.0), (2, 2.001), (4, 4.0)])], "key")[0].endswith("too few to test for a bend")


def test_combinations_have_a_law_each_and_one_exponent_together() -> None:
    """Width 64 needs ten times as much as width 32. Without an intercept for each, the exponent would be drawn to 0."""
    random = np.random.default_rng(9)
    runs = [
        run(factor * bits**2 * math.exp(0.05 * random.standard_normal()), seed, width=width, bits=bits)
        for width, factor, sizes in ((32, 10.0, (2, 4, 8)), (64, 0.1, (8, 16, 32))) for bits in sizes for seed in (0, 1)
    ]  # fmt: skip
    alone, other, pooled = laws_of(runs, "bits")
    assert [law.combination for law in (alone, other, pooled)] == [{"width": "32"}, {"width": "64"}, {}]
    assert not any(law.no_law for law in (alone, other, pooled))
    assert pooled.fit is not None and alone.fit is not None and other.fit is not None
    assert (pooled.fit.freedom, pooled.fit.points) == (12 - 3, 12)
    assert pooled.fit.low < 2 < pooled.fit.high and pooled.fit.high - pooled.fit.low < 0.2
    assert list(pooled.fit.factors.values()) == pytest.approx([10, 0.1], rel=0.2)
    rows = law_rows([alone, other, pooled], "examples", "bits")
    assert [(row["width"], row["fit"], row["law"]) for row in rows] == [
        ("32", "alone", "yes"),
        ("64", "alone", "yes"),
        ("", "pooled", "yes"),
    ]
    assert [row["b"] for row in rows] == [law.fit.exponent for law in (alone, other, pooled) if law.fit]
    assert rows[2]["a"] is None and [line.split()[0] for line in law_lines([alone, pooled], "bits")] == [
        "width=32",
        "pooled",
    ]


def test_a_pooled_law_leaves_out_combinations_that_miss_too_many_runs() -> None:
    """Those runs that a combination still has may be its lucky ones."""
    whole = [run(factor * key**2, width=factor, key=key) for factor in (1, 5) for key in (1, 2, 4, 8)]
    lucky = [run(value, width=9, key=key) for key, value in ((1, 1.0), (2, 1.0), (4, 0.0), (8, None))]
    pooled = laws_of([*whole, *lucky], "key")[-1]
    assert (pooled.runs, pooled.missing, pooled.left_out) == (8, 0, 1)
    assert law_lines([pooled], "key") == [
        "pooled  b=2 [2, 2]; 8 runs at 4 values of key; 1 combination left out, for want of a third of the runs or more"
    ]
    for runs, reason in (
        ([*whole[:4], *lucky], "1 combination has numbers to be fitted, where a pooled law needs 2"),
        ([*lucky, run(0.0, width=5, key=1)], "no combination has numbers to be fitted, where a pooled law needs 2"),
    ):
        assert laws_of(runs, "key")[-1].no_law == reason


def test_a_pooled_law_needs_three_values_in_one_combination() -> None:
    """Two exact laws of two values each, with exponents of their own, would pass for one bent law of three values."""
    runs = [
        run(key**exponent * (1 + 0.01 * seed), seed, task=task, key=key)
        for task, exponent, keys in (("a", 1, (2, 4)), ("b", 2, (4, 8))) for key in keys for seed in (0, 1, 2)
    ]  # fmt: skip
    pooled = laws_of(runs, "key")[-1]
    assert pooled.no_law == "2 values of the key in a combination, at most, where a law needs 3"


# --- the command, on a sweep that was trained


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six runs of 2 steps, by Δ and λ."""

    def make(folder: Path) -> None:
        command(
            "train", "-m", *SMALL, "trainer.duration=2steps", "trainer.checkpoint_every_n_steps=1000", "schedule.delta=2,1,1/2",
            "schedule.smoothing=inf,2", f"run_dir={folder / 'sweep'}",
        )  # fmt: skip

    return made_once("swept", make, tmp_path_factory) / "sweep"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_draws_a_map_that_its_csv_can_draw_again(swept: Path) -> None:
    out = command(
        "sweep", str(swept), "x=schedule.delta", "y=schedule.smoothing", "value=tokens_read", "fit=schedule.delta"
    ).stdout
    slug = "map-tokens_read-schedule.delta-schedule.smoothing"
    assert (
        f"map             tokens_read: {MEASURES['tokens_read'].meaning}\n" in out
        and f"{swept / slug}.png, .svg, .csv\n" in out
    )
    assert (swept / f"{slug}.png").stat().st_size > 1000
    found = rows_of(swept / f"{slug}.csv")
    assert list(found[0]) == ["schedule.delta", "schedule.smoothing", "seed", "run", "outcome", "tokens_read"]
    drawn = (swept / f"{slug}.svg").read_text()
    for delta in ("2", "1", "1/2"):
        for smoothing in ("inf", "2"):
            here = [row for row in found if (row["schedule.delta"], row["schedule.smoothing"]) == (delta, smoothing)]
            assert [row["seed"] for row in here] == ["0"]
            numbers = [json.loads((swept / row["run"] / "summary.json").read_text())["tokens_read"] for row in here]
            assert [int(row["tokens_read"]) for row in here] == numbers
            assert f">{compact(numbers[0])}<" in drawn
    assert drawn.count(">n=1<") == 6
    fits = rows_of(swept / "fits.csv")
    assert [(row["schedule.smoothing"], row["fit"]) for row in fits] == [
        ("inf", "alone"),
        ("2", "alone"),
        ("", "pooled"),
    ]
    assert "laws            tokens_read = a · schedule.delta^b, " in out and "\n                pooled " in out
    # The table and its files are those of the command without a map.
    before = {name: (swept / name).read_bytes() for name in ("sweep.csv", "sweep.json", "sweep.png", "sweep-grid.png")}
    plain = command("sweep", str(swept)).stdout
    assert out.startswith(plain.rstrip("\n"))
    assert before == {name: (swept / name).read_bytes() for name in before}


def test_the_command_works_while_the_sweep_goes_on(swept: Path, tmp_path: Path) -> None:
    """One run is at work, one has failed, and one has lost its folder, as if it had not begun."""
    folder = shutil.copytree(swept, tmp_path / "sweep")
    jobs = [Job(**json.loads(path.read_text())) for path in sorted(folder.rglob("job.json"))]
    for job, outcome in zip(jobs, (RUNNING, FAILED), strict=False):
        job.outcome, job.process = outcome, "1 on another-machine"
        write_job(folder, job)
    shutil.rmtree(folder / jobs[2].run)
    out = command("sweep", str(folder), "x=schedule.delta", "y=schedule.smoothing", "fit=schedule.delta").stdout
    found = rows_of(folder / "map-removed_share-schedule.delta-schedule.smoothing.csv")
    assert len(found) == 6 and [row["outcome"] for row in found].count(FINISHED) == 3
    assert {row["outcome"] for row in found if not row["removed_share"]} == {RUNNING, FAILED, "stopped"}
    assert "not ended" in out


@pytest.mark.parametrize(
    "words,message",
    [
        ({"x": "a"}, "x=a: a map has two keys; give y=<swept key> as well"),
        ({"y": "a"}, "y=a: a map has two keys; give x=<swept key> as well"),
        ({"x": "+a", "y": "a"}, "y=a: is x as well; a map has two different keys"),
        ({"value": "seconds"}, "value=seconds: is for a map or a law; give x=<swept key> y=<swept key>, or fit=<swept key>"),
        ({"value": "speed", "fit": "a"}, "value=speed: must be one of removed_at_95 (CoT tokens gone at 95%), "),
    ],
)  # fmt: skip
def test_settings_that_make_no_map_are_refused(words: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        SweepConfig("folder", **words)
    assert str(refused.value).startswith(message)


def test_the_command_refuses_keys_that_make_no_map_in_one_line(swept: Path) -> None:
    for words, message in (
        (("x=schedule.delta", "y=task"), "y=task: was not swept; the swept keys are schedule.delta, schedule.smoothing"),
        (("fit=schedule.smoothing",), "fit=schedule.smoothing: has the value inf; a power law needs finite numbers above 0"),
    ):  # fmt: skip
        out = command("sweep", str(swept), *words, check=False)
        assert (out.returncode, out.stdout, out.stderr.strip()) == (2, "", f"error: {message}")


def test_help_and_documents_say_what_each_measure_means() -> None:
    shown = " ".join(command("sweep", "--help").stdout.split())
    page = " ".join((REPO / "docs" / "sweeps.md").read_text().split())
    for name, measure in MEASURES.items():
        assert f"{name} {measure.meaning}" in shown
        assert f"| `{name}` | {measure.meaning} |" in page
