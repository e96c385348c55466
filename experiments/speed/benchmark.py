"""What a training step, an evaluation and a start cost on the machine at hand: `make bench`.

    python experiments/speed/benchmark.py [out=<folder>] [only=<part of a name>]

Prints one table and writes it as results.csv (default: beside this file). Every number is
the median of repeats, every case runs in a process of its own, and what is divided by what
was measured in the same run. Run nothing else meanwhile. Two results are compared by
`python experiments/speed/compare.py <old.csv> <new.csv>`.

Tokens are those after removal, without padding. Model FLOPs are what the method needs: the
body at every token, attention to earlier tokens only, the head where there is a target; a
backward pass counts twice a forward pass. Utilisation is their rate over that of the best
matrix product in the precision that the step computes in, measured in the same process before
and after, because the speed of a shared machine changes from minute to minute.

Where there is a CUDA device, training steps and evaluations are measured on it, and on models
and batches of the size that it is for (`GPU_TRAINING`).
"""

import csv
import logging
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.training import DataConfig, OptimizerConfig
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.evaluation.verifier import Verifier
from stepwise_pl.methods import Stepwise
from stepwise_pl.models.build import build_model
from stepwise_pl.models.decoding import generate
from stepwise_pl.models.forward import Targets, target_logits
from stepwise_pl.models.learner import Learner
from stepwise_pl.schedules import Linear
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.tasks import Multiplication
from stepwise_pl.training.module import StepwiseModule

HERE = Path(__file__).parent
COLUMNS = ("measure", "case", "value", "unit")
Row = tuple[str, str, float, str]


@dataclass
class Preset:
    """A model of conf/model with the batch it is measured at."""

    model: ModelConfig
    batch_size: int
    steps: int
    precision: str = "32-true"
    tf32: bool = False  # matrix products of float32 in TF32, as `torch.set_float32_matmul_precision("high")` has them


PRESETS = {
    "tiny": Preset(ModelConfig(dropout=0.0), 64, 30),
    "2 layers of 768": Preset(ModelConfig(layers=2, heads=4, width=768, positions=1024, dropout=0.0), 32, 8),
    "the same, dropout 0.1": Preset(ModelConfig(layers=2, heads=4, width=768, positions=1024), 32, 8),
    "gpt2": Preset(ModelConfig(layers=12, heads=12, width=768, positions=1024), 8, 3),
}
GPT2 = ModelConfig(layers=12, heads=12, width=768, positions=1024)
# Those of the paper's batch size, 32, and one that fills the device better.
GPU_PRESETS = {
    "tiny": Preset(ModelConfig(dropout=0.0), 64, 60),
    "gpt2": Preset(GPT2, 32, 30),
    "gpt2, TF32": Preset(GPT2, 32, 30, tf32=True),
    "gpt2, bf16-mixed": Preset(GPT2, 32, 30, "bf16-mixed"),
    "gpt2, bf16-mixed, batch 256": Preset(GPT2, 256, 20, "bf16-mixed"),
}
GPU_TRAINING = (  # preset, vocabulary, share of the CoT removed
    *(("tiny", "small vocabulary", share) for share in (0, 1)),
    *(("gpt2", "small vocabulary", share) for share in (0, 0.5, 1)),
    *(("gpt2, TF32", "small vocabulary", share) for share in (0, 1)),
    *(("gpt2, bf16-mixed", "small vocabulary", share) for share in (0, 0.5, 1)),
    *(("gpt2, bf16-mixed, batch 256", "small vocabulary", share) for share in (0, 1)),
    *(("gpt2, bf16-mixed, batch 256", "vocabulary of 50,257", share) for share in (0, 1)),
)
GPU_EVALUATION = (("gpt2", 0, 0.0), ("gpt2", 0, 0.01), ("gpt2", 0, 0.5), ("gpt2", 1, 0.01), ("gpt2", 1, 0.5))
VOCABULARIES = {"small vocabulary": None, "vocabulary of 50,257": 50_257}
TASK = Multiplication(digits=4, train_size=4096, validation_size=1000, test_size=10)
COT = 46
DEVICE = "cuda" if torch.cuda.device_count() else "cpu"  # a count leaves CUDA alone, so that children may start it


def flops(model: PreTrainedModel, batch: CoTBatch) -> float:
    """Model FLOPs of a forward and a backward pass over a batch after removal."""
    cfg = model.config
    lengths = (batch.attention_mask.sum(1) - 1).double()  # after the last token nothing is predicted
    body = 12 * cfg.num_hidden_layers * cfg.hidden_size**2 * float(lengths.sum())  # multiplications
    attention = 2 * cfg.num_hidden_layers * cfg.hidden_size * float((lengths * (lengths + 1) / 2).sum())
    head = cfg.hidden_size * cfg.vocab_size * int(batch.is_target.sum())
    return 6 * (body + attention + head)


def peak(precision: str = "32-true") -> float:
    """FLOP/s of the best matrix product."""
    rates = []
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    for size in (1024, 2048, 3072) if DEVICE == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        rates.append(2 * size**3 / median_seconds(lambda a=a, b=b: a @ b, 5))  # type: ignore[misc]
    return max(rates)


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = now()
        call()
        times.append(now() - started)
    return statistics.median(times)


def now() -> float:
    """Seconds, when all that was asked of the device is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class StepTimes(L.Callback):
    """From the start of one step to the start of the next: all that a step costs.

    On a GPU the host runs ahead, as it does in training: only the first and the last time
    wait for the device, and their mean is taken.
    """

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        last = trainer.global_step == trainer.max_steps - 1
        self.starts.append(now() if len(self.starts) == 2 or last else time.perf_counter())

    def seconds(self) -> float:
        """Of a step, without the first two."""
        if DEVICE == "cuda":
            return (self.starts[-1] - self.starts[2]) / (len(self.starts) - 3)
        return statistics.median(b - a for a, b in zip(self.starts[2:], self.starts[3:], strict=False))


def training(preset: Preset, vocabulary: int | None, share: float, case: str) -> Iterator[Row]:
    """The real module under the real trainer, and a bare loop around the model for comparison."""
    tokenizer = build_tokenizer("symbols", TASK.symbols())
    steps = preset.steps if vocabulary is None else max(3, preset.steps // 4)
    more = {} if vocabulary is None else {"vocab_size": vocabulary}
    cfg = ModelConfig(**{**vars(preset.model), "config": preset.model.config | more})
    torch.set_float32_matmul_precision("high" if preset.tf32 else "highest")
    torch.manual_seed(0)
    model = build_model(cfg, tokenizer)
    schedule = Linear(delta=0, remove_start_from=round(share * COT))
    data = CoTDataModule(TASK, tokenizer, DataConfig(batch_size=preset.batch_size, cache_dir=None))
    module = StepwiseModule(model, tokenizer, schedule, OptimizerConfig())
    times = StepTimes()
    trainer = L.Trainer(
        accelerator="gpu" if DEVICE == "cuda" else "cpu", devices=1, precision=preset.precision,  # type: ignore[arg-type]
        max_steps=steps + 3, limit_val_batches=0, logger=False, callbacks=[times],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
    )  # fmt: skip
    before = peak(preset.precision)
    trainer.fit(module, data)
    after = peak(preset.precision)
    seconds = times.seconds()
    whole = data.train_dataloader().stream[0]
    batch = whole.remove(Stage(schedule.removed(0), data.limits.max_removed).units)
    tokens = int(batch.attention_mask.sum())
    yield "training", case, tokens / seconds, "tokens/s"
    yield "training", case, preset.batch_size / seconds, "examples/s"
    rate = flops(model, batch) / seconds
    yield "model FLOPs", case, rate / 1e9, "GFLOP/s"
    yield "matrix product before and after", case, (before + after) / 2e9, "GFLOP/s"
    yield "utilisation", case, 2 * rate / (before + after), ""
    memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
    step = bare_loop(model.to(DEVICE), batch, preset.precision)
    if DEVICE == "cuda":  # many in a row, as above
        step()
        started = now()
        for _ in range(steps):
            step()
        bare = (now() - started) / steps
    else:
        bare = median_seconds(step, max(2, steps // 2))
    yield "bare loop / our step, time", case, bare / seconds, ""
    yield "peak memory", case, memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB"


def bare_loop(model: PreTrainedModel, batch: CoTBatch, precision: str = "32-true") -> Callable[[], None]:
    """A step as transformers' documentation shows it, on a batch that is there already."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    labels = batch.tokens.masked_fill(~batch.is_target, -100)
    given = {"input_ids": batch.tokens, "attention_mask": batch.attention_mask, "labels": labels}
    given = {key: value.to(DEVICE) for key, value in given.items()}

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16-mixed"):
            out = model(**given)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def compilation(preset: Preset, case: str) -> Iterator[Row]:
    """What `torch.compile` makes of the bare loop, at one width of the batch: each further one compiles again."""
    tokenizer = build_tokenizer("symbols", TASK.symbols())
    torch.manual_seed(0)
    model = build_model(preset.model, tokenizer)
    batch = encode(TASK.load()["validation"], tokenizer, "validation").collate(np.arange(preset.batch_size))
    compiled = bare_loop(torch.compile(model), batch)  # type: ignore[arg-type]
    started = time.perf_counter()
    compiled()
    yield "compilation", case, time.perf_counter() - started, "s"
    eager = median_seconds(bare_loop(model, batch), preset.steps)
    yield "eager / compiled step, time", case, eager / median_seconds(compiled, preset.steps), ""


def evaluation(preset: Preset, share: float, wrong: float, case: str) -> Iterator[Row]:
    """Verified evaluation of 1,000 problems that the model gets right but for the share `wrong`, which is decoded to the limit."""
    tokenizer = build_tokenizer("symbols", TASK.symbols())
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(**{**vars(preset.model), "config": {**preset.model.config, "initializer_range": 0.1}}), tokenizer
    )
    model = model.to(DEVICE).eval()  # type: ignore[arg-type]
    encoded = encode(TASK.load()["validation"], tokenizer, "validation")
    limits = Limits.of({"train": encoded}, "left")
    removed = round(share * COT)
    eos, bound = tokenizer.eos_token_id, limits.max_new_tokens(removed)
    batches = [
        encoded.collate(np.arange(i, i + 200)).remove(Stage(removed, limits.max_removed).units)
        for i in range(0, 1000, 200)
    ]
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for batch in batches:  # what the model writes becomes what it should write
            columns = int(batch.length_of(Part.PROMPT)[0])
            tokens, cache = batch.tokens[:, :columns].to(DEVICE), DynamicCache(config=model.config)
            for column in range(columns, batch.tokens.shape[1]):
                known = torch.ones(len(batch), column, dtype=torch.long, device=DEVICE)
                logits = model(
                    input_ids=tokens, attention_mask=known, past_key_values=cache, use_cache=True, logits_to_keep=1
                ).logits
                tokens = logits[:, -1:].argmax(-1)
                batch.tokens[:, column] = tokens[:, 0].cpu()
            for row in np.flatnonzero(rng.random(200) < wrong):
                column = int(rng.integers(columns, batch.tokens.shape[1]))
                batch.tokens[row, column] = (batch.tokens[row, column] + 1) % 10

    @torch.inference_mode()
    def one_pass() -> None:
        for batch in batches:
            targets = Targets.of(batch).to(DEVICE)
            logits = target_logits(model, targets)
            F.cross_entropy(logits.float(), targets.label, reduction="sum")
            logits.argmax(-1)

    def verified() -> list[Any]:
        verifier = Verifier(Learner(model, eos, Stepwise()), tokenizer, 200)
        for batch in batches:
            verifier.verify(batch)
        return list(verifier.decode(bound))

    def plain() -> None:
        one_pass()
        for batch in batches:
            generate(model, batch.to(DEVICE), eos, bound)

    decoded = len(verified())
    seconds = [median_seconds(call, 3) for call in (one_pass, verified, plain)]
    yield "evaluation", f"{case}, examples decoded", decoded, ""
    yield "evaluation", case, 1000 / seconds[1], "problems/s"
    yield "evaluation / one pass, time", case, seconds[1] / seconds[0], ""
    yield "pass and generate / one pass, time", case, seconds[2] / seconds[0], ""


def data() -> Iterator[Row]:
    """Making and tokenising 100,000 problems of 4x4."""
    task = Multiplication(digits=4, train_size=100_000)
    tokenizer = build_tokenizer("symbols", task.symbols())
    started = time.perf_counter()
    encode(task.load()["train"], tokenizer, "train")
    yield "data preparation", "100,000 problems of 4x4", time.perf_counter() - started, "s"


def starts() -> Iterator[Row]:
    """From the command to an answer or to the first training step, in fresh processes."""
    train = [sys.executable, "-m", "stepwise_pl.train"]
    for case, arguments in {
        "--help": ["--help"],
        "--cfg job": ["--cfg", "job"],
        "a wrong key": ["optimizer.lrr=1"],
        "a model that is no causal LM": ["model.type=t5"],  # which only transformers knows
    }.items():
        seconds = median_seconds(
            lambda arguments=arguments: subprocess.run([*train, *arguments], capture_output=True), 3
        )  # type: ignore[misc]
        yield "start", case, seconds, "s"
    with tempfile.TemporaryDirectory() as folder:
        for case in ("first step of the quickstart, data new", "first step of the quickstart"):
            times = []
            for number in range(1 if "new" in case else 3):
                run_dir = Path(folder) / f"{case}{number}"
                started = time.perf_counter()
                process = subprocess.Popen(
                    [*train, "experiment=quickstart", f'run_dir="{run_dir}"', "trainer.log_every_n_steps=1",
                     "trainer.checkpoint_every_n_steps=1"],
                    env={**os.environ, "STEPWISE_PL_CACHE": f"{folder}/cache"}, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                while not (run_dir / "metrics.csv").is_file() and process.poll() is None:
                    time.sleep(0.01)
                times.append(time.perf_counter() - started)
                process.kill()
                process.wait()
            yield "start", case, statistics.median(times), "s"


def cases() -> dict[str, Callable[[], Iterator[Row]]]:
    """By name, in the order of the table."""
    out: dict[str, Callable[[], Iterator[Row]]] = {}
    if DEVICE == "cuda":
        for name, words, share in GPU_TRAINING:
            case = f"{name}, {words}, {share:.0%} removed"
            out[f"training {case}"] = lambda a=(GPU_PRESETS[name], VOCABULARIES[words], share, case): training(*a)
        for name, share, wrong in GPU_EVALUATION:
            case = f"{name}, {share:.0%} removed, {wrong:.0%} wrong"
            out[f"evaluation {case}"] = lambda a=(GPU_PRESETS[name], share, wrong, case): evaluation(*a)
        return {**out, "data": data, "starts": starts}
    for name, preset in PRESETS.items():
        for words, vocabulary in VOCABULARIES.items():
            if vocabulary and "dropout" in name:
                continue
            for share in (0, 0.5, 1):
                case = f"{name}, {words}, {share:.0%} removed"
                out[f"training {case}"] = lambda a=(preset, vocabulary, share, case): training(*a)
    for name in ("tiny", "2 layers of 768"):
        for share in (0, 1):
            for wrong in (0.0, 0.01, 0.5):
                case = f"{name}, {share:.0%} removed, {wrong:.0%} wrong"
                out[f"evaluation {case}"] = lambda a=(PRESETS[name], share, wrong, case): evaluation(*a)
    for name in ("tiny", "2 layers of 768"):
        out[f"compilation {name}"] = lambda a=(PRESETS[name], f"{name}, small vocabulary, 0% removed"): compilation(*a)
    return {**out, "data": data, "starts": starts}


def in_a_process(measure: Callable[[], Iterator[Row]]) -> list[Row]:
    """The rows of a case, measured in a child of this process, which itself never computes."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        sender.send(list(measure()))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    sender.close()
    rows: list[Row] = receiver.recv()
    process.join()
    return rows


def describe_machine() -> str:
    """Processor, cores and versions, in a line."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0))
    if DEVICE == "cuda":
        names = [torch.cuda.get_device_name(), *names]
    return f"{names[0] if names else platform.machine()}, {cores} cores, torch {torch.__version__}, Python {platform.python_version()}"


def main(*arguments: str) -> None:
    """Measure, print, write."""
    options = dict(argument.split("=", 1) for argument in arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    out = Path(options.get("out", HERE))
    rows: list[Row] = []
    # In a child as well: to ask a GPU for its name starts CUDA.
    ((_, machine, _, _),) = in_a_process(lambda: iter([("machine", describe_machine(), 0.0, "")]))
    print(machine, flush=True)
    for name, measure in cases().items():
        if any(part in name for part in options.get("only", "").split(",")):
            rows += (of_case := in_a_process(measure))
            for measured, case, value, unit in of_case:
                print(f"{measured:36} {case:58} {value:12.4g} {unit}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerow(("machine", machine, "", ""))
        writer.writerows((measure, case, f"{value:.5g}", unit) for measure, case, value, unit in rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
