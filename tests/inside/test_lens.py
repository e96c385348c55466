"""The command `lens`: tables for every kept checkpoint and every method, the same twice, and one line for what cannot be done."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwise_pl.common import registry
from stepwise_pl.common.errors import UserError
from stepwise_pl.lens import LensConfig, lens
from stepwise_pl.runs.inside import COMMANDS, Attention, Fourier, Lens, Similarity, read_grids, read_rows
from tests import background
from tests.conftest import SMALL, command, made_once
from tests.methods.test_methods import needed

METHODS = sorted(kind for group, kind in registry.load_all() if group == "method")
KEPT = (*SMALL, "trainer.keep_every_removed=1")
TABLES = ("lens.csv", "lens.jsonl", "attention.csv", "fourier.csv", "similarity.csv")
SHORT = ("trainer.duration=2steps", "data.batch_size=4", "optimizer.decay=0")
STAGES = ["removed-0", "removed-1", "removed-2"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that kept its three stages, looked at."""

    def make(folder: Path) -> None:
        command("train", *KEPT, "run_dir=kept", cwd=folder)
        out = command("lens", "run=kept", "shown=3", cwd=folder)
        (folder / "kept" / "said.txt").write_text(out.stdout)

    yield made_once("lens", make, tmp_path_factory) / "kept"


def test_every_kept_checkpoint_has_rows_in_every_table(kept: Path) -> None:
    for kind in (Lens, Attention, Fourier, Similarity):
        assert list(dict.fromkeys(row.checkpoint for row in read_rows(kept, kind))) == STAGES
    facts = json.loads((kept / "inside" / "lens.json").read_text())
    assert [one["checkpoint"] for one in facts["checkpoints"]] == STAGES
    assert [one["gone"] for one in facts["checkpoints"]] == [[], ["cot 0"], ["cot 0", "cot 1"]]
    assert [one["removed_tokens"] for one in facts["checkpoints"]] == [0, 1, 2]
    assert all(len(one["digest"]) == 64 for one in facts["checkpoints"])
    assert (facts["problems"], facts["settings"]["problems"], facts["seconds"] > 0) == (17, 500, True)
    grids = read_grids(kept)
    assert [(grid.checkpoint, grid.problem) for grid in grids] == [(name, row) for name in STAGES for row in range(3)]


def test_gone_tokens_are_looked_for_beside_random_weights(kept: Path) -> None:
    rows = read_rows(kept, Lens)
    at = {(row.checkpoint, row.layer, row.place, row.token, row.source): row for row in rows}
    for source in ("trained", "random"):
        assert ("removed-2", 1, "prompt -1", "cot 0", source) in at
        assert ("removed-2", 1, "cot 0", "cot 0", source) not in at
    # The model has learned to say the mark behind its second separator; random weights have not.
    assert at["removed-2", 1, "answer 0", "next", "trained"].top == 1
    assert at["removed-2", 1, "answer 0", "next", "random"].top < 1
    # Random weights are the same ones at every stage: the same states wherever the same is read.
    other = at["removed-0", 1, "prompt -2", "cot 0", "random"]
    assert at["removed-2", 1, "prompt -2", "cot 0", "random"].probability == other.probability


def test_attention_and_similarity_are_in_bounds(kept: Path) -> None:
    sums: dict[tuple[str, int, int, str], float] = {}
    for row in read_rows(kept, Attention):
        key = (row.checkpoint, row.layer, row.head, row.place)
        sums[key] = sums.get(key, 0) + row.weight
    assert len(sums) > 20 and all(total == pytest.approx(1, abs=1e-4) for total in sums.values())
    rows = read_rows(kept, Similarity)
    assert {(row.checkpoint, row.other) for row in rows} == {
        *((name, "random") for name in STAGES), *((name, "stage 0") for name in STAGES[1:])
    }  # fmt: skip
    assert all(-0.3 < row.cka < 1.1 for row in rows)
    # A word of the prompt is still itself; what the separator's state holds is another answer.
    words = [row.cka for row in rows if row.layer == 0 and row.other == "stage 0" and row.place == "prompt -2"]
    assert len(words) == 2 and min(words) > 0.4
    assert not [row for row in rows if row.layer == 0 and row.place == "prompt -1"]  # the same in all problems


def test_what_is_printed_is_what_the_tables_say(kept: Path) -> None:
    said = (kept / "said.txt").read_text()
    assert said.startswith("kept: 3 checkpoints, 17 test problems (cpu, ")
    gone = [row for row in read_rows(kept, Lens) if (row.checkpoint, row.token) == ("removed-2", "cot 0")]
    # It is the first digit of the answer too, so that only places before that one count.
    before = [row for row in gone if row.source == "trained" and row.place.startswith("prompt")]
    before += [row for row in gone if row.source == "trained" and row.place in ("answer 0", "answer 1")]
    best = max(before, key=lambda row: row.top - row.chance)
    line = next(line for line in said.splitlines() if line.startswith("cot 0"))
    assert f" layer {best.layer}, {best.place} " in line and f" {best.top:.1%} " in line and line.endswith("  answer 2")
    (fit,) = [
        row
        for row in read_rows(kept, Fourier)
        if (row.checkpoint, row.what, row.num_basis) == ("removed-2", "embedding", 6)
    ]
    assert fit.random_mean == pytest.approx(5 / 9, abs=0.02)
    line = next(line for line in said.splitlines() if line.startswith("removed-2") and "k 1-2, (-1)^n" in line)
    assert line.split()[-4:] == [
        f"{value:.2f}" for value in (fit.fit, fit.random_mean, fit.random_high, fit.shuffled_high)
    ]
    assert "Linear CKA of the states of removed-2 with those of stage 0; in brackets with random weights:" in said


def test_the_numbers_are_the_same_twice(kept: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(kept, tmp_path / "again"))
    shutil.rmtree(again / "inside")
    command("lens", str(again), "shown=3")
    for name in TABLES:
        assert (again / "inside" / name).read_bytes() == (kept / "inside" / name).read_bytes(), name


def test_a_command_that_is_stopped_leaves_the_earlier_tables(kept: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(kept, tmp_path / "run"))
    before = {name: (run / "inside" / name).read_bytes() for name in (*TABLES, "lens.json")}
    process = background.start("-m", "stepwise_pl.lens", f"run={run}", "problems=10", stderr=-1, stdout=-1)
    end = time.monotonic() + 200
    while not list((run / "inside").glob(".states-*/*")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err, err
    assert {path.name for path in (run / "inside").iterdir()} == before.keys()
    assert {name: (run / "inside" / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("kind", [
    kind if kind in ("stepwise", "coconut", "icot_kd") else pytest.param(kind, marks=pytest.mark.long) for kind in METHODS
])  # fmt: skip
def test_every_method_is_looked_at(kind: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command("train", *KEPT, *needed(kind, tmp_path), "trainer.duration=15steps", f"run_dir={run}")
    out = command("lens", f"run={run}", "shown=2", "problems=12", check=False)
    assert out.returncode == 0 and not json.loads((run / "inside" / "lens.json").read_text())["notes"], out.stderr
    names = {path.stem for path in (run / "checkpoints").glob("*-*.ckpt")}
    for table in (Lens, Attention, Similarity, Fourier):
        assert {row.checkpoint for row in read_rows(run, table)} == names
    if kind in ("coconut", "sim_cot", "codi", "pause"):
        last = read_grids(run)[-1]
        assert any(read.startswith("[") for read in last.read) and "thought 0" in last.places
        assert any(row.to == "thought 0" and row.weight > 0 for row in read_rows(run, Attention))


def test_several_runs_a_sweep_and_what_cannot_be_looked_at(kept: Path, tmp_path: Path) -> None:
    for name in ("a", "sweep/b", "sweep/c"):
        shutil.copytree(kept, tmp_path / name)
        shutil.rmtree(tmp_path / name / "inside")
    shutil.rmtree(tmp_path / "sweep" / "c" / "model")
    out = command("lens", "a", "sweep", "checkpoint=removed-2", "problems=8", cwd=tmp_path)
    assert out.stdout.count("1 checkpoint, 8 test problems") == 2
    assert "sweep/c: run=sweep/c/model: cannot be loaded" in out.stderr and "the other runs go on" in out.stderr
    for name in ("a", "sweep/b"):
        assert {row.checkpoint for row in read_rows(tmp_path / name, Lens)} == {"removed-2"}
    broken = command("lens", "sweep/c", cwd=tmp_path, check=False)
    assert broken.returncode == 2 and len(broken.stderr.strip().splitlines()) == 1
    (tmp_path / "a" / "inside" / "lens.csv").unlink()
    bad = command("lens", "a", "beside=[nowhere]", cwd=tmp_path, check=False)
    assert bad.returncode == 2 and bad.stderr.startswith("error: beside=nowhere: no config.yaml there")
    assert len(list((tmp_path / "a" / "inside").iterdir())) == 5  # earlier tables stay
    shutil.rmtree(tmp_path / "a" / "inside")
    command("lens", "a", "beside=[nowhere]", cwd=tmp_path, check=False)
    assert not (tmp_path / "a" / "inside").exists()


def test_a_run_that_kept_no_stage_has_its_best(run_dir: Path) -> None:
    command("lens", f"run={run_dir}", "problems=8", "shown=0", "attention_rows=60", "prompt_places=1", "tokens=2")
    assert {row.checkpoint for row in read_rows(run_dir, Lens)} == {"best"}
    assert {row.token for row in read_rows(run_dir, Lens)} == {"next", "cot 0", "answer 3"}
    assert len(read_rows(run_dir, Attention)) <= 60 and read_grids(run_dir) == []
    assert {row.place for row in read_rows(run_dir, Lens)} == {"prompt -1", *(f"answer {n}" for n in range(4))}
    notes = json.loads((run_dir / "inside" / "lens.json").read_text())["notes"]
    assert not notes or "attention_rows=60 has room for no more" in notes[0]


def test_other_runs_stand_beside(kept: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    command("train", *SMALL, "seed=1", "trainer.duration=2epochs", f"run_dir={other}")
    run = Path(shutil.copytree(kept, tmp_path / "run"))
    out = command("lens", f"run={run}", f"beside=[{other},{run}]", "checkpoint=removed-2", "problems=17")
    rows = [row for row in read_rows(run, Similarity) if row.other != "random"]
    assert {row.other for row in rows} == {str(other), str(run)}
    # `last` of the run itself is the state of its last stage, some steps on.
    assert min(row.cka for row in rows if row.other == str(run)) > 0.5
    assert f"those of {other}; in brackets" in out.stdout
    facts = json.loads((run / "inside" / "lens.json").read_text())
    assert [(one["run"], one["checkpoint"], len(one["digest"])) for one in facts["beside"]] == [
        (str(other), "last.ckpt", 64), (str(run), "last.ckpt", 64)
    ]  # fmt: skip


def test_another_task_or_vocabulary_does_not_stand_beside(kept: Path, byte_folder: Path, tmp_path: Path) -> None:
    words, task = tmp_path / "words", tmp_path / "task"
    command("train", *SMALL, *SHORT, f"model.tokenizer={byte_folder}", f"run_dir={words}")
    command("train", *SMALL, *SHORT, "task.seed=1", f"run_dir={task}")
    for other, line in (
        (words, "has another vocabulary; give a run of the same tokenizer"),
        (task, "has another task (task.seed is 1 there, 0 here); give a run of the same one"),
        (tmp_path, "no config.yaml there; give the folder of a training run"),
    ):
        out = command("lens", f"run={kept}", f"beside=[{other}]", check=False)
        assert (out.returncode, out.stderr) == (2, f"error: beside={other}: {line}\n")


def test_models_and_tasks_that_lack_something_are_told_in_a_line_each(tmp_path: Path) -> None:
    mamba, parity = tmp_path / "mamba", tmp_path / "parity"
    command("train", *SMALL, *SHORT, "model.type=mamba", f"run_dir={mamba}")
    out = command("lens", f"run={mamba}", "problems=8")
    assert "a mamba has no attention that can be read" in out.stderr and "there is no attention.csv" in out.stderr
    assert read_rows(mamba, Attention) == [] and read_rows(mamba, Lens) and read_rows(mamba, Fourier)
    command("train", "task=parity", "task.train_size=100", "task.validation_size=8", "task.test_size=8", "model.layers=1",
            "model.heads=2", "model.width=16", *SHORT, f"run_dir={parity}")  # fmt: skip
    out = command("lens", f"run={parity}", "problems=8")
    assert "the problems hold 2 consecutive digits as tokens; a Fourier fit needs 4: there is none" in out.stderr
    assert read_rows(parity, Fourier) == [] and read_rows(parity, Attention)


def test_capped_logits_have_no_lens_and_all_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command("train", *SMALL, *SHORT, "model.type=gemma2", f"run_dir={run}")
    out = command("lens", f"run={run}", "problems=8")
    assert "a gemma2 does more to its logits than its output embedding does; there is no lens" in out.stderr
    assert read_rows(run, Lens) == [] and read_grids(run) == []
    assert read_rows(run, Attention) and read_rows(run, Fourier) and read_rows(run, Similarity)


@pytest.mark.parametrize(
    "settings,line",
    [
        ({}, "run is not set: python -m stepwise_pl.lens run=<run folder>"),
        ({"run": "nowhere"}, "run=nowhere: no config.yaml there; give the folder of a training run"),
        ({"run": "a", "runs": ["b"]}, "run=a and b: give all folders in one way"),
        ({"runs": ["a"], "problems": 3}, "problems=3: must be at least 4"),
        ({"runs": ["a"], "shown": -1}, "shown=-1: must be at least 0"),
        ({"runs": ["a"], "prompt_places": 0}, "prompt_places=0: must be at least 1"),
        ({"runs": ["a"], "places": 0}, "places=0: must be at least 1"),
        ({"runs": ["a"], "tokens": 0}, "tokens=0: must be at least 1"),
        ({"runs": ["a"], "attention_rows": 0}, "attention_rows=0: must be at least 1"),
        ({"runs": ["a"], "batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"runs": ["a"], "accelerator": "tpu"}, "accelerator=tpu: must be one of cpu, gpu, mps, auto"),
        ({"runs": ["a"], "every": 0}, "every=0: must be at least 1"),
        ({"runs": ["a"], "offline": True}, "offline=true: is about W&B; add wandb=true"),
    ],
)
def test_a_bad_setting_is_one_line(settings: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as error:
        LensConfig(**settings)  # type: ignore[arg-type]
    assert str(error.value) == line


def test_folders_and_checkpoints_that_are_not_there(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, line in (
        (["nowhere"], "no run to look at: nowhere: no such folder. Give folders of runs, or folders above them"),
        (["empty"], "no run to look at: empty: no run in this folder or below. Give folders of runs, or folders above them"),
        ([f"run={kept}", "checkpoint=removed-9"], "checkpoint=removed-9: no such checkpoint; give best, last or a file"),
    ):  # fmt: skip
        out = command("lens", *words, cwd=tmp_path, check=False)
        assert out.returncode == 2 and out.stderr.startswith(f"error: {line}") and out.stderr.count("\n") == 1


def test_the_report_leaves_out_what_was_found_in_a_checkpoint_that_was_written_anew(kept: Path, tmp_path: Path) -> None:
    from stepwise_pl.reporting.history import read_run

    run = Path(shutil.copytree(kept, tmp_path / "run"))
    whole = read_run(run)
    assert not [note for note in whole.notes if "inside" in note]
    shutil.copy(run / "checkpoints" / "removed-2.ckpt", run / "checkpoints" / "removed-1.ckpt")
    (note,) = [note for note in read_run(run).notes if "inside" in note]
    assert note == (
        "inside/lens.json: removed-1.ckpt was written anew since; what was found there is left out. Run lens again"
    )
    found = read_run(run).inside
    for name in ("lens", "attention", "fourier", "similarity", "grids"):
        rows = getattr(found, name)
        assert {row.checkpoint for row in rows} == {"removed-0", "removed-2"}
        assert len(rows) == sum(row.checkpoint != "removed-1" for row in getattr(whole.inside, name))


@pytest.mark.parametrize("name,settings", [
    ("probe", ["targets=[cot 1]", "split=problems", "mlp=none", "code=none"]),
    ("patch", ["pairs=2", "problems=5", "fit_problems=20"]),
    ("lens", ["problems=10", "shown=1"]),
])  # fmt: skip
def test_tables_and_figures_go_to_wandb_when_asked(name: str, settings: list[str], kept: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(kept, tmp_path / "run"))
    command(name, str(run), "checkpoint=best", *settings, "wandb=true", "offline=true")
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))
    sent = {file.name.rpartition("_")[0].rpartition("_")[0] for file in run.rglob("*.table.json")}
    assert sent == {Path(kind.file).stem for kind in COMMANDS[name] if read_rows(run, kind)}
    assert list(run.rglob("media/images/inside/*.png"))


def test_a_first_checkpoint_that_cannot_be_read_costs_the_others_nothing(kept: Path, tmp_path: Path, caplog) -> None:
    folder = Path(shutil.copytree(kept, tmp_path / "run"))
    (folder / "checkpoints" / "removed-0.ckpt").write_bytes(b"no checkpoint")
    lens(LensConfig(run=str(folder), problems=8, shown=1, tokens=2))
    assert {row.checkpoint for row in read_rows(folder, Lens)} == {"removed-1", "removed-2"}
    assert {row.other for row in read_rows(folder, Similarity)} == {"stage 1", "random"}
    assert [
        line for line in caplog.messages if "removed-0.ckpt" in line and line.endswith("; the tables go without it")
    ]
