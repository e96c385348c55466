"""`evaluate checkpoint=all` and `removed_tokens=all` on a small run that kept the checkpoint of every stage."""

import contextlib
import csv
import io
import shutil
from pathlib import Path
from typing import Any

import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.evaluate import EvaluateConfig, evaluate, evaluate_all, evaluate_runs
from stepwise_pl.evaluation import levels, problems
from stepwise_pl.evaluation.scorer import Scorer
from stepwise_pl.reporting.history import read_run
from stepwise_pl.runs.folder import kept_checkpoints
from tests.conftest import SMALL, command, made_once


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with removed-0, removed-1 and removed-2, where 2 is the whole CoT."""

    def make(folder: Path) -> None:
        command(
            "train", *SMALL, "trainer.keep_every_removed=1", "trainer.duration=4epochs", f"run_dir={folder / 'kept'}"
        )
        shutil.rmtree(folder / "kept" / "evaluations")  # These tests compare all files that `evaluate` writes.

    return made_once("kept", make, tmp_path_factory) / "kept"


def files_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "evaluations").iterdir()}


def evaluated(run: Path, **settings: Any) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        evaluate_all(EvaluateConfig(run=str(run), **{"checkpoint": "all", "speed_problems": 0, **settings}))
    return out.getvalue()


def test_all_are_evaluated_as_each_alone(run: Path) -> None:
    evaluated(run)
    together = files_of(run)
    assert together.pop("tradeoff-test.csv")
    shutil.rmtree(run / "evaluations")
    for removed in (2, 0, 1):
        evaluate(EvaluateConfig(run=str(run), checkpoint=f"removed-{removed}", speed_problems=0))
    assert files_of(run) == together and len(together) == 6


def test_a_run_that_cannot_be_written_to_is_refused_before_its_problems_are_answered(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluations")))
    (copy / "evaluations").write_text("")
    monkeypatch.setattr(Scorer, "evaluate", lambda *_: pytest.fail("the problems were answered"))
    with pytest.raises(UserError, match="evaluations is a file, no folder.; move that file away$"):
        evaluate(EvaluateConfig(run=str(copy), speed_problems=0))


def test_the_best_checkpoint_stands_for_a_last_stage_that_was_not_kept(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "checkpoints" / "removed-2.ckpt").unlink()
    shutil.rmtree(copy / "evaluations", ignore_errors=True)
    out = evaluated(copy, split="validation", limit=7)
    rows = list(csv.DictReader((copy / "evaluations" / "tradeoff-validation-first7.csv").open(newline="")))
    assert [(row["removed_tokens"], row["checkpoint"], row["examples"]) for row in rows] == [
        ("0", "removed-0.ckpt", "7"), ("1", "removed-1.ckpt", "7"), ("2", "best.ckpt", "7"),
    ]  # fmt: skip
    assert "no figure       speed was not measured (speed_problems=0)" in out
    together = files_of(copy)
    evaluate(EvaluateConfig(run=str(copy), split="validation", limit=7, speed_problems=0))
    assert files_of(copy) == together


@pytest.mark.long
def test_the_command_ends_with_a_table_and_figures_that_reports_show_too(run: Path) -> None:
    out = command("evaluate", f"run={run}", "checkpoint=all", "speed_problems=2", "batch_size=50").stdout
    rows = [line.split() for line in out.splitlines()[3:6]]
    assert [(row[0], row[1], row[7][-1]) for row in rows] == [("0", "2.0", "x"), ("1", "1.0", "x"), ("2", "0.0", "x")]
    assert rows[0][7] == rows[0][9] == "1.00x"
    assert {f"tradeoff-test-batch{batch}.png" for batch in (1, 50)} <= files_of(run).keys()
    history = read_run(run)
    assert [one["removed_tokens"] for one in history.evaluations] == [0, 1, 2] and not history.notes


def test_one_checkpoint_at_every_level_is_evaluated_as_at_each_level_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluations")))
    evaluated(copy, limit=9)
    of_checkpoints = files_of(copy)
    calls = []
    for module, name in ((levels, "load"), (problems, "problems_of")):
        was = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, name=name, was=was, **more: (calls.append(name), was(*given, **more))[1]
        )
    out = evaluated(copy, checkpoint="best", removed_tokens="all", limit=9)
    assert calls == ["load", "problems_of"]
    assert "best.ckpt at every level" in out
    together = files_of(copy)
    assert together.items() >= of_checkpoints.items()  # no file of checkpoint=all is written over
    rows = list(csv.DictReader(io.StringIO(together["levels-best-test-first9.csv"].decode())))
    assert [(row["removed_tokens"], row["checkpoint"], row["examples"]) for row in rows] == [
        (str(removed), "best.ckpt", "9") for removed in (0, 1, 2)
    ]
    new = {
        name: content
        for name, content in together.items()
        if name not in of_checkpoints and name.endswith(("json", "l"))
    }
    shutil.rmtree(copy / "evaluations")
    for removed in (2, 0, 1):
        evaluate(EvaluateConfig(run=str(copy), removed_tokens=removed, speed_problems=0, limit=9))
    assert files_of(copy) == new and len(new) == 6


def test_levels_that_were_scored_stay_if_the_command_is_stopped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluations")))
    was = Scorer.evaluate

    def interrupted(self: Scorer, batch_size: int) -> Any:
        if self.removed == 1:
            raise KeyboardInterrupt
        return was(self, batch_size)

    monkeypatch.setattr(Scorer, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(copy, checkpoint="last", removed_tokens="all", limit=9)
    assert sorted(files_of(copy)) == ["last-test-first9-removed0.json", "last-test-first9-removed0.jsonl"]


@pytest.mark.long
def test_the_levels_of_a_checkpoint_end_with_a_table_and_figures(run: Path) -> None:
    out = command("evaluate", f"run={run}", "removed_tokens=all", "speed_problems=2", "batch_size=50").stdout
    rows = [line.split() for line in out.splitlines()[3:6]]
    assert [(row[0], row[7][-1]) for row in rows] == [("0", "x"), ("1", "x"), ("2", "x")]
    assert {f"levels-best-test-batch{batch}.{kind}" for batch in (1, 50) for kind in ("png", "svg")} <= files_of(
        run
    ).keys()


def test_a_damaged_checkpoint_costs_the_table_its_own_row_alone(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    for name in ("removed-1", "best"):
        path = copy / "checkpoints" / f"{name}.ckpt"
        path.write_bytes(path.read_bytes()[:20_000])
    evaluated(copy, split="validation", limit=7)
    rows = list(csv.DictReader((copy / "evaluations" / "tradeoff-validation-first7.csv").open(newline="")))
    assert [row["removed_tokens"] for row in rows] == ["0", "2"]
    assert sum("the table goes without it" in line for line in caplog.messages) == 2
    for name in ("removed-0", "removed-2"):
        (copy / "checkpoints" / f"{name}.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint of .* can be read"):
        evaluated(copy)


def test_kept_checkpoints_are_in_the_order_of_removed_tokens(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("removed-10", "removed-9", "removed-0", "removed-x", "stage-2-x", "stages-1", "best", "last"):
        (tmp_path / "checkpoints" / f"{name}.ckpt").touch()
    (tmp_path / "checkpoints" / "removed-3.tmp").touch()
    names = [path.name for path in kept_checkpoints(tmp_path / "checkpoints")]
    assert names == ["removed-0.ckpt", "removed-9.ckpt", "removed-10.ckpt"]


def test_what_does_not_go_with_all_is_one_line(run: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"removed_tokens": 1}, "removed_tokens=1: is not for checkpoint=all"),
        ({"removed_steps": 1}, "removed_steps=1: is not for checkpoint=all"),
        ({"suite": "ood"}, "suite=ood: is not for checkpoint=all"),
        ({"removed_tokens": "all"}, "removed_tokens=all: is not for checkpoint=all; name one checkpoint"),
        ({"checkpoint": "best", "removed_tokens": "all", "suite": "ood"}, "suite=ood: is not for removed_tokens=all"),
        *(
            (
                {"checkpoint": "best", "removed_tokens": bad},
                f"removed_tokens={bad}: must be a whole number, at least 0, or all",
            )
            for bad in ("few", 1.5, -1, True)
        ),
        (
            {"checkpoint": "best", "removed_steps": "all"},
            "removed_steps=all: the run has method.unit=token; give removed_tokens",
        ),
    ):
        with pytest.raises(UserError, match=message):
            evaluated(run, **settings)
    without = Path(shutil.copytree(run, tmp_path / "none", ignore=shutil.ignore_patterns("removed-*")))
    out = command("evaluate", f"run={without}", "checkpoint=all", check=False)
    assert (out.returncode, out.stderr.strip().count("\n")) == (2, 0)
    assert "kept no checkpoint of its stages; train with trainer.keep_every_removed=1" in out.stderr


def test_the_runs_below_a_folder_are_evaluated_one_after_the_other(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "damaged"):
        shutil.copytree(run, tmp_path / "many" / name, ignore=shutil.ignore_patterns("evaluations"))
    for checkpoint in (tmp_path / "many" / "damaged" / "checkpoints").glob("*.ckpt"):
        checkpoint.write_bytes(b"")
    found = evaluate_runs(EvaluateConfig(runs=[str(tmp_path / "many")], limit=9, speed_problems=0))
    out = capsys.readouterr().out
    assert list(found) == [str(tmp_path / "many" / name) for name in "ab"]
    assert len([line for line in caplog.messages if "damaged" in line and "the other runs go on" in line]) == 1
    rows = [line.split() for line in out.splitlines()[-2:]]
    alone = evaluate(EvaluateConfig(run=str(tmp_path / "many" / "a"), limit=9, speed_problems=0))
    for row, (folder, summary) in zip(rows, found.items(), strict=True):
        assert row[:2] == [folder, "best"] and row[4] == f"{summary['answer_accuracy']:.1%}" and row[-1] == "9"
        assert summary == alone and (Path(folder) / "evaluations" / "best-test-first9-removed2.jsonl").is_file()
    several = evaluate_runs(EvaluateConfig(runs=[str(tmp_path / "many")], checkpoint="all", limit=9, speed_problems=0))
    assert [[one["removed_tokens"] for one in summaries] for summaries in several.values()] == [[0, 1, 2]] * 2
    for settings, message in (
        ({"runs": [str(tmp_path / "many" / "damaged")]}, "damaged"),
        ({"runs": [str(tmp_path / "none")]}, "no run to look at: .*none: no such folder"),
        ({"runs": [str(run)], "run": str(run)}, "give all folders in one way"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_runs(EvaluateConfig(**settings))


@pytest.mark.long
def test_a_folder_without_a_key_is_evaluated_with_all_runs_below(run: Path, tmp_path: Path) -> None:
    for name in ("seed0", "seed1"):
        shutil.copytree(run, tmp_path / "many" / name)
    out = command("evaluate", str(tmp_path / "many"), "limit=5", "speed_problems=0").stdout
    assert out.count("answer accuracy") == 2 and out.splitlines()[-3].startswith("run ")
