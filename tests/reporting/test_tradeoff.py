"""The trade-off of a run: its table, and accuracy against speed as figures."""

import csv
from pathlib import Path
from typing import Any

from stepwise_pl.reporting.figures.data import Series
from stepwise_pl.reporting.figures.speed import speed_charts, tradeoff_charts
from stepwise_pl.reporting.history import History
from stepwise_pl.reporting.tradeoff import lines, write


def evaluation(removed: int, accuracy: float, speeds: tuple[float, ...] = (), **more: Any) -> dict[str, Any]:
    """A summary of `evaluate` with the speeds at batch 1 and 200."""
    return {
        "checkpoint": f"removed-{removed}.ckpt", "step": 100 + removed, "split": "test", "limit": None, "as_trained": True,
        "removed_tokens": removed, "max_cot_tokens": 10, "examples": 500, "accelerator": "cpu", "answer_accuracy": accuracy,
        "answer_interval": [accuracy - 0.02, accuracy + 0.01], "cot_tokens_written": {"mean": 10.0 - removed},
        **{f"problems_per_second_batch_{batch}": speed for batch, speed in zip((200, 1), speeds[::-1], strict=False)},
    } | more  # fmt: skip


STAGES = [evaluation(2, 0.97, (20.0, 1000.0)), evaluation(4, 0.95, (30.0, 1500.0)), evaluation(10, 0.9, (50.0, 4000.0))]


def run(*evaluations: dict[str, Any], label: str = "mine", cell: int = 0, **config: object) -> History:
    return History(Path(label), label, cell, config=config, evaluations=list(evaluations))


def series_of(label: str, *runs: History, batch: str = "batch1") -> list[Series]:
    (chart,) = (chart for chart in speed_charts(runs) if chart.slug == f"speed-{batch}")
    return [series for series in chart.panels[0].series if series.name == label]


def test_the_table_has_a_row_a_stage_with_speed_relative_to_the_first() -> None:
    found = [line.split() for line in lines(STAGES)]
    assert found[1:4] == [
        ["2", "8.0", "97.0%", "[95.0%,", "98.0%]", "500", "20.0", "1.00x", "1000.0", "1.00x"],
        ["4", "6.0", "95.0%", "[93.0%,", "96.0%]", "500", "30.0", "1.50x", "1500.0", "1.50x"],
        ["10", "0.0", "90.0%", "[88.0%,", "91.0%]", "500", "50.0", "2.50x", "4000.0", "4.00x"],
    ]


def test_the_csv_file_has_the_same_numbers(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    files = write(STAGES, tmp_path, tmp_path / "tradeoff-test")
    names = [f"tradeoff-test-batch{batch}.{kind}" for batch in (1, 200) for kind in ("png", "svg")]
    assert [file.name for file in files] == ["tradeoff-test.csv", *names]
    assert all(file.stat().st_size for file in files)
    rows = list(csv.DictReader(files[0].open(newline="")))
    assert [row["checkpoint"] for row in rows] == ["removed-2.ckpt", "removed-4.ckpt", "removed-10.ckpt"]
    assert {key: float(value) for key, value in rows[2].items() if key != "checkpoint"} == {
        "removed_tokens": 10, "step": 110, "cot_tokens_written": 0, "accuracy": 0.9, "interval_low": 0.88,
        "interval_high": 0.91, "examples": 500, "problems_per_second_batch_1": 50, "speed_ratio_batch_1": 2.5,
        "problems_per_second_batch_200": 4000, "speed_ratio_batch_200": 4,
    }  # fmt: skip


def test_without_speed_there_are_no_columns_and_no_figure(tmp_path: Path) -> None:
    stages = [evaluation(0, 0.9), evaluation(1, 0.8)]
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert [file.name for file in write(stages, tmp_path, tmp_path / "tradeoff-test")] == ["tradeoff-test.csv"]
    assert "speed" not in (tmp_path / "tradeoff-test.csv").read_text()
    assert "speed" not in "".join(lines(stages))


def test_a_line_joins_the_stages_of_a_run_in_the_order_of_removed_tokens() -> None:
    for batch, speeds in (("batch1", [20, 30, 50]), ("batch200", [1000, 1500, 4000])):
        (line,) = series_of("mine", run(*STAGES[::-1]), batch=batch)
        assert (line.x, line.y, line.labels) == (speeds, [0.97, 0.95, 0.9], ["2", "4", "10"])
        assert (line.line, line.marker, line.low) == ("solid", "run", [one["answer_interval"][0] for one in STAGES])
        assert line.meaning.startswith("numbers: CoT tokens removed")


def test_baselines_are_named_beside_the_stages_of_a_run() -> None:
    explicit = run(evaluation(0, 0.99, (10.0, 500.0)), label="a", cell=1, **{"schedule.remove_at_most": 0})
    none = run(evaluation(10, 0.2, (51.0, 4100.0)), label="b", cell=2, **{"schedule.remove_all_beyond": 0})
    runs = (run(*STAGES), explicit, none)
    assert [[series.labels for series in series_of(label, *runs)] for label in ("mine", "a", "b")] == [
        [["2", "4", "10"]], [["explicit CoT"]], [["no CoT"]],
    ]  # fmt: skip
    (frontier,) = series_of("frontier of all runs", *runs)
    assert frontier.x == [10, 20, 30, 50, 51]
    assert not series_of("frontier of all runs", run(*STAGES))  # the line of one run says as much


def test_texts_that_would_cover_each_other_are_left_out_but_not_the_ends() -> None:
    crowd = [evaluation(removed, 0.99, (20 + removed / 10, 900.0)) for removed in range(101)]
    (line,) = series_of("mine", run(*crowd))
    texts = [text for text in line.labels if text]
    assert (texts[0], texts[-1]) == ("0", "100")
    assert 5 < len(texts) < 40
    (line,) = series_of("mine", run(evaluation(0, 0.9, (20.0, 900.0))))
    assert line.labels == ["0"]


def test_each_split_has_a_line_of_its_own() -> None:
    both = run(*STAGES, *(one | {"split": "validation"} for one in STAGES[:2]))
    assert [(len(line.x), line.line) for line in series_of("mine", both)] == [(3, "solid"), (2, "dotted")]


def test_the_figure_of_one_run_shows_problems_of_a_file_too() -> None:
    of_file = [{key: value for key, value in one.items() if key != "split"} for one in STAGES]
    assert not speed_charts([run(*of_file)])
    charts = tradeoff_charts(run(*of_file), "tradeoff-mine")
    assert [chart.slug for chart in charts] == ["tradeoff-mine-batch1", "tradeoff-mine-batch200"]
    assert charts[0].panels[0].series[0].x == [20, 30, 50]


def test_the_best_checkpoint_is_no_second_point_of_its_stage() -> None:
    best = evaluation(10, 0.91, (51.0, 4100.0)) | {"checkpoint": "best.ckpt"}
    (line,) = series_of("mine", run(best, *STAGES))
    assert (line.x, line.y) == ([20, 30, 50], [0.97, 0.95, 0.9])
    (line,) = series_of("mine", run(best, *STAGES[:2]))
    assert line.x == [20, 30, 51]
