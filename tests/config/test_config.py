"""Configuration: every YAML composes, the paper's values, and errors in one quick line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from stepwise_pl.cli.arguments import hydra_arguments
from stepwise_pl.cli.entry import register_schemas
from stepwise_pl.common.errors import UserError
from stepwise_pl.config import known
from stepwise_pl.config.known import CONF
from stepwise_pl.config.mistakes import no_choice
from stepwise_pl.config.plain import config_from, read_yaml, save_yaml, to_object, to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.evaluate import EvaluateConfig
from stepwise_pl.methods import Stepwise
from stepwise_pl.models.early import causal_types
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Multiplication
from tests.conftest import REPO, command, every, schema_of


def composed(*overrides: str, config_name: str = "train") -> Config:
    GlobalHydra.instance().clear()
    register_schemas(config_name, schema_of(config_name))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_object(compose(config_name, list(overrides)))
    return config


CHOICES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))


@pytest.mark.parametrize("path", CHOICES, ids=str)
def test_every_choice_composes_and_survives_a_round_trip(path: Path, tmp_path) -> None:
    config = composed(f"{path.parent}={path.stem}")
    save_yaml(to_plain(config), tmp_path / "config.yaml")
    assert config_from(read_yaml(tmp_path / "config.yaml"), Config) == config


def test_the_documented_full_size_command_is_the_papers_recipe() -> None:
    config = composed("model=gpt2", "task=mult7x7")
    assert isinstance(config.schedule, Linear)
    assert isinstance(config.task, Multiplication)
    s, o, d, t = config.schedule, config.optimizer, config.data, config.trainer
    assert (s.delta, s.smoothing, s.reset_optimizer, s.rewarmup_steps, s.mix) == (8, 4.0, True, 0, 0)
    assert config.method == Stepwise(unit="token", side="left", keep_position=False)
    assert (o.lr, o.weight_decay, o.betas, o.warmup_steps, o.decay) == (5e-5, 0.01, [0.9, 0.999], 0, 0)
    assert (d.batch_size, t.gradient_clip_val, t.duration, t.precision) == (32, 1.0, "200epochs", "32-true")
    assert (config.task.digits, config.task.train_size) == (7, 808_000)
    assert (config.model.name, config.model.pretrained, config.model.tokenizer) == ("gpt2", True, "gpt2")


def test_the_knobs() -> None:
    config = composed("schedule.delta=1/2", "schedule.smoothing=inf", "task.digits=5", "optimizer.lr=1e-4", "seed=3")
    assert (config.schedule.rate(), config.schedule.smoothing) == (0.5, float("inf"))
    assert (config.task.digits, config.optimizer.lr, config.seed) == (5, 1e-4, 3)  # type: ignore[attr-defined]


ERRORS = {
    "schedule.dleta=4": "schedule.dleta: no such key. Did you mean schedule.delta? schedule has: delta,",
    "+schedule.foo=4": "schedule.foo: no such key. schedule has: kind, smoothing, reset_optimizer,",
    "foo=4": "foo: no such key. The top level has: callbacks, data,",
    "+foo.bar=4": "foo: no such key.",
    "schedule=fast": "schedule=fast: no such schedule; choose from ",
    "task=mult99x99": "task=mult99x99: no such task; choose from",
    "model=gpt9": "model=gpt9: no such model; choose from gpt2, gpt2-medium, gpt2_2layer, mistral7b, phi3, smollm2, tiny",
    "experiment=nope": "experiment=nope: no such experiment; choose from ablation_cpu_aggressive, ablation_cpu_explicit_cot, ",
    "optimizer.lr=abc": "optimizer.lr=abc: must be a number",
    "model.layers=2k": "model.layers=2k: must be a whole number; write 2000",
    "trainer.max_tokens_read=1.5M": "trainer.max_tokens_read=1.5M: must be a whole number; write 1500000",
    "trainer.max_tokens_read=4.1M": "trainer.max_tokens_read=4.1M: must be a whole number; write 4100000",
    "data.epoch_size=1e5": "data.epoch_size=100000.0: must be a whole number; write 100000",
    "data.batch_size=[8]": "data.batch_size=[8]: must be a whole number",
    "logger.wandb=maybe": "logger.wandb=maybe: must be true or false",
    "task.train_size=null": "task.train_size=null: must have a value",
    "model.config=3": "model.config: must be a mapping, such as {name: 1}",
    "logger.tags=3": "logger.tags: must be a list, such as [a, b]",
    "logger.tags={a:1}": "logger.tags: must be a list, such as [a, b]",
    "model.config=[1]": "model.config: must be a mapping, such as {name: 1}",
    "trainer.duration=[1]": "trainer.duration=[1]: must be a text, not a list or a mapping",
    "experiment=quickstrt": "experiment=quickstrt: no such experiment. Did you mean experiment=quickstart? (--help lists all",
    "experiment=prosqa": "experiment=prosqa: no such experiment; choose from methods_cpu_prosqa_coconut, methods_cpu_prosqa_explicit_cot, ",
    "optimizer.lr=-1": "optimizer.lr=-1.0: must be above 0",
    "seed=1.5": "seed=1.5: must be a whole number",
    "task.digits=null": "task.digits=null: must have a value",
    "seed=4294967296": "seed=4294967296: must be at least 0 and below 2**32",
    "task=null": "task is not set: choose one with task=<name>",
    "schedule=null": "schedule is not set: choose one with schedule=<name>",
    "schedule.kind=other": "schedule.kind=other: cannot be set by itself",
    "schedule.smoothing=1e-30": "schedule.smoothing=1e-30: must be at least 0.01",
    "schedule.rewarmup_steps=3 schedule.reset_optimizer=false": "schedule.rewarmup_steps follows a reset",
    "logger.artifact=true": "logger.artifact=true: is about W&B; add logger=wandb",
    "logger=wandb logger.artifact=true method.keep_position=true": "logger.artifact=true: a model trained with method.keep_position",
    "objective=[]": "objective=[]: must be one of val_accuracy, test_accuracy, removed_at_95, seconds",
    "logger.offline=true": "logger.offline=true: is about W&B; add logger=wandb",
    "model.config.n_inner=5": "model.config.n_inner: is not set yet; to add it write +model.config.n_inner=...",
    "task.digits=4 task.train_size=90000000": "task.train_size=90000000: must be at most",
    "trainer.devices=2 -m": "--multirun with trainer.devices=2: sweep with one device per run",
    "trainer=gpu": "trainer.accelerator=gpu: this machine has no CUDA device; trainer.accelerator=auto takes what is there",
    "model.type=t5": "model.type=t5: transformers has no causal LM of this type",
    "+model.config.n_inner=abc": "model.config.n_inner=abc: does not fit a gpt2 config",
    "method.side=up": "method.side=up: must be one of left, right",
    "schedule.delta=many": "schedule.delta=many: must be a number, such as 8, 0.5 or 1/2",
    "trainer.precision=64": "trainer.precision=64: must be one of 32-true, bf16-mixed",
    "data.batch_size=0": "data.batch_size=0: must be at least 1",
    "model.heads=5": "model.heads=5: must divide model.width=128",
    "model.pretrained=true": "model.tokenizer=symbols does not fit pretrained weights",
    "trainer.accumulate_grad_batches=5": "data.batch_size=32: must be a multiple of",
    "optimizer.decay=10": "optimizer.decay=10.0: must be a share of the run, from 0 to 1",
    "data.easy_first=1.5": "data.easy_first=1.5: must be between 0 and 1",
    "data.easy_first=1 data.easy_last=1": "data.easy_first, data.easy_last: the task has no easy examples",
    "task=file method.keep_position=true": "method.keep_position=true needs a task whose CoT length",
    "schedule.delta=[3": "error:",
    "task=file": "task.train is not set",
    "task=file task.train=/nowhere.txt": "task.train=/nowhere.txt: No such file or directory",
    "resume=true run_dir=/nowhere": "run_dir=/nowhere: nothing to resume",
    "model.init_from=/nowhere": "model.init_from=/nowhere: no such folder",
    "model.lora.rank=4": "model.lora.rank=4: leaves the weights as they are, and these are random; set model.pretrained=true",
    "model.lora.rank=-1": "model.lora.rank=-1: must be at least 0",
    "model=gpt2 model.lora.rank=4 optimizer=muon": "optimizer.matrices=muon with model.lora.rank=4: Muon is for whole matrices",
    "model=gpt2 model.name=/nowhere": "model.name=/nowhere: cannot be loaded (no such file or folder)",
    "model=gpt2 model.name=nowhere.gguf": "model.name=nowhere.gguf: cannot be loaded (no such file or folder)",
    "model.gradient_checkpointing=maybe": "model.gradient_checkpointing=maybe: must be true or false",
}


@pytest.mark.parametrize("arguments", ERRORS)
def test_errors_are_one_line(arguments: str, tmp_path) -> None:
    result = command("train", "task=mult2x2", *arguments.split(), cwd=tmp_path, check=False, HOME=str(tmp_path))
    assert result.returncode == 2, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert ERRORS[arguments] in line
    assert "Traceback" not in result.stderr


def test_no_cot_is_no_cot_under_a_recipe_that_keeps_tokens() -> None:
    schedule = composed("experiment=early_warning_3x2", "schedule=no_cot").schedule
    schedule.bind(300, 46)
    assert {schedule.removed(step) for step in (0, 10**7)} == {46}


@pytest.mark.parametrize("experiment", every(3, [None, *sorted(path.stem for path in CONF.glob("experiment/*.yaml"))]))
def test_baselines_stay_what_they_are_under_any_experiment(experiment: str | None) -> None:
    chosen = [f"experiment={experiment}"] if experiment else []
    explicit, no_cot, stepwise = (
        composed(*chosen, f"schedule={name}").schedule for name in ("explicit_cot", "no_cot", "stepwise")
    )
    for schedule in (explicit, no_cot, stepwise):
        schedule.bind(300, 46)
    steps = (0, 1, 299, 300, 10_000, 10**7)
    assert {explicit.removed(t) for t in steps} == {0}
    assert {explicit.smoothing_at(t) for t in steps} == {float("inf")}  # no offset either
    assert {min(no_cot.removed(t), 46) for t in steps} == {46}
    assert (explicit.rate(), no_cot.rate()) == (0, 0)
    most = 46 if stepwise.remove_at_most is None else stepwise.remove_at_most
    assert stepwise.removed(0) == stepwise.remove_start_from and min(stepwise.removed(10**7), 46) == most


def test_the_types_of_causal_models_are_read_right() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert causal_types() == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.parametrize("bad", ["optimizer.lr=-1", "model.type=t5"])
def test_a_bad_config_is_refused_before_torch_is_imported(bad: str, tmp_path) -> None:
    script = (
        f"import sys; sys.argv=['train','{bad}']\n"
        "from stepwise_pl import train\n"
        "try: train.main()\n"
        "except SystemExit as e: print(e.code, sorted(m for m in ('torch','lightning','transformers','wandb') if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert out.stdout.strip() == "2 []", out.stderr


@pytest.mark.parametrize(
    "entry",
    [
        "train",
        "ask",
        "evaluate",
        "compare",
        "probe",
        "patch",
        "lens",
        "sweep",
        "export",
        "harness",
        "demo",
        "write_data",
        "check_data",
        "dashboard",
    ],
)
def test_help_shows_examples_and_every_key(entry: str, tmp_path) -> None:
    out = subprocess.run(
        [sys.executable, "-m", f"stepwise_pl.{entry}", "--help"], capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert f"python -m stepwise_pl.{entry}" in out
    key = {
        "train": "schedule.smoothing=4", "ask": "question=null", "evaluate": "checkpoint=best", "compare": "split=test", "probe": "mlp=chosen", "patch": "token=answer", "lens": "shown=12", "sweep": "sweep=", "export": "out=null", "harness": "split=test", "demo": "host=127.0.0.1",
        "write_data": "task.digits=4", "check_data": "task.skip_malformed=false", "dashboard": "project=stepwise_pl",
    }  # fmt: skip
    assert key[entry] in out


def test_evaluate_names_the_missing_run(tmp_path) -> None:
    for arguments, message in (([], "run is not set"), (["run=nowhere"], "no config.yaml there")):
        out = subprocess.run(
            [sys.executable, "-m", "stepwise_pl.evaluate", *arguments], capture_output=True, text=True, cwd=tmp_path
        )
        assert out.returncode == 2
        assert message in out.stderr
        assert len(out.stderr.strip().splitlines()) == 1
    assert EvaluateConfig.__doc__


@pytest.mark.long
def test_run_names_tell_sweep_jobs_apart() -> None:
    script = (
        "from stepwise_pl.cli import entry, names; from stepwise_pl.config.run import Config\n"
        "entry.entry_point('train', Config, lambda config: print(names.NOW.run_name()))"
    )

    def name(*arguments: str) -> list[str]:
        out = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=REPO)
        return out.stdout.split()

    assert name() == ["mult4x4-tiny-stepwise"]
    assert name("experiment=quickstart", "seed=3", "run_dir=x", "trainer=gpu", "logger=wandb") == ["quickstart"]
    assert name("experiment=quickstart", "trainer.duration=4epochs") == ["quickstart/duration-4epochs"]
    assert name("task=mult2x2", "schedule.delta=4") == ["mult2x2-tiny-stepwise/delta-4"]
    (half,) = name("task=mult2x2", "schedule.delta=1/2")
    assert re.fullmatch(r"mult2x2-tiny-stepwise/delta-1_2-[0-9a-f]{10}", half)
    assert name("task=mult2x2", "data.batch_size=8", "+model.config.attn_pdrop=0") == [
        "mult2x2-tiny-stepwise/batch_size-8+model.config.attn_pdrop-0"
    ]


@pytest.mark.parametrize(
    "arguments,parsed",
    [
        ("seed=1 -m lr=1,2", "-m seed=1 lr=1,2"),
        ("seed=1 --cfg job lr=2", "--cfg job seed=1 lr=2"),
        ("-cjob seed=1 --resolve lr=2", "-cjob --resolve seed=1 lr=2"),
        ("seed=1 --config-name train --multirun ~data", "--config-name train --multirun seed=1 ~data"),
        ("--config-dir a seed=1", "--config-dir a seed=1"),
        ("--config-dir seed=1 lr=2 seed=1", "--config-dir seed=1 lr=2 seed=1"),
        ("--config-dir seed=${x} seed=a#b", "--config-dir seed=${x} seed='a#b'"),
    ],
)
def test_overrides_may_stand_on_both_sides_of_a_flag(arguments: str, parsed: str) -> None:
    assert hydra_arguments(arguments.split()) == parsed.split()


@pytest.mark.parametrize("arguments", ["--foo", "--seed=1", "-?", "--cfg=nope", "--cfg", "-mseed=1,2"])
def test_a_flag_that_there_is_not_is_refused_in_one_line(arguments: str) -> None:
    with pytest.raises(UserError) as refused:
        hydra_arguments([*arguments.split(), "seed=1"] if arguments != "--cfg" else ["--cfg"])
    line = str(refused.value)
    assert "\n" not in line and arguments.lstrip("-").split("=")[0].removesuffix("seed") in line
    assert "usage" not in line and "--help" in line


@pytest.mark.parametrize("flag", ["--cfg job", "--info config", "--run"])
def test_a_flag_about_one_run_is_refused_in_a_sweep(flag: str) -> None:
    with pytest.raises(UserError, match=f"^{flag.split()[0]}: is about one run; leave --multirun"):
        hydra_arguments(["-m", *flag.split(), "seed=1,2"])


def test_folders_may_stand_on_both_sides_of_a_flag(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(known, "command", known.Command("compare", schema_of("compare")))
    Path("b c").mkdir()
    expected = ["--cfg", "job", "runs=['a','b c']", "out=x"]
    assert hydra_arguments(["a", "--cfg", "job", "b c", "out=x"]) == expected
    assert hydra_arguments(["a", "b c", "--cfg", "job", "out=x"]) == expected


@pytest.mark.parametrize(
    "command,word,line",
    [
        ("check_data", "logger=null", "logger: no such config group in check_data, its groups are experiment, task, model"),
        ("check_data", "logger=csv", "logger: no such config group in check_data, its groups are experiment, task, model"),
        ("report", "task=file", "task: no such config group in report, it has none"),
        ("evaluate", "+task@x=file", "task@x: a choice has one place only; write task=<name>, without @"),
        ("train", "task@x=file", "task@x: a choice has one place only; write task=<name>, without @"),
        ("train", "+model@model.lora=tiny", "model@model.lora: a choice has one place only; write model=<name>, without @"),
    ],
)  # fmt: skip
def test_a_choice_that_the_command_does_not_have_is_told(command: str, word: str, line: str, monkeypatch) -> None:
    monkeypatch.setattr(known, "command", known.Command(command, schema_of(command)))
    with pytest.raises(UserError) as refused:
        hydra_arguments([word])
    assert str(refused.value) == line


def test_shell_completion_alone_is_no_traceback(tmp_path) -> None:
    out = command("train", "--shell-completion", cwd=tmp_path, check=False)
    assert (out.returncode, len(out.stderr.splitlines())) == (2, 1)
    assert out.stderr.startswith("error: --shell-completion: give install=")


def test_a_launcher_that_is_missing_may_come_with_an_extra() -> None:
    assert no_choice("hydra/launcher", "slurm", ["basic", "_hidden"]) == (
        "hydra/launcher=slurm: no such hydra/launcher; choose from basic (slurm may come with: pip install "
        "'stepwise_pl[sweep]', or [slurm] or [ray])"
    )
    assert "pip install" not in no_choice("task", "mult9", ["mult2x2", "mult9x9"])


@pytest.mark.parametrize(
    "command,words,line",
    [
        ("sweep", (), "sweep is not set: python -m stepwise_pl.sweep <sweep folder>"),
        ("dashboard", (), "entity is not set: give the W&B account or team that owns the project"),
        ("write_data", ("task=mult2x2",), "out is not set: python -m stepwise_pl.write_data task=<task> out=<folder>"),
    ],
)
def test_a_command_without_its_object_says_how_it_is_given(command: str, words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError) as refused:
        composed(*words, config_name=command)
    assert str(refused.value) == line
