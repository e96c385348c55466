"""The page of `demo` as a folder for Hugging Face Spaces: the package, the models, and what the Space is told."""

import json
import shlex
import shutil
import stat
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import stepwise_pl
from stepwise_pl.common.disk import in_one_go, read_json_or_empty, require_new, write_json
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.keys import flat, is_among, paths
from stepwise_pl.config.known import CONF
from stepwise_pl.config.plain import save_yaml, to_plain
from stepwise_pl.runs.folder import is_export
from stepwise_pl.runs.saved_config import derived_of, saved_config
from stepwise_pl.showing.models import Models, Voice, voices_of
from stepwise_pl.showing.panel import Panel, title_of

# The packages that the page imports, of all that the project needs (tested). The version of gradio stands in the README, where Spaces reads it.
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "hydra-core", "omegaconf", "jinja2")
# Facts of the result that the page shows.
SHOWN = ("test_accuracy", "test_examples", "removed_tokens")

APP = '''\
"""Serves the page. Hugging Face Spaces runs this file; `python app.py` does the same anywhere."""

import os
from pathlib import Path

from stepwise_pl.demo import DemoConfig, demo

HERE = Path(__file__).parent

demo(
    DemoConfig(
        run=str(HERE / "run"),
{baselines}        examples={examples!r},
        host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        port=int(os.environ["GRADIO_SERVER_PORT"]) if "GRADIO_SERVER_PORT" in os.environ else None,
    )
)
'''

README = """\
---
title: {quoted}
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
---

# {title}

Ask a model that was trained by Stepwise Internalization (arXiv 2405.14838), and see each token come, with its time and its
forward passes. `pip install -r requirements.txt gradio=={gradio}` and `python app.py` serve the same page on your machine. The
folder holds the models ({models}) and the code that trained them (stepwise_pl {version}, Apache-2.0).
"""


def write_space(out: Path, folder: Path, baselines: Mapping[str, Path], examples: Sequence[str]) -> str:
    """Write the folder; return a line that says where it is and how large.

    Args:
        folder: the run, or the exported folder.
        baselines: runs beside it, by the name of their schedule.
        examples: problems to click; empty: the first ones of the test split.

    Raises:
        UserError: the folder is not empty, a run cannot be read, or it needs what no Space has.
    """
    require_new("space", out)
    panel = Panel.of(folder, baselines, examples, "cpu")
    with in_one_go(out) as space:
        copied = copy_package(space / "stepwise_pl")
        parts = {"run": folder, **baselines}
        for name, source in parts.items():
            copy_model(source, space / name, panel.voices if name == "run" else [Voice(source)])
        require_same_answers(panel, space, list(parts))
        given = "".join(f'        {key}=str(HERE / "{key}"),\n' for key in baselines)
        (space / "app.py").write_text(APP.format(baselines=given, examples=panel.examples), encoding="utf-8")
        pinned = [f"{name}=={number}\n" for name in PACKAGES if (number := installed(name))]
        (space / "requirements.txt").write_text("".join(pinned), encoding="utf-8")
        models = sum(num_bytes(space / name) for name in parts)
        title = title_of(folder)
        # The name of a folder may hold quotes. A text in JSON is one in YAML.
        text = README.format(title=title, quoted=json.dumps(title, ensure_ascii=False), gradio=installed("gradio") or "6.31.0", models=size(models),
                             version=stepwise_pl.__version__)  # fmt: skip
        (space / "README.md").write_text(text, encoding="utf-8")
        whole = num_bytes(space)
    return f"{out}: a folder for Hugging Face Spaces, {size(whole)}: {size(models)} of models, {size(copied)} of code; python {shlex.quote(str(out / 'app.py'))} serves it here"


def copy_package(out: Path) -> int:
    """Copy this package with its YAML files, as a wheel holds it; return its size in bytes."""
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(Path(stepwise_pl.__file__).parent, out, ignore=skipped)
    shutil.copytree(CONF, out / "conf", ignore=skipped, dirs_exist_ok=True)
    return num_bytes(out)


def copy_model(source: Path, out: Path, voices: Sequence[Voice]) -> None:
    """Copy what asking needs of a run, or an exported folder as it is.

    Raises:
        UserError: the run needs files that are no part of it.
    """
    if is_export(source):
        shutil.copytree(source, out)
        return
    config = saved_config(source)
    if config.plugins:
        raise UserError(f"run={source}: needs plugins ({', '.join(config.plugins)}), which a Space does not have")
    if config.model.lora.rank:
        raise UserError(
            f"run={source}: is an adapter of {config.model.name}; export it, and give the exported folder as run"
        )
    shutil.copytree(source / "model", out / "model")
    (out / "checkpoints").mkdir()
    for checkpoint in dict.fromkeys(voice.checkpoint for voice in voices):
        copy_checkpoint(source, checkpoint, out / "checkpoints" / f"{checkpoint}.ckpt")
    plain = to_plain(config)
    settings = {key: without_paths(plain[key], key) for key in ("task", "model", "schedule", "method")}
    save_yaml(
        {**settings, "seed": config.seed, "derived": {"name": derived_of(source).get("name")}}, out / "config.yaml"
    )
    summary = read_json_or_empty(source / "summary.json")
    write_json(out / "summary.json", {key: summary[key] for key in SHOWN if key in summary})


def copy_checkpoint(source: Path, checkpoint: str, out: Path) -> None:
    """Copy the weights that a user gets, and the stage; no state of the optimizer or of the training."""
    import torch

    from stepwise_pl.models.checkpoint import kept_weights, read_checkpoint

    file = source / "checkpoints" / f"{checkpoint}.ckpt"
    if not file.is_file() and checkpoint == "best":
        file = file.with_name("last.ckpt")  # as the run is loaded
    state = read_checkpoint(file)
    stepwise = {key: state["stepwise"][key] for key in ("removed", "limits", "tokens_read") if key in state["stepwise"]}
    if "config" in state["stepwise"]:
        settings = state["stepwise"]["config"]
        stepwise["config"] = {
            key: without_paths(value, key) for key, value in settings.items() if isinstance(value, dict)
        }
    torch.save({"state_dict": kept_weights(state), "global_step": state["global_step"], "stepwise": stepwise}, out)


def without_paths(settings: dict[str, Any], group: str) -> dict[str, Any]:
    """Return the settings of a group without those that hold an absolute path, or any path of a task: the data is not copied."""
    held = {key for key in flat({group: settings}) if is_among(key, paths())}

    def kept(key: str, value: Any) -> bool:
        name = f"{group}.{key}"
        return name not in held or (
            group != "task" and not (isinstance(value, str) and Path(value).expanduser().is_absolute())
        )

    return {key: value for key, value in settings.items() if kept(key, value)}


def require_same_answers(panel: Panel, space: Path, names: Sequence[str]) -> None:
    """Raise `UserError` unless the copied models answer the first example as the models do."""
    if not panel.examples:
        return
    question, copies = panel.examples[0], Models("cpu")
    before = [*[panel.voices[-1]], *[panel.beside[key][1] for key in names[1:]]]
    for name, voice in zip(names, before, strict=True):
        copy = voices_of(space / name, copies)[0][-1] if name == "run" else Voice(space / name)
        here, there = (models.watch(one, question).reply for models, one in ((panel.models, voice), (copies, copy)))
        if (here.answer, here.cot, here.removed_tokens) != (there.answer, there.cot, there.removed_tokens):
            raise UserError(f"{voice.folder}: its copy answers otherwise ({there}, not {here}); nothing is written")


def installed(name: str) -> str:
    """Return the version of a package that is installed, without the part that names a build; empty if it is not there."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def num_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(info.st_size for path in folder.rglob("*") if stat.S_ISREG((info := path.stat()).st_mode))


def size(count: int) -> str:
    """`16.9 MB`."""
    return f"{count / 1e6:.1f} MB"
