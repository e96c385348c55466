"""`python -m stepwise_pl.patch` on trained runs: against a naive reference, twice, stopped, and refused."""

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.statistics import wilson
from stepwise_pl.data.layout import layout
from stepwise_pl.inside import cause
from stepwise_pl.inside.pairs import find_pairs
from stepwise_pl.models.trained_run import load_run
from stepwise_pl.patch import PatchConfig, look_into, patch
from stepwise_pl.runs.folder import kept_checkpoints
from stepwise_pl.runs.inside import Ablation, Patch, Swap, read_rows
from stepwise_pl.tasks import Example
from tests.conftest import REPO, SMALL, command, made_once
from tests.methods.test_methods import METHODS, needed

TABLES = ("patches.csv", "ablations.csv", "swaps.csv")


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one-digit products, of two layers, with a checkpoint of each of its three stages."""

    def make(folder: Path) -> None:
        words = [*SMALL, "model.layers=2", "trainer.keep_every_removed=1", "trainer.duration=10epochs"]
        command("train", *words, "run_dir=run", cwd=folder, PYTHONPATH=str(REPO))

    return made_once("two-layers", make, tmp_path_factory) / "run"


def patch_wrong_pairs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model gets few pairs right."""
    monkeypatch.setattr(cause, "right_pairs", lambda pairs, size: np.flatnonzero(pairs.target >= 0))


def texts(folder: Path) -> dict[str, str]:
    return {name: (folder / "inside" / name).read_text() for name in TABLES}


def tokens(example: Example, run: Any, gone: int) -> tuple[list[int], int, int]:
    """The tokens of an example without the first CoT tokens; the number of the prompt's, and of all before the answer's part."""
    ids = run.tokenizer(layout(example, str(run.tokenizer.eos_token)))["input_ids"]
    first = ids.index(run.tokenizer.eos_token_id) + 1
    second = ids.index(run.tokenizer.eos_token_id, first)
    left = ids[first + gone : second] if gone < second - first else []
    return [*ids[:first], *left, *ids[second:]], first, first + len(left)


def logits_of(model: Any, ids: list[int], layer: int = 0, column: int = -1, state: torch.Tensor | None = None) -> Any:
    """The logits of one example, with one state replaced."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        changed = args[0].clone()
        changed[0, column] = state
        return (changed, *args[1:]), kwargs

    handle = None if state is None else model.transformer.h[layer].register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    if handle is not None:
        handle.remove()
    return out.logits[0], out.hidden_states


@pytest.mark.parametrize("token", ["answer", "written"])
@pytest.mark.parametrize("wrong_too", [False, True])
def test_the_tables_are_those_of_a_naive_reference(
    two_layers: Path, token: str, wrong_too: bool, tmp_path: Path, monkeypatch
) -> None:
    """One pair at a time, without batches, with a hook set by hand; `wrong_too`: also pairs that the small model gets wrong."""
    folder = Path(shutil.copytree(two_layers, tmp_path / "run"))
    if wrong_too:
        patch_wrong_pairs_too(monkeypatch)
    found = look_into(folder, PatchConfig(run=str(folder), pairs=8, problems=0, token=token, batch_size=3), {})
    assert found.ablations == [] and read_rows(folder, Ablation) == []
    patches: dict[tuple[Any, ...], list[tuple[bool, bool, float]]] = defaultdict(list)
    swapped: dict[tuple[Any, ...], list[tuple[float, bool, bool, bool]]] = defaultdict(list)
    right = dict.fromkeys(("removed-0", "removed-1", "removed-2"), 0)
    for gone, name in enumerate(right):
        run = load_run(str(folder), name)
        pairs = find_pairs(run.config.task, run.config.task.load(), 8, 0)
        for a, b in zip(pairs.first, pairs.second, strict=True):
            ids, others = tokens(a, run, gone), tokens(b, run, gone)
            (one, prompt, answer), other = ids, others[0]
            word = next(k for k in range(prompt) if one[k] != other[k])
            plain, _ = logits_of(run.model, one)
            theirs, states = logits_of(run.model, other)
            begin = answer if token == "answer" else prompt
            target = next((k for k in range(begin, len(one)) if one[k] != other[k]), None)
            forced, _ = logits_of(run.model, [*other[:answer], *one[answer:]])
            for k in range(answer + 2, len(one) - 1):
                p, q = (each[k - 1].softmax(-1) for each in (plain, forced))
                swapped[name, f"prompt {word - prompt}", f"answer {k - answer}"].append((
                    float((p - q).abs().sum() / 2), one[k] != other[k], bool(p.argmax() != q.argmax()),
                    bool(p.argmax() == one[k] and q.argmax() == other[k]),
                ))  # fmt: skip
            if target is None:
                continue
            is_wrong = plain[target - 1].argmax() != one[target] or theirs[target - 1].argmax() != other[target]
            if is_wrong and not wrong_too:
                continue
            right[name] += 1
            apart = [float(each[target - 1][other[target]] - each[target - 1][one[target]]) for each in (plain, theirs)]

            def place(column: int, prompt: int = prompt, answer: int = answer, gone: int = gone) -> str:
                if column < prompt:
                    return f"prompt {column - prompt}"
                return f"cot {column - prompt + gone}" if column < answer else f"answer {column - answer}"

            for column in range(word, target):
                for layer in (0, 1):
                    patched, _ = logits_of(run.model, one, layer, column, states[layer][0, column])
                    last = patched[target - 1]
                    effect = (float(last[other[target]] - last[one[target]]) - apart[0]) / (apart[1] - apart[0])
                    patches[name, layer, place(column), place(word), place(target)].append(
                        (bool(last.argmax() == other[target]), bool(last.argmax() == one[target]), effect)
                    )
    assert sum(right.values()) >= (30 if wrong_too else 3)
    rows = read_rows(folder, Patch)
    assert {(r.checkpoint, r.layer, r.place, r.changed, r.target) for r in rows} == patches.keys()
    assert len(rows) == len(patches) == len(found.patches)
    assert any(0 < row.effect < 0.9 for row in rows)
    for row in rows:
        of_row = patches[row.checkpoint, row.layer, row.place, row.changed, row.target]
        moved, kept, effect = (sum(values) / len(of_row) for values in zip(*of_row, strict=True))
        assert row.pairs == len(of_row) and (row.removed_tokens, row.stage) == (int(row.checkpoint[-1]),) * 2
        assert (row.moved, row.kept) == pytest.approx((moved, kept), abs=1e-5)
        # A logit difference that is small in B and A makes a large share of a small error.
        assert row.effect == pytest.approx(effect, rel=1e-2, abs=1e-2 if wrong_too else 1e-3)
        assert (row.low, row.high) == pytest.approx(wilson(moved, len(of_row)), abs=1e-5)
    cells = {(row.checkpoint, row.changed, row.target): row for row in read_rows(folder, Swap)}
    assert cells.keys() == swapped.keys()
    for key, values in swapped.items():
        means = [sum(each) / len(values) for each in zip(*values, strict=True)]
        row = cells[key]
        assert row.pairs == len(values)
        assert [row.distance, row.should_move, row.moved, row.right] == pytest.approx(means, abs=1e-4)
    facts = json.loads((folder / "inside" / "patch.json").read_text())
    assert {each["checkpoint"]: each["right_pairs"] for each in facts["checkpoints"]} == right


def test_the_command_writes_the_same_numbers_twice_and_prints_them(two_layers: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two_layers, tmp_path / "run"))
    settings = ["pairs=5", "problems=17", "fit_problems=40", "accelerator=cpu"]
    out = command("patch", f"run={folder}", *settings)
    first = texts(folder)
    assert set(read_rows(folder, Patch)) and {row.checkpoint for row in read_rows(folder, Ablation)} == {
        "removed-0", "removed-1", "removed-2",
    }  # fmt: skip
    lines = out.stdout.splitlines()
    for head in ("patches ", "ablations ", "swaps "):
        assert any(line.startswith(head) for line in lines), out.stdout
    assert [line.split()[0] for line in lines if line.startswith("removed-")][:3] == [
        "removed-0",
        "removed-1",
        "removed-2",
    ]
    assert f"written to      {folder / 'inside'}" in lines
    facts = json.loads((folder / "inside" / "patch.json").read_text())
    assert facts["settings"]["pairs"] == 5 and len(facts["checkpoints"]) == 3 and facts["data_digest"]
    assert all(len(each["digest"]) == 64 and each["device"] == "cpu" for each in facts["checkpoints"])
    assert facts["seconds"] > 0
    assert sorted(path.name for path in (folder / "inside").iterdir()) == sorted([*TABLES, "patch.json"])
    command("patch", str(folder), *settings)
    assert texts(folder) == first
    command("patch", str(folder), *settings, "seed=1")
    assert texts(folder) != first


def test_the_settings_choose_places_layers_and_checkpoints(two_layers: Path, tmp_path: Path, monkeypatch) -> None:
    patch_wrong_pairs_too(monkeypatch)
    folder = Path(shutil.copytree(two_layers, tmp_path / "run"))
    config = PatchConfig(
        run=str(folder), checkpoint="removed-1", pairs=17, places=["prompt -1", "answer"], layers=[1], problems=9,
        fit_problems=30, ablate="all",
    )  # fmt: skip
    patch(config)
    rows, ablated = read_rows(folder, Patch), read_rows(folder, Ablation)
    assert {row.checkpoint for row in rows} == {row.checkpoint for row in ablated} == {"removed-1"}
    assert {row.layer for row in (*rows, *ablated)} == {1}
    assert (
        {row.place for row in rows}
        <= {"prompt -1", "answer 0", "answer 1", "answer 2"}
        >= {row.place for row in ablated}
    )
    assert {row.place for row in rows} >= {"prompt -1", "answer 1"} <= {row.place for row in ablated}
    assert len({(row.target, row.place) for row in ablated}) == len(ablated) > len({row.target for row in ablated})
    with pytest.raises(UserError, match="layers=2: must be at most 1: the model has 2 layers"):
        patch(PatchConfig(run=str(folder), layers=[2]))
    # One place of the CoT and one of the answer at most; all of the prompt from the changed word on.
    patch(PatchConfig(run=str(folder), checkpoint="removed-0", pairs=17, most_places=1, layers=[1], problems=0))
    found = {row.place for row in read_rows(folder, Patch)}
    assert {"prompt -1", "cot 0", "answer 0"} <= found and not found & {"cot 1", "answer 1", "answer 2"}


def test_a_stopped_command_leaves_earlier_tables_as_they_were(two_layers: Path, tmp_path: Path, monkeypatch) -> None:
    folder = Path(shutil.copytree(two_layers, tmp_path / "run"))
    config = PatchConfig(run=str(folder), pairs=2, problems=9, fit_problems=30)
    patch(config)
    before = texts(folder) | {"patch.json": (folder / "inside" / "patch.json").read_text()}
    ablate, seen = cause.ablations_of, []

    def stop(run: Any, *arguments: Any) -> Any:
        seen.append(run.checkpoint.stem)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return ablate(run, *arguments)

    monkeypatch.setattr(cause, "ablations_of", stop)
    with pytest.raises(KeyboardInterrupt):
        patch(PatchConfig(run=str(folder), pairs=3, problems=9, fit_problems=30))
    assert seen == ["removed-0", "removed-1"]
    assert {path.name: path.read_text() for path in (folder / "inside").iterdir()} == before


def test_a_checkpoint_that_cannot_be_read_is_left_out_with_a_warning(two_layers: Path, tmp_path: Path, caplog) -> None:
    folder = Path(shutil.copytree(two_layers, tmp_path / "run"))
    (folder / "checkpoints/removed-1.ckpt").write_bytes(b"no checkpoint")
    look_into(folder, PatchConfig(run=str(folder), pairs=1, problems=0), {})
    assert list(dict.fromkeys(row.checkpoint for row in read_rows(folder, Swap))) == ["removed-0", "removed-2"]
    assert [
        line for line in caplog.messages if "removed-1.ckpt" in line and line.endswith("; the tables go without it")
    ]
    for checkpoint in (folder / "checkpoints").glob("*.ckpt"):
        checkpoint.write_bytes(b"no checkpoint")
    before = texts(folder)
    with pytest.raises(
        UserError, match=f"^checkpoint=all: no checkpoint of {folder} can be read; the first: .*removed-0.ckpt"
    ):
        look_into(folder, PatchConfig(run=str(folder), pairs=1, problems=0), {})
    assert texts(folder) == before


def test_several_folders_and_one_that_is_broken(two_layers: Path, tmp_path: Path, caplog) -> None:
    for name in ("a", "below/b", "below/broken"):
        shutil.copytree(two_layers, tmp_path / name)
    shutil.rmtree(tmp_path / "below/broken/model")
    settings = ("pairs=2", "problems=0", "checkpoint=best")
    out = command("patch", str(tmp_path / "a"), str(tmp_path / "below"), *settings)
    broken = [line for line in out.stderr.splitlines() if "broken" in line]
    assert len(broken) == 1 and broken[0].endswith("; the other runs go on")
    assert (tmp_path / "a/inside/patches.csv").read_text() == (tmp_path / "below/b/inside/patches.csv").read_text()
    out = command("patch", str(tmp_path / "below/broken"), *settings, check=False)
    assert (out.returncode, len(out.stderr.splitlines())) == (2, 1) and out.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "words,line",
    [
        ((), "run is not set: python -m stepwise_pl.patch run=<run folder>"),
        (("run=nowhere",), "run=nowhere: no config.yaml there; give the folder of a training run"),
        (("{empty}",), "no run to look at: {empty}: no run in this folder or below. Give folders of runs, or folders above them"),
        (("run={run}", "runs=[{run}]"), "run={run} and {run}: give all folders in one way"),
        (("run={run}", "checkpoint=removed-9"), "checkpoint=removed-9: no such checkpoint; give best, last or a file (there: best, good, last, removed-0, removed-1, removed-2)"),
        (("run={run}", "places=[middle]"), "places=middle: must be one of prompt, thought, cot, answer, or one with a number, such as 'cot 3'"),
        (("run={run}", "places=[cot x]"), "places=cot x: must be one of prompt, thought, cot, answer, or one with a number, such as 'cot 3'"),
        (("run={run}", "layers=[7]"), "layers=7: must be at most 1: the model has 2 layers, and nothing but its own prediction reads the state after the last"),
        (("run={run}", "pairs=0"), "pairs=0: must be at least 1"),
        (("run={run}", "token=cot"), "token=cot: must be one of answer, written"),
        (("run={run}", "accelerator=tpu"), "accelerator=tpu: must be one of cpu, gpu, mps, auto"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words: tuple[str, ...], line: str, two_layers: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    known = {"run": str(two_layers), "empty": str(tmp_path / "empty")}
    out = command("patch", *(word.format(**known) for word in words), check=False)
    assert (out.returncode, out.stderr) == (2, f"error: {line.format(**known)}\n")


def test_a_gpu_that_is_not_there_is_one_line(two_layers: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match="^accelerator=gpu: this machine has no CUDA device; accelerator=auto takes what is there$"
    ):
        patch(PatchConfig(run=str(two_layers), accelerator="gpu"))


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_is_looked_into(kind: str, tmp_path: Path, monkeypatch) -> None:
    """At each stage states are patched and ablated, from the prompt over the thoughts to the answer."""
    patch_wrong_pairs_too(monkeypatch)
    run = tmp_path / "run"
    settings = [*SMALL, *needed(kind, tmp_path), "model.layers=2", "schedule.delta=4", "trainer.keep_every_removed=1"]
    command("train", *settings, "trainer.duration=15steps", f"run_dir={run}")
    found = look_into(run, PatchConfig(run=str(run), pairs=3, problems=17, fit_problems=40), {})
    kept = [path.stem for path in kept_checkpoints(run / "checkpoints")]
    for rows in (found.patches, found.ablations, found.swaps):
        assert list(dict.fromkeys(row.checkpoint for row in rows)) == kept and kept
    last = [row for row in found.patches if row.checkpoint == kept[-1]]
    places = list(dict.fromkeys(row.place for row in last))
    thoughts = load_run(str(run), kept[-1]).config.method.added(
        found.checkpoints[-1]["stage"], load_run(str(run), kept[-1]).limits
    )
    assert [place for place in places if place.startswith("thought")] == [f"thought {k}" for k in range(thoughts)]
    # The end of the prompt, or a thought after it, has read the word that is changed.
    assert any(abs(row.effect) > 1e-6 for row in last if row.layer and row.place.startswith(("prompt -1", "thought")))
    assert all(np.isfinite(row.effect) for row in found.patches)


def test_a_task_without_pairs_is_told_in_one_line_and_ablated_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["task=word_problems", "task.train_size=60", "task.validation_size=10", "task.test_size=10", *SMALL[3:]]
    command("train", *words, "model.positions=512", "trainer.duration=4steps", f"run_dir={run}")
    out = command("patch", str(run), "problems=10", "fit_problems=30", "layers=[0]")
    told = [line for line in out.stderr.splitlines() if "task=" in line]
    assert told == [
        "task=word_problems: does not say which problem a changed prompt is (`solved`, docs/extending.md); no patches, no swaps"
    ]
    assert read_rows(run, Patch) == [] == read_rows(run, Swap) and read_rows(run, Ablation)
    assert "ablations " in out.stdout and "patches " not in out.stdout and "Traceback" not in out.stderr
