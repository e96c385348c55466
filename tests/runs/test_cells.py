"""Cells: how runs are grouped, and their means in a report, on made-up histories."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stepwise_pl.config import keys
from stepwise_pl.reporting.figures.accuracy import mean_accuracy_chart
from stepwise_pl.reporting.history import History, labelled_cells
from stepwise_pl.reporting.tables import CELL_HEAD, mean_numbers, outcome
from stepwise_pl.runs.cells import cells_of, cells_of_sweep
from stepwise_pl.runs.stages import StageAccuracy
from stepwise_pl.runs.sweep_folder import WAITING, Job, Sweep

CONFIGS = st.lists(
    st.dictionaries(st.sampled_from(["seed", "run_dir", "trainer.keep_at_most", "schedule.delta", "task.digits"]), st.integers(0, 1)),
    max_size=8,
)  # fmt: skip


def places(configs: list[dict[str, int]], *aside: str) -> list[list[int]]:
    return [
        cell.places
        for cell in cells_of([History(Path(), config=config) for config in configs], (*keys.aside(), *aside))
    ]


@given(CONFIGS)
def test_groups_are_equal_but_for_what_does_not_matter(configs: list[dict[str, int]]) -> None:
    kept = [{key: value for key, value in one.items() if key in ("schedule.delta", "task.digits")} for one in configs]
    groups = places(configs)
    assert sorted(place for group in groups for place in group) == list(range(len(configs)))
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)
    group_of = {place: number for number, group in enumerate(groups) for place in group}
    for i, one in enumerate(kept):
        for j, other in enumerate(kept):
            # Nothing is known of a run that has lost its configuration: it is like no other.
            assert (group_of[i] == group_of[j]) == (i == j or (one == other and {} not in (configs[i], configs[j])))


def test_more_may_be_left_aside() -> None:
    configs = [{"schedule.delta": 4, "task.digits": 3}, {"schedule.delta": 8, "task.digits": 3}]
    assert places(configs) == [[0], [1]]
    assert places(configs, "schedule.delta") == [[0, 1]]


def run(
    label: str, seed: int, accuracies: dict[int, float], cell: int = 0, tested: float | None = 0.5, **summary: Any
) -> History:
    """A history with these accuracies of 500 at each number of removed tokens; not ended if `tested` is None.

    Runs of another `cell` have another Δ.
    """
    if tested is not None:
        summary = {
            "test_accuracy": tested, "test_examples": 1000, "removed_tokens": 3, "max_cot_tokens": 3, "collapsed": False, **summary,
        }  # fmt: skip
    stages = [StageAccuracy(removed, 100 * removed, accuracy, 500) for removed, accuracy in accuracies.items()]
    return History(
        Path(label), label, cell, config={"seed": seed, "schedule.delta": 8 + cell}, summary=summary, stages=stages
    )


def row(runs: list[History]) -> dict[str, str]:
    (cell,) = labelled_cells(runs)
    return dict(zip(CELL_HEAD, mean_numbers(cell), strict=True))


SEEDS = ({0: 1.0, 1: 0.5, 2: 0.6}, {0: 1.0, 1: 0.9}, {0: 1.0, 1: 0.7, 3: 0.4})


def test_the_mean_of_three_seeds() -> None:
    runs = [run(f"a/seed{i}", i, found, tested=0.5 + i / 100) for i, found in enumerate(SEEDS)]
    chart = mean_accuracy_chart(runs)
    assert chart is not None
    drawn, *seeds = chart.panels[0].series
    assert [(seed.name, seed.runs, list(seed.x), list(seed.y)) for seed in seeds] == [
        (f"a: seed {i}", [i], list(found), list(found.values())) for i, found in enumerate(SEEDS)
    ]
    assert (drawn.name, drawn.runs, drawn.cell, list(drawn.x)) == ("a", [0, 1, 2], 0, [0, 1])
    assert drawn.y == pytest.approx([1, 0.7])
    wilson = stats.binomtest(500, 500).proportion_ci(method="wilson")
    student = stats.t.interval(0.95, 2, loc=0.7, scale=stats.sem([0.5, 0.9, 0.7]))
    assert drawn.low == pytest.approx([wilson.low, student[0]], abs=1e-6)
    assert drawn.high == pytest.approx([1, min(1, student[1])], abs=1e-6)
    found = row(runs)
    assert (found["runs"], found["seeds"], found["of each seed"]) == ("a", "0, 1, 2", "50.0%, 51.0%, 52.0%")
    low, high = stats.t.interval(0.95, 2, loc=0.51, scale=stats.sem([0.5, 0.51, 0.52]))
    assert (found["test accuracy, mean"], found["95% interval"]) == ("51.0%", f"[{low:.1%}, {high:.1%}] t")
    assert (found["CoT tokens removed"], found["collapsed"]) == ("3 of 3", "0 of 3")


def test_a_run_that_goes_on_is_in_no_mean() -> None:
    ended = [run(f"a/seed{i}", i, found) for i, found in enumerate(SEEDS)]
    alone = mean_accuracy_chart(ended)
    for going_on in (run("a/seed3", 3, {}, tested=None), run("a/seed3", 3, {0: 0.1}, tested=None)):
        together = mean_accuracy_chart([*ended, going_on])
        assert alone is not None and together is not None
        one, other = alone.panels[0].series[0], together.panels[0].series[0]
        assert (one.x, one.y, one.low) == (other.x, other.y, other.low) and other.runs == [0, 1, 2, 3]
        assert row([*ended, going_on])["seeds"] == "0, 1, 2"
        assert mean_accuracy_chart([ended[0], going_on]) is None
        assert row([ended[0], going_on])["95% interval"].endswith("Wilson")
        assert row([going_on, going_on])["test accuracy, mean"] == "–"


def test_a_collapse_that_came_back_is_told() -> None:
    runs = [
        run(f"a/seed{i}", i, found, collapsed_at=at, collapsed=end)
        for i, (found, at, end) in enumerate(zip(SEEDS, (None, 4, 5), (False, False, True), strict=True))
    ]
    assert row(runs)["collapsed"] == "1 of 3 at the end, 1 more on the way"
    assert [outcome(one) for one in runs] == ["ended", "ended, collapsed at 4 removed and came back", "collapsed"]


def test_a_run_made_twice_is_no_second_seed() -> None:
    runs = [run("a/seed0", 0, SEEDS[0]), run("a/seed1", 1, SEEDS[1]), run("a/seed0-2", 0, SEEDS[0])]
    assert mean_accuracy_chart(runs) is None
    assert row(runs)["95% interval"] == "seeds not different" and row(runs)["seeds"] == "0, 1, 0"


def test_a_damaged_summary_counts_as_none() -> None:
    damaged = run("a/seed1", 1, SEEDS[1])
    del damaged.summary["test_examples"]
    assert row([run("a/seed0", 0, SEEDS[0]), damaged])["seeds"] == "0"


def test_means_are_those_of_the_runs_of_a_cell() -> None:
    runs = [
        run(f"{name}/seed{i}", i, {0: level}, cell)
        for cell, (name, level) in enumerate([("a", 0.2), ("b", 0.8)])
        for i in (0, 1)
    ]
    chart = mean_accuracy_chart(runs)
    assert chart is not None
    # Each mean is at one number of removed tokens alone, and no other line tells how far a level would reach.
    assert [(one.name, one.runs, fmean(y for y in one.y if y is not None)) for one in chart.panels[0].series] == [
        ("a", [0, 1], pytest.approx(0.2)), ("b", [2, 3], pytest.approx(0.8)),
    ]  # fmt: skip


def test_a_baseline_with_one_point_gets_a_level_across_the_chart() -> None:
    runs = [run(f"a/seed{i}", i, found) for i, found in enumerate(SEEDS)] + [run("b/seed0", 0, {3: 0.2}, cell=1)]
    runs[-1].config["schedule.remove_all_beyond"] = 0
    chart = mean_accuracy_chart(runs)
    assert chart is not None
    (level,) = (series for series in chart.panels[0].series if series.meaning == "level of a baseline")
    assert (list(level.x), list(level.y), level.cell, level.runs) == ([0, 3], [0.2, 0.2], 1, [3])


def test_a_cell_is_called_after_its_folder_only_if_that_is_its_own() -> None:
    shared = [
        run(f"q/seed{name}", i % 2, {}, cell)
        for i, (name, cell) in enumerate([("0", 0), ("1", 0), ("0-2", 1), ("1-2", 1)])
    ]
    assert [cell.label for cell in labelled_cells(shared)] == ["q/seed0, q/seed1", "q/seed0-2, q/seed1-2"]
    own = [run("q/seed0", 0, {}), run("q/seed1", 1, {}), run("r/seed0", 0, {}, 1), run("seed0", 0, {}, 2)]
    assert [cell.label for cell in labelled_cells(own)] == ["q", "r/seed0", "seed0"]


def test_runs_of_a_sweep_that_learned_otherwise_are_no_seeds_of_one_cell(tmp_path: Path) -> None:
    jobs = []
    for seed, steps in ((0, 4), (1, 4), (2, 8)):
        job = Job(f"seed{seed}", [], {"seed": str(seed)}, WAITING)
        (tmp_path / job.run).mkdir()
        (tmp_path / job.run / "config.yaml").write_text(
            f"seed: {seed}\ntrainer: {{duration: {steps}steps, log_every_n_steps: {steps}}}\ndata: {{batch_size: 8}}\n"
        )
        jobs.append(job)
    sweep = Sweep(tmp_path, "a", [], ["seed"], "1 on another-machine", 3, jobs)
    cells = cells_of_sweep(sweep)
    assert [(cell.label, cell.places) for cell in cells] == [
        ("trainer.duration=4steps", [0, 1]), ("trainer.duration=8steps", [2])
    ]  # fmt: skip
    (tmp_path / "seed2" / "config.yaml").unlink()  # a job that has not begun is of its planned cell
    assert [cell.places for cell in cells_of_sweep(sweep)] == [[0, 1, 2]]
