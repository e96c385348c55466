"""From metrics to a run's result."""

from pathlib import Path

from stepwise_pl.runs.stages import read_stages, removed_at, selected

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
