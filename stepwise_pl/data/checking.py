"""The report of `check_data` on a task's examples, before a long run."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError, printable
from stepwise_pl.common.text import duration
from stepwise_pl.config.training import PAPER_EXAMPLES_PER_TOKEN, DataConfig
from stepwise_pl.data.encoding import EncodedExamples, Ints, encode
from stepwise_pl.data.limits import not_longer
from stepwise_pl.tasks import SPLITS, Example, ExampleList, Examples, Splits
from stepwise_pl.tasks.base import chunks, place
from stepwise_pl.tasks.prompts import COMPARED, normal, overlaps

# Examples per removed token in two runs of the paper, and at a faster pace to begin with.
PACES = (
    ("as slow as the paper's multiplication (808,000 examples, Δ = 8)", PAPER_EXAMPLES_PER_TOKEN),
    ("as slow as the paper's GSM8K (378,000 examples, Δ = 8)", 378_000 / 8),
    ("to begin with, ten times as fast as the paper's multiplication", PAPER_EXAMPLES_PER_TOKEN / 10),
)
BINS, WIDTH = 10, 40
SHOWN = 5  # duplicates and overlaps shown; all malformed lines are listed
TOKENS_SHOWN = (24, 8)  # tokens shown at the beginning and at the end of a long part


class Pace(Protocol):
    """The speed of training on this machine (`training.pace`)."""

    @property
    def how_measured(self) -> str:
        """One line on how the speed was measured."""

    def seconds(
        self, train: EncodedExamples, steps_per_epoch: int, delta: Fraction, removed: int, epochs: int
    ) -> float:
        """Return the seconds that `epochs` take, while `delta` tokens leave per epoch until `removed` are gone."""


@dataclass
class Report:
    """The lines of the report, and the reasons that would stop a training run."""

    lines: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        self.lines += lines


def check(
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    positions: int | None,
    data: DataConfig,
    skip_malformed: bool = False,
    allow_overlap: bool = False,
    measure: Callable[[EncodedExamples], Pace] | None = None,
) -> Report:
    """Look at every example of every split, and return the report.

    Args:
        splits: the splits as read, with their malformed lines.
        tokenizer: the tokenizer of the run.
        positions: the longest text, in tokens, that the model takes; None: no bound.
        data: the batch size, and the longest example to keep.
        skip_malformed, allow_overlap: whether the task allows these faults. An allowed fault is no reason to stop.
        measure: measures the speed of training on the examples; None: no times are shown.
    """
    report = Report()
    report.add(*(f"note: {note}" for note in splits.notes))
    encoded, steps = {}, {}
    for split in SPLITS:
        steps[split] = _examples(report, split, splits[split], skip_malformed)
        if len(splits[split]):
            notes: list[str] = []
            try:
                encoded[split] = encode(splits[split], tokenizer, split, notes=notes)
            except UserError as error:
                report.add(f"  cannot be tokenised: {error}")
                report.stops.append(f"{split} cannot be tokenised")
            report.add(*(f"  note: {note}" for note in notes))
    if "train" in encoded:
        _show_examples(report, splits["train"], encoded["train"], tokenizer)
    if data.max_tokens is not None and "train" in encoded:
        try:
            encoded["train"], note = not_longer(encoded["train"], data.max_tokens, "train")
            report.add("", *[note] * bool(note))
        except UserError as error:
            report.stops.append(str(error))
    report.add("", f"overlap: same prompts, {COMPARED}")
    shared = list(overlaps(splits))
    for one, other, prompts in shared:
        report.add(
            f"  {one} and {other}: {len(prompts)} prompts{'; accuracy on training examples says nothing' if one == 'train' else ''}",
            *(f"    {prompt[:100]!r}" for prompt in prompts[:SHOWN]),
        )
    report.add(*([] if shared else ["  none"]))
    if shared and not allow_overlap:
        report.stops.append("splits overlap (task.allow_overlap=true trains all the same)")
    for split, tokens in encoded.items():
        _lengths(report, split, tokens, positions)
    if "train" in encoded:
        pace: Pace | str = ""
        if measure is not None and encoded["train"].cot_length.max():
            try:
                pace = measure(encoded["train"])
            except UserError as error:
                pace = f"how long it takes is not measured: {error}"
        _suggest(report, encoded["train"], steps["train"], data, pace)
    return report


def by_reason(malformed: Sequence[str]) -> list[str]:
    """Return lines such as `line 3: no field 'steps'`, those of one file and one reason as `line 3, 5-9: no field 'steps'`."""
    found: dict[tuple[str, str], list[int]] = {}
    for line in malformed:
        where, _, reason = line.partition(": ")
        place, _, number = where.rpartition(" ")
        found.setdefault((place, reason), []).append(int(number))
    return [f"{place} {', '.join(_spans(numbers))}: {reason}" for (place, reason), numbers in found.items()]


def _spans(numbers: Sequence[int]) -> list[str]:
    """Return rising numbers as text; neighbours become one span: `3`, `5-9`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ["-".join(map(str, span)) for span in spans]


def _examples(report: Report, split: str, examples: Examples, skip_malformed: bool) -> int:
    """Report counts, malformed lines and duplicates. Return the most reasoning steps of a CoT, 0 if some CoT has none."""
    malformed = examples.malformed if isinstance(examples, ExampleList) else []
    source = f" from {examples.source}" if isinstance(examples, ExampleList) and examples.source else ""
    cots, steps = 0, []
    rows: dict[str, list[int]] = defaultdict(list)  # the examples of each prompt
    answers: list[str] = []
    # Texts are not kept, because a task may make millions.
    for chunk in chunks(examples):
        for example in chunk:
            rows[normal(example.prompt)].append(len(answers))
            answers.append(example.answer)
            cots += bool(example.cot)
            if example.steps:
                steps.append(len(example.steps))
    report.add("", f"{split}: {len(examples)} examples{source}")
    report.add(f"  malformed: {len(malformed)}", *(f"    {line}" for line in by_reason(malformed)))
    report.add(f"  empty CoT (allowed): {len(examples) - cots}")
    if steps:
        counts = f"{min(steps)} to {max(steps)} a CoT, {np.mean(steps):.1f} on average, in {len(steps)} of {cots} CoTs"
        report.add(f"  reasoning steps: {counts}")
    if malformed and not skip_malformed:
        report.stops.append(f"{split} has malformed lines (task.skip_malformed=true leaves them out)")
    if not len(examples):
        report.stops.append(f"{split} has no example")
    repeated = [(prompt, same) for prompt, same in rows.items() if len(same) > 1]
    differ = [(prompt, same) for prompt, same in repeated if len({answers[index] for index in same}) > 1]
    extra = f" ({len(examples) - len(rows)} examples too many), {len(differ)} with different answers; {COMPARED}"
    report.add(f"  prompts that occur more than once: {len(repeated)}{extra if repeated else ''}")
    for prompt, same in (differ or repeated)[:SHOWN]:
        report.add(f"    {', '.join(place(examples, split, index) for index in same[:4])}: {prompt[:80]!r}")
    return max(steps, default=0) if len(steps) == cots else 0


def _show_examples(
    report: Report, examples: Examples, encoded: EncodedExamples, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Report three examples as tokens: the first, the middle one, and the longest; with their steps if known."""
    names = {0: "the first", len(examples) // 2: "one in the middle", int(encoded.length.argmax()): "the longest"}
    report.add("", "examples as tokens (␣ is a space inside a token, / the beginning of a reasoning step)")
    for row, name in names.items():
        example = examples.slice(row, row + 1)[0]
        report.add(f"  {name}, {place(examples, 'train', row)}:", *_shown(example, tokenizer))


def _shown(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return lines with the parts of one example, and with its CoT once half of it is gone."""
    by_step = len(example.steps) > 1 and tokenizer.is_fast
    encoded = encode(ExampleList([example]), tokenizer, "train", by_step)
    starts = [] if encoded.step_start is None else (encoded.step_start - encoded.cot_start[0]).tolist()
    prompt, target = encoded.prompt_and_target(0)
    cot_length = int(encoded.cot_length[0])
    cot, answer = target[:cot_length], target[cot_length:]
    lines = [
        f"    prompt ({len(prompt)})  {tokens_line(prompt, tokenizer)}",
        f"    CoT ({len(cot)})  {tokens_line(cot, tokenizer, starts)}",
        f"    answer ({len(answer)})  {tokens_line(answer, tokenizer)}",
    ]
    cuts = {f"{gone} of {cot_length} CoT tokens": gone for gone in [cot_length // 2] if gone}
    if by_step:
        gone = len(starts) // 2
        cuts[f"{gone} of {len(starts)} reasoning steps"] = starts[gone]
    return lines + [
        f"    without the first {name}:  {tokens_line(cot[cut:], tokenizer, [start - cut for start in starts if start > cut])}"
        for name, cut in cuts.items()
    ]


def tokens_line(tokens: list[int], tokenizer: PreTrainedTokenizerBase, steps: Sequence[int] = ()) -> str:
    """Return tokens for reading, with spaces between; a long part is shortened in its middle.

    Args:
        steps: indices of the tokens at which a reasoning step begins.
    """
    first, last = TOKENS_SHOWN
    middle = len(tokens) - first - last
    shown = [number for number in range(len(tokens)) if middle <= 0 or number < first or number >= first + middle]
    words = [f"{'/ ' if number and number in steps else ''}{token_text(tokens[number], tokenizer)}" for number in shown]
    if middle > 0:
        words.insert(first, f"... {middle} more ...")
    return " ".join(words)


def token_text(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return one token for reading: its text with visible spaces, or its name if it is only a part of a character."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    text = str(tokenizer.decode([token]))
    if name.startswith("▁"):  # a decoder drops the space at the beginning of a text
        text = name.replace("▁", " ")
    if not text or "\ufffd" in text:
        text = name
    return printable(text.replace(" ", "␣"))


def _lengths(report: Report, split: str, tokens: EncodedExamples, positions: int | None) -> None:
    """Report quantiles for every split, histograms for train, and the examples that do not fit the model."""
    parts = {
        "prompt": tokens.prompt_length,
        "CoT": tokens.cot_length,
        "answer": tokens.answer_length,
        "all": tokens.length,
    }
    report.add(
        "",
        f"{split}: length in tokens, separators included",
        f"  {'':8s}{'least':>8s}{'median':>8s}{'95%':>8s}{'most':>8s}",
    )
    for name, length in parts.items():
        quantiles = np.quantile(length, [0, 0.5, 0.95, 1], method="higher")
        report.add(f"  {name:8s}" + "".join(f"{round(q):8d}" for q in quantiles))
    if split == "train":
        for name in ("prompt", "CoT", "answer"):
            report.add(f"  {name}", *(f"    {line}" for line in histogram(parts[name])))
    if positions is None:
        return
    long, hopeless = int((tokens.length > positions).sum()), int((tokens.length - tokens.cot_length > positions).sum())
    report.add(f"  longer than the model's {positions} positions: {long}, without any CoT: {hopeless}")
    if long:
        report.stops.append(f"{long} examples of {split} are too long for the model")


def histogram(values: Ints) -> list[str]:
    """Return at most `BINS` lines `from-to  count  bar`, of equal width."""
    low, high = int(values.min()), int(values.max())
    width = max(1, math.ceil((high - low + 1) / BINS))
    counts = Counter(((values - low) // width).tolist())
    top = max(counts.values())
    lines = []
    for number in range((high - low) // width + 1):
        first, last = low + number * width, min(low + (number + 1) * width - 1, high)
        bar = "#" * math.ceil(WIDTH * counts[number] / top)
        lines.append(f"{f'{first}-{last}' if last > first else str(first):>11s} {counts[number]:8d} {bar}".rstrip())
    return lines


def cutoff(cot_length: Ints) -> int | None:
    """Return the suggested `remove_all_beyond`: 95% of the CoTs are gone by then. None if the longest is hardly longer."""
    common, longest = int(np.quantile(cot_length, 0.95, method="higher")), int(cot_length.max())
    return common if longest > 1.1 * common else None


def delta_for(epoch_size: int, examples_per_token: float) -> str:
    """Return a Δ that spends at least so many examples on each token: a whole number, or 1/n below 1."""
    rate = epoch_size / examples_per_token
    return str(math.floor(rate)) if rate >= 1 else f"1/{math.ceil(1 / rate)}"


def _suggest(report: Report, train: EncodedExamples, steps: int, data: DataConfig, pace: Pace | str = "") -> None:
    """Report cutoff, Δ and epochs as command lines; also by reasoning step, if the CoTs have steps.

    Args:
        steps: the most reasoning steps of a CoT; 0: some CoT has none.
        pace: the speed of training here, or the reason why it is not known; empty: nothing to say.
    """
    steps_per_epoch = data.steps_per_epoch(len(train))
    epoch = steps_per_epoch * data.batch_size
    longest = int(train.cot_length.max())
    beyond = cutoff(train.cot_length)
    removed = beyond or longest
    report.add("", f"suggested schedule, for epochs of {epoch} examples (Δ is per epoch)")
    if not removed:
        report.add("  there is no CoT to remove")
        return
    if beyond:
        report.add(
            f"  cutoff: schedule.remove_all_beyond={beyond} (tokens); 95% of the CoTs are gone by then, the longest has {longest}"
        )

    def command_line(prefix: str, units: int, tokens: int, examples_per_unit: float) -> str:
        delta = delta_for(epoch, examples_per_unit)
        removal = math.ceil(units / Fraction(delta))
        epochs = math.ceil(1.25 * removal)
        line = f"    {prefix}schedule.delta={delta} trainer.duration={epochs}epochs  (removal takes {removal} epochs)"
        if isinstance(pace, str):
            return line
        rate = Fraction(delta) * Fraction(tokens, units)
        return f"{line}, about {duration(pace.seconds(train, steps_per_epoch, rate, tokens, epochs))}"

    for name, per_token in PACES:
        report.add(f"  {name}, {per_token:,.0f} examples per token:")
        report.add(command_line(f"schedule.remove_all_beyond={beyond} " if beyond else "", removed, removed, per_token))
        if steps:
            # A step counts as many tokens as it holds on average.
            report.add(command_line("method.unit=step ", steps, longest, per_token * longest / steps))
    if pace:
        report.add(f"  {pace if isinstance(pace, str) else pace.how_measured}")


def summary(stops: Sequence[str]) -> str:
    """Return the last line of the report."""
    return f"training would stop: {'; '.join(stops)}" if stops else "nothing stands in the way of training"
