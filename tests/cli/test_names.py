"""Names of runs, jobs and sweep folders: one to one, of all that changes what is learned, and those of before still found."""

import csv
import json
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise_pl.cli.entry import register_schemas
from stepwise_pl.cli.former_names import AMBIGUOUS, FORMER, LONG
from stepwise_pl.cli.multirun import job_of, run_in
from stepwise_pl.cli.names import NOW, Names, canonical, plain_name, run_apart
from stepwise_pl.cli.overrides import parsed, quoted
from stepwise_pl.common import plugins
from stepwise_pl.common.errors import UserError
from stepwise_pl.config import keys
from stepwise_pl.config.keys import settings_of
from stepwise_pl.config.known import CONF
from stepwise_pl.config.plain import read_yaml, save_yaml, to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.methods import Stepwise
from stepwise_pl.reporting.figures.sweeps import sweep_chart
from stepwise_pl.reporting.static import write_figure
from stepwise_pl.runs import sweep_folder
from stepwise_pl.runs.cells import cells_of_sweep
from stepwise_pl.runs.sweep_folder import Job, Sweep, label
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Files
from tests.conftest import SMALL, command

VALUES = st.text(st.sampled_from(list("aAbB019._-+/\\ ,=üéÉ~'\"$[")), max_size=6) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), max_size=400
)


def on_disk(name: str) -> str:
    """A name as the strictest file system sees it: no upper case, one Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


@settings(max_examples=500, deadline=None)
@given(VALUES, VALUES)
def test_two_values_never_get_one_name(one: str, other: str) -> None:
    names = [NOW.folder_name([f"task.train={quoted(text)}"]) for text in (one, other)]
    assert (on_disk(names[0]) == on_disk(names[1])) == (one == other)
    for name in names:
        assert len(name.encode()) <= 71 and name.isascii() and not set(name) & set('/\\:*?"<>|, =')
        assert not name.startswith(".") and not name.endswith(".") and parsed(f"run={name}").value() == name  # type: ignore[union-attr]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "a.b", "c-d"]), VALUES, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "a.b", "c-d"]), VALUES, max_size=3))  # fmt: skip
def test_two_sets_of_values_never_get_one_name(one: dict[str, str], other: dict[str, str]) -> None:
    names = [NOW.folder_name([f"{key}={quoted(text)}" for key, text in some.items()]) for some in (one, other)]
    assert (on_disk(names[0]) == on_disk(names[1])) == (one == other)


@pytest.mark.parametrize(
    "override,name",
    [
        ("schedule.delta=4", "schedule.delta-4"), ("optimizer.lr=1e-3", "optimizer.lr-1e-3"), ("schedule.delta=-1", "schedule.delta--1"),
        ("task=mult4x4", "task-mult4x4"), ("method.keep_position=True", "method.keep_position-True"), ("task.test=null", "task.test-null"),
        ("trainer.precision=bf16-mixed", "trainer.precision-bf16-mixed"), ("+model.config.n_inner=64", "model.config.n_inner-64"),
        ("~model.config.initializer_range", "model.config.initializer_range"),
    ],
)  # fmt: skip
def test_simple_names_stay_as_they_were(override: str, name: str) -> None:
    assert LONG.folder_name([override]) == name == AMBIGUOUS.folder_name([override])


def test_a_key_stands_without_its_group_unless_another_ends_alike() -> None:
    register_schemas("train", Config)
    named = {
        "schedule.delta=4": "delta-4", "optimizer.lr=1e-3": "lr-1e-3", "task.seed=1": "task.seed-1", "trainer.duration=9steps": "duration-9steps",
        "task=mult4x4": "task-mult4x4", "+model.config.n_inner=64": "model.config.n_inner-64",
    }  # fmt: skip
    assert {override: NOW.folder_name([override]) for override in named} == named
    # No two keys get one name, however they are shortened.
    keys = {key for key, _ in settings_of(Config)}
    assert len({NOW.key(key) for key in keys}) == len(keys) and len(keys) > 80


def test_a_long_name_ends_in_a_digest_and_two_long_names_differ() -> None:
    many = [f"optimizer.weight_decay={decay}" for decay in (0.1, 0.2)]
    rest = ["schedule.smoothing=2", "task.train_size=1", "schedule.rewarmup_steps=5", "data.epoch_size=100"]
    one, other = (NOW.folder_name([*rest, first]) for first in many)
    assert len(one) == len(other) == 71 and one[:60] == other[:60] and one != other
    assert re.fullmatch(r"epoch_size-100\+.*-[0-9a-f]{10}", one)
    assert len(LONG.folder_name([*rest, many[0]])) > 100


@pytest.mark.parametrize(
    "same",
    [
        ["task.train=a", "task.train='a'", 'task.train="a"', "+task.train=a", "++task.train='a'", "task.train= a "],
        ["task.train='a b#'", 'task.train="a b#"'], ["k=[a,b]", "k=[a, 'b']", "k=['a',\"b\"]"], ["k=a\\,b", "k='a,b'"], ["k=", "k=''"],
        ["~k", "~k=3"],
    ],
)  # fmt: skip
def test_one_value_has_one_name_however_it_is_written(same: list[str]) -> None:
    assert len({NOW.folder_name([override]) for override in same}) == 1
    assert len({canonical(override) for override in same}) == 1


@pytest.mark.parametrize(
    "one,other",
    [
        ("k=1", "k='1'"), ("k=null", "k='null'"), ("k=true", "k='true'"), ("k=1/2", "k=1_2"), ("k=a", "k=A"), ("k=.", "k=.."), ("~k", "k="),
        ("k=x", "k=x."), ("k=[a,b]", "k='[a,b]'"), ("k=1_2", "k=1/2"),
    ],
)  # fmt: skip
def test_values_that_differ_have_names_that_differ(one: str, other: str) -> None:
    assert on_disk(NOW.folder_name([one])) != on_disk(NOW.folder_name([other]))


def test_the_last_of_two_values_counts() -> None:
    assert NOW.folder_name(["k=1", "k=2"]) == NOW.folder_name(["k=2"]) != NOW.folder_name(["k=2", "k=1"])


def test_choices_stay_in_their_folder() -> None:
    assert plain_name("mult4x4_cpu") == "mult4x4_cpu" and plain_name("gpt2-medium") == "gpt2-medium"
    for name in ("..", ".hidden", "a/b", "../x", "A"):
        made = plain_name(name)
        assert made != name and "/" not in made and not made.startswith(".")


@pytest.mark.parametrize(
    "override",
    [
        "trainer.duration=4epochs", "trainer.duration=100steps", "trainer.gradient_clip_val=0", "trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2",
        "trainer.validate_every_epochs=2", "~model.config.initializer_range", "optimizer=muon", "guard=halve", "guard.action=wait", "model=gpt2", "task=mult4x4",
        "schedule=no_cot", "++schedule.delta=4", "data.batch_size=8", "+model.config.attn_pdrop=0", "task.seed=1",
    ],
)  # fmt: skip
def test_what_changes_learning_names_a_run(override: str) -> None:
    register_schemas("train", Config)
    assert NOW.names_a_run(override, has_experiment=True)


def test_what_says_how_a_run_is_run_does_not_name_it() -> None:
    register_schemas("train", Config)
    aside = [f"{key}x=1" if key.endswith((".", "_")) else f"{key}=1" for key in keys.aside()]
    for override in (
        *aside,
        "trainer=gpu",
        "trainer=cpu",
        "trainer=ddp",
        "logger=wandb",
        "+logger.tags=[a]",
        "experiment=quickstart",
    ):
        assert not NOW.names_a_run(override, has_experiment=True), override
    assert not NOW.names_a_run("task=mult4x4", has_experiment=False)


def test_a_group_of_ones_own_that_changes_learning_names_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "short.yaml").write_text("defaults: [_trainer]\nduration: 100steps\n")
    (tmp_path / "trainer" / "quiet.yaml").write_text("defaults: [_trainer]\nlog_every_n_steps: 1000\n")
    (tmp_path / "trainer" / "above.yaml").write_text("defaults: [short]\n")
    monkeypatch.setattr(plugins, "folders", [tmp_path])
    named = {
        name: NOW.names_a_run(f"trainer={name}", has_experiment=True) for name in ("short", "quiet", "above", "nowhere")
    }
    assert named == {"short": True, "quiet": False, "above": True, "nowhere": True}


# --- sweeps


def write_sums(path: Path, first: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{first} {a} {b}||{a} + {b} #### {(a + b) % 7}\n" for a in range(9) for b in range(9)))


PUNCTUATED = "task.train=a/b.txt,a_b.txt,A_b.txt,'a b.txt',~/c#1.txt"
FILES = ("-m", "task=file", "task.validation_size=5", "task.test_size=5", *SMALL[3:7], "trainer.duration=2steps")


@pytest.mark.long
def test_values_that_differ_in_punctuation_are_jobs_and_cells_of_their_own(tmp_path: Path) -> None:
    names = ("a/b.txt", "a_b.txt", "A_b.txt", "a b.txt", "c#1.txt")
    for first, name in enumerate(names):
        write_sums(tmp_path / name, first)
    out = command(
        "train", *FILES, PUNCTUATED, "run_dir=sweep", cwd=tmp_path, HOME=str(tmp_path), PYTHONPATH=str(CONF.parent)
    )
    assert "5 finished of 5 jobs" in out.stdout
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert len({job["run"].casefold() for job in jobs}) == 5
    trained = [read_yaml(tmp_path / "sweep" / job["run"] / "config.yaml")["task"]["train"] for job in jobs]
    assert trained == [*names[:4], str(tmp_path / "c#1.txt")]
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["task.train"] for row in rows] == [*names[:4], "'~/c#1.txt'"]
    again = command(
        "train",
        *FILES,
        PUNCTUATED,
        "run_dir=sweep",
        "resume=true",
        cwd=tmp_path,
        HOME=str(tmp_path),
        PYTHONPATH=str(CONF.parent),
    )
    assert "5 finished already" in again.stdout


@pytest.mark.long
def test_a_sweep_folder_of_before_finds_its_jobs(tmp_path: Path) -> None:
    """As commit cd7dcba left it: by former names, the job of the second file in the folder of the first, failed."""
    for first, name in enumerate(("a/b.txt", "a_b.txt", "c/d.txt")):
        write_sums(tmp_path / name, first)
    words = ("train", *FILES, "task.train=a/b.txt,a_b.txt,c/d.txt")
    where = {"cwd": tmp_path, "PYTHONPATH": str(CONF.parent)}
    command(*words, **where)  # type: ignore[arg-type]
    (made,) = (tmp_path / "outputs" / "sweeps").iterdir()
    data = json.loads((made / "sweep.json").read_text())
    (second,) = (job for job in data["jobs"] if job["swept"]["task.train"] == "a_b.txt")
    shutil.rmtree((made / second["run"]).parent)
    for job in (job for job in data["jobs"] if job is not second):
        former = AMBIGUOUS.run_of(job["swept"], 0)
        (made / job["run"]).parent.rename((made / former).parent)
        job["run"] = former
        (made / former / "job.json").write_text(json.dumps(job))
    second |= {"run": AMBIGUOUS.run_of(second["swept"], 0), "outcome": "failed", "error": "another configuration"}
    (made / second["run"] / "job.json").write_text(json.dumps(second))
    data["jobs"] = [job for job in data["jobs"] if job is not second]
    (made / "sweep.json").write_text(json.dumps({key: value for key, value in data.items() if key != "lasting"}))
    overrides = [word for word in words[2:] if not word.startswith("task=")]
    over, rest = ([one for one in overrides if ("task.train=" in one) == is_over] for is_over in (True, False))
    rest = [one for one in rest if not one.startswith("trainer.")]
    former_name = AMBIGUOUS.folder_name(over) + "+" + AMBIGUOUS.folder_name(rest)
    folder = made.rename(made.with_name(AMBIGUOUS.shortened(f"file-tiny-stepwise+{former_name}", 120)))
    out = command(*words, "resume=true", **where)  # type: ignore[arg-type]
    assert "2 finished already, 0 to go on with, 1 to begin" in out.stdout and "3 finished of 3 jobs" in out.stdout
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    trained = {
        path.parent.parent.name: read_yaml(path.with_name("config.yaml"))["task"]["train"]
        for path in folder.rglob("summary.json")
    }
    (apart,) = trained.keys() - {"task.train-a_b.txt", "task.train-c_d.txt"}
    assert trained == {"task.train-a_b.txt": "a/b.txt", "task.train-c_d.txt": "c/d.txt", apart: "a_b.txt"}
    again = command(*words, "resume=true", **where).stdout  # type: ignore[arg-type]
    assert "3 finished already" in again


def test_cells_are_told_apart_by_their_values(tmp_path: Path) -> None:
    values = ["a/b", "a_b", "a b", "$x$", "$}$", "\x01"]
    jobs = [Job(NOW.run_of({"k": value}, 0), [], {"k": value}) for value in values]
    assert len({job.run for job in jobs}) == len(values)
    cells = cells_of_sweep(Sweep(tmp_path, "s", [], ["k"], "1 on nowhere", 6, jobs))
    assert [cell.config["k"] for cell in cells] == values
    assert label({"k": "\x01\n"}) == "k=\\x01\\n"
    # Dollar signs are no formula.
    write_figure(sweep_chart(cells, "of $}$"), [], tmp_path)
    assert (tmp_path / "sweep.svg").is_file()


def test_long_names_wrap_in_a_figure_instead_of_making_it_wider(tmp_path: Path) -> None:
    def width(values: list[str]) -> float:
        jobs = [Job(NOW.run_of({"k": value}, 0), [], {"k": value}) for value in values]
        cells = cells_of_sweep(Sweep(tmp_path, "s", [], ["k"], "1 on nowhere", len(jobs), jobs))
        write_figure(sweep_chart(cells, "of k"), [], tmp_path)
        found = re.search(r'<svg [^>]*width="([\d.]+)pt"', (tmp_path / "sweep.svg").read_text())
        assert found is not None
        return float(found[1])

    assert width([f"{'x' * 58}{number}" for number in range(3)]) == width(
        [f"{'x' * 300}{number}" for number in range(3)]
    )


def test_another_number_of_steps_finds_its_sweep_and_two_are_not_mixed_up(tmp_path: Path) -> None:
    for name, lasting in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / "outputs" / "sweeps" / name).mkdir(parents=True)
        sweep_folder.write_sweep(
            Sweep(tmp_path / "outputs" / "sweeps" / name, name, [], [], "1 on nowhere", lasting=lasting)
        )
    found = sweep_folder._of_other_length(tmp_path / "outputs" / "sweeps", {"y"})
    assert found == tmp_path / "outputs" / "sweeps" / "c"
    with pytest.raises(UserError, match="several sweeps may be meant"):
        sweep_folder._of_other_length(tmp_path / "outputs" / "sweeps", {"x", ""})


# --- names that the user gives


@pytest.mark.parametrize("name", ["mine", "a.b", "Δ8", "x+1", "0"])
def test_a_plain_folder_name_is_accepted(name: str) -> None:
    assert config_of("a.txt", name=name).name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", ".hidden", "a.", "a ", "a b", "a:b", "a\\b", "a\nb", "-m", "x" * 101]
)
def test_a_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="must be a plain folder name") as refused:
        config_of("a.txt", name=name)
    assert "\n" not in str(refused.value)


@pytest.mark.long
def test_a_name_is_the_folder_of_a_run_and_of_a_sweep(tmp_path: Path) -> None:
    where = {"cwd": tmp_path, "PYTHONPATH": str(CONF.parent)}
    short = (*SMALL[:-3], "trainer.duration=2steps", "name=mine")
    command("train", *short, **where)  # type: ignore[arg-type]
    run = tmp_path / "outputs/mine/seed0"
    assert json.loads((run / "summary.json").read_text())["name"] == "mine"
    command("train", *short, "resume=true", **where)  # type: ignore[arg-type]
    assert [path.parent for path in tmp_path.rglob("summary.json")] == [run]
    refused = command("train", "run_dir=outputs/mine/seed0", "resume=true", "name=other", check=False, **where)  # type: ignore[arg-type]
    assert "name was mine, is other" in refused.stderr and len(refused.stderr.splitlines()) == 1
    command("train", "-m", *short, "schedule.smoothing=2,inf", **where)  # type: ignore[arg-type]
    jobs = sorted((tmp_path / "outputs/sweeps/mine").rglob("summary.json"))
    names = [json.loads(path.read_text())["name"] for path in jobs]
    assert names == [f"mine/{path.parent.parent.name}" for path in jobs] and len(set(names)) == 2


# --- single runs


@pytest.mark.long
@pytest.mark.parametrize("names", FORMER, ids=["long", "ambiguous"])
def test_a_shortened_run_leaves_the_recipes_folder_alone_and_former_folders_are_found(
    names: Names, tmp_path: Path
) -> None:
    where = {"cwd": tmp_path, "PYTHONPATH": str(CONF.parent)}
    words = ("train", *SMALL[:-3], "trainer.duration=2steps")
    command(*words, **where)  # type: ignore[arg-type]
    (run,) = (path.parent for path in tmp_path.rglob("summary.json"))
    assert len(run.parent.name) == 71
    former = names.folder_name([word for word in words[1:] if names.names_a_run(word, has_experiment=False)])
    run.parent.rename(run.parent.with_name(former))
    # By the same command the run of before goes on; a longer one is another run, and the message says how to go on.
    command(*words, "resume=true", **where)  # type: ignore[arg-type]
    assert [path.name for path in run.parent.parent.iterdir()] == [former]
    out = command(*words[:-1], "trainer.duration=4steps", "resume=true", check=False, **where)  # type: ignore[arg-type]
    # Ambiguous names were without the settings of the trainer.
    said = "has another trainer.duration: run_dir=" if names is AMBIGUOUS else "nothing to resume"
    assert out.returncode == 2 and said in out.stderr
    assert len(out.stderr.splitlines()) == 1


def test_a_damaged_sweep_does_not_keep_another_from_going_on(tmp_path: Path) -> None:
    for name, lasting in (("mine", "same"), ("damaged", "other")):
        (tmp_path / name).mkdir()
        sweep_folder.write_sweep(sweep_folder.Sweep(tmp_path / name, name, [], [], "1 on x", lasting=lasting))
    (tmp_path / "damaged/sweep.json").write_text("{")
    assert sweep_folder._of_other_length(tmp_path, {"same"}) == tmp_path / "mine"


# --- folders of before names were one to one


def job_and_folders(folder: Path) -> tuple[Job, Path]:
    """The job of a file whose former name is also that of another file, and the folder of the former name."""
    job = job_of(["task.train=a/b.txt", "run_dir=x"], ["task.train"], 0)
    assert job.overrides == ["task.train=a/b.txt"]
    former = folder / "task.train-a_b.txt/seed0"
    assert job.run != "task.train-a_b.txt/seed0"
    former.mkdir(parents=True)
    return job, former


def config_of(train: str, **settings: Any) -> Config:
    """A configuration of a job that learns from the file."""
    return Config(task=Files(train=train), schedule=Linear(), method=Stepwise(), **settings)


def test_a_job_is_found_under_its_former_name_only_if_that_holds_this_very_job(tmp_path: Path) -> None:
    """As another job may have the same former name."""
    job, former = job_and_folders(tmp_path)
    config = config_of("a/b.txt")
    assert run_in(tmp_path, job, config) == job.run  # no job has begun there
    (former / "job.json").write_text(json.dumps({"swept": {"task.train": "a_b.txt"}}))
    assert run_in(tmp_path, job, config) == job.run
    (former / "job.json").write_text(json.dumps({"swept": {"+task.train": "'a/b.txt'"}}))
    assert run_in(tmp_path, job, config) == "task.train-a_b.txt/seed0"
    # Once the run has a configuration, the configuration decides.
    save_yaml(to_plain(config_of("a_b.txt")), former / "config.yaml")
    assert run_in(tmp_path, job, config) == job.run
    save_yaml(to_plain(config), former / "config.yaml")
    assert run_in(tmp_path, job, config) == "task.train-a_b.txt/seed0"
    (tmp_path / job.run).mkdir(parents=True)
    assert run_in(tmp_path, job, config) == job.run


def test_a_job_whose_folder_holds_another_job_gets_a_folder_apart() -> None:
    jobs = [Job("task.train-a_b.txt/seed3", [], {"task.train": train, "seed": "3"}) for train in ("a_b.txt", "a/b.txt")]
    apart = [run_apart(job) for job in jobs]
    assert len({*apart, jobs[0].run}) == 3
    assert all(re.fullmatch(r"task\.train-a_b\.txt-[0-9a-f]{10}/seed3", run) for run in apart)


@pytest.mark.long
def test_a_name_and_an_automatic_name_never_share_a_run(tmp_path: Path) -> None:
    where = {"cwd": tmp_path, "PYTHONPATH": str(CONF.parent)}
    small = [word for word in SMALL if not word.startswith("task=")]
    named = ("train", "task=mult2x2", *small, "trainer.duration=2steps", "name=mult2x2-tiny-stepwise")
    command(*named, **where)  # type: ignore[arg-type]
    wrong = command("train", "task=mult2x2", "resume=true", check=False, **where)  # type: ignore[arg-type]
    assert wrong.returncode == 2 and "holds the run that was started name=mult2x2-tiny-stepwise" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
    on = command("train", "name=mult2x2-tiny-stepwise", "resume=true", "trainer.duration=3steps", **where)  # type: ignore[arg-type]
    assert "trainer.duration=3steps (was 2steps)" in on.stderr
    with pytest.raises(UserError, match="is the folder of the sweeps"):
        config_of("a.txt", name="Sweeps")
