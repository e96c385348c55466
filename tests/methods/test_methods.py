"""The seam: the arguments and results of a method, and one suite for every registered method."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from stepwise_pl.common import registry
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.plain import save_yaml, to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.config.training import LoggerConfig
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import encode
from stepwise_pl.methods import Auxiliary, ICoTKD, Losses, Method, Stepwise
from stepwise_pl.models.build import check_architecture
from stepwise_pl.models.early import check
from stepwise_pl.models.learner import Learner
from stepwise_pl.reporting.history import History, read_run
from stepwise_pl.runs.cells import cells_of
from stepwise_pl.runs.folder import kept_checkpoints
from stepwise_pl.runs.records import all_rows, read_metrics, read_stage_records
from stepwise_pl.runs.saved_config import differences_of_task
from stepwise_pl.schedules import Adaptive, Linear
from stepwise_pl.schedules.spread import ALL, Stage
from stepwise_pl.tasks import Files, Multiplication, Parity, WordProblems
from tests import forked
from tests.conftest import REPO, SMALL, command, learner, small_model

TASK = Multiplication(digits=2, min_digits=1, train_size=64, validation_size=10, test_size=10)
THINKING = ("coconut", "codi", "sim_cot")
METHODS = sorted(kind for group, kind in registry.load_all() if group == "method")


@pytest.fixture
def batch(tokenizer) -> CoTBatch:
    return encode(TASK.load()["train"], tokenizer, "train").collate(np.arange(20))


def test_a_bad_value_is_named() -> None:
    for bad, line in (({"side": "up"}, "method.side=up"), ({"unit": "word"}, "method.unit=word")):
        with pytest.raises(UserError, match=line):
            Stepwise(**bad)  # type: ignore[arg-type]


def test_stepwise_reads_the_prompt_and_writes_the_rest(tokenizer, batch: CoTBatch) -> None:
    method = Stepwise()
    each = np.arange(20) % 9
    view = method.view(learner(small_model(tokenizer), tokenizer), batch, Stage(2, 8, each))
    left = batch.length_of(Part.COT).numpy() - each
    assert view.length_of(Part.COT).tolist() == np.where(each == 8, 0, left.clip(0)).tolist()
    for part in (Part.PROMPT, Part.ANSWER):
        assert torch.equal(view.length_of(part), batch.length_of(part))


def test_the_loss_is_the_cross_entropy_of_the_view(tokenizer, batch: CoTBatch) -> None:
    one = learner(small_model(tokenizer), tokenizer)
    losses = one.method.loss(one, batch, Stage(3, 8))
    view = batch.remove(3)
    logits = one.model(input_ids=view.tokens, attention_mask=view.attention_mask).logits[:, :-1]
    is_target = view.is_target[:, 1:]
    label = view.tokens[:, 1:][is_target]
    expected = torch.nn.functional.cross_entropy(logits[is_target], label, reduction="sum")
    torch.testing.assert_close(losses.scored.loss, expected)
    assert len(losses.scored.label) == len(label) and not losses.more


def test_hidden_states_are_those_of_the_model(tokenizer, batch: CoTBatch) -> None:
    one = learner(small_model(tokenizer), tokenizer)
    view = batch.remove(ALL)
    found = one.hidden(view, (0, 2))
    read = one.model(
        input_ids=view.tokens[:, :-1], attention_mask=view.attention_mask[:, :-1], output_hidden_states=True
    )
    there = (view.part != Part.PAD)[:, :-1]
    for layer, place in ((0, 0), (2, 1)):
        torch.testing.assert_close(found[place][there], read.hidden_states[layer][there])


def test_further_terms_are_divided_by_the_examples_of_the_step(tmp_path) -> None:
    """The same second term for every example adds its gradient once, at any number of micro-batches."""
    from tests.training.test_module import fit

    @dataclass
    class Plus(Stepwise):
        share: float = 0.0

        def loss(self, learner: Learner, batch: CoTBatch, stage: Stage) -> Losses:
            losses = super().loss(learner, batch, stage)
            embeddings = learner.model.get_input_embeddings().weight  # type: ignore[no-untyped-call, union-attr]
            return Losses(losses.scored, {"size": self.share * len(batch) * embeddings.square().sum()})

    class Gradient(Callback):
        """Keeps the gradient of the embeddings at the first step."""

        def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
            if trainer.global_step == 0:
                weight = module.model.get_input_embeddings().weight
                self.found = weight.grad.clone(), 2 * weight.detach().clone()

    def plus(share: float, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of the embeddings, and that of the sum of their squares."""
        spy = Gradient()
        folder = tmp_path / f"{share}-{micro}"
        fit(folder, Linear(delta=4), 1, micro=micro, method=Plus(share=share), callbacks=(spy,))
        return spy.found

    plain = plus(0.0, 1)[0]
    for micro in (1, 2, 4):
        first = plus(0.1, micro)
        # Every example has the same term, so the mean over examples is that term.
        torch.testing.assert_close(first[0], plain + 0.1 * first[1], rtol=1e-4, atol=1e-6)


def test_an_extra_module_is_trained_and_resumed(tmp_path) -> None:
    from tests.training.test_module import fit

    @dataclass
    class Shifted(Stepwise):
        """A method with a module of its own. The output of the module is subtracted from the loss."""

        def extra(self, model: torch.nn.Module) -> torch.nn.Module:
            return torch.nn.Linear(1, 1)

        def loss(self, learner: Learner, batch: CoTBatch, stage: Stage) -> Losses:
            assert learner.extra is not None
            given = learner.extra(torch.ones(len(batch), 1))
            return Losses(super().loss(learner, batch, stage).scored, {"own": -given.sum()})

    def weight(module: Any) -> float:
        return float(module.extra.weight)

    torch.manual_seed(0)
    whole = fit(tmp_path / "whole", Linear(delta=4), 8, method=Shifted(), dropout=0.1)[0]
    fit(tmp_path / "cut", Linear(delta=4), 5, method=Shifted(), dropout=0.1)
    last = str(tmp_path / "cut" / "last.ckpt")
    resumed = fit(tmp_path / "cut", Linear(delta=4), 8, method=Shifted(), dropout=0.1, resume=last)[0]
    assert weight(whole) == weight(resumed)
    # The gradient is the same at every step, so AdamW moves the weight by the learning rate each time.
    begun = weight(fit(tmp_path / "first", Linear(delta=4), 1, method=Shifted(), dropout=0.1)[0])
    assert weight(whole) - begun == pytest.approx(7e-3, rel=0.02)


def needed(kind: str, folder: Path) -> list[str]:
    """Return what a method needs on the command line besides its name. A stage lasts a few steps, so that all stages occur."""
    found = [f"method={kind}"]
    if hasattr(registry.load_all()["method", kind], "teacher"):
        size = "model.layers=2"
        command(
            "train", *SMALL, size, "schedule=explicit_cot", "trainer.duration=30steps", f"run_dir={folder / 'teacher'}"
        )
        found += [size, f"method.teacher={folder / 'teacher'}", "schedule.delta=4"]  # 5 steps a stage
    if hasattr(registry.load_all()["method", kind], "stages"):
        found += ["method.unit=token", "method.thoughts=2", "schedule.delta=4"]
    return found


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_trains_resumes_and_validates_as_it_evaluates(kind: str, tmp_path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = [*SMALL, *needed(kind, tmp_path), "optimizer.decay=0", "model.dropout=0.1"]
    command("train", *settings, "trainer.duration=12steps", f"run_dir={whole}")
    # Cut in the first stage, in the second and in the third of a method with three.
    command("train", *settings, "trainer.duration=3steps", f"run_dir={cut}")
    for end in (7, 11, 12):
        command("train", *settings, f"trainer.duration={end}steps", f"run_dir={cut}", "resume=true")
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, cut)]
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    for name, weight in states[0]["state_dict"].items():
        assert torch.equal(weight, states[1]["state_dict"][name]), name
    assert states[0]["stepwise"]["tokens_read"] == states[1]["stepwise"]["tokens_read"] > 0
    command("evaluate", f"run={whole}", "split=validation", "speed_problems=0", "checkpoint=last")
    (found,) = (json.loads(path.read_text()) for path in (whole / "evaluations").glob("last-validation-*.json"))
    validated = [row for row in read_metrics(whole / "metrics.csv") if row["val/answer_accuracy"]][-1]
    assert found["as_trained"] and found["examples"] == float(validated["val/examples"])
    for key in ("answer_accuracy", "loss", "token_accuracy"):
        assert found[key] == pytest.approx(float(validated[f"val/{key}"]), rel=1e-5), key
    unit = "step" if kind == "codi" else "token"
    asked = f"removed_{unit}s=all"
    at_all = command("evaluate", f"run={whole}", asked, "checkpoint=last", "limit=5", "speed_problems=0", check=False)
    if registry.load_all()["method", kind].stage_names:
        line = f"error: {asked}: the stages of method={kind} are no removed {unit}s; leave it out"
        assert at_all.returncode == 2 and at_all.stderr.strip() == line
    else:
        (table,) = (whole / "evaluations").glob("levels-last-test-first5.csv")
        levels = [row["removed_tokens"] for row in csv.DictReader(table.open(newline=""))]
        assert levels == ["0", "1", "2"], at_all.stderr
    exported = command("export", f"run={whole}", "checkpoint=last", f"out={tmp_path / 'out'}", check=False)
    can_export = json.loads((whole / "summary.json").read_text())["can_export"]
    assert can_export or kind not in ("stepwise", "auxiliary")
    if can_export:
        assert exported.returncode == 0 and (tmp_path / "out" / "model.safetensors").is_file(), exported.stderr
    else:
        assert exported.returncode == 2 and f"method={kind}" in exported.stderr


def detached(losses: Losses) -> Losses:
    return Losses(losses.scored._replace(loss=losses.scored.loss.detach()))


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a view that is a tensor": (
        {"view": lambda self, learner, batch, stage: batch.tokens},
        "Wrong.view returned Tensor, must return CoTBatch: batch.remove(stage.units)",
    ),
    "a loss that is a tensor": (
        {"loss": lambda self, *given: Stepwise.loss(self, *given).scored.loss},
        "Wrong.loss returned Tensor, must return Losses: Losses(learner.score(",
    ),
    "a loss without scores": (
        {"loss": lambda self, *given: Losses(Stepwise.loss(self, *given).scored.loss)},
        "Wrong.loss: scored returned Tensor, must return Scored: learner.score(view)",
    ),
    "a term for each example": (
        {"loss": lambda self, *given: Losses(Stepwise.loss(self, *given).scored, {"own": torch.ones(3)})},
        "Wrong.loss returned own of shape [3], must be one number: its sum",
    ),
    "a term that is a number": (
        {"loss": lambda self, *given: Losses(Stepwise.loss(self, *given).scored, {"own": 0.5})},
        "Wrong.loss: own returned float, must return Tensor: a sum over examples",
    ),
    "a loss without a gradient": (
        {"loss": lambda self, *given: detached(Stepwise.loss(self, *given))},
        "Wrong.loss returned a loss that needs no gradient",
    ),
    "states that are the view": (
        {"prompt_states": lambda self, learner, view: view},
        "Wrong.prompt_states returned CoTBatch, must return Tensor: states of shape [blocks, batch, width], or None",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_a_method_is_one_line_that_names_its_class(mistake: str, tmp_path) -> None:
    from tests.training.test_module import fit

    verbs, message = MISTAKES[mistake]
    method = type("Wrong", (Stepwise,), verbs)()
    with pytest.raises(UserError, match=f"method=stepwise: .*{re.escape(message)}"):
        fit(tmp_path, Linear(delta=4), 1, method=method, every_epochs=1)


def test_a_method_without_a_view_is_refused_before_training() -> None:
    config = Config(task=Multiplication(), schedule=Linear(), method=Method(kind="blank"))
    with pytest.raises(UserError, match=r"method=blank: stepwise_pl\.methods\.base\.Method\.view is missing"):
        check(config)


def test_a_schedule_that_waits_for_answers_is_refused_where_none_come() -> None:
    config = Config(task=Multiplication(), schedule=Adaptive(), method=ICoTKD(teacher="random"))
    with pytest.raises(
        UserError, match="adaptive waits for good answers, and method=icot_kd gives none before its last"
    ):
        check(config)
    check(Config(task=Multiplication(), schedule=Adaptive(max_stay=500), method=ICoTKD(teacher="random")))


def test_the_stages_of_a_method_are_announced_and_named(tmp_path) -> None:
    settings = [*SMALL, *needed("icot_kd", tmp_path)]
    told = command("train", *settings, "trainer.duration=12steps", f"run_dir={tmp_path / 'run'}").stderr
    assert "stage 0 (read) from step 1; stage 1 (emulate) from step 6; stage 2 (couple) from step 11\n" in told
    assert ": stage 2 (couple), " in next(line for line in told.splitlines() if line.startswith("step 12 of 12"))
    rows = {int(row["step"]): row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["train/lr"]}
    assert {step: (bool(row["train/loss"]), bool(row["train/emulation"])) for step, row in rows.items()} == {
        5: (True, False), 10: (False, True),
    }  # fmt: skip
    short = command("train", *settings, "trainer.duration=7steps", f"run_dir={tmp_path / 'short'}").stderr
    assert "; never: couple (trainer.duration and schedule.delta decide)" in short


def test_tables_and_checkpoints_tell_named_stages_apart(tmp_path) -> None:
    """All stages of ICoT-KD have removed the same tokens."""
    run = tmp_path / "run"
    settings = [*SMALL, *needed("icot_kd", tmp_path), "trainer.keep_every_removed=1", "trainer.duration=15steps"]
    told = command("train", *settings, f"run_dir={run}").stdout
    names = ["read", "emulate", "couple"]
    table = [line.split()[:3] for line in told.splitlines() if line.startswith(tuple(names))]
    assert table == [["read", "2", "5"], ["emulate", "2", "10"], ["couple", "2", "15"]]
    assert "with 2 of 2 CoT tokens removed, stage couple (best.ckpt)" in told
    records = read_stage_records(run / "stages.jsonl")
    assert [record["stage"] for record in records] == names
    assert [path.name for path in kept_checkpoints(run / "checkpoints")] == [f"stage-{k}.ckpt" for k in range(3)]
    assert json.loads((run / "summary.json").read_text())["stage"] == "couple"
    command("evaluate", f"run={run}", "checkpoint=all", "split=validation", "speed_problems=0")
    with (run / "evaluations" / "tradeoff-validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["checkpoint"]) for row in rows] == [
        (name, f"stage-{k}.ckpt") for k, name in enumerate(names)
    ]
    assert [float(row["accuracy"]) for row in rows] == pytest.approx([record["accuracy"] for record in records])
    history = read_run(run)
    assert [stage.stage for stage in history.stages] == [record["stage"] for record in history.last_records] == names
    assert [row["step"] for row in history.resets] == [10, 15]  # the first rows that are logged after steps 6 and 11
    command("report", str(run), f"out={tmp_path / 'page.html'}")
    page = (tmp_path / "page.html").read_text()
    assert "2 of 2, couple" in page and all(f'<th scope="row">{name}</th><td>2</td>' in page for name in names)
    digits = json.loads(re.findall(r'id="figures">(.*?)</script>', page, re.S)[0])["digits-1"]
    assert digits["data"][0]["x"] == names


def test_a_run_that_ends_before_its_last_stage_says_so(tmp_path) -> None:
    settings = [*SMALL, *needed("icot_kd", tmp_path), "trainer.duration=7steps"]
    told = command("train", *settings, f"run_dir={tmp_path / 'run'}").stdout
    assert "removed, stage emulate (best.ckpt)" in told


def test_the_memory_check_counts_all_that_a_method_holds() -> None:
    cfg = ModelConfig(layers=3, heads=2, width=16)
    alone, auxiliary, distilled = (
        check_architecture(cfg, method) for method in (Stepwise(), Auxiliary(), ICoTKD(teacher="random", mixture=2))
    )
    assert alone == check_architecture(cfg) and auxiliary == alone + 16
    each = ((16 * 64 + 64) + (64 * 16 + 16)) + ((32 * 64 + 64) + (64 * 16 + 16))  # the MLPs of a block
    emulator = 2 * 16 + 2 * (4 * 16 * 16 + 4 * 16) + 2 * (16 * 16 + 16) + (32 * 16 + 16)
    assert distilled == 3 * alone + 3 * each + emulator
    with pytest.raises(
        UserError, match="the model, with all that method=icot_kd holds besides, has .* million weights"
    ):
        check(Config(
            task=Multiplication(), schedule=Linear(), method=ICoTKD(teacher="random"),
            model=ModelConfig(layers=64, heads=64, width=1 << 17),
        ))  # fmt: skip


def test_a_teacher_of_another_task_is_refused_and_one_that_has_moved_is_named_again(tmp_path) -> None:
    settings, run = [*SMALL, *needed("icot_kd", tmp_path)], f"run_dir={tmp_path / 'run'}"
    teacher, moved = tmp_path / "teacher", tmp_path / "moved"

    def refused(*words: str) -> str:
        out = command("train", *words, check=False)
        assert out.returncode == 2 and "Traceback" not in out.stderr
        return out.stderr.strip().splitlines()[-1]

    assert "has learned another task (task.digits is 1 there, 2 here)" in refused(*settings, "task.digits=2", run)
    of_thoughts = f"run_dir={tmp_path / 'of-thoughts'}"
    size = ("model.layers=2", "schedule=explicit_cot", "trainer.duration=2steps")
    command("train", *SMALL, *size, "method=coconut", "method.unit=token", of_thoughts)
    with_thoughts = refused(*settings, f"method.teacher={tmp_path / 'of-thoughts'}", run)
    assert "reads inputs that are no words (method=coconut); a teacher is a run of method=stepwise" in with_thoughts
    assert "model.layers=1: must be at least 2 for method=icot_kd" in refused(*settings, "model.layers=1", run)
    line = refused(*settings, "method.teacher_checkpoint=none", run)
    assert f"method.teacher={teacher} with method.teacher_checkpoint=none: checkpoint=none: no such checkpoint" in line
    told = command("train", *settings, "trainer.duration=3steps", run).stderr
    assert f"teacher: {teacher / 'checkpoints' / 'best.ckpt'}, " in told and "% right on validation" in told
    teacher.rename(moved)
    again = (run, "resume=true", "trainer.duration=7steps")
    assert f"method.teacher={teacher}: no such folder; train the teacher first" in refused(*again)
    assert "a run that the method builds on has changed" in refused(*again, "method.teacher=random")
    command("train", *again, f"method.teacher={moved}")


@pytest.mark.parametrize("files", ["the same files by another name", "other files"])
def test_a_teacher_of_the_same_files_has_the_same_task(files: str, tmp_path) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split[0]}||1 2 #### 3\n")
    (tmp_path / "other.txt").write_text("u||1 2 #### 3\n")

    def task(test: Path) -> Files:
        return Files(train=str(tmp_path / "train.txt"), validation=str(tmp_path / "validation.txt"), test=str(test))

    theirs = task(tmp_path / "test.txt")
    plain = to_plain(Config(task=theirs, schedule=Linear(), method=Stepwise()))
    save_yaml({**plain, "derived": {"files": list(theirs.fingerprint())}}, tmp_path / "config.yaml")
    (tmp_path / "below").mkdir()
    test = tmp_path / "below" / ".." / "test.txt" if files.startswith("the same") else tmp_path / "other.txt"
    found = differences_of_task(tmp_path, task(test))
    assert found == ([] if files.startswith("the same") else ["its data files were others"])


def test_what_does_not_fit_together_is_refused_with_the_configuration() -> None:
    for method, settings, line in (
        (Auxiliary(), {"task": WordProblems()}, "method.value=running_sum: task=word_problems has no such quantity; it has none"),
        (Auxiliary(value="carry"), {"task": Parity()}, "method.value=carry: task=parity .* it has running_sum"),
        (ICoTKD(), {"schedule": Linear(mix=0.5)}, "schedule.mix=0.5: .* of method=icot_kd are phases of the whole run"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line):
            Config(**{"task": Multiplication(), "schedule": Linear(), "method": method, **settings})  # type: ignore[arg-type]
    for weight in (float("inf"), float("nan")):
        with pytest.raises(UserError, match=f"method.weight={weight}: must be above 0, and finite"):
            Auxiliary(weight=weight)


def test_a_sweep_over_methods_with_a_key_of_one_says_how_to_go_about_it() -> None:
    out = command("train", "-m", "method=stepwise,icot_kd", "method.teacher=random", check=False)
    assert out.returncode == 2
    line = "method.teacher: method=stepwise has no such key; method=icot_kd has it; give a recipe to each method that needs"
    assert line in out.stderr and "Traceback" not in out.stderr
    assert "if every swept method has the key, write 'method.teacher=choice(<value>)'" in out.stderr


@pytest.mark.long
def test_a_run_that_goes_back_into_an_earlier_stage_keeps_its_stages_apart(tmp_path) -> None:
    """Weights that are not finite in the third stage take the run back to the end of the second."""
    run = tmp_path / "run"
    words = [*SMALL, *needed("icot_kd", tmp_path), "guard=halve", "trainer.log_every_n_steps=1", f"run_dir={run}"]
    out = forked.run(
        "tests.driver", ["--weights=nan,0,12", "--", *words, "trainer.duration=25steps"], REPO, dict(os.environ), 300
    )
    assert out.returncode == 0, out.stderr[-2000:]
    assert "stage 1 (emulate) goes on; stage 2 (couple) from step 16\n" in out.stderr
    rows = [row for row in all_rows(run / "metrics.csv") if row["attempt"] == "1" and not row["test/loss"]]
    assert (rows[0]["step"], rows[0]["schedule/stage"]) == ("10", "1")
    assert [stage.stage for stage in read_run(run).stages] == ["read", "emulate", "couple"]


def test_what_a_model_lacks_is_said_before_any_data_is_read() -> None:
    for method, line in (
        (Auxiliary(layer=5), "method.layer=5: must be between 1 and the 4 layers of the model"),
        (Auxiliary(head=4), "method.head=4: must be between 0 and 3, the heads of the model"),
    ):
        with pytest.raises(UserError, match=line):
            check(Config(task=Multiplication(), schedule=Linear(), method=method, model=ModelConfig(layers=4, heads=4)))
    with pytest.raises(UserError, match="logger.artifact=true: a model trained with method=icot_kd"):
        Config(
            task=Multiplication(), schedule=Linear(), method=ICoTKD(), logger=LoggerConfig(wandb=True, artifact=True)
        )


def test_methods_load_no_torch() -> None:
    script = (
        "import sys, pkgutil, importlib, stepwise_pl.methods as room\n"
        "for module in pkgutil.iter_modules(room.__path__): importlib.import_module(f'stepwise_pl.methods.{module.name}')\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO)
    assert out.stdout.strip() == "False", out.stderr


def test_a_method_without_a_view_has_none() -> None:
    with pytest.raises(NotImplementedError):
        Method().view(None, None, None)  # type: ignore[arg-type]


@pytest.mark.long  # the processes wait for each other
@pytest.mark.parametrize("kind", METHODS)
def test_two_processes_train_every_method_as_one_does(kind: str, tmp_path) -> None:
    """The sum of two halves of a batch is rounded otherwise than the whole: up to that, all stages go as in one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    settings = [*SMALL, *needed(kind, tmp_path), "optimizer.decay=0", "trainer.duration=12steps", "optimizer.lr=1e-3"]
    command("train", *settings, f"run_dir={one}")
    command("train", *settings, "trainer.devices=2", f"run_dir={two}")
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (one, two)]
    for name, weight in states[0]["state_dict"].items():
        torch.testing.assert_close(weight, states[1]["state_dict"][name], rtol=0, atol=2e-4, msg=name)
    assert states[0]["stepwise"]["tokens_read"] == states[1]["stepwise"]["tokens_read"]


def test_a_guard_goes_back_in_the_last_stage_of_a_method_and_not_before(tmp_path) -> None:
    """ICoT-KD answers by chance in its first stages, which is no collapse."""
    run = tmp_path / "run"
    settings = [*needed("icot_kd", tmp_path), "guard=halve", "guard.patience=1", "trainer.duration=12steps"]
    command("train", *SMALL, *settings, f"run_dir={run}")
    summary = json.loads((run / "summary.json").read_text())
    assert not summary["rollbacks"] and summary["collapsed_at"] is None
    assert summary["method"] == "icot_kd" and summary["tokens_read"] > 0


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind != "stepwise"])
@pytest.mark.parametrize(
    "setting",
    [
        "trainer.accumulate_grad_batches=2", "optimizer.average=0.9", "optimizer=muon", "trainer.precision=bf16-mixed",
        "trainer.precision=bf16-true", "model.gradient_checkpointing=true",
    ],
)  # fmt: skip
def test_every_method_trains_and_is_evaluated_under_every_setting(kind: str, setting: str, tmp_path) -> None:
    run = tmp_path / "run"
    settings = [*SMALL, *needed(kind, tmp_path), setting, "optimizer.decay=0", "trainer.duration=12steps"]
    if setting == "model.gradient_checkpointing=true" and kind in THINKING:
        refused = command("train", *settings, f"run_dir={run}", check=False)
        assert refused.returncode == 2 and "thoughts need a KV cache" in refused.stderr
        return
    command("train", *settings, f"run_dir={run}")
    command("evaluate", f"run={run}", "split=validation", "speed_problems=0", "checkpoint=last")
    (found,) = (json.loads(path.read_text()) for path in (run / "evaluations").glob("last-validation-*.json"))
    validated = [row for row in read_metrics(run / "metrics.csv") if row["val/answer_accuracy"]][-1]
    low_precision = "bf16" in setting
    assert found["loss"] == pytest.approx(float(validated["val/loss"]), rel=2e-2 if low_precision else 1e-5)
    if setting == "trainer.accumulate_grad_batches=2":  # the halves of a batch make the whole
        whole = tmp_path / "whole"
        command("train", *[word for word in settings if word != setting], f"run_dir={whole}")
        states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (run, whole)]
        for name, weight in states[0]["state_dict"].items():
            torch.testing.assert_close(weight, states[1]["state_dict"][name], rtol=0, atol=2e-3, msg=name)


def test_runs_that_build_on_a_run_of_their_own_seed_are_one_cell() -> None:
    runs = [
        History(Path(f"r{seed}"), "", config={"seed": seed, "method.teacher": f"out/seed{seed}", "schedule.delta": 1})
        for seed in (0, 1)
    ]
    other = History(Path("x"), "", config={"seed": 1, "method.teacher": "out/seed0", "schedule.delta": 1})
    assert [len(cell.runs) for cell in cells_of([*runs, other])] == [2, 1]
