"""The case `measure`: training steps of the true command, timed by a callback. Both source trees run it, so it knows neither.

`stepwise_pl.train` runs as a user starts it. The only addition is a callback of Lightning, which
ends the process when it has seen enough steps: no checkpoint, no test.
"""

import collections
import os
import runpy
import statistics
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from serve import Emit

GIB = 2**30
WAIT = "synchronizing CUDA operation"  # in torch's warning and in its error


def measure(emit: Emit, words: list[str], device: str, **settings: Any) -> None:
    """Run `python -m stepwise_pl.train <words>` under a `Watch` with the settings; it ends the process."""
    watch = Watch(emit, device, **settings)
    graphs = GraphCounts() if device == "cuda" else None
    watch.graphs = graphs
    original = L.Trainer.__init__

    def with_watch(self: L.Trainer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "callbacks": [*kwargs.get("callbacks", ()), watch]})

    L.Trainer.__init__ = with_watch  # type: ignore[method-assign]
    sys.argv = ["train", *words]
    try:
        runpy.run_module("stepwise_pl.train", run_name="__main__", alter_sys=True)
    except RuntimeError as error:
        if WAIT not in str(error):
            raise
        traceback.print_exc()
        emit.outcome("failed", f"a step waits for the device: {str(error).splitlines()[0]}")
        return
    raise RuntimeError("training ended before enough steps were seen")


class GraphCounts:
    """Counts recordings and replays of all CUDA graphs of the process."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        begin, replay = torch.cuda.CUDAGraph.capture_begin, torch.cuda.CUDAGraph.replay

        def counted_begin(graph: Any, *args: Any, **kwargs: Any) -> Any:
            self.recorded += 1
            return begin(graph, *args, **kwargs)

        def counted_replay(graph: Any) -> Any:
            self.replayed += 1
            return replay(graph)

        torch.cuda.CUDAGraph.capture_begin = counted_begin  # type: ignore[method-assign, assignment]
        torch.cuda.CUDAGraph.replay = counted_replay  # type: ignore[method-assign, assignment]


@dataclass
class Watch(L.Callback):
    """Times steps, or looks for waits in them.

    A step reaches from its start to the start of the next one, so it includes the making of the
    batch. Steps are timed in segments, with a wait for the device at both ends of a segment alone.

    Attributes:
        warmup: steps before the first segment, compilation included.
        segments, steps: number of segments, and steps of each.
        waits: look for waits on the device instead: `steps` steps that name them, and as many in which one is an error.
        peak: also measure the best bf16 matrix product, after the steps.
        tells_often: tell counts at the end of each segment, so that a case that is ended early leaves counts too.
    """

    emit: Emit
    device: str
    warmup: int = 20
    segments: int = 5
    steps: int = 20
    waits: bool = False
    peak: bool = False
    tells_often: bool = False
    graphs: GraphCounts | None = None
    times: list[float] = field(default_factory=list)
    found: "collections.Counter[str]" = field(default_factory=collections.Counter)
    begun: float = field(default_factory=time.perf_counter)
    replays_before: int = 0
    seen: int = 0  # steps that have begun

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        number, self.seen = self.seen, self.seen + 1
        if number == 1:
            self._synchronize()
            self.emit.row("first step, start and compilation included", time.perf_counter() - self.begun, "s")
        if number < self.warmup:
            return
        if number == self.warmup and self.graphs is not None:
            self.replays_before = self.graphs.replayed
        if self.waits:
            self._look_for_waits(number - self.warmup, trainer)
        elif (number - self.warmup) % self.steps == 0:
            self._synchronize()
            self.times.append(time.perf_counter())
            if self.tells_often:
                self.emit.row("steps seen", number)
                self.emit.row("time of these steps", time.perf_counter() - self.begun, "s")
                tell_graphs(self.emit, self.graphs, number - self.warmup, self.replays_before)
            if len(self.times) > self.segments:
                self._tell_times(trainer, module, batch)
                self._finish("measured")

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _look_for_waits(self, number: int, trainer: L.Trainer) -> None:
        if number == 0:
            warnings.simplefilter("always")
            warnings.showwarning = self._note_wait  # type: ignore[assignment]
            torch.cuda.set_sync_debug_mode("warn")
        elif number == self.steps and not self.found:
            torch.cuda.set_sync_debug_mode("error")
        elif number == 2 * self.steps or (number == self.steps and self.found):
            torch.cuda.set_sync_debug_mode("default")
            self.emit.row("waits for the device in a step", sum(self.found.values()) / self.steps, "per step")
            places = "; ".join(f"{count} times {place}" for place, count in self.found.most_common(8))
            self._finish(
                "failed" if self.found else "passed", places or f"none in {2 * self.steps} steps without a log"
            )

    def _note_wait(self, message: Any, category: Any, filename: str, lineno: int, *args: Any) -> None:
        if WAIT not in str(message):
            return
        between = ("/gpu/measure.py", "/warnings.py")  # from the place of the wait to this method
        frames = [frame for frame in traceback.extract_stack() if not frame.filename.endswith(between)]
        own = [frame for frame in frames if "stepwise_pl/" in frame.filename] or frames
        deepest = frames[-1]
        place = f"{own[-1].filename.rpartition('stepwise_pl/')[2]}:{own[-1].lineno}"
        self.found[f"{place} (in {deepest.filename.rpartition('/')[2]}:{deepest.lineno} {deepest.name})"] += 1

    def _tell_times(self, trainer: L.Trainer, module: Any, batch: Any) -> None:
        if self.device == "cuda":
            # Of the whole training: a replayed graph allocates nothing, so that a peak after the warm-up would miss it.
            self.emit.row("peak memory", torch.cuda.max_memory_allocated() / GIB, "GiB")
            self.emit.row("reserved memory", torch.cuda.max_memory_reserved() / GIB, "GiB")
        spans = [(end - start) / self.steps for start, end in zip(self.times, self.times[1:], strict=False)]
        tell_speed(self.emit, statistics.median(spans), batch, module.model, self.device, self.peak)
        self.emit.row("slowest segment / median", max(spans) / statistics.median(spans))

    def _finish(self, outcome: str, note: str = "") -> None:
        tell_graphs(self.emit, self.graphs, self.seen - 1 - self.warmup, self.replays_before)
        print_reasons()
        self.emit.outcome(outcome, note)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def tell_speed(emit: Emit, seconds: float, batch: Any, model: Any, device: str, peak: bool) -> None:
    """Tell what follows from the seconds of a step on a batch with its whole CoT; with `peak`, the share of the best bf16 matrix product too."""
    emit.row("step", seconds * 1000, "ms")
    emit.row("examples", len(batch) / seconds, "examples/s")
    emit.row("tokens", int(batch.attention_mask.sum()) / seconds, "tokens/s")
    rate = flops(model.config, batch) / seconds
    emit.row("model FLOPs", rate / 1e12, "TFLOP/s")
    if peak:
        best = matrix_peak(device)
        emit.row("bf16 matrix peak", best / 1e12, "TFLOP/s")
        emit.row("share of the matrix peak", rate / best)


def flops(config: Any, batch: Any) -> float:
    """Model FLOPs of a forward and a backward pass, counted as `benchmark.flops` counts them."""
    lengths = (batch.attention_mask.sum(1) - 1).double()
    body = 12 * config.num_hidden_layers * config.hidden_size**2 * float(lengths.sum())
    attention = 2 * config.num_hidden_layers * config.hidden_size * float((lengths * (lengths + 1) / 2).sum())
    head = config.hidden_size * config.vocab_size * int(batch.is_target.sum())
    return float(6 * (body + attention + head))


def matrix_peak(device: str) -> float:
    """FLOP/s of the best bf16 matrix product of a few sizes; each is timed five times, ten products in a row."""
    rates = []
    for size in (4096, 8192, 16384) if device == "cuda" else (512,):
        a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        times = []
        for _ in range(6):
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(10):
                a @ b
            if device == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - started) / 10)
        rates.append(2 * size**3 / statistics.median(times[1:]))
    return max(rates)


def tell_graphs(emit: Emit, graphs: GraphCounts | None, steps: int, replays_before: int) -> None:
    """Tell the compilations of torch.compile, graph breaks, and CUDA graphs so far; no compilations if nothing was compiled."""
    compiled = compilations()
    if compiled:
        breaks, inductor = torch._dynamo.utils.counters["graph_break"], torch._dynamo.utils.counters["inductor"]
        emit.row("compilations", len(compiled))
        # The number after the stroke counts the compilations of one function.
        emit.row("recompilations", sum(name.split("/")[-1].split("_")[0] != "0" for name in compiled))
        emit.row("graph breaks", sum(breaks.values()))
        emit.row("CUDA graphs skipped", inductor.get("cudagraph_skips", 0))
    if graphs is not None:
        emit.row("CUDA graphs recorded", graphs.recorded)
        emit.row("CUDA graph replays", (graphs.replayed - replays_before) / max(steps, 1), "per step")


def compilations() -> dict[str, str]:
    """Name and reason of each compilation so far; torch keeps the newest 64."""
    if "torch._dynamo" not in sys.modules:
        return {}
    found = torch._dynamo.utils.get_compilation_metrics()
    return {
        str(one.compile_id): str(getattr(one, "recompile_reason", None)) for one in found if one.compile_id is not None
    }


def print_reasons() -> None:
    """Print why something was compiled again, and where graphs break."""
    for name, reason in compilations().items():
        print("compiled", name, reason)
    if "torch._dynamo" in sys.modules:
        for reason, count in torch._dynamo.utils.counters["graph_break"].items():
            print("graph break", count, reason)
