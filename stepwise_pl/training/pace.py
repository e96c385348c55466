"""Measure how long training takes on this machine: a few real steps, at the whole CoT and at none."""

import dataclasses
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.training import DataConfig, OptimizerConfig
from stepwise_pl.data.encoding import EncodedExamples
from stepwise_pl.data.stream import TrainStream
from stepwise_pl.data.tokenizers import num_ids
from stepwise_pl.models import build as models
from stepwise_pl.models.architecture import (
    build,
    check_positions,
    grow_positions,
    memory,
    num_weights,
    own_config,
    pretrained_config,
)
from stepwise_pl.models.devices import wait_for
from stepwise_pl.models.forward import Targets, target_logits
from stepwise_pl.schedules.spread import ALL
from stepwise_pl.training.optimizers import build_optimizer

SECONDS = 2.0  # for measuring at each of the two lengths, after the first step
STEPS = 3  # to measure at each length
BYTES_PER_WEIGHT = 16  # weight, gradient and two moments of AdamW in float32
# A model whose first step would take longer than this, on a processor of this speed, is not tried.
OPERATIONS_PER_SECOND, FIRST_STEP_SECONDS = 2e10, 10.0


@dataclass(frozen=True)
class Pace:
    """Seconds of a training step with the whole CoT (`whole`) and with none (`none`), and a line on the measurement."""

    whole: float
    none: float
    how_measured: str

    def seconds(
        self, train: EncodedExamples, steps_per_epoch: int, delta: Fraction, removed: int, epochs: int
    ) -> float:
        """Seconds of training for `epochs`: `delta` tokens leave per epoch; once `removed` are gone, all leave.

        The estimate takes a step's time to be linear in the CoT tokens that are left.
        """
        rate = delta / steps_per_epoch
        removal = min(int(removed / rate), epochs * steps_per_epoch)
        gone = np.linspace(0, int(removal * rate), min(50, removed + 1)).astype(int)
        left = float(np.mean([train.cot_left(int(k)).mean() for k in gone])) / max(float(train.cot_length.mean()), 1e-9)
        average = self.none + (self.whole - self.none) * left
        return removal * average + (epochs * steps_per_epoch - removal) * self.none


def measure(cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase, train: EncodedExamples, data: DataConfig) -> Pace:
    """Time a few training steps of the configured architecture, with random weights, on the first GPU or else the CPU.

    Raises:
        UserError: the model cannot be built, or is too large to try here.
    """
    longest = train.longest(0)
    config = _architecture(cfg, tokenizer, longest)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _refuse_large(config, int(train.length.mean()), device)
    try:
        model = build(config, "model", initialised=False)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        grow_positions(model, longest)
        check_positions(model, longest)
        models.prepare(model, cfg)
        trial = _Trial(model.to(device).train(), train, data)  # type: ignore[arg-type]
        whole, none = trial.seconds(0), trial.seconds(ALL)
    except UserError:
        raise
    except Exception as error:  # For example out of memory. The report then has no times.
        raise UserError(f"a step of training failed ({first_line(error)})") from None
    threads = torch.get_num_threads()
    machine = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"the CPU, {threads} thread{'s' if threads > 1 else ''}"
    )
    size = data.batch_size
    how = (
        f"with batches of {size}"
        if trial.most == size
        else f"with up to {trial.most} of the {size} examples of a batch"
    )
    how_measured = (
        f"a step takes {whole:.3g} s with the whole CoT and {none:.3g} s with none: measured on {machine}, with random "
        f"weights and {how}; validation comes on top"
    )
    return Pace(whole, none, how_measured)


def _architecture(cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase, longest: int) -> Any:
    if cfg.init_from is not None:
        folders = [Path(cfg.init_from), Path(cfg.init_from) / "model"]
        found = [folder for folder in folders if (folder / "config.json").is_file()]
        if found and not (folders[0] / "state_dict.bin").is_file():
            return pretrained_config(str(found[0]), "model.init_from", cfg.dropout)
    elif cfg.pretrained:
        return pretrained_config(cfg.name, "model.name", cfg.dropout)
    # Only as many positions as needed: they hardly matter for speed, but a large table may not fit into memory.
    cfg = dataclasses.replace(cfg, positions=longest)
    return own_config(cfg, num_ids(tokenizer), int(tokenizer.eos_token_id), longest)


def _refuse_large(config: Any, tokens: int, device: torch.device) -> None:
    """Raise `UserError` if training would not fit the memory, or its first step would take too long."""
    with torch.device("meta"):
        count = num_weights(build(config, "model"))
    size = f"the model has {count / 1e6:,.0f} million weights"
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else memory(free=True)
    if count * BYTES_PER_WEIGHT > free:
        raise UserError(
            f"{size}, and its training takes more than {count * BYTES_PER_WEIGHT / 2**30:,.1f} GiB; {free / 2**30:,.1f} are free"
        )
    if device.type == "cpu" and 6 * count * tokens / OPERATIONS_PER_SECOND > FIRST_STEP_SECONDS:
        raise UserError(f"{size}, too many for a try of a few seconds on a CPU")


class _Trial:
    """Training steps on batches that are drawn as in training.

    Attributes:
        most: examples in the largest batch that was tried.
    """

    def __init__(self, model: PreTrainedModel, train: EncodedExamples, data: DataConfig) -> None:
        self.model, self.train, self.size = model, train, data.batch_size
        self.optimizer = build_optimizer(model, OptimizerConfig())
        self.stream = TrainStream(train, data.batch_size, 1, 0, 1, 0, data.length_pool)
        self.most = 0

    def seconds(self, removed: int) -> float:
        """Seconds of a step with `removed` units of each CoT gone; scaled up if a whole batch would take too long."""
        count, last = 1, self._step(0, 1, removed)
        # The first step warms up. It counts only if there is no time for another.
        if sum(last) < SECONDS:
            last = self._step(0, 1, removed)
        while count < self.size and 4 * sum(last) < SECONDS:
            count = min(4 * count, self.size)
            last = self._step(0, count, removed)
        self.most = max(self.most, count)
        times = [last]
        while len(times) < STEPS and sum(map(sum, times)) + sum(last) < SECONDS:
            times.append(self._step(len(times), count, removed))
        passes, update = np.median(times, axis=0).tolist()
        return float(passes * self.size / count + update)

    def _step(self, number: int, count: int, removed: int) -> tuple[float, float]:
        """Seconds of one step on the first `count` examples of step `number`: forward and backward, then the optimizer."""
        started = time.perf_counter()
        first = number * self.size
        batch = self.train.collate(self.stream.rows(np.arange(first, first + count))).remove(removed)
        targets = Targets.of(batch).to(self.model.device)
        logits = target_logits(self.model, targets)
        (F.cross_entropy(logits.float(), targets.label, reduction="sum") / len(targets.label)).backward()  # type: ignore[no-untyped-call]
        passed = self._now()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return passed - started, self._now() - passed

    def _now(self) -> float:
        wait_for(self.model.device)
        return time.perf_counter()
