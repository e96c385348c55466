"""The run folder: what lies where, and loading a trained run from it.

config.yaml       the resolved configuration, with what follows from it under `derived`
model/            architecture and tokenizer, in Hugging Face's format, without weights
metrics.csv       every logged metric
checkpoints/      best.ckpt and last.ckpt
summary.json      the result
accuracy.png/svg  accuracy versus removed tokens
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl import cli
from stepwise_pl.config import Config
from stepwise_pl.datamodule import CoTDataModule
from stepwise_pl.errors import UserError
from stepwise_pl.models import PREFIX, load_weights, read_checkpoint

# Keys that a resumed run may change: how long and how it runs, and Δ, which starts a new segment.
CHANGEABLE = (
    "trainer.", "logger.", "run_dir", "resume", "data.num_workers", "data.eval_batch_size", "schedule.delta",
    "optimizer.decay_steps",
)  # fmt: skip


def open_run_dir(run_dir: str | None, name: str, seed: int, resume: bool) -> Path:
    """The run's folder, made if need be.

    By default `outputs/<name>/seed<seed>`, with a number behind it if that one is taken;
    with `resume` the newest of these.

    Raises:
        UserError: a named folder holds another run, there is nothing to resume, or it
            cannot be written.
    """
    base = Path(run_dir) if run_dir else Path("outputs") / name / f"seed{seed}"
    if resume:
        path = base if run_dir else newest(base)
        if not (path / "checkpoints" / "last.ckpt").is_file():
            raise UserError(f"run_dir={path}: nothing to resume, checkpoints/last.ckpt is not there")
        return path
    path = base
    number = 1
    while (path / "config.yaml").exists():
        if run_dir:
            raise UserError(
                f"run_dir={path}: holds a run already; resume=true goes on with it, another run_dir starts anew"
            )
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    try:
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"run_dir={path}: cannot be written ({error.strerror}); choose another run_dir") from None
    return path


def newest(base: Path) -> Path:
    """`base` or the last of its numbered successors."""
    path, number = base, 2
    while base.with_name(f"{base.name}-{number}").exists():
        path = base.with_name(f"{base.name}-{number}")
        number += 1
    return path


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in plain.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def check_resumable(run_dir: Path, config: Config) -> None:
    """Raise `UserError` naming what differs if the run in the folder is not the one configured."""
    before = cli.read_yaml(run_dir / "config.yaml")
    before.pop("derived", None)
    old, new = flat(before), flat(cli.to_plain(config))
    differ = [
        f"{key} was {old.get(key)}, is {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(CHANGEABLE)
    ]
    if differ:
        raise UserError(
            f"run_dir={run_dir}: the run there has another configuration: {'; '.join(differ)}. Give the same, or another run_dir"
        )


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write readable JSON in one go."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@dataclass
class TrainedRun:
    """A run loaded from its folder: weights in place, data tokenised."""

    path: Path
    config: Config
    checkpoint: Path
    step: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: CoTDataModule
    removed_tokens: int


def load_run(folder: str, checkpoint: str) -> TrainedRun:
    """Load a run with the weights of `best`, `last` or a checkpoint file; `best` falls back to `last`.

    Raises:
        UserError: the folder or the checkpoint cannot be read.
    """
    path = Path(folder)
    plain = cli.read_yaml(path / "config.yaml")
    plain.pop("derived", None)
    config = cli.config_from(plain, Config)
    named = [path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    candidates = {"best": named, "last": named[1:]}.get(checkpoint, [Path(checkpoint)])
    file = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    state = read_checkpoint(file)
    if "stepwise" not in state:
        raise UserError(f"{file}: is not a checkpoint of stepwise_pl")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path / "model")
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path / "model"), dtype=torch.float32)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'model'}: cannot be read ({next(iter(str(error).splitlines()), '')})") from None
    weights = {key.removeprefix(PREFIX): value for key, value in state["state_dict"].items() if key.startswith(PREFIX)}
    load_weights(model, weights, str(file))
    data = CoTDataModule(config.task, tokenizer, config.data, config.seed).prepare()
    return TrainedRun(
        path,
        config,
        file,
        int(state["global_step"]),
        model.eval(),
        tokenizer,
        data,
        int(state["stepwise"]["removed_tokens"]),
    )
