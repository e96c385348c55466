"""The command: real runs of every method, their tables, and what it does if it is stopped or asked for what is not there."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stepwise_pl.cli.run_folders import look_at_each
from stepwise_pl.common import registry
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import read_yaml, save_yaml
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.inside import look as looking
from stepwise_pl.inside.places import Place, columns
from stepwise_pl.inside.subject import Subject
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.trained_run import load_run
from stepwise_pl.probe import ProbeConfig, probe
from stepwise_pl.reporting.probe_text import findings, probe_lines
from stepwise_pl.runs.inside import Probe, read_rows
from tests.conftest import SMALL, command
from tests.methods.test_methods import METHODS, needed

QUICK = {"mlp": "none", "code": "none"}


def config(folder: Path, **settings: object) -> ProbeConfig:
    return ProbeConfig(**{"run": str(folder), **QUICK, **settings})  # type: ignore[arg-type]


def test_a_run_gets_a_table_of_every_kept_stage_and_its_controls(run_folder: Path) -> None:
    out = command("probe", str(run_folder), "targets=[cot 0,cot 4,running_sum]", "problems=300", "scored=200")
    rows = read_rows(run_folder, Probe)
    about = json.loads((run_folder / "inside" / "probe.json").read_text())
    assert [each["checkpoint"] for each in about["checkpoints"]] == ["removed-0", "removed-3", "removed-6"]
    assert (about["fit"], about["scored"], about["split"]) == (300, 200, "problems") and about["seconds"] > 0
    assert about["settings"]["targets"] == ["cot 0", "cot 4", "running_sum"]
    assert {row.removed_tokens for row in rows} == {0, 3, 6} == {row.stage for row in rows}
    places = {
        stage: {row.place for row in rows if row.stage == stage and row.source == "trained"} for stage in (0, 3, 6)
    }
    answers = {"answer 0", "answer 1", "answer 2"}
    assert places[0] == {"prompt -1", *(f"cot {number}" for number in range(6)), *answers}
    assert places[3] == places[0] - {f"cot {number}" for number in range(3)} and places[6] == {"prompt -1", *answers}
    for stage in (0, 3, 6):
        here = [row for row in rows if row.stage == stage]
        for source, layers in (("trained", {0, 1, 2}), ("random", {0, 1, 2}), ("shuffled", {0, 1, 2}), ("raw", {-1})):
            table = [row for row in here if row.source == source and row.probe == "linear"]
            assert len(table) == 3 * len(places[stage]) * len(layers)
            assert {row.layer for row in table} == layers and sum(row.chosen for row in table) == 3
            hidden = [row for row in here if row.source == source and row.probe == "mlp"]
            assert sum(row.chosen for row in hidden) == (0 if source == "shuffled" else 3)
            coded = [row for row in table if not np.isnan(row.bits)]
            assert all(row.chosen for row in coded) and len(coded) == len([row for row in hidden if row.chosen])
    assert all(row.low <= row.score <= row.high for row in rows)
    # The first digit of the prompt is the first token of the CoT, and the sum of the digits is linear in them.
    for target in ("cot 0", "running_sum 0"):
        raw = [row for row in rows if row.source == "raw" and row.target == target and row.probe == "linear"]
        assert all(row.score > 0.99 for row in raw), target
    # A token that has been read is given away.
    leaks = [row for row in rows if (row.stage, row.place, row.target, row.source) == (0, "cot 4", "cot 4", "raw")]
    assert leaks[0].score == 1 and leaks[0].given and not leaks[0].chosen
    assert "300 problems to fit, 200 to score; split by problem (task=modular_sum names no operands)" in out.stdout
    assert (
        "3 checkpoints; at the first 10 places, 3 layers of width 32 (0.0019 GB on the disk), 3 targets (cot, running_sum)"
        in out.stderr
    )
    for line in probe_lines(rows):
        assert line.rstrip() in out.stdout
    assert [path.name for path in sorted((run_folder / "inside").iterdir())] == ["probe.json", "probes.csv"]


def test_two_runs_of_the_command_give_the_same_bytes(run_folder: Path) -> None:
    words = ("checkpoint=removed-3", "targets=[cot 4,running_sum]", "problems=200", "scored=100")
    tables = []
    for _ in range(2):
        command("probe", f"run={run_folder}", *words)
        tables.append((run_folder / "inside" / "probes.csv").read_bytes())
    assert tables[0] == tables[1] and tables[0].count(b"\n") > 50


def test_states_in_parts_give_the_same_table(run_folder: Path) -> None:
    def rows(disk_gb: float) -> list[Probe]:
        return probe(config(run_folder, checkpoint="removed-3", code="chosen", disk_gb=disk_gb))[str(run_folder)]

    whole = rows(1.0)
    # 620 problems of width 32: the states at one place after one layer.
    parts = rows(4 * 720 * 32 * 1e-9)
    # Places come in another order if a place has its layers in several parts.
    assert sorted(map(repr, parts)) == sorted(map(repr, whole))


def test_a_stopped_command_leaves_the_earlier_table_and_no_states(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe(config(run_folder, checkpoint="removed-6", targets=["cot 1"]))
    before = {path.name: path.read_bytes() for path in (run_folder / "inside").iterdir()}
    assert before.keys() == {"probe.json", "probes.csv"}
    there = []

    def stop(*arguments: object) -> None:
        there.extend(path.name for path in (run_folder / "inside").iterdir() if path.is_dir())
        raise KeyboardInterrupt

    monkeypatch.setattr(looking, "RawTokens", stop)
    with pytest.raises(KeyboardInterrupt):
        probe(config(run_folder))
    assert there and {path.name: path.read_bytes() for path in (run_folder / "inside").iterdir()} == before


def test_several_runs_and_folders_above_them_get_tables_of_their_own(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run_folder.parent / "sweep").mkdir()
    for name in ("seed0", "seed1"):
        shutil.copytree(run_folder, run_folder.parent / "sweep" / name)
    broken = run_folder.parent / "sweep" / "seed1" / "checkpoints" / "removed-6.ckpt"
    broken.write_bytes(b"no checkpoint")
    folders = [str(run_folder), str(run_folder.parent / "sweep")]
    done = probe(ProbeConfig(runs=folders, checkpoint="removed-6", targets=["cot 1"], **QUICK))  # type: ignore[arg-type]
    good = run_folder.parent / "sweep" / "seed0"
    assert set(done) == {str(run_folder), str(good)}
    tables = [(folder / "inside" / "probes.csv").read_bytes() for folder in (good, run_folder)]
    assert tables[0] == tables[1] and read_rows(good, Probe)
    assert "removed-6.ckpt: damaged" in caplog.text and "the other runs go on" in caplog.text
    assert not (broken.parents[1] / "inside" / "probes.csv").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"run": "nowhere"}, "run=nowhere: no config.yaml there; give the folder of a training run"),
        ({"run": ""}, "run is not set: python -m stepwise_pl.probe run=<run folder>"),
        ({"run": "", "runs": ["nowhere"]}, "no run to look at: nowhere: no such folder"),
        ({"checkpoint": "removed-5"}, "checkpoint=removed-5: no such checkpoint; give best, last or a file (there: "),
        ({"targets": ["carry"]}, "targets=carry: must be one of cot, answer, running_sum, cot 0"),
        ({"places": ["cot x"]}, "places=cot x: must be one of prompt, thought, cot, answer, or one with a number"),
        ({"places": ["thought"]}, "places=['thought']: no checkpoint of "),
        ({"layers": [3]}, "layers=3: must be at most 2"), ({"layers": [-1]}, "layers=[-1]: must be at least 0"),
        ({"every": 0}, "every=0: must be at least 1"),
        ({"problems": 19}, "problems=19: must be at least 20"), ({"scored": 9}, "scored=9: must be at least 10"),
        ({"mlp": "some"}, "mlp=some: must be one of chosen, all, none"), ({"split": "none"}, "split=none: must be one of"),
        ({"disk_gb": 1e-9}, "disk_gb=1e-09: the states at one place after one layer take"),
        ({"disk_gb": 0.0}, "disk_gb=0.0: must be above 0"), ({"disk_gb": 1e300}, "disk_gb=1e+300: must be above 0, and at most"),
        ({"places": ["cot ²"]}, "places=cot ²: must be one of"),
        ({"accelerator": "gpu"}, "accelerator=gpu: this machine has no CUDA device"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(settings: dict[str, object], line: str, run_folder: Path) -> None:
    if settings == {"accelerator": "gpu"} and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError) as error:
        probe(config(run_folder, **settings))
    assert str(error.value).startswith(line)
    assert not (run_folder / "inside").exists()


def test_places_and_layers_can_be_chosen_on_the_command_line(run_folder: Path) -> None:
    words = (
        "checkpoint=best",
        "places=[prompt -2,prompt -1,cot]",
        "prompt_places=2",
        "layers=[2,0]",
        "targets=[cot 5]",
    )
    command("probe", f"run={run_folder}", *words, "mlp=none", "code=none")
    rows = read_rows(run_folder, Probe)
    assert {row.checkpoint for row in rows} == {"best"} and {row.layer for row in rows} == {-1, 0, 2}
    assert {row.place for row in rows if row.source == "raw"} == {"prompt -2", "prompt -1"}


def test_every_second_checkpoint_and_the_last_can_be_asked_for(run_folder: Path) -> None:
    rows = {every: probe(config(run_folder, targets=["cot 5"], every=every))[str(run_folder)] for every in (2, 5)}
    assert [sorted({row.stage for row in found}) for found in rows.values()] == [[0, 6], [0, 6]]


def test_a_run_that_kept_no_stage_is_probed_at_its_best_checkpoint(run_folder: Path) -> None:
    for path in (run_folder / "checkpoints").glob("removed-*.ckpt"):
        path.unlink()
    rows = probe(config(run_folder, targets=["cot 5"]))[str(run_folder)]
    assert {row.checkpoint for row in rows} == {"best"}


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_can_be_probed(kind: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    steps = ("trainer.duration=12steps", "trainer.keep_every_removed=1", "optimizer.decay=0")
    command("train", *SMALL, *needed(kind, tmp_path), *steps, f"run_dir={run}")
    command("probe", f"run={run}", "split=problems", "targets=[cot,answer 2,running_sum]", "code=none", "mlp=none")
    rows = read_rows(run, Probe)
    assert {"trained", "random", "raw", "shuffled", "constant"} == {row.source for row in rows}
    assert any(row.chosen and row.source == "trained" for row in rows)
    has_thoughts = registry.load_all()["method", kind].__name__ in ("Coconut", "Codi", "Pause", "SimCoT")
    assert has_thoughts == any(row.place.startswith("thought") for row in rows)


def test_weights_in_bf16_are_probed(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(*arguments: str) -> object:
        run = load_run(*arguments)
        run.model.to(torch.bfloat16)
        return run

    monkeypatch.setattr("stepwise_pl.models.trained_run.load_run", half)
    rows = probe(config(run_folder, checkpoint="removed-0", targets=["cot 0"]))[str(run_folder)]
    read = [row.score for row in rows if row.place == "cot 0" and row.source in ("trained", "random")]
    assert len(read) == 6 and min(read) > 0.99


def test_what_is_planted_in_the_model_is_found_at_its_place_and_layer(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states of the trained model are noise, but for one place after one layer, which holds a token that is gone."""
    place, layer, number = Place("prompt", -1), 2, 1
    hidden, wholes = Learner.hidden, {}

    def batches(self: Subject, batch_size: int) -> Iterator[tuple[CoTBatch, CoTBatch]]:
        for whole, view in real(self, batch_size):
            wholes[id(view)] = whole
            yield whole, view

    real = Subject.batches
    trained: list[Learner] = []

    def planted(self: Learner, view: CoTBatch, layers: tuple[int, ...]) -> Tensor:
        states = hidden(self, view, layers)
        trained.append(self)
        if self.model is not trained[0].model:
            return states
        generator = torch.Generator().manual_seed(int(view.draw[0]))
        states = torch.randn(states.shape, generator=generator)
        whole, row = wholes[id(view)], torch.arange(len(view))
        token = whole.tokens[row, whole.length_of(Part.PROMPT) + number]
        states[list(layers).index(layer), row, columns(place, view, whole), :8] += 3 * torch.nn.functional.one_hot(
            token % 8, 8
        )
        return states

    monkeypatch.setattr(Learner, "hidden", planted)
    monkeypatch.setattr(Subject, "batches", batches)
    rows = probe(config(run_folder, checkpoint="removed-6", mlp="chosen"))[str(run_folder)]
    own = [row for row in rows if row.source == "trained" and row.probe == "linear"]
    for row in own:
        is_there = (row.target, row.place, row.layer) == (f"cot {number}", str(place), layer)
        assert row.score > 0.95 if is_there else row.score < 0.5, row
    (finding,) = (finding for finding in findings(rows) if finding.is_linearly_beyond)
    assert (finding.target, finding.by["trained", "linear"].layer) == (f"cot {number}", layer)


def test_problems_longer_than_those_trained_on_are_left_out(run_folder: Path) -> None:
    saved = read_yaml(run_folder / "config.yaml")
    saved["data"]["max_tokens"] = 14  # an example has 6 + 1, 6 and 4 tokens
    save_yaml(saved, run_folder / "config.yaml")
    with pytest.raises(
        UserError,
        match="too few different problems for a probe: 0 to fit and 0 to score.* of at most data.max_tokens=14 tokens",
    ):
        probe(config(run_folder))


def test_a_checkpoint_that_cannot_be_read_costs_the_others_nothing(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run_folder / "checkpoints" / "removed-3.ckpt").write_bytes(b"no checkpoint")
    asked = config(run_folder, targets=["answer 2"], layers=[2], places=["answer"], problems=60, scored=30)
    probe(asked)
    assert {row.checkpoint for row in read_rows(run_folder, Probe)} == {"removed-0", "removed-6"}
    (line,) = [line for line in caplog.messages if "removed-3.ckpt" in line]
    assert line.endswith("; the tables go without it")
    for path in (run_folder / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"no checkpoint")
    caplog.clear()
    with pytest.raises(
        UserError, match=r"^checkpoint=all: no checkpoint of .* can be read; the first: .*removed-0.ckpt"
    ):
        probe(asked)
    assert not caplog.messages


def test_words_of_the_prompt_are_read_by_name_and_places_that_are_nowhere_are_named(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = ["prompt -3", "cot 9"]
    asked = config(
        run_folder, checkpoint="removed-6", targets=["answer 2"], layers=[0], places=places, problems=60, scored=30
    )
    (rows,) = probe(asked).values()
    assert {row.place for row in rows} == {"prompt -3", ""}
    (line,) = [line for line in caplog.messages if "places=" in line]
    assert line == f"{run_folder}: places=[cot 9]: no table has a row about it"


def test_a_disk_that_fails_in_one_run_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def look(folder: Path) -> int:
        if folder.name == "full":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "inside"))
        return 1

    assert look_at_each([Path("full"), Path("good")], look) == {Path("good"): 1}
    assert caplog.messages == [
        "full: full/inside: No space left on device; choose another folder; the other runs go on"
    ]
    with pytest.raises(OSError, match="No space"):
        look_at_each([Path("full")], look)
