"""The Python interface: `import stepwise_pl as sp`."""

import csv
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import stepwise_pl as sp
from stepwise_pl.common.errors import UserError
from stepwise_pl.models.trained_run import load_run
from tests.conftest import REPO, command


@pytest.fixture(scope="module")
def folder(kept_run: Path) -> Path:
    return kept_run


def test_the_import_is_light() -> None:
    heavy = ("torch", "lightning", "transformers", "numpy", "pandas", "hydra", "omegaconf", "matplotlib")
    script = (
        "import sys, time; begun = time.process_time()\nimport stepwise_pl\nspent = time.process_time() - begun\n"
        f"print(spent, [name for name in {heavy!r} if name in sys.modules]); print(dir(stepwise_pl))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, check=True)
    spent, _, loaded = out.stdout.splitlines()[0].partition(" ")
    assert loaded == "[]" and float(spent) < 0.3
    assert "load_run" in out.stdout.splitlines()[1]


def test_no_public_name_is_that_of_a_submodule() -> None:
    modules = {module.name for module in pkgutil.iter_modules(sp.__path__)}
    assert not modules & set(sp.__all__)
    assert all(getattr(sp, name) is not None for name in sp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        sp.load_runs  # noqa: B018


def test_a_run_has_what_its_files_hold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # then tables are plain
    run = sp.load_run(folder)
    assert run.summary == json.loads((folder / "summary.json").read_text())
    assert run.config["task.digits"] == 1 and run.checkpoints == ["removed-0", "removed-1", "removed-2"]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in run.metrics] == [int(row["step"]) for row in rows]
    assert [row["train/loss"] for row in run.metrics] == [
        float(row["train/loss"]) if row["train/loss"] else None for row in rows
    ]
    last = {row["schedule/removed_tokens"]: row["val/answer_accuracy"] for row in rows if row["val/answer_accuracy"]}
    assert {row["removed_tokens"]: row["accuracy"] for row in run.stages} == {
        int(float(removed)): float(accuracy) for removed, accuracy in last.items()
    }
    assert [row["checkpoint"] for row in run.stages] == run.checkpoints
    assert all(row["interval_low"] <= row["accuracy"] <= row["interval_high"] for row in run.stages)
    with pytest.raises(UserError, match="no config.yaml there"):
        sp.load_run(folder.parent)


def test_tables_are_data_frames_if_pandas_is_there(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    run = sp.load_run(str(folder))
    assert isinstance(run.metrics, pandas.DataFrame) and isinstance(run.stages, pandas.DataFrame)
    assert list(run.stages["removed_tokens"]) == [0, 1, 2]


def test_a_model_is_that_of_the_stage(folder: Path) -> None:
    run = sp.load_run(folder)
    for stage, name in ((0, "removed-0"), (2, "removed-2"), ("best", "best")):
        model, known = run.model(stage), load_run(str(folder), name).model
        assert not model.training
        assert all(torch.equal(one, other) for one, other in zip(model.parameters(), known.parameters(), strict=True))
    with pytest.raises(UserError, match=r"stage=7: .* kept no checkpoint of it \(kept: 0, 1, 2\)"):
        run.model(7)
    with pytest.raises(UserError, match="checkpoint=nothing: no such checkpoint"):
        run.model("nothing")


def test_questions(folder: Path) -> None:
    run = sp.load_run(folder)
    reply = run.ask("7 * 8", stage=0)
    assert reply.wanted == "56" and reply.removed_tokens == 0 and reply.checkpoint == "removed-0.ckpt"
    assert str(reply) == f"{reply.answer} ({reply.verdict})"
    table = run.ask_all("7 * 8")
    assert list(table["removed_tokens"]) == [0, 1, 2] and table["answer"][0] == reply.answer
    with pytest.raises(UserError, match="is no problem of this task"):
        run.ask("7 + 8")
    with pytest.raises(UserError, match="use ask_all"):
        run.ask("7 * 8", stage="all")


def test_hidden_states_are_those_of_the_model(folder: Path) -> None:
    run = sp.load_run(folder)
    for stage in (0, 2):
        found = run.hidden(["7 * 8", "3 * 4"], stage=stage)
        # An independent reading: the model of transformers reads the tokens by itself.
        ids = torch.tensor([run.tokenizer.convert_tokens_to_ids(row) for row in found.tokens])
        with torch.inference_mode():
            states = run.model(stage)(ids, output_hidden_states=True).hidden_states
        assert found.layers == [0, 1] and found.states.shape[:3] == (2, 2, ids.shape[1])
        assert torch.allclose(found.states, torch.stack(states), atol=1e-5)
        assert found.tokens[0][:4] == ["7", "*", "8", "<eos>"] and len(found.tokens[0]) == len(found.places[0])
        assert ("cot 0" in found.places[0]) == (stage == 0) and found.places[0][3] == "prompt -1"
    (example,) = run.problems("test", 1)
    same = run.hidden(example, layers=[1]).states
    assert same.shape[:2] == (1, 1) and len(run.problems("validation")) == 16
    with pytest.raises(UserError, match="the task does not know CoT and answer"):
        run.hidden("12 * 3")
    with pytest.raises(UserError, match=r"layers=\[5\]: the layers are 0 to 1"):
        run.hidden("7 * 8", layers=[5])


def test_an_evaluation_gives_the_accuracy_of_the_test(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sp.load_run(folder)
    assert run.evaluate()["answer_accuracy"] == pytest.approx(run.summary["test_accuracy"])
    assert run.evaluate(0, split="validation", limit=5)["examples"] == 5
    assert list(run.evaluate_all(limit=5)["removed_tokens"]) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_a_sweep_lists_its_runs(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(folder, tmp_path / "many" / name)
    sweep = sp.load_sweep(tmp_path / "many")
    assert [run.path.name for run in sweep.runs] == ["a", "b"]
    assert list(sweep.results["test_accuracy"]) == [sp.load_run(folder).summary["test_accuracy"]] * 2
    assert list(sweep.evaluate(limit=5)["examples"]) == [5, 5]
    with pytest.raises(UserError, match="no sweep.json there"):
        sweep.cells  # noqa: B018
    with pytest.raises(UserError, match="no run in this folder or below"):
        sp.load_sweep(tmp_path / "none")


def test_a_run_that_cannot_be_scored_stops_no_other(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        shutil.copytree(folder, tmp_path / "many" / name)
    (tmp_path / "many" / "a" / "config.yaml").write_text("a: [")
    scored = sp.load_sweep(tmp_path / "many").evaluate(limit=5)
    assert list(scored["run"]) == [str(tmp_path / "many" / "b")] and "the other runs go on" in caplog.text
    (tmp_path / "many" / "b" / "config.yaml").write_text("")
    with pytest.raises(UserError, match="none of the 2 runs can be evaluated"):
        sp.load_sweep(tmp_path / "many").evaluate(limit=5)


def test_slips_are_told_in_one_line(folder: Path) -> None:
    run = sp.load_run(folder)
    assert run.ask("7 * 8", stage=folder / "checkpoints" / "removed-1.ckpt").removed_tokens == 1
    for slip, message in (
        (lambda: run.hidden([]), "no problem is given"), (lambda: run.problems(limit=-1), "limit=-1: must be positive"),
        (lambda: sp.train_run("quickstart", "name=mine"), r"overrides='name=mine': is one text; give a list"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            slip()


def test_figures_are_pictures(folder: Path, tmp_path: Path) -> None:
    matplotlib, pyplot = pytest.importorskip("matplotlib"), pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("svg")  # as a notebook has its own
    picture = sp.load_run(folder).figure()
    assert matplotlib.get_backend() == "svg"
    pyplot.switch_backend("agg")
    assert picture._repr_png_().startswith(b"\x89PNG") and repr(picture) == "Picture()"
    assert b"<svg" in picture.save(tmp_path / "x.svg").read_bytes()
    with pytest.raises(UserError, match="is written as .png or .svg"):
        picture.save(tmp_path / "x.gif")


@pytest.mark.long
def test_a_run_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    run = sp.train_run("quickstart", ["debug=true", "name=mine"])
    assert run.path == Path("outputs/mine/seed0") and run.summary["steps"] == 12
    assert "test accuracy" in capsys.readouterr().out
    with pytest.raises(UserError, match="^experiment=quickstrat: no such experiment"):
        sp.train_run("quickstrat", show=False)
    with pytest.raises(UserError, match="^-m: train_run trains one run"):
        sp.train_run("quickstart", ["-m", "seed=0,1"])


@pytest.mark.long
def test_types_are_seen(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        'import stepwise_pl as sp\nreveal_type(sp.load_run("x").ask("y").answer)\nreveal_type(sp.load_sweep("x").runs)\n'
        'sp.load_run("x").ask(3)\n'
    )
    out = subprocess.run(
        [sys.executable, "-m", "mypy", str(tmp_path / "mine.py")], capture_output=True, text=True, cwd=tmp_path,
        env={"MYPYPATH": str(REPO), "PATH": ""},
    ).stdout  # fmt: skip
    assert '"str | None"' in out or '"Union[builtins.str, None]"' in out or '"builtins.str | None"' in out
    assert "list[stepwise_pl.interface.Run]" in out and 'has incompatible type "int"' in out


@pytest.mark.long
def test_the_blocks_of_the_page_run_in_their_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "python.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        # In a run of 12 steps several tokens leave at once, and no stage has 4 of them removed.
        short = block.replace("stage=4", "stage=3")
        short = short.replace('["name=mine"]', '["name=mine", "debug=true", "trainer.keep_every_removed=1"]')
        exec(compile(short, "docs/python.md", "exec"), names)
    assert len(blocks) >= 3 and names["run"].summary["steps"] == 12


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    trained = ("experiment=quickstart", "debug=true", "trainer.keep_every_removed=1")
    command("train", *trained, f"run_dir={tmp_path / 'outputs/quickstart/seed0'}")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    notebook = nbformat.read(REPO / "docs" / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    before = [cell.source for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [cell.source for cell in notebook.cells] == before
    pictures = [one for cell in notebook.cells for one in cell.get("outputs", ()) if "image/png" in one.get("data", {})]
    assert len(pictures) >= 3
