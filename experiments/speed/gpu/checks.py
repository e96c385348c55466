"""The cases that this tree alone runs: the machine, the bare loop, numerics, exact resume, verified evaluation, FSDP2 with one process.

Each is a function of `emit` and the arguments of the case, called in a process of its own. A run
is configured by words of the command line, as in a real run.
"""

import gc
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from measure import matrix_peak, tell_speed
from serve import Emit

from stepwise_pl.cli.entry import register_schemas
from stepwise_pl.config.known import CONF
from stepwise_pl.config.plain import to_object, to_plain
from stepwise_pl.config.request import Request
from stepwise_pl.config.run import Config
from stepwise_pl.training import build
from stepwise_pl.training.module import StepwiseModule
from stepwise_pl.training.sharding import SharedWeights


def machine(emit: Emit, device: str) -> None:
    """Say what the machine is, and start its device, which shows that a forked process can."""
    names = [f"torch {torch.__version__}", f"Python {platform.python_version()}", f"{os.cpu_count()} cores"]
    for package in ("lightning", "transformers", "triton"):
        try:
            names.append(f"{package} {version(package)}")
        except ImportError:
            names.append(f"no {package}")
    names.append("C compiler " + (shutil.which("cc") or shutil.which("gcc") or "missing"))
    if device == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        names.insert(0, torch.cuda.get_device_name())
        emit.row("memory of the device", torch.cuda.get_device_properties(0).total_memory / 2**30, "GiB")
    emit.row("bf16 matrix peak", matrix_peak(device) / 1e12, "TFLOP/s")
    emit.outcome("measured", ", ".join(names))


def bare(emit: Emit, words: list[str], device: str, steps: int) -> None:
    """A hand-written loop in eager mode around the same model, on one batch that is on the device already."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import benchmark

    benchmark.DEVICE = device
    parts = build.build_parts(config_of(words))
    batch = parts.data.whole_step(0)
    parts.model.to(device)  # type: ignore[arg-type]
    step = benchmark.bare_loop(parts.model, batch, parts.config.trainer.precision)
    for _ in range(5):
        step()
    started = benchmark.now()
    for _ in range(steps):
        step()
    tell_speed(emit, (benchmark.now() - started) / steps, batch, parts.model, device, peak=False)
    if device == "cuda":
        emit.row("peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        emit.row("reserved memory", torch.cuda.max_memory_reserved() / 2**30, "GiB")
    emit.outcome("measured")


def losses_agree(
    emit: Emit, words: list[str], one: list[str], other: list[str], first: int, last: int, most_first: float, most_mean: float
) -> None:  # fmt: skip
    """Train twice, with the further words `one` and `other`, and compare the losses.

    Args:
        first: steps whose losses are compared one by one.
        last: steps of each run; 0: `first`. The mean loss of the last 20 steps is compared too.
        most_first, most_mean: the largest relative differences that pass.
    """
    runs = [losses([*words, *more], last or first) for more in (one, other)]
    apart = max(relative(a, b) for a, b in zip(*(run[:first] for run in runs), strict=True))
    emit.row(f"largest difference of the first {first} losses, relative", apart)
    is_good = apart <= most_first
    if last:
        means = [sum(run[-20:]) / 20 for run in runs]
        emit.row(f"difference of the mean loss of steps {last - 20} to {last}, relative", relative(*means))
        emit.row("mean loss", means[0])
        is_good = is_good and relative(*means) <= most_mean
    emit.row("first loss", runs[0][0])
    emit.outcome("passed" if is_good else "failed", f"at most {most_first:g}" + (f" and {most_mean:g}" if last else ""))


def sharded_agrees(emit: Emit, words: list[str], steps: int, most: float) -> None:
    """Compare the losses of FSDP2 with one process with those of a plain run. The configuration asks for two, so the strategy is put in here."""
    plain = losses(words, steps)
    with mock.patch.object(build, "strategy", lambda cfg, method: SharedWeights(1)):
        sharded = losses(words, steps)
    apart = max(relative(a, b) for a, b in zip(plain, sharded, strict=True))
    emit.row(f"largest difference of the first {steps} losses, relative", apart)
    emit.outcome("passed" if apart <= most else "failed", f"at most {most:g}")


def resumes_exactly(emit: Emit, words: list[str], steps: int) -> None:
    """Compare the weights of a run with those of one that goes on from its checkpoint in the middle, bit by bit."""
    # An operation that has no deterministic form warns, in the log; the bits decide.
    torch.use_deterministic_algorithms(True, warn_only=True)
    with tempfile.TemporaryDirectory() as folder:
        half = Path(folder) / "half.ckpt"
        last = Path(folder) / "checkpoints" / "last.ckpt"
        words = [*words, f"trainer.duration={steps}steps", f"trainer.checkpoint_every_n_steps={steps // 2}"]

        def keep(step: int) -> None:
            if step == steps // 2:
                shutil.copy(last, half)

        whole = fit(words, Path(folder), Hook(at_start=keep))
        weights = {name: weight.detach().cpu().clone() for name, weight in whole.model.state_dict().items()}
        del whole
        forget()
        begun: list[int] = []
        resumed = fit(words, Path(folder), Hook(at_start=begun.append), half).model.state_dict()
    if begun != list(range(steps // 2, steps)):
        raise RuntimeError(f"the resumed run made the steps {begun}")
    apart = sum(not torch.equal(weight, resumed[name].cpu()) for name, weight in weights.items())
    emit.row("weights that differ", apart, f"of {len(weights)}")
    emit.outcome("failed" if apart else "passed", "deterministic algorithms")


def answers_agree(emit: Emit, words: list[str], one: list[str], other: list[str], steps: int) -> None:
    """Train for some steps, and compare the answers that the model writes under the words `one` and `other`. Each test runs twice, and the second is timed."""
    with tempfile.TemporaryDirectory() as folder:
        module = fit([*words, *one, f"trainer.duration={steps}steps"], Path(folder), Hook())
        weights = {name: weight.detach().cpu().clone() for name, weight in module.model.state_dict().items()}
        del module
        forget()
        found = []
        for name, more in (("plain", one), ("compiled", other)):
            parts = build.build_parts(config_of([*words, *more]))
            parts.model.load_state_dict(weights)
            trainer, module = build.build_attempt(
                parts, Path(folder), to_plain(parts.config), nothing, [], Request("check")
            )
            trainer.test(module, parts.data, verbose=False)
            started = time.perf_counter()
            trainer.test(module, parts.data, verbose=False)
            emit.row(f"evaluation, {name}", len(module.tested) / (time.perf_counter() - started), "problems/s")
            found.append(dict(module.tested))
            print(name, "is decoded by a compiled pass:", module.learner.decodes_compiled)
            forget()
    apart = sum(found[0][number] != found[1].get(number) for number in found[0])
    emit.row("answers that differ", apart, f"of {len(found[0])}")
    for name in ("right", "within_length"):
        emit.row(f"answers, {name}", sum(getattr(answer, name) for answer in found[0].values()), f"of {len(found[0])}")
    emit.outcome("failed" if apart or len(found[0]) != len(found[1]) else "passed")


# Shared by the cases


def config_of(words: Sequence[str]) -> Config:
    """Compose and check the configuration, as the command does."""
    GlobalHydra.instance().clear()
    register_schemas("train", Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Config = to_object(compose("train", list(words)))
    return config


class Hook(L.Callback):
    """Calls functions in a training.

    Args:
        at_start: called at the start of each step, with the number of steps done.
        after: called after each step, with the module.
    """

    def __init__(
        self, at_start: Callable[[int], None] = lambda step: None, after: Callable[[StepwiseModule], None] = lambda module: None
    ) -> None:  # fmt: skip
        self.at_start, self.after = at_start, after

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.at_start(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.after(pl_module)


def fit(words: Sequence[str], folder: Path, hook: Hook, checkpoint: Path | None = None) -> StepwiseModule:
    """Train as configured, from a checkpoint if one is given; return the module."""
    parts = build.build_parts(config_of(words))
    trainer, module = build.build_attempt(parts, folder, to_plain(parts.config), nothing, [], Request("check"))
    trainer.callbacks.append(hook)  # type: ignore[attr-defined]
    trainer.fit(module, parts.data, ckpt_path=checkpoint, weights_only=True)
    return module


def losses(words: Sequence[str], steps: int) -> list[float]:
    """Return the losses of the first steps of a run."""
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        words = [*words, f"trainer.duration={steps}steps"]
        fit(words, Path(folder), Hook(after=lambda module: found.append(float(module.trained["train/loss"]))))
    forget()
    if len(found) != steps or not all(map(math.isfinite, found)):
        raise RuntimeError(f"{len(found)} losses of {steps}, the last {found[-1:]}")
    return found


def forget() -> None:
    """Free what an earlier run has compiled and allocated."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def nothing() -> None:
    """Write no files besides checkpoints and metrics."""


def relative(one: float, other: float) -> float:
    """Return the difference of two numbers as a part of the first."""
    return abs(one - other) / abs(one)
