"""The cases of the part `check`: names, words of the command line, limits of time, and their order.

The plan for 240 seconds on one card and 16 cores, a guess until it was run:

    0 to 15     imports of both trees, side by side; the machine
    15 to 108   together: as many checks as there is time for, the search for waits first. Three of
                them compile what is measured later, so that the cache on the disk is warm; their own
                speed does not matter, so they share the card and the cores
    108 to 240  alone, one after another, 6 to 20 s each: the twelve cases of the benchmark, those of the
                targets first
    the rest    together: the checks that are left

A case that was not begun, or was ended too early, is taken up by the next call.
"""

from dataclasses import dataclass, field
from typing import Any

COMMON = (
    "task=mult4x4", "schedule=explicit_cot", "data.cache_dir=null", "trainer.validate_every_epochs=0",
    "trainer.checkpoint_every_n_steps=1000000", "trainer.precision=bf16-mixed",
)  # fmt: skip
GPT2 = ("model=gpt2", "model.pretrained=false", "model.tokenizer=symbols")
TWO_LAYERS = ("model=gpt2_2layer",)
# The part of the time after which nothing else runs beside the benchmark.
TOGETHER = 0.45
# Keys that older trees lack: the commit of the comparison has no torch.compile.
PLAIN, COMPILED = "trainer.compile=false", "trainer.compile=true"


@dataclass
class Case:
    """A case of its own process.

    Attributes:
        kind: the function of `measure.py` or `checks.py`.
        tree: `ours` or `baseline`.
        limit: seconds until it is ended.
        alone: nothing else runs beside it, because its speed counts.
        needs: `cuda` or `compile`, or both; without them the case is skipped.
    """

    name: str
    kind: str
    arguments: dict[str, Any]
    limit: float
    tree: str = "ours"
    alone: bool = False
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Sizes:
    """The sizes of all cases. The default is for a card, `TINY` for tests on a CPU."""

    shrink: tuple[str, ...] = ()  # words that make the models small
    train_size: int = 4096
    large_batch: int = 256
    warmup: int = 20
    segments: int = 5
    steps: int = 20  # of a segment at the small batch; half of it at the large one
    bare_steps: int = 60
    numeric_steps: int = 200
    resume_steps: int = 12
    learn_steps: int = 150  # before the answers are compared
    problems: int = 200
    seconds: float = 100  # limit of a check


SMALL_MODEL = ("model.layers=1", "model.heads=2", "model.width=32")
TINY = Sizes(
    shrink=SMALL_MODEL, train_size=256, large_batch=64, warmup=2, segments=2, steps=2, bare_steps=2, numeric_steps=24,
    resume_steps=4, learn_steps=4, problems=16, seconds=60,
)  # fmt: skip

BENCHMARK = {
    "gpt2, batch 32": (GPT2, 32),
    "2 layers of 768, batch 32": (TWO_LAYERS, 32),
    "gpt2, batch {large}": (GPT2, 0),
}


def cases(device: str, sizes: Sizes, keys: frozenset[str]) -> list[Case]:
    """Return all cases, in the order of the plan.

    Args:
        keys: those of `trainer` that this tree has.
    """
    accelerator = "trainer.accelerator=" + ("gpu" if device == "cuda" else "cpu")
    plain = (PLAIN,) if "compile" in keys else ()
    exact = ("trainer.tf32=false",) if "tf32" in keys else ()
    return [
        Case("machine", "machine", {"device": device}, 60, alone=True),
        *waits(device, sizes, accelerator, plain),
        *checks(device, sizes, accelerator, plain, exact),
        *benchmark(device, sizes, accelerator, plain),
    ]


def benchmark(device: str, sizes: Sizes, accelerator: str, plain: tuple[str, ...]) -> list[Case]:
    """The cases that are timed."""
    found: list[Case] = []
    for name, (model, small) in BENCHMARK.items():
        words = [*COMMON, *model, *sizes.shrink, accelerator, *batch_words(sizes, small or sizes.large_batch)]
        watch = {
            "device": device, "warmup": sizes.warmup, "segments": sizes.segments, "peak": True,
            "steps": sizes.steps if small else max(1, sizes.steps // 2),
        }  # fmt: skip
        name = name.format(large=sizes.large_batch)
        found += [
            Case(f"{name}: compiled", "measure", {**watch, "words": [*words, COMPILED]}, 75, alone=True, needs=("compile",)),
            Case(f"{name}: cd7dcba", "measure", {**watch, "words": words}, 45, "baseline", alone=True),
            Case(f"{name}: plain", "measure", {**watch, "words": [*words, *plain]}, 45, alone=True),
            Case(f"{name}: bare loop", "bare", {"words": words, "device": device, "steps": sizes.bare_steps}, 45, alone=True),
        ]  # fmt: skip
    # The ratios of the targets need the first two steps of every model, so these come before all others.
    order = ("compiled", "cd7dcba", "bare loop", "plain")
    return sorted(found, key=lambda case: order.index(case.name.rpartition(": ")[2]) // 2)


def batch_words(sizes: Sizes, batch: int) -> list[str]:
    """A batch size, and epochs so long that none ends while steps are timed."""
    return [f"data.batch_size={batch}", f"data.epoch_size={batch * 10_000}", *problems(sizes)]


def problems(sizes: Sizes) -> list[str]:
    """The numbers of problems."""
    return [f"task.train_size={sizes.train_size}", "task.validation_size=32", f"task.test_size={sizes.problems}"]


def checks(device: str, sizes: Sizes, accelerator: str, plain: tuple[str, ...], exact: tuple[str, ...]) -> list[Case]:
    """The cases whose own speed does not matter."""
    small = [
        "task=mult4x4", "model.dropout=0", "optimizer.lr=3e-4", "data.batch_size=32", "data.epoch_size=3200", "schedule.delta=2",
        "data.cache_dir=null", "trainer.validate_every_epochs=0", *sizes.shrink, *problems(sizes), *exact,
    ]  # fmt: skip
    here, steps = [*small, accelerator], sizes.numeric_steps
    numeric = {"words": here, "first": min(20, steps), "last": steps, "most_first": 1e-4, "most_mean": 0.01}
    on_cpu = {"words": small, "one": ["trainer.accelerator=cpu", *plain], "other": [accelerator, *plain]}
    bf16: dict[str, Any] = {**numeric, "other": ["trainer.precision=bf16-mixed"], "most_first": 0.05, "most_mean": 0.05}
    resume: dict[str, Any] = {"words": [*here, "model.dropout=0.1"], "steps": sizes.resume_steps}
    # Products of two digits: after so few steps the model finishes its answers, right or wrong.
    answers = {
        "words": [*here, "schedule=explicit_cot", "task=mult2x2", "optimizer.lr=2e-3"],
        "steps": sizes.learn_steps,
    }
    fixed = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    end, compiled = sizes.seconds, ("compile",)
    return [
        Case("numerics: compiled and plain, fp32", "losses_agree", {**numeric, "one": list(plain), "other": [COMPILED]}, end, needs=compiled),
        Case("numerics: bf16-mixed and fp32, plain", "losses_agree", {**bf16, "one": list(plain), "other": [*plain, *bf16["other"]]}, end),
        Case("numerics: bf16-mixed compiled and fp32 plain", "losses_agree",
             {**bf16, "one": list(plain), "other": [COMPILED, *bf16["other"]]}, end, needs=compiled),
        Case("numerics: the device and the CPU, fp32", "losses_agree",
             {**on_cpu, "first": min(20, steps), "last": 0, "most_first": 1e-3, "most_mean": 0.0}, end),
        Case("exact resume: plain", "resumes_exactly", {**resume, "words": [*resume["words"], *plain]}, end, environment=fixed),
        Case("exact resume: compiled", "resumes_exactly", {**resume, "words": [*resume["words"], COMPILED]}, end, needs=compiled, environment=fixed),
        Case("evaluation: compiled and plain", "answers_agree", {**answers, "one": list(plain), "other": [COMPILED]}, end, needs=compiled),
        Case("FSDP2: one process and plain", "sharded_agrees", {"words": [*here, *plain], "steps": min(10, steps), "most": 1e-4}, end),
    ]  # fmt: skip


def waits(device: str, sizes: Sizes, accelerator: str, plain: tuple[str, ...]) -> list[Case]:
    """The search for waits in a step, and the counts of compilations and graphs. They fill the cache of compiled code for the benchmark."""
    found: list[Case] = []
    for name, (model, small) in BENCHMARK.items():
        words = [*COMMON, *model, *sizes.shrink, accelerator, *batch_words(sizes, small or sizes.large_batch)]
        # After step 51 no step is logged up to step 99.
        watch = {"device": device, "warmup": 52, "steps": 20, "waits": True}
        name = name.format(large=sizes.large_batch)
        ours = {**watch, "words": [*words, COMPILED]}
        found.append(Case(f"no waits: {name}, compiled", "measure", ours, sizes.seconds, needs=("cuda", "compile")))
        if small and model is GPT2:
            ours = {**watch, "words": [*words, *plain]}
            found.append(Case(f"no waits: {name}, plain", "measure", ours, sizes.seconds, needs=("cuda",)))
    leaving = [
        "task=mult4x4", "schedule=stepwise", "schedule.delta=20", "data.epoch_size=3200", "data.cache_dir=null", *TWO_LAYERS,
        *sizes.shrink, accelerator, "trainer.validate_every_epochs=0", "trainer.precision=bf16-mixed", *problems(sizes), COMPILED,
    ]  # fmt: skip
    # A segment of 20 steps loses 4 tokens.
    watch = {"device": device, "warmup": 20, "segments": 10, "steps": 20, "tells_often": True, "words": leaving}
    found.append(Case("graphs while 44 tokens leave", "measure", watch, sizes.seconds, needs=("compile",)))
    return found
