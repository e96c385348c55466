"""How long data takes to be ready, how much memory, and how much of a GSM8K batch is padding.

    python experiments/data/benchmark.py [<GSM8K train file> <GPT-2 tokenizer: name or folder>]

Writes results.csv beside this file and prints it. Every start is a process of its own. Run
nothing else meanwhile.
"""

import csv
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from stepwise_pl.config.training import DataConfig
from stepwise_pl.data.cache import encoded_splits
from stepwise_pl.data.encoding import EncodedExamples, encode, layout
from stepwise_pl.data.stream import TrainStream
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.tasks import GSM8K, Multiplication
from stepwise_pl.tasks.base import ExampleList

HERE = Path(__file__).parent
Row = tuple[str, float, str]

START = """
import json, resource, sys, time
from stepwise_pl.data.cache import encoded_splits
from stepwise_pl.tasks import Multiplication
from stepwise_pl.data.encoding import build_tokenizer
task = Multiplication(digits=9)
tokenizer = build_tokenizer("symbols", task.symbols())
started = time.perf_counter()
splits = encoded_splits(task, tokenizer, cache_dir=sys.argv[1])
seconds = time.perf_counter() - started
count, tokens = len(splits["train"]), len(splits["train"].tokens)
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, count, tokens]))
"""


def starts() -> list[Row]:
    """The first and the second start on 9x9, small tokenizer."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first start", "second start"):
            out = subprocess.run(
                [sys.executable, "-c", START, cache], capture_output=True, text=True, check=True
            ).stdout
            seconds, memory, count, tokens = json.loads(out.splitlines()[-1])
            rows += [(f"9x9, {name}", seconds, "s"), (f"9x9, {name}: peak memory", memory, "GiB")]
        size = sum(path.stat().st_size for path in Path(cache).rglob("*.npy")) / 2**20
    return [("9x9, training examples", count, ""), ("9x9, training tokens", tokens, ""), *rows,
            ("9x9, on disk", size, "MiB")]  # fmt: skip


def against_the_tokenizer() -> list[Row]:
    """`encode` against one batched call of the Hugging Face tokenizer on the same 20,000 texts; median of 5."""
    examples = ExampleList(Multiplication(digits=9, train_size=20_000).load()["train"].slice(0, 20_000))
    tokenizer = build_tokenizer("symbols", Multiplication().symbols())
    texts = [layout(example, tokenizer.eos_token) for example in examples]
    ours, theirs = [], []
    for _ in range(5):
        started = time.perf_counter()
        encode(examples, tokenizer, "train")
        middle = time.perf_counter()
        tokenizer(texts, return_attention_mask=False)
        ours.append(middle - started)
        theirs.append(time.perf_counter() - middle)
    ratio = float(np.median(theirs) / np.median(ours))
    return [("encode: times as fast as the tokenizer's own batch call", ratio, "x")]


def padding(examples: EncodedExamples, pool: int, removed: int, batch_size: int = 32) -> float:
    """Share of padding tokens in two passes, `removed` CoT tokens being gone."""
    stream = TrainStream(examples, batch_size, 1, 0, 1, 0, pool)
    left = examples.length - examples.cot_length + examples.cot_left(removed)
    steps = range(2 * len(examples) // batch_size)
    batches = [left[stream.rows(step * batch_size + np.arange(batch_size))] for step in steps]
    return 1 - sum(b.sum() for b in batches) / sum(b.max() * len(b) for b in batches)


def together_again(examples: EncodedExamples, pool: int, batch_size: int = 32) -> float:
    """Of the pairs of examples that share a batch in one pass, the share that do so in the next."""
    stream = TrainStream(examples, batch_size, 1, 0, 1, 0, pool)
    count = len(examples)
    same = []
    for number in range(2):
        batch = np.empty(count, np.int64)
        places = np.arange(number * count, (number + 1) * count)
        batch[stream.rows(places)] = places // batch_size
        same.append(batch[:, None] == batch[None])
    return float(((same[0] & same[1]).sum() - count) / (same[0].sum() - count))


def gsm8k(file: str, tokenizer_name: str) -> list[Row]:
    """Padding on the original training problems."""
    tokenizer = build_tokenizer(tokenizer_name, ())
    rows: list[Row] = []
    for cot in ("equations", "natural_language"):
        task = GSM8K(train=file, test=None, test_size=500, cot=cot)
        train = encoded_splits(task, tokenizer)["train"]
        for pool in (1, DataConfig().length_pool):
            name = f"GSM8K, {cot}, length_pool={pool}"
            for removed in (0, 10, 20, 40, 80, 10**6):
                gone = "all" if removed == 10**6 else removed
                rows.append((f"{name}: padding, {gone} CoT tokens gone", 100 * padding(train, pool, removed), "%"))
            rows.append(
                (f"{name}: batch mates that meet again in the next pass", 100 * together_again(train, pool), "%")
            )
    return rows


def main(arguments: list[str]) -> None:
    """Measure, print, write."""
    rows = starts() + against_the_tokenizer() + (gsm8k(*arguments) if arguments else [])
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("what", "value", "unit"))
        for what, value, unit in rows:
            writer.writerow((what, f"{value:.4g}" if isinstance(value, float) else value, unit))
            print(f"{value:12.4g} {unit:4s} {what}")
    print(f"{platform.processor() or platform.machine()}, {platform.python_version()}")


if __name__ == "__main__":
    main(sys.argv[1:])
