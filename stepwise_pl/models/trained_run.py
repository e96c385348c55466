"""Loads a trained run from its folder (`runs/folder.py` describes the folder)."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.run import Config
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.tokenizers import load_tokenizer
from stepwise_pl.models.build import model_setting, restored
from stepwise_pl.models.causality import require_causal
from stepwise_pl.models.checkpoint import kept_weights, read_checkpoint
from stepwise_pl.models.devices import device_of
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.own import EXTRA, TOKENS, load_own, own_modules
from stepwise_pl.runs.provenance import other_version
from stepwise_pl.runs.saved_config import located, saved_config

log = logging.getLogger(__name__)


@dataclass
class TrainedRun:
    """A run loaded from its folder, with its weights."""

    path: Path
    config: Config
    checkpoint: Path
    step: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    stage: int  # s(t) of the checkpoint
    extra: nn.Module | None = None  # trained besides the model
    tokens: nn.Embedding | None = None  # the inputs that the method learned
    tokens_read: int | None = None  # in training, up to the checkpoint; None: not counted

    @property
    def internalized(self) -> bool:
        """Whether the checkpoint was trained without any CoT token left."""
        return self.removed >= self.limits.max_removed

    @property
    def removed(self) -> int:
        """CoT units gone at the checkpoint's stage."""
        return self.config.method.removed(self.stage, self.limits)

    @property
    def removed_tokens(self) -> int:
        """CoT tokens that the longest CoT has lost at the checkpoint's stage."""
        return self.limits.removed_tokens(self.removed)

    @property
    def stage_name(self) -> str:
        """The name of the checkpoint's stage; empty if it has none."""
        return self.config.method.stage_name(self.stage)

    def to(self, device: torch.device | str) -> None:
        """Move the model, and what was trained besides it."""
        self.model.to(device)  # type: ignore[arg-type]
        for module in (self.extra, self.tokens):
            if module is not None:
                module.to(device)

    @property
    def learner(self) -> Learner:
        """The model with the method of its training."""
        return Learner(self.model, int(self.tokenizer.eos_token_id), self.config.method, self.extra, self.tokens)


def load_run(folder: str, checkpoint: str) -> TrainedRun:
    """Load a run with the weights of `best`, `last` or a checkpoint file; `best` falls back to `last`.

    Raises:
        UserError: the folder or the checkpoint cannot be read.
    """
    path = Path(folder)
    config = located(saved_config(path), path)
    names = ("best", "last") if checkpoint == "best" else (checkpoint,)
    candidates = [*(path / "checkpoints" / f"{name}.ckpt" for name in names), Path(checkpoint)]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        there = sorted(file.stem for file in (path / "checkpoints").glob("*.ckpt"))
        raise UserError(
            f"checkpoint={checkpoint}: no such checkpoint; give best, last or a file (there: {', '.join(there)})"
        )
    state = read_checkpoint(file)
    if "stepwise" not in state:
        raise UserError(f"{file}: is not a checkpoint of stepwise_pl")
    tokenizer = load_tokenizer("run", str(path / "model"))
    model = restored(path, state, file, tokenizer).eval()  # type: ignore[no-untyped-call]
    stepwise = state["stepwise"]
    try:
        limits, stage = Limits(**stepwise["limits"]), int(stepwise["removed"])
    except (KeyError, TypeError):
        raise UserError(f"{file}: was written by {other_version(file, 'a7bb055')}") from None
    extra, tokens = own_modules(config.method, model, limits, config.seed)
    try:
        load_own(extra, kept_weights(state), EXTRA)
        load_own(tokens, kept_weights(state), TOKENS)
    except RuntimeError as error:
        raise UserError(f"{file}: the modules of method={config.method.kind} do not fit: {error}") from None
    longest = limits.max_cot + limits.longest_answer
    require_causal(model, f"run={path}: {model_setting(config.model)}", longest, config.method.keep_position)
    return TrainedRun(
        path,
        config,
        file,
        int(state["global_step"]),
        model,
        tokenizer,
        limits,
        stage,
        extra,
        tokens,
        stepwise.get("tokens_read"),
    )


def load_onto(folder: Path, checkpoint: str, accelerator: str) -> TrainedRun:
    """Load a run with a checkpoint onto a device (`device_of`).

    Raises:
        UserError: it cannot be read, or this machine has no such device.
    """
    device = device_of(accelerator)  # before the run is read
    run = load_run(str(folder), checkpoint)
    run.to(device)
    return run
