"""From metrics to a run's result."""

from pathlib import Path

from stepwise_pl.runs.stages import read_stages, removed_at, selected, stage_table

HEAD = "step,attempt,schedule/removed_tokens,val/answer_accuracy,val/examples"


def test_the_best_is_that_of_the_selection_score(tmp_path: Path) -> None:
    """The last validation is the dip after a token has left. Its checkpoint was not chosen."""
    file = tmp_path / "metrics.csv"
    file.write_text(f"{HEAD},val/selection_score\n10,0,0,0.96,50,0.96\n20,0,1,0.97,50,2.97\n30,0,2,0.3,50,-1.7\n")
    best = selected(file)
    assert best is not None and (best.step, best.accuracy) == (20, 0.97)
    stages, _ = read_stages(file)
    assert [stage.accuracy for stage in stages] == [0.96, 0.97, 0.3] and removed_at(stages) == 1


def test_without_a_score_the_most_removed_tokens_come_first(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(f"{HEAD}\n10,0,0,0.96,50\n20,0,1,0.2,50\n30,0,1,0.3,50\n40,0,1,0.3,50\n")
    best = selected(file)
    assert best is not None and best.step == 30
    file.write_text(f"{HEAD}\n")
    assert selected(file) is None


def test_named_stages_are_told_apart_and_rows_from_before_they_were_logged_are_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(
        f"{HEAD},schedule/stage\n5,0,8,0.97,50,\n10,0,8,0,50,0\n20,0,8,0.99,50,1\n25,0,8,0.4,50,1\n30,0,8,0.5,50,2\n"
    )
    stages, _ = read_stages(file, ["read", "emulate"])
    assert [(stage.stage, stage.step) for stage in stages] == [("", 5), ("read", 10), ("emulate", 25), ("2", 30)]
    assert removed_at(stages) is None and removed_at(stages, 0.5) == 8  # the last validation counts
    assert [line.split()[0] for line in stage_table(stages).splitlines()] == ["stage", "8", "read", "emulate", "2"]
