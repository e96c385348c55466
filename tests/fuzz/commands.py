"""Command lines for the fuzz, typed and mistyped, in a folder of small data, runs and damaged runs."""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hypothesis import strategies as st

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.names import NOW
from stepwise_pl.cli.overrides import quoted
from stepwise_pl.common import registry
from stepwise_pl.config.keys import flat
from stepwise_pl.config.plain import to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.methods import Stepwise
from stepwise_pl.models import early
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Files
from tests import forked
from tests.conftest import COMMANDS, OFFLINE, schema_of
from tests.fuzz.fuzzing import Timeout, found, within

SECONDS = 120  # for any of these commands, on a busy machine

# --- the folder in which commands start

# Few words, so that the small tokenizer knows all words of the held-out examples.
LINES = [
    f"{a} {b} {c} {d} {e}||{a} {a ^ b} {a ^ b ^ c} #### {a ^ b ^ c ^ d ^ e}"
    for a in (0, 1)
    for b in (0, 1)
    for c in (0, 1)
    for d in (0, 1)
    for e in (0, 1)
]
NAMES = (
    "a/b.txt",
    "a_b.txt",
    "a-b.txt",
    "a b.txt",
    "übung.txt",
    "a#1.txt",
    "train (1).txt",
    "a=b.txt",
    "a,b.txt",
    "it's.txt",
    "[x].txt",
    "{x}.txt",
    "$x.txt",
)
TINY = (
    "model.layers=1", "model.heads=1", "model.width=8", "data.batch_size=4", "data.epoch_size=8", "trainer.duration=2steps",
    "data.eval_batch_size=8",
)  # fmt: skip
PRODUCTS = ("task=mult2x2", "task.digits=1", "task.train_size=20", "task.validation_size=4", "task.test_size=4")
FILE = ("task=file", "task.train=mine.txt", "task.validation_size=4", "task.test_size=4")
RUNS = ("done", "my run", "lauf-ü", "a=b", "run")
ODD = ("empty", "foreign", "blank", "file.txt", "dangling", "nowhere", "deep/er", "list")


def build(base: Path) -> None:
    """Make data, a finished run under several names, a sweep, and folders that are no runs."""
    here = base / "here"
    (here / "a").mkdir(parents=True)
    (base / "home").mkdir()
    text = "\n".join(LINES) + "\n"
    for name in ("mine.txt", *NAMES):
        (here / name).write_text(text)
    rows = [
        {"question": p, "steps": [c], "answer": a} for p, c, a in (re.split(r"\|\| ?| #### ", line) for line in LINES)
    ]
    (here / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "gsm8k.jsonl").write_text(
        "".join(
            json.dumps({"question": row["question"], "answer": f"so <<{row['steps'][0]}>>\n#### {row['answer']}"})
            + "\n"
            for row in rows
        )
    )
    (here / "bad.txt").write_text("no example\n")
    env = environment(base)
    for arguments in (
        ["train", *PRODUCTS, *TINY, "run_dir=done"],
        ["evaluate", "run=done", "speed_problems=1"],
        ["train", "-m", *PRODUCTS, *TINY, "seed=0,1", "run_dir=grid"],
    ):
        result = forked.run(f"stepwise_pl.{arguments[0]}", arguments[1:], here, env, 600)
        assert result.returncode == 0, result.stderr
    for name in RUNS[1:]:
        shutil.copytree(here / "done", here / name)
    shutil.copytree(here / "grid", here / "sweep")
    for name in ("empty", "foreign", "blank", "deep/er", "list"):
        (here / name).mkdir(parents=True)
    (here / "foreign" / "config.yaml").write_text("hi: 1\n")
    (here / "blank" / "config.yaml").write_text("")
    (here / "list" / "config.yaml").write_text("- 1\n")
    (here / "file.txt").write_text("a file\n")
    (here / "dangling").symlink_to(here / "not there")


def environment(base: Path) -> dict[str, str]:
    """The environment of a command: home and caches lie in the folder, and there is no network."""
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "LANG", "TMPDIR") if key in os.environ}
    return {
        **kept, **OFFLINE, "HOME": str(base / "home"), "STEPWISE_PL_CACHE": str(base / "home" / "cache"),
        "HF_HOME": str(base / "home" / "hf"), "MPLCONFIGDIR": "/tmp/fuzz-matplotlib", "WANDB_MODE": "disabled",
    }  # fmt: skip


# --- the words of a command


class Command(NamedTuple):
    """`python -m stepwise_pl.<name> <arguments>`.

    Attributes:
        broken: files of the folder `done` that are gone or damaged, and the kind of damage.
        odd: words added to a command that works; an error must name a part of them.
    """

    name: str
    arguments: tuple[str, ...]
    broken: tuple[tuple[str, str], ...] = ()
    odd: tuple[str, ...] = ()

    def line(self) -> str:
        return shlex.join(["python", "-m", f"stepwise_pl.{self.name}", *self.arguments])


WEIRD = [
    "", "null", "true", "false", "yes", "0", "-1", "1", "2", "1.5", "1e309", "-1e309", "nan", "inf", "-inf", "1e-400", "1_000", "0x10",
    "'1'", '"1"', "[]", "[1]", "[1,2]", "[a,b]", "{}", "{a:1}", "abc", "übung", "🙂", "a b", "a#1", "~/x", "$HOME", "${seed}", "${nope}",
    "${oc.env:HOME}", "${oc.env:NOPE}", "${run_dir}", "???", "<<", "[[", "]", "{", "'", '"', "\\", "\\n", "'\\n'", "a=b", "a:b", "a@b",
    "hub:org/ds:train[:10%]", "hub:org/ds:train", "x(1)", "x (1)", "range(1,3)", "choice(1,2)", "int(3)", "str(3)", "a\nb", "a\tb", "../..", "/dev/null",
    "/proc/x", ".", "..", "mine.txt", "mine.jsonl", "bad.txt", "run", "empty", "dangling", "*.txt", "1,2", "null,1", "a;b", "100%", "+1", "１２",
    "long" * 300,
]  # fmt: skip
NEAR = [
    "0",
    "-1",
    "1",
    "2",
    "1.5",
    "null",
    "true",
    "abc",
    "nan",
    "inf",
    "1e309",
    "[]",
    "[1]",
    "{}",
    "done",
    "mine.txt",
    "''",
]
HUGE = ["1000000000000000000", "99999999999999999999999999"]
# Values of these keys cost time or memory. Only small or impossible values are drawn.
COSTLY = re.compile(
    r"(layers|heads|width|positions|batch_size|epoch_size|num_workers|devices|accumulate_grad_batches|max_steps|duration|digits|"
    r"_size|operands|length|terms|speed_problems|limit|rank|bits|entities|patience|finish_timeout|length_pool|wait_epochs|min_digits|sentences|people|steps)$"
)
NEVER = (
    "logger.wandb",
    "logger.offline",
    "logger.artifact",
    "trainer.accelerator",
    "wandb",
    "offline",
    "trainer.strategy",
    "trainer.devices",
)
GROUPS = {
    "task": ["mult2x2", "file", "gsm8k", "addition", "parity", "word_problems", "mult4x4", "null", "nope", "mult22", "Files", "_file"],
    "model": ["tiny", "gpt2", "smollm2", "nope", "null", "gpt", "phi3"],
    "schedule": ["stepwise", "no_cot", "explicit_cot", "adaptive", "stepwise_gsm8k", "null", "nope", "adaptiv", "linear"],
    "method": ["stepwise", "nope", "null"],
    "optimizer": ["adamw", "muon", "sgd", "null"], "guard": ["warn", "halve", "wait", "nope", "null"],
    "logger": ["csv", "tensorboard", "nope", "null"], "trainer": ["cpu", "gpu", "nope", "null", "tpu"],
    "experiment": ["quickstart", "quikstart", "mult4x4_cpu", "gsm8k_gpt2", "mult3x3_cpu", "null", "nope", "smollm2"],
}  # fmt: skip
TYPES = [
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gptj",
    "phi3",
    "bert",
    "mamba",
    "opt",
    "roformer",
    "gpt_neox",
    "nope",
    "",
]
FLAGS = [
    "--help", "-h", "--hydra-help", "--version", "--info", "--info=config", "--cfg=job", "--cfg=nope", "--cfg", "--resolve", "--package=task", "--foo", "-x", "--", "-",
    "--config-name=nope", "--config-name", "--config-dir=nowhere", "--config-dir=a", "--config-path=nowhere", "-m", "--multirun", "--run", "--shell-completion",
    "-mseed=1,2", "--experimental-rerun=nope", "-c=job", "help", "-?", "--seed=1", "--seed", "-cjob",
]  # fmt: skip
ODD_OVERRIDES = [
    "", "=", "=3", "+", "~", "++", "+=1", "~seed", "~task", "~model", "~schedule", "~trainer.duration", "~model.config", "~data", "~nope", "+new=1",
    "+task.new=1", "++new=1", "++trainer.duration=1steps", "+seed=1", "+experiment=quickstart", "+task=file", "+task@x=file", "task@x=file", "/task=file",
    "task/x=file", "model.config.n_inner=16", "+model.config.n_inner=16", "+model.config.nope=1", "++model.config={n_inner:16}", "model={}", "model=[tiny]",
    "trainer={duration:1steps}", "trainer.duration", "trainer.duration=1steps", "trainer.duration=1", "trainer.duration=0steps", "trainer.duration='2 steps'", "max_steps=1", "Seed=1", "seed =1", "seed= 1", "seed=1 ", "seed==1", "seed:1", "seed=1;", "task.kind=file",
    "schedule.kind=adaptive", "hydra.verbose=true", "hydra.job.chdir=true", "hydra.run.dir=x", "hydra.output_subdir=.hydra", "hydra/launcher=nope",
    "hydra/sweeper=nope", "hydra.nope=1", "hydra.sweep.dir=x", "hydra=null", "resume=true", "resume=auto", "objective=nope", "objective=[]", "objective=[seconds,val_accuracy]",
    "seed=4294967296", "seed=4294967295", "task.train=", "lr=1", "optimizer.lr=", "optimizer.lr=1e30", "schedule.delta=1/0", "schedule.delta=1/4", "schedule.delta=0",
    "schedule.delta=-1", "schedule.smoothing=0", "schedule.smoothing=inf", "schedule.smoothing=-1", "method.unit=step", "method.side=right", "schedule.mix=0.5", "schedule.mix_from=all", "schedule.side=right", "method.keep_position=true",
    "schedule.remove_start_from=3", "schedule.remove_all_beyond=0", "schedule.pretrain_epochs=1e300", "\udcff", "seed=\udcff", "run_dir=\udcffx", "task.step_start=<<", "task.step_start='\\n'",
    "seed=1,2", "seed=[1,2]", "task.train=mine.txt,mine.jsonl", "model.tokenizer=nowhere", "model.tokenizer=empty", "model.tokenizer=done/model", "model.init_from=done",
    "model.init_from=empty", "model.init_from=foreign", "model.name=nowhere", "model.pretrained=true", "model.lora.rank=2", "model.lora={rank:2}", "model.lora=null", "data=null",
    "model.gradient_checkpointing=true", "trainer.precision=bf16-mixed", "trainer.precision=16", "data.cache_dir=null", "data.cache_dir=mine.txt", "data.max_tokens=1",
    "data.num_workers=1", "guard.action=halve", "logger.tensorboard=true", "logger.offline=true", "data.easy_first=1", "expected.accuracy=[1,0]", "expected.accuracy=[0,1]", "optimizer.betas=[0.9]",
    "optimizer.betas=[]", "optimizer.betas=0.9", "optimizer.eps=0", "optimizer.decay_steps=1", "optimizer.decay=1", "optimizer.decay=3", "trainer.validate_every_epochs=0", "trainer.keep_every_removed=1",
]  # fmt: skip


def values(key: str, default: Any) -> st.SearchStrategy[str]:
    """Values for a key: near its default, and far from it."""
    pool = [v for v in WEIRD if not (COSTLY.search(key) and re.fullmatch(r"range.*|1_000|0x10|１２", v))]
    pool += [] if COSTLY.search(key) else HUGE
    near = [*TYPES, "gpt2"] if key == "model.type" else [str(default), *NEAR]
    return st.sampled_from(pool) | st.sampled_from(near) | st.sampled_from(near)


def keys_of(kind: str) -> dict[str, Any]:
    """The dotted keys of a command, with their defaults."""
    schema = schema_of(kind)
    if kind == "train":
        keys = flat(to_plain(Config(task=Files(), schedule=Linear(), method=Stepwise())))
        keys |= {
            f"model.lora.{key}": value
            for key, value in {"rank": 0, "alpha": None, "dropout": 0.0, "targets": []}.items()
        }
    else:
        keys = {
            field.name: None if field.default is dataclasses.MISSING else field.default
            for field in dataclasses.fields(schema)
        }
        for group in ("task", "model", "data"):
            if group in keys:
                keys |= {
                    key: value
                    for key, value in flat(to_plain(Config(task=Files(), schedule=Linear(), method=Stepwise()))).items()
                    if key.startswith(f"{group}.")
                }
                del keys[group]
    return {key: value for key, value in keys.items() if key not in NEVER}


registry.load_all()
KEYS = {name: keys_of(name) for name in COMMANDS}


@st.composite
def overrides(draw: st.DrawFn, command: str) -> str:
    """One more word on a command line."""
    kind = draw(st.sampled_from(["key", "key", "key", "group", "odd", "flag", "typo", "delete", "add"]))
    keys = KEYS[command]
    key = draw(st.sampled_from(sorted(keys)))
    if kind == "flag":
        return draw(st.sampled_from(FLAGS))
    if kind == "odd" or (kind == "group" and command not in ("train", "check_data", "write_data")):
        return draw(st.sampled_from(ODD_OVERRIDES))
    if kind == "group":
        group = draw(st.sampled_from(sorted(GROUPS)))
        return f"{group}={draw(st.sampled_from(GROUPS[group]) | st.sampled_from(WEIRD))}"
    if kind == "delete":
        return f"~{key}"
    if kind == "typo":
        at = draw(st.integers(0, len(key) - 1))
        key = key[:at] + key[at + 1 :] if draw(st.booleans()) else key[:at] + key[at] + key[at:]
    value = draw(values(key, keys.get(key)))
    return f"{'+' if kind == 'add' else ''}{key}={value}"


@st.composite
def broken(draw: st.DrawFn) -> tuple[tuple[str, str], ...]:
    """Files of a run folder, each with a kind of damage."""
    files = [
        "config.yaml", "config.yaml", "summary.json", "metrics.csv", "stages.jsonl", "environment.json", "checkpoints", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "model", "model/config.json", "model/tokenizer.json", "model/tokenizer_config.json", "evaluations", "evaluations/best-test-removed2.jsonl",
        "evaluations/best-test-removed2.json",
    ]  # fmt: skip
    ways = ["gone", "empty", "half", "{", "[]", "null", "binary", "folder", "dangling", "{}", "line"]
    return tuple(draw(st.lists(st.tuples(st.sampled_from(files), st.sampled_from(ways)), max_size=2)))


def breaks(run: Path, how: tuple[tuple[str, str], ...]) -> None:
    """Damage a run folder."""
    for name, way in how:
        path = run / name
        content = path.read_bytes() if path.is_file() else b""
        if not os.path.lexists(path):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if way == "folder":
            path.mkdir()
        elif way == "dangling":
            path.symlink_to("not there")
        elif way != "gone":
            path.write_bytes(
                {
                    "empty": b"",
                    "half": content[: len(content) // 2],
                    "binary": b"\xff\xfe\x00" * 9,
                    "line": content + b"garbage: [\n",
                }.get(way, way.encode())
            )


def replaced(base: tuple[str, ...], more: list[str]) -> tuple[str, ...]:
    """The arguments, without those of the base that come again."""
    given_keys = {argument.lstrip("+~").partition("=")[0] for argument in more}
    return (*(argument for argument in base if argument.partition("=")[0] not in given_keys), *more)


@st.composite
def commands(draw: st.DrawFn) -> Command:
    """A command that works, with one or two changes."""
    name = draw(
        st.sampled_from(
            ["train"] * 6
            + [
                "evaluate",
                "compare",
                "lens",
                "report",
                "export",
                "sweep",
                "check_data",
                "check_data",
                "write_data",
                "dashboard",
            ]
        )
    )
    odd = draw(st.lists(overrides(name), min_size=0 if name != "dashboard" else 1, max_size=2, unique=True))
    wreck: tuple[tuple[str, str], ...] = ()
    if name == "train":
        base = (*draw(st.sampled_from([PRODUCTS, PRODUCTS, FILE])), *TINY, "run_dir=new")
        if draw(st.integers(0, 5)) == 0:  # resume a run, or the rest of one
            wreck = draw(broken())
            base = (*PRODUCTS, *TINY, f"run_dir={draw(st.sampled_from([*RUNS[:1] * 4, *ODD]))}", "resume=true")
    elif name in ("check_data", "write_data"):
        base = draw(
            st.sampled_from(
                [
                    PRODUCTS,
                    FILE,
                    (
                        "task=gsm8k",
                        "task.train=gsm8k.jsonl",
                        "task.test=null",
                        "task.validation_size=4",
                        "task.test_size=4",
                    ),
                ]
            )
        )
        base = (*base, "out=written") if name == "write_data" else base
    elif name == "dashboard":
        base = ()  # it needs an account, so the command must be refused before it runs
        odd = [*[o for o in odd if not o.startswith("entity")], "entity="]
    else:
        wreck = draw(broken())
        folder = st.sampled_from(
            # Not "/": a report reads all runs below a folder, on some machines thousands.
            ["done"] * 10 + [*RUNS, *ODD, "grid", "sweep", ".", "..", "done/", "./done", "grid/seed0"]
        )
        one, two = draw(folder), draw(folder)
        base = {
            "evaluate": (*draw(st.sampled_from([(one,), (f"run={one}",)])), "speed_problems=1", "limit=3"),
            "export": (*draw(st.sampled_from([(one,), (f"run={one}",)])), "out=exported"),
            "lens": (*draw(st.sampled_from([(one,), (f"run={one}",), (one, two)])), "problems=4", "shown=1"),
            "sweep": (draw(st.sampled_from(["grid", "grid", one])),),
            "compare": (one, two if two != one else "lauf-ü"),
            "report": (*draw(st.sampled_from([(one,), (one, two), (f"runs=[{one}]",)])), "out=page.html"),
        }[name]
    return Command(name, replaced(base, odd), wreck, tuple(odd))


SWEPT: dict[str, list[str]] = {
    "seed": ["0", "1", "2"], "optimizer.lr": ["1e-3", "0.001", "1e-2"], "schedule.delta": ["1/2", "1_2", "1", "2", "0.5", "x"],
    "schedule.smoothing": ["2", "inf", "4.0"], "task.step_start": ["'<<'", "'[['", "'(('", "'='", "'+'"],
    "task.train": [quoted(name) for name in NAMES], "model.width": ["8", "16", "7"], "guard.action": ["warn", "nope"],
    "schedule": ["stepwise", "no_cot", "nope"],
}  # fmt: skip


@st.composite
def sweeps(draw: st.DrawFn) -> Command:
    """A sweep of two or three tiny jobs."""
    key = draw(st.sampled_from(sorted(SWEPT)))
    chosen = draw(st.lists(st.sampled_from(SWEPT[key]), min_size=2, max_size=3, unique=True))
    base = FILE if key.startswith("task.") else PRODUCTS
    more = [f"{key}={','.join(chosen)}"]
    tiny = tuple("trainer.duration=1steps" if a.startswith("trainer.duration") else a for a in TINY)
    return Command("train", ("-m", *replaced((*base, *tiny, "run_dir=jobs"), more)), odd=tuple(more))


# --- the result of a command


class Result(NamedTuple):
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str


def compose(command: Command) -> Result:
    """Compose and check the configuration of a command in this process, and do nothing with it."""
    out, err = io.StringIO(), io.StringIO()
    status = 0

    def check(config: Any) -> None:
        to_plain(config)
        if command.name == "train":
            NOW.run_name()
            early.check(config)

    before, handlers = sys.argv, logging.root.handlers[:]
    sys.argv = [f"stepwise_pl.{command.name}", *command.arguments]
    try:
        with within(SECONDS), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            entry_point(command.name, schema_of(command.name), check)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            err.write(error.code)
    except Timeout:
        raise
    except Exception as error:
        status = 1
        err.write(f"Traceback\n{type(error).__name__}: {error}\n")
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
        logging.root.handlers[:] = handlers
    return Result(status, out.getvalue(), err.getvalue())


def tree(base: Path) -> tuple[set[str], dict[str, str]]:
    """Every folder, and a digest of every file of the existing runs."""
    folders, files = set(), {}
    for place, inside, names in os.walk(base):
        relative = os.path.relpath(place, base)
        if relative.startswith("home/"):
            continue
        folders |= {str(Path(relative, name)) for name in inside}
        if relative.startswith(("here/done", "here/run", "here/grid", "here/my run")):
            for name in names:
                with contextlib.suppress(OSError):
                    files[str(Path(relative, name))] = hashlib.sha256(Path(place, name).read_bytes()).hexdigest()
    return folders, files


def judge_composed(command: Command) -> None:
    """Judge the start of a command alone: a configuration, or one line."""
    try:
        result = compose(command)
    except Timeout as error:
        found("command: time", str(error), command.line())
        return
    judge(command, result, in_process=True)


def judge_run(command: Command, template: Path, base: Path) -> None:
    """Judge the command in a process of its own, in a fresh copy of the folder."""
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(template, base, symlinks=True)
    here = base / "here"
    breaks(here / "done", command.broken)
    folders, files = tree(base)
    try:
        done = forked.run(f"stepwise_pl.{command.name}", list(command.arguments), here, environment(base), SECONDS)
    except TimeoutError as error:
        found("command: time", str(error)[-300:], reproduction(command))
        return
    result = Result(done.returncode, done.stdout, done.stderr)
    judge(command, result, in_process=False)
    folders_after, files_after = tree(base)
    new = {name for name in folders_after - folders if "__pycache__" not in name}
    repro = reproduction(command)
    if any(part.startswith("~") for name in new for part in Path(name).parts):
        found("command: a folder named ~", str(sorted(new)), repro)
    if any(argument.startswith("hydra") for argument in command.odd):
        return
    has_begun = "run folder: " in result.err or "sweep of" in result.out
    if result.status == 2 and not has_begun:
        if new:
            found("command: refused, but a folder stays", f"{sorted(new)}: {last(result.err)}", repro)
        if changed := [
            name for name, digest in files.items() if files_after.get(name) != digest and not name.endswith(".lock")
        ]:
            found("command: refused, but files of a run are changed", f"{changed}: {last(result.err)}", repro)
    if (
        result.status == 0
        and command.name == "train"
        and not any(a.startswith(("-", "help")) for a in command.arguments)
    ):
        folder_line = re.search(r"^run folder +(.*)$", result.out, re.M)
        if folder_line is None or not (here / folder_line[1] / "summary.json").is_file():
            found("command: no summary at the end of a run", last(result.out), repro)


def reproduction(command: Command) -> str:
    wrecks = "".join(f"\n  done/{name}: {way}" for name, way in command.broken)
    return command.line() + wrecks


def last(text: str) -> str:
    return next(iter(text.strip().splitlines()[::-1]), "")[:500]


RAW = re.compile(
    r"\b(?!Value|Key)[A-Z]\w*(Error|Exception)\b|mismatched input|no viable alternative|token recognition|extraneous input|raised while composing|"
    r"hydra\.cc/docs|object has no attribute|NoneType|not subscriptable|unexpected keyword|Errno|\b0x[0-9a-f]{8,}"
)


def judge(command: Command, result: Result, in_process: bool) -> None:
    """The status must be 0, or 2 with one line that begins with `error: `, or 1 if check_data finds faults."""
    repro = reproduction(command)
    everything = result.out + result.err
    if "Traceback" in everything:
        name = re.findall(r"^(\w[\w.]*(?:Error|Exception|Exit|Interrupt|Warning)?)\b.*$", everything.strip(), re.M)
        found(f"command: traceback ({command.name}: {name[-1] if name else '?'})", everything.strip()[-400:], repro)
        return
    errors = [line for line in result.err.splitlines() if line.startswith("error:")]
    if result.status == 1 and command.name == "check_data" and "training would stop" in result.out:
        return
    if result.status not in (0, 2):
        found(f"command: status {result.status}", last(result.err), repro)
    elif result.status == 0 and errors:
        found("command: an error with status 0", errors[0], repro)
    elif result.status == 2 and (len(errors) != 1 or last(result.err) != errors[-1][:500]):
        usage = " (usage)" if "usage:" in result.err else ""
        found(f"command: not one line{usage}", result.err[-400:], repro)
    elif result.status == 2:
        judge_line(command, errors[0], repro)


def judge_line(command: Command, line: str, repro: str) -> None:
    """The error line must name the fault, and no exception."""
    if match := RAW.search(line):
        found(f"command: raw words ({match[0]})", line[:400], repro)
    if len(command.odd) == 1 and not command.broken:
        key, _, value = command.odd[0].lstrip("+~").partition("=")
        names = {key, key.rpartition(".")[2], key.partition(".")[0], value, value.strip("'\"")} - {""}
        names |= {key.split("@")[0], key.strip("/-")} - {""}
        folders = [
            a.partition("=")[2] or a
            for a in command.arguments
            if command.name not in ("train", "check_data", "write_data")
        ]
        keys = [argument.partition("=")[0] for argument in command.arguments if "." in argument.partition("=")[0]]
        # The error of a recipe that does not fit names the key that the recipe sets.
        keys += KEYS[command.name] if key == "experiment" else []
        empty = value in ("[]", "''", '""')  # the error names an empty value in another way
        if key.strip() and not empty and not any(name in line for name in [*names, *folders, *keys]):
            found("command: the error does not say what is wrong", line[:400], repro)


def judge_sweep(command: Command, template: Path, base: Path) -> None:
    """A sweep must have as many jobs as values, each with a folder of its own, and report failures."""
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(template, base, symlinks=True)
    try:
        done = forked.run("stepwise_pl.train", list(command.arguments), base / "here", environment(base), 2 * SECONDS)
    except TimeoutError as error:
        found("sweep: time", str(error)[-300:], command.line())
        return
    result = Result(done.returncode, done.stdout, done.stderr)
    judge(command._replace(odd=()), result, in_process=False)
    values = command.odd[0].partition("=")[2]
    # No value of these lists holds a comma outside quotes.
    given = re.findall(r"'(?:[^'\\]|\\.)*'|[^,]+", values)
    count = len({_number(value) for value in given})  # 0.001 and 1e-3 are one job
    if match := re.search(r"sweep of (\d+) jobs", result.out):
        if int(match[1]) != count:
            found("sweep: jobs that become one", f"{match[1]} jobs of {count} values", command.line())
        folders = {path.parent for path in (base / "here" / "jobs").glob("**/job.json")}
        if len(folders) != int(match[1]):
            found("sweep: another number of folders", str(sorted(map(str, folders))), command.line())
    elif result.status == 0:
        found("sweep: no summary line", last(result.out), command.line())


def _number(value: str) -> float | str:
    """The value as a number, if it is one."""
    try:
        return float(value)
    except ValueError:
        return value
