"""experiments/scaling: carry chains against Python integers, runs written by hand and trained, and tables of typed numbers."""

import csv
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from experiments.readme import read_rows, write_rows
from experiments.scaling import collect, figures
from experiments.scaling.chains import COLUMNS, chain_rows, links_of
from experiments.scaling.failure import difference, hardest, partial, ranks, spearman, stops
from experiments.scaling.runs import Run, Stage, Token, read_chains, read_runs
from experiments.scaling.tables import law_text, map_table, tables, with_interval
from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.sweep_folder import FINISHED, RUNNING, WAITING, Job, Sweep, write_sweep
from stepwise_pl.tasks import Example, Multiplication
from stepwise_pl.tasks.multiplication import render
from tests.conftest import REPO, command

SCALING = REPO / "experiments" / "scaling"


# --- carry chains


def length(carries: Sequence[int]) -> int:
    """How many of the carries, from the last one backwards, are not 0."""
    return next((count for count, carry in enumerate(reversed(carries)) if not carry), len(carries))


def oracle(a: int, b: int) -> tuple[list[int], list[int]]:
    """The chains into the CoT and the answer of a * b. The carry into place k is what the lower k places come to beyond them."""
    digits, width = [int(text) for text in reversed(str(b))], len(str(a)) + 1
    cot: list[int] = []
    total = 0
    for i, digit in enumerate(digits):
        of_row = [(a % 10**k) * digit // 10**k for k in range(width)]
        row = a * digit * 10**i
        size = width + i if i < len(digits) - 1 else width + len(digits) - 1
        of_sum = [(total % 10**k + row % 10**k) // 10**k for k in range(size)]
        total += row
        cot += ([0] if i else []) + [0] * i + [length(of_row[: k + 1]) for k in range(width)]
        into_sum = [length(of_sum[: k + 1]) for k in range(size)]
        if 0 < i < len(digits) - 1:
            cot += [0, *into_sum, 0]
    return cot, into_sum


@given(st.integers(1, 10**5), st.integers(1, 10**4))
def test_chains_are_those_of_python_integers(a: int, b: int) -> None:
    operands = np.array([[[int(text) for text in str(n).zfill(6)[::-1]] for n in (a, b)]], np.uint8)
    cot, answer = links_of(render(operands)[0])
    assert ([link.chain for link in cot], [link.chain for link in answer]) == oracle(a, b)


def test_the_chains_of_99_times_99() -> None:
    cot, answer = links_of(Example("9 9 * 9 9", "1 9 8 + 0 1 9 8", "1 0 8 9"))
    assert [link.chain for link in cot] == [0, 1, 2, 0, 0, 0, 1, 2]
    assert [link.varies for link in cot] == [True] * 3 + [False] * 2 + [True] * 3
    assert [link.chain for link in answer] == [0, 0, 1, 2]
    assert (cot[1].name, cot[3].name, cot[7].name) == ("row 1, digit 2", "+", "row 2, digit 4")


def test_a_cot_that_is_no_long_multiplication_is_refused() -> None:
    with pytest.raises(ValueError, match="row 2: 0 2 9 8 is written, where 0 1 9 8 is meant"):
        links_of(Example("9 9 * 9 9", "1 9 8 + 0 2 9 8", "1 0 8 9"))
    with pytest.raises(ValueError, match="answer"):
        links_of(Example("9 9 * 9 9", "1 9 8 + 0 1 9 8", "2 0 8 9"))


def test_chains_csv_is_what_the_task_gives() -> None:
    """Of one task; the largest takes seconds to load."""
    problems = Multiplication(digits=2, split="unordered").load()["train"]
    fresh = list(chain_rows("2x2", problems.slice(0, 2000)))
    kept = [row for row in read_rows(SCALING / "chains.csv") if row["task"] == "2x2"]
    shown = [
        {name: f"{row[name]:.6g}" if name == "mean_chain" else str(row[name]) for name in COLUMNS} for row in fresh
    ]
    assert shown == kept
    assert {task: len(tokens) for task, tokens in read_chains().items()} == {"2x2": 8, "3x2": 10, "3x3": 24}


# --- runs


def write_run(run: Path, rows: Sequence[tuple[int, int, float]], side: str = "left", seed: int = 0) -> None:
    """A finished run of parity of 4 bits in batches of 10.

    Args:
        rows: step, removed tokens and accuracy of each validation.
    """
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(
        f"seed: {seed}\ntask: {{kind: parity, bits: 4}}\nmodel: {{layers: 2, width: 32}}\ndata: {{batch_size: 10}}\n"
        f"method: {{kind: stepwise, unit: token, side: {side}}}\n"
        "schedule: {kind: adaptive, chunk: one, stop_when_stuck: 100}\n"
        "derived: {max_cot_tokens: 4, examples_per_token: null}\n"
    )
    (run / "summary.json").write_text(json.dumps({
        "test_accuracy": 0.75, "test_examples": 40, "removed_tokens": 4, "collapsed": False, "seconds": 12.5, "tokens_read": 9000,
        "steps": rows[-1][0],
    }))  # fmt: skip
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["step", "attempt", "schedule/removed_tokens", "train/loss", "val/answer_accuracy", "val/examples"]
        )
        for step, removed, accuracy in rows:
            writer.writerow([step, 0, removed, 0.5, "", ""])
            writer.writerow([step, 0, removed, "", accuracy, 20])


def write_sweep_of(folder: Path, *jobs: Job) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_sweep(Sweep(folder, "a", [], ["seed"], "1 on nowhere", len(jobs), list(jobs)))
    return folder


def job(seed: int, outcome: str = FINISHED) -> Job:
    return Job(f"seed{seed}", [], {"seed": str(seed)}, outcome)


THROUGH = [(10, 0, 0.5), (20, 0, 0.95), (30, 1, 0.96), (50, 2, 0.95), (60, 3, 0.2), (70, 3, 1.0), (80, 4, 0.97)]


def test_a_run_that_is_through_has_a_row_for_each_stage(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    write_run(sweep / "seed0", THROUGH)
    assert collect.main([write_sweep_of(sweep, job(0))], tmp_path) == "1 run collected"
    (row,) = read_rows(tmp_path / "results.csv")
    assert row == {
        "task": "parity 4", "layers": "2", "width": "32", "seed": "0", "side": "left", "cot_tokens": "4", "removed_at_95": "4", "examples": "800",
        "examples_per_token": "160", "steps": "80", "tokens_read": "9000", "seconds": "12.5", "ended": "through",
    }  # fmt: skip
    (run,) = read_runs(tmp_path)
    assert run.stages == [
        Stage(0, 20, True),
        Stage(1, 10, True),
        Stage(2, 20, True),
        Stage(3, 20, True),
        Stage(4, 10, True),
    ]
    assert sum(stage.steps for stage in run.stages) == 80 and (run.share, run.is_through) == (1.0, True)


@pytest.mark.parametrize(("last", "how"), [(120, "steps over"), (130, "stuck")])
def test_a_run_is_stuck_if_its_last_stage_lasted_as_long_as_the_schedule_waits(
    tmp_path: Path, last: int, how: str
) -> None:
    sweep = tmp_path / "sweep"
    write_run(sweep / "seed0", [*THROUGH[:3], (60, 2, 0.1), (last, 2, 0.94)])
    collect.main([write_sweep_of(sweep, job(0))], tmp_path)
    (run,) = read_runs(tmp_path)
    assert (run.ended, run.removed_at_95, run.examples, run.examples_per_token) == (how, 1, None, 150)
    assert run.stages[-1] == Stage(2, last - 30, False)


def test_a_run_that_never_reached_95_percent_has_no_examples_per_token(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    write_run(sweep / "seed0", [(50, 0, 0.5), (100, 0, 0.94)])
    collect.main([write_sweep_of(sweep, job(0))], tmp_path)
    (run,) = read_runs(tmp_path)
    assert (run.ended, run.removed_at_95, run.examples_per_token) == ("stuck", 0, None)
    assert run.measured("removed_share").never_at_95


def test_collected_runs_replace_theirs_and_leave_the_others(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_run(first / "seed0", THROUGH)
    write_run(first / "seed1", THROUGH, seed=1)
    write_run(second / "seed1", THROUGH[:3], seed=1)
    collect.main([write_sweep_of(first, job(0), job(1))], tmp_path)
    said = collect.main([write_sweep_of(second, job(1), job(2, WAITING), job(3, RUNNING))], tmp_path)
    assert said == "1 run collected, 2 jobs left out for not being finished"
    assert [(run.seed, run.removed_at_95, len(run.stages)) for run in read_runs(tmp_path)] == [(0, 4, 5), (1, 1, 2)]
    with pytest.raises(ValueError, match="both are parity 4 2 32 1"):
        collect.main([first, second], tmp_path)


def test_the_side_from_which_tokens_leave_is_kept_and_another_unit_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep" / "seed0", THROUGH, side="right")
    write_sweep_of(tmp_path / "sweep", job(0))
    collect.main([tmp_path / "sweep"], tmp_path)
    (found,) = read_runs(tmp_path)
    assert found.side == "right" and [token.number for token in found.leaving(TOKENS)] == [8, 7, 6, 5, 4, 3, 2, 1]
    results = tmp_path / "results.csv"
    for sides in (["left", "right"], [""]):
        (row,) = read_rows(results)[:1]
        write_rows(results, collect.RESULTS, [row | {"seed": seed, "side": side} for seed, side in enumerate(sides)])
        with pytest.raises(UserError, match=r"results.csv: the column side of parity 4 has '.*a task needs one side"):
            read_runs(tmp_path)
    config = tmp_path / "sweep" / "seed0" / "config.yaml"
    config.write_text(config.read_text().replace("unit: token", "unit: step"))
    with pytest.raises(ValueError, match="stepwise step adaptive one, where tokens leave one by one"):
        collect.main([tmp_path / "sweep"], tmp_path)


@pytest.mark.long
def test_a_sweep_of_the_recipe_is_collected(tmp_path: Path) -> None:
    """Two runs of a few steps, which stop in their first stage."""
    command(
        "train", "-m", "experiment=scaling_cpu", "task=mult2x2", "task.split=unordered", "model.layers=1,2", "model.width=32",
        "seed=0", "schedule.check_every=5", "schedule.stop_when_stuck=10", "trainer.duration=20steps", "data.batch_size=8",
        "task.validation_size=20", "task.test_size=20", "run_dir=sweep", cwd=tmp_path, PYTHONPATH=str(REPO),
    )  # fmt: skip
    collect.main([tmp_path / "sweep"], tmp_path)
    found = [(run.task, run.layers, run.width, run.cot_tokens, run.ended, run.stages) for run in read_runs(tmp_path)]
    assert found == [("2x2", layers, 32, 8, "stuck", [Stage(0, 10, False)]) for layers in (1, 2)]
    shutil.copy(SCALING / "chains.csv", tmp_path)
    assert "| 2x2 | 8 | 1 | never | – |" in tables(tmp_path)["map"]


# --- tables


def run(
    task: str,
    layers: int,
    width: int,
    seed: int,
    removed: int,
    per_token: float | None = 100.0,
    steps: Sequence[int] = (),
    side: str = "left",
) -> Run:
    """A run of a task whose CoT has 8 tokens; it is stuck unless all are gone."""
    stages = [Stage(stage, count, stage <= removed) for stage, count in enumerate(steps)]
    is_through = removed == 8
    examples = 9 * (per_token or 0) if is_through else None
    ended = "through" if is_through else "stuck"
    return Run(task, layers, width, seed, side, 8, removed, examples, per_token, ended, stages)


def test_two_depths_are_compared_at_equal_task_width_and_seed() -> None:
    """The task 2x2 goes from 2 and 4 to 4 and 8 tokens; the only seed that both depths of the other task have stays at 8."""
    runs = [
        run("2x2", 1, 32, 0, 2), run("2x2", 1, 32, 1, 4), run("2x2", 2, 32, 0, 4), run("2x2", 2, 32, 1, 8),
        run("3x2", 1, 32, 0, 8, 300.0), run("3x2", 2, 32, 0, 8, 100.0), run("3x2", 2, 32, 1, 0), run("3x3", 2, 32, 0, 8),
    ]  # fmt: skip
    found = difference(runs, "layers", 1, 2)
    assert found.shares == [pytest.approx((2 + 4) / 2 / 8), 0.0]
    # Only the combination in which all runs are through has a ratio.
    assert found.log_ratios == [pytest.approx(math.log(100 / 300))]


def test_an_exact_power_law_is_found_for_each_task_with_a_factor_of_its_own() -> None:
    runs = [
        run(task, layers, width, 0, 8, factor * width * layers**-0.5)
        for task, factor in (("2x2", 10.0), ("3x2", 70.0)) for layers in (1, 2, 4) for width in (32, 64)
    ]  # fmt: skip
    assert law_text(runs, "layers") == "-0.50 [-0.50, -0.50], 12 of 12 runs"
    assert law_text(runs, "width") == "no law: 2 values of the key in a combination, at most, where a law needs 3"
    bits = [run(f"parity {n}", layers, 32, 0, 8, layers * n**2.0) for n in (10, 13, 16) for layers in (1, 2)]
    assert law_text(bits, "bits") == "2.00 [2.00, 2.00], 6 of 6 runs"


def test_runs_that_are_not_through_count_as_missing_in_the_law_of_those_that_are() -> None:
    runs = [
        run("2x2", layers, width, 0, 8 if layers > 1 else 4, 100.0 / layers)
        for layers in (1, 2, 4)
        for width in (32, 64)
    ]
    assert law_text(runs, "layers").startswith("-1.00 ")
    assert law_text(runs, "layers", only_through=True).startswith("no law: ")


TOKENS = [
    Token(number, f"token {number}", varies, chain)
    for number, (varies, chain) in enumerate(
        [(True, 0.1), (True, 0.6), (True, 1.2), (False, 0.0), (True, 0.3), (True, 0.5), (True, 1.4), (True, 0.2)],
        start=1,
    )
]


def test_steps_that_rise_with_the_chain_have_rank_correlation_1() -> None:
    steps = [500, *(50 + round(100 * token.chain) for token in TOKENS)]
    found = ranks(run("2x2", 2, 32, 0, 8, steps=steps), TOKENS)
    assert found is not None
    assert (found.chain, found.chain_alone, found.chain_varying) == (
        pytest.approx(1),
        pytest.approx(1),
        pytest.approx(1),
    )
    assert found.position == pytest.approx(spearman([token.chain for token in TOKENS], range(8)))
    # The first stage and the one that was not kept do not count.
    assert ranks(run("2x2", 2, 32, 0, 4, steps=steps[:6]), TOKENS) is None
    alike = ranks(run("2x2", 2, 32, 0, 8, steps=[50] * 9), TOKENS)
    assert alike is not None and alike.chain is None and alike.position is None


def test_from_the_right_the_last_token_leaves_first() -> None:
    steps = [500, *(50 + round(100 * token.chain) for token in reversed(TOKENS))]
    from_the_right = run("2x2", 2, 32, 0, 8, steps=steps, side="right")
    found = ranks(from_the_right, TOKENS)
    assert found is not None and found.chain == pytest.approx(1)
    # The position is that of the stage, and the chains stand in the other order.
    assert found.position == pytest.approx(spearman([token.chain for token in TOKENS[::-1]], range(8)))
    (stop,) = stops([run("2x2", 1, 32, 0, 2, steps=[100, 50, 50, 2000], side="right")], {"2x2": TOKENS})
    assert stop.token == TOKENS[5]


def test_a_partial_correlation_is_that_of_what_a_line_over_the_third_leaves() -> None:
    rng = np.random.default_rng(0)
    third = rng.normal(size=30)
    first, second = third + rng.normal(size=30), third + rng.normal(size=30)
    columns = [rankdata(values) for values in (first, second, third)]
    rest = [values - np.polyval(np.polyfit(columns[2], values, 1), columns[2]) for values in columns[:2]]
    found = partial(spearman(first, second), spearman(first, third), spearman(second, third))
    assert found == pytest.approx(np.corrcoef(*rest)[0, 1])
    assert partial(0.5, 1.0, 0.5) is None


def test_a_stuck_run_stops_at_the_token_that_left_when_its_last_stage_began() -> None:
    runs = [
        run("2x2", 1, 32, 0, 2, steps=[100, 50, 50, 2000]),
        run("2x2", 1, 32, 1, 0, None, steps=[2000]),
        run("2x2", 2, 32, 0, 8, steps=[50] * 9),
    ]
    first, second = stops(runs, {"2x2": TOKENS})
    assert (first.removed_tokens, first.token, first.mean_chain) == (3, TOKENS[2], pytest.approx(4.3 / 8))
    assert (second.removed_tokens, second.token) == (0, None)


def test_the_hardest_digit_of_a_number_is_the_one_whose_stage_took_the_most_steps() -> None:
    """The CoT of 2x2: `row 1` of three digits, a sign, a zero that shifts `row 2`, and its three digits."""
    tokens = read_chains()["2x2"]
    assert [token.name for token in tokens if token.varies] == [
        f"row {row}, digit {digit}" for row, digits in ((1, (1, 2, 3)), (2, (2, 3, 4))) for digit in digits
    ]

    def places(steps: Sequence[int], removed: int = 8, side: str = "right") -> list[tuple[str, list[int]]]:
        found = hardest(run("2x2", 2, 64, 0, removed, steps=[900, *steps], side=side), tokens)
        return [(one.number, one.places) for one in found]

    # From the right: digits 4, 3 and 2 of row 2, the zero, the sign, digits 3, 2 and 1 of row 1.
    assert places([50, 300, 60, 999, 999, 70, 70, 50]) == [("row 1", [0, 1]), ("row 2", [1])]
    assert places([50, 60, 300, 50, 50, 80, 70, 50]) == [("row 1", [0]), ("row 2", [2])]
    # Stuck at the last digit but one of row 1. A row that a run has left halfway tells nothing, unless it was stuck there.
    assert places([50, 300, 60, 50, 50, 70, 3000], 6) == [("row 1", [1]), ("row 2", [1])]
    assert places([50, 300, 60, 50, 50, 70, 50], 7) == [("row 2", [1])]
    assert places([50, 300, 60, 50, 50, 900, 800], 6) == [("row 2", [1])]
    # From the left: digits 1, 2 and 3 of row 1 leave first.
    assert places([50, 300, 60, 50, 50, 70, 80, 90], side="left") == [("row 1", [1]), ("row 2", [0])]


def test_a_mean_of_equal_numbers_has_no_interval() -> None:
    assert with_interval([], str) == "–"
    assert with_interval([0.5], str) == "0.5 (one)"
    assert with_interval([0.5, 0.5], str) == "0.5 (all equal)"
    # t of one degree of freedom is 12.71 at 97.5%; the standard error of 0 and 2 is 1.
    assert with_interval([0, 2], "{:.1f}".format) == "1.0 [-11.7, 13.7]"


def test_the_map_says_never_where_even_the_whole_cot_was_not_learned() -> None:
    runs = [run("2x2", 1, 32, 0, 0, None), run("2x2", 1, 32, 1, 0, 640.0), run("2x2", 1, 64, 0, 8, 100.0)]
    assert "| 2x2 | 8 | 1 | never, 0 | 8 | – | 900 |" in map_table(runs)


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[Path]:
    """The csv files of sweeps in which deeper models come further, and wait longer where a chain is longer."""
    chains = read_chains()
    with (tmp_path / "results.csv").open("w") as results, (tmp_path / "stages.csv").open("w") as stages:
        print(*collect.RESULTS, sep=",", file=results)
        print(*collect.STAGES, sep=",", file=stages)
        for task, tokens in (("2x2", 8), ("3x3", 24), ("parity 10", 10)):
            for layers, width, seed in ((1, 32, 0), (2, 32, 0), (2, 32, 1), (2, 64, 0), (4, 32, 0), (4, 32, 1)):
                removed = min(tokens, 0 if layers == 1 else 7 * layers)
                ended = "through" if removed == tokens else "stuck"
                examples = 6400 * (tokens + 1) if ended == "through" else ""
                print(
                    task,
                    layers,
                    width,
                    seed,
                    "left",
                    tokens,
                    removed,
                    examples,
                    6400,
                    4000,
                    10**6,
                    60.5,
                    ended,
                    sep=",",
                    file=results,
                )
                for stage in range(min(tokens, removed + 1) + 1):
                    chain = chains[task][stage - 1].chain if task in chains and stage else 0
                    kept = "yes" if stage <= removed else "no"
                    steps = round(50 + 100 * chain + stage) if kept == "yes" else 2000
                    print(task, layers, width, seed, stage, steps, kept, sep=",", file=stages)
    shutil.copy(SCALING / "chains.csv", tmp_path)
    yield tmp_path


def test_all_tables_and_figures_are_made_of_the_csv_files(typed: Path) -> None:
    found = tables(typed)
    assert list(found) == ["map", "laws", "levels", "differences", "chains", "ranks", "hardest", "stuck"]
    assert "| 3x3 | 24 | 2 | 14 | 14 | – | – |" in found["map"]
    assert "| layers | 1 | 3 | 0 | 3 | 0 | 0.0% (all equal) |" in found["levels"]
    # Two layers lose 14 tokens, or as many as there are.
    gain = fmean([8 / 8, 14 / 24, 10 / 10])
    assert f"| layers 1 to 2 | all | 3 | 3, 0, 0 | {100 * gain:+.1f} [" in found["differences"]
    # Runs of one layer are stuck when the first token has left.
    stuck = found["stuck"].splitlines()
    assert "| 2x2 | 1 | 32 | 0 | 1 of 8 | row 1, digit 1 | 0.00 | 0.47 | -0.47 |" in stuck
    assert "| parity 10 | 1 | 32 | 0 | 1 of 10 | token 1 | – | – | – |" in stuck
    ranked = next(line for line in found["ranks"].splitlines() if line.startswith("| 2x2 | 5 | 1 |"))
    assert spearman_of(ranked) > 0.9
    figures.main(typed)
    assert {path.name for path in typed.glob("*.*g")} == {"share-gone.png", "steps-per-stage.png"}


def spearman_of(line: str) -> float:
    """The correlation with the chain in a row of the table."""
    return float(line.split(" | ")[4].split(" ")[0])


def test_mean_steps_count_a_stage_that_was_not_kept_with_its_steps_so_far() -> None:
    runs = [run("2x2", 1, 32, 0, 2, steps=[100, 50, 50, 2000]), run("2x2", 1, 32, 1, 0, steps=[300, 2000])]
    assert figures.mean_steps(runs) == ([0, 1, 2, 3], [200, 1025, 50, 2000], [True, False, False, False])
