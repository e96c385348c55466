"""The report of check_data: right counts, every malformed line, and "would stop" exactly if training would stop."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from stepwise_pl.check_data import CheckDataConfig, check_data
from stepwise_pl.cli.entry import register_schemas
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.text import duration
from stepwise_pl.config.known import CONF
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.plain import to_object
from stepwise_pl.config.run import Config
from stepwise_pl.config.training import DataConfig
from stepwise_pl.data.checking import BINS, PACES, Report, check, cutoff, delta_for, histogram, summary, tokens_line
from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import SPLITS, Example, ExampleList, Files, Multiplication, Splits
from stepwise_pl.training import pace
from stepwise_pl.training.pace import Pace
from tests.conftest import command, every
from tests.tasks.test_files import BAD, GOOD, Bad, Good, put, short, with_splits
from tests.tasks.test_reading import offline, written

__all__ = ["offline"]


@pytest.fixture
def bytes_tokenizer(byte_folder: Path) -> PreTrainedTokenizerBase:
    return build_tokenizer(str(byte_folder), ())


def report_on(
    folder: Path, tokenizer: PreTrainedTokenizerBase, *texts: str, positions: int = 512, **options: bool
) -> Report:
    """Return the report on line files for train, validation and test."""
    paths = [written(folder / f"{name}.txt", text.encode()) for name, text in zip(SPLITS, texts, strict=True)]
    train, validation, test = map(str, paths)
    splits = Files(train=train, validation=validation, test=test, step_start="<<").read(("<eos>",))
    return check(splits, tokenizer, positions, DataConfig(batch_size=4), **options)


def part(report: Report, begin: str) -> str:
    """Return the paragraph of the report that begins with a text."""
    (found,) = [text for text in "\n".join(report.lines).split("\n\n") if text.strip().startswith(begin)]
    return found.strip()


TRAIN = """a||<<1>> <<2>> #### 1
bad
b||<<1>> #### 2

c|| #### 3
b||<<1>> #### 2
a ||<<9>> <<9>> <<9>> #### 4
||x #### 1
d||x ####
e|| #### 5
a  ||<<1>> #### 1
"""


def test_a_small_report(tmp_path: Path, bytes_tokenizer) -> None:
    report = report_on(
        tmp_path, bytes_tokenizer, TRAIN, "v||<<1>> #### 1\ne||<<1>> #### 1\na||<<1>> #### 1", "t||z<<1>> #### 1"
    )
    train, validation, test = (
        part(report, f"{name}: {count} examples from ") for name, count in zip(SPLITS, (7, 3, 1), strict=True)
    )
    assert [line.strip() for line in train.splitlines()[1:5]] == [
        "malformed: 3", "line 2: no '||' between prompt and CoT", "line 8: the prompt is empty", "line 9: the answer is empty",
    ]  # fmt: skip
    assert "empty CoT (allowed): 2" in train
    assert "empty CoT (allowed): 0" in validation
    assert re.search(r"reasoning steps: 1 to 3\b.* 1\.6 on average", train)
    assert re.search(r"reasoning steps: 2 to 2\b", test)
    # Prompt a occurs three times, with answers 1, 4 and 1; prompt b twice, with the same answer.
    assert "prompts that occur more than once: 2 (3 examples too many), 1 with different answers" in train
    assert re.search(r"train.txt line 1, .*train.txt line 7, .*train.txt line 11: 'a'", train)
    assert "'b'" not in train
    overlap = part(report, "overlap")
    assert "train and validation: 2 prompts; accuracy on training examples says nothing\n    'e'\n    'a'" in overlap
    assert "test" not in overlap
    assert [stop.split(" (")[0] for stop in report.stops] == ["train has malformed lines", "splits overlap"]
    assert summary(report.stops).startswith("training would stop: train has malformed lines")


GOOD_TEXTS = ("a||<<1>> #### 1\nb||<<12>> <<3>> #### 1\n", "v||<<1>> #### 1\n", "t||<<1>> #### 1\n")


def test_nothing_stands_in_the_way(tmp_path: Path, bytes_tokenizer) -> None:
    report = report_on(tmp_path, bytes_tokenizer, *GOOD_TEXTS)
    assert report.stops == []
    assert "stop" not in summary(report.stops)
    assert part(report, "overlap").splitlines()[1:] == ["  none"]


def test_allowed_faults_do_not_stop(tmp_path: Path, bytes_tokenizer) -> None:
    texts = ("a||x #### 1\nbad\n", "a||x #### 1\n", "t||x #### 1\n")
    stops = {
        (skip, overlap): len(report_on(tmp_path, bytes_tokenizer, *texts, skip_malformed=skip, allow_overlap=overlap).stops)
        for skip in (False, True)
        for overlap in (False, True)
    }  # fmt: skip
    assert stops == {(False, False): 2, (False, True): 1, (True, False): 1, (True, True): 0}


def test_notes_come_first(tmp_path: Path, bytes_tokenizer) -> None:
    path = written(tmp_path / "x.txt", b"\n".join(f"q{i}||s #### 1".encode() for i in range(20)))
    splits = Files(train=str(path), validation_size=3, test_size=2).read()
    report = check(splits, bytes_tokenizer, 99, DataConfig(batch_size=4))
    assert report.lines[:2] == [
        f"note: test: 2 examples held out of {path}",
        f"note: validation: 3 examples held out of {path}",
    ]


def test_lengths_are_counted_and_long_examples_named(tmp_path: Path, bytes_tokenizer) -> None:
    """There is one token for each byte of ` a<eos> <<1>> <eos> #### 1 <eos>`, and one for each separator."""
    report = report_on(tmp_path, bytes_tokenizer, *GOOD_TEXTS, positions=25)
    rows = {line.split()[0]: [*map(int, line.split()[1:])] for line in part(report, "train: length").splitlines()[2:6]}
    # ` a ` and the end token; ` <<1>> ` or ` <<12>> <<3>> `; end token, ` #### 1 ` and end token.
    assert rows == {"prompt": [4, 4, 4, 4], "CoT": [7, 14, 14, 14], "answer": [10] * 4, "all": [21, 28, 28, 28]}
    assert "longer than the model's 25 positions: 1, without any CoT: 0" in part(report, "train: length")
    assert report.stops == ["1 examples of train are too long for the model"]
    assert report_on(tmp_path, bytes_tokenizer, *GOOD_TEXTS, positions=28).stops == []
    assert len(report_on(tmp_path, bytes_tokenizer, *GOOD_TEXTS, positions=20).stops) == 3
    hopeless = report_on(tmp_path, bytes_tokenizer, *GOOD_TEXTS, positions=13)
    assert "13 positions: 2, without any CoT: 2" in part(hopeless, "train: length")


def test_a_text_that_cannot_be_tokenised_is_named(tmp_path: Path) -> None:
    small = build_tokenizer("symbols", ("a", "b", "v", "1", "<<1>>"))
    report = report_on(tmp_path, small, *GOOD_TEXTS)
    assert re.search(
        r"cannot be tokenised: .*train.txt line 2: the tokenizer does not know '<<12>> <<3>>'", part(report, "train:")
    )
    assert [stop.split(" (")[0] for stop in report.stops] == ["train cannot be tokenised", "test cannot be tokenised"]


def test_empty_splits_stop_and_do_not_break(tmp_path: Path, bytes_tokenizer) -> None:
    report = report_on(tmp_path, bytes_tokenizer, "", "bad\n", "\n")
    assert [stop.split(" (")[0] for stop in report.stops] == [
        "train has no example", "validation has malformed lines", "validation has no example", "test has no example",
    ]  # fmt: skip


def test_no_cot_at_all(tmp_path: Path, tokenizer) -> None:
    report = report_on(tmp_path, tokenizer, "1||#### 1\n2||#### 1", "3||#### 1", "4||#### 1")
    assert report.stops == []
    assert "there is no CoT to remove" in part(report, "suggested schedule")


def test_a_generated_task(tokenizer) -> None:
    report = check(Multiplication(digits=2, train_size=200).load(), tokenizer, 512, DataConfig())
    assert report.stops == []
    assert "train: 200 examples" in "\n".join(report.lines)


counts = st.lists(st.integers(0, 3000), min_size=1, max_size=200)


@given(counts)
@settings(max_examples=200, deadline=None)
def test_a_histogram_counts_every_example_once(values: list[int]) -> None:
    lines = histogram(np.array(values))
    assert 1 <= len(lines) <= BINS
    total, end = 0, min(values) - 1
    for line in lines:
        span, count, *bar = line.split()
        first, _, last = span.partition("-")
        low, high = int(first), int(last or first)
        assert low == end + 1
        assert int(count) == sum(low <= value <= high for value in values)
        assert bool(bar) == (int(count) > 0)
        total, end = total + int(count), high
    assert (total, end) == (len(values), max(values))


@given(counts)
@settings(max_examples=200, deadline=None)
def test_most_cots_are_gone_by_the_cutoff(values: list[int]) -> None:
    found = cutoff(np.array(values))
    common = next(n for n in sorted(values) if sum(value <= n for value in values) >= 0.95 * len(values))
    if found is None:
        assert max(values) <= 1.1 * sorted(values)[math.ceil(0.95 * (len(values) - 1))]
    else:
        assert found in values
        assert common <= found < max(values)
        assert sum(value <= found for value in values) >= 0.95 * len(values)


def test_the_cutoff_by_hand() -> None:
    assert cutoff(np.array([10] * 96 + [30] * 4)) == 10
    assert cutoff(np.array([10] * 94 + [30] * 6)) is None  # the common ones are as long as the longest
    assert cutoff(np.array([100] * 99 + [110])) is None  # the longest is hardly longer
    assert cutoff(np.array([100] * 99 + [111])) == 100
    assert cutoff(np.array([7])) is None


@given(st.integers(1, 10**7), st.integers(1, 10**6))
@settings(max_examples=500)
def test_delta_spends_at_least_so_many_examples_on_a_token(epoch: int, per_token: int) -> None:
    delta = Fraction(delta_for(epoch, per_token))
    assert epoch / delta >= per_token
    assert delta.numerator == 1 or delta.denominator == 1


@given(st.integers(1, 10**7))
@settings(max_examples=500)
def test_delta_is_no_slower_than_necessary(epoch: int) -> None:
    for _, slow in PACES:
        per_token = Fraction(slow)
        delta = Fraction(delta_for(epoch, slow))
        faster = delta + 1 if delta >= 1 else 1 / (1 / delta - 1)
        assert epoch / faster < per_token <= epoch / delta
    assert delta_for(808_000, PACES[0][1]) == delta_for(378_000, PACES[1][1]) == "8"  # the paper's own


@pytest.mark.parametrize("epoch", [40, 6973, 101_010, 808_031])
def test_the_suggested_schedule_keeps_its_promise(bytes_tokenizer, epoch: int) -> None:
    rows = [Example(f"q{i}", "z" * (i % 7), "1") for i in range(40)]
    splits = Splits({name: ExampleList(rows) for name in SPLITS})
    data = DataConfig(batch_size=32, epoch_size=epoch)
    text = part(check(splits, bytes_tokenizer, 99, data, allow_overlap=True), "suggested schedule")
    pairs = re.findall(r"schedule.delta=(\S+) trainer.duration=(\d+)epochs  \(removal takes (\d+) epochs\)", text)
    assert len(pairs) == len(PACES)
    for (delta, epochs, removal), (_, per_token) in zip(pairs, PACES, strict=True):
        schedule = Linear(delta=delta)
        examples = epoch // data.batch_size * data.batch_size  # in whole steps
        assert examples / schedule.rate_exact >= per_token
        schedule.bind(epoch // data.batch_size, 8)
        steps = epoch // data.batch_size
        assert schedule.removed(int(removal) * steps) >= 8  # ` zzzzzz `
        assert schedule.removed((int(removal) - 1) * steps) < 8
        assert int(epochs) >= int(removal)


def test_three_examples_are_shown_as_tokens_with_parts_and_step_cuts(tmp_path: Path, tokenizer) -> None:
    texts = (
        "1 + 2||<<1>> <<2>> #### 1\n2 + 2||4 #### 1\n3 + 4||<<1>> <<2 3>> <<4>> #### 1\n",
        "5||4 #### 1",
        "6||4 #### 1",
    )
    small = build_tokenizer("symbols", (*"123456+", "<<1>>", "<<2>>", "<<2", "3>>", "<<4>>"))
    shown = part(report_on(tmp_path, small, *texts), "examples as tokens").splitlines()
    line = f"{tmp_path / 'train.txt'} line"
    assert [one.strip() for one in shown[1:]] == [
        f"the first, {line} 1:", "prompt (4)  1 + 2 <eos>", "CoT (2)  <<1>> / <<2>>", "answer (4)  <eos> #### 1 <eos>",
        "without the first 1 of 2 CoT tokens:  <<2>>", "without the first 1 of 2 reasoning steps:  <<2>>",
        f"one in the middle, {line} 2:", "prompt (4)  2 + 2 <eos>", "CoT (1)  4", "answer (4)  <eos> #### 1 <eos>",
        f"the longest, {line} 3:", "prompt (4)  3 + 4 <eos>", "CoT (4)  <<1>> / <<2 3>> / <<4>>", "answer (4)  <eos> #### 1 <eos>",
        "without the first 2 of 4 CoT tokens:  3>> / <<4>>", "without the first 1 of 3 reasoning steps:  <<2 3>> / <<4>>",
    ]  # fmt: skip


def test_tokens_are_shown_with_their_spaces_and_in_one_line(bytes_tokenizer, gpt2_tokenizer) -> None:
    assert tokens_line(gpt2_tokenizer(" 12 apples\n")["input_ids"], gpt2_tokenizer) == r"␣12 ␣apples \n"
    assert tokens_line(gpt2_tokenizer("a" * 3 + "é")["input_ids"], gpt2_tokenizer) == "aaa é"
    half = tokens_line(bytes_tokenizer("é")["input_ids"], bytes_tokenizer)
    assert half == "Ã ©"  # the bytes of one character, by their names in the vocabulary
    assert tokens_line([*range(40)], bytes_tokenizer).split("... ")[1] == "8 more "


def test_special_tokens_in_the_text_are_reported_by_line(tmp_path: Path, byte_folder: Path) -> None:
    tokenizer = build_tokenizer(str(byte_folder), ())
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    report = report_on(tmp_path, tokenizer, "a||<<1>> #### 1\nb <s>||<<1>> #### 1\n", *GOOD_TEXTS[1:])
    assert report.stops == []
    told = f"note: train: the text '<s>' in 1 examples ({tmp_path / 'train.txt'} line 2) becomes one control token"
    assert told in part(report, "train: 2 examples")
    assert "control token" not in part(report, "test: 1 examples")


@pytest.mark.parametrize("cots", [[7] * 40, [7] * 39 + [30]], ids=["equal", "one long"])
def test_the_command_line_takes_a_suggested_schedule_and_the_report_gives_its_time(
    bytes_tokenizer, cots: list[int], tmp_path: Path
) -> None:
    rows = [Example.of_steps(f"q{i}", ["z" * (n // 2), "y" * (n - n // 2)], "1") for i, n in enumerate(cots)]
    splits = Splits({name: ExampleList(rows) for name in SPLITS})
    model = ModelConfig(layers=1, width=16, heads=1)
    report = check(
        splits,
        bytes_tokenizer,
        99,
        DataConfig(batch_size=4),
        allow_overlap=True,
        measure=measured(model, bytes_tokenizer, 4),
    )
    text = part(report, "suggested schedule")
    suggested = re.findall(r"^    (\S.*trainer.duration=\d+epochs)  \(.*\), about \d+ (?:s|min|h|days)", text, re.M)
    assert len(suggested) == 2 * len(PACES)
    assert ("schedule.remove_all_beyond" in text) == (max(cots) == 30)
    assert re.search(r"a step takes \S+ s with the whole CoT and \S+ s with none: measured on .*random weights", text)
    register_schemas("train", Config)
    for line in suggested:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = to_object(compose("train", ["task=mult2x2", *line.split()]))
        assert config.trainer.duration.endswith("epochs") and config.schedule.rate_exact > 0


def measured(
    model: ModelConfig, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Callable[[EncodedExamples], Pace]:
    """A pace as `check_data` measures it."""
    return lambda train: pace.measure(model, tokenizer, train, DataConfig(batch_size=batch_size))


def test_a_model_that_is_too_large_to_try_is_one_line(bytes_tokenizer) -> None:
    rows = ExampleList([Example("q", "zzz", "1")])
    model = ModelConfig(layers=200, width=8192, heads=8)
    splits = Splits(dict.fromkeys(SPLITS, rows))
    report = check(
        splits,
        bytes_tokenizer,
        99,
        DataConfig(batch_size=1),
        allow_overlap=True,
        measure=measured(model, bytes_tokenizer, 1),
    )
    text = part(report, "suggested schedule")
    assert re.search(r"how long it takes is not measured: the model has 161,\d+ million weights, .*GiB", text)
    assert "about" not in text


def test_times_add_up(bytes_tokenizer) -> None:
    train = encode(ExampleList([Example(f"q{i}", "z" * 8, "1") for i in range(10)]), bytes_tokenizer, "train")
    assert set(train.cot_length.tolist()) == {10}
    found = Pace(whole=3.0, none=1.0, how_measured="")
    # 10 tokens leave at one per epoch of 4 steps, which take 3, 2.8, ... 1 seconds: 40 steps of 2 on average, then 8 of 1.
    assert found.seconds(train, 4, Fraction(1), removed=10, epochs=12) == pytest.approx(88, rel=0.1)
    assert found.seconds(train, 4, Fraction(100), removed=10, epochs=12) == pytest.approx(48, rel=0.1)
    texts = [duration(seconds) for seconds in (0.1, 59, 600, 12_000, 1e6)]
    assert texts == ["1 s", "59 s", "10 min", "3 h 20 min", "12 days"]


@pytest.mark.parametrize("case", every(3, [*BAD, *GOOD]), ids=short)
def test_check_data_stops_where_training_would(case: Bad | Good, tmp_path: Path, byte_folder: Path, capsys) -> None:
    task = with_splits(tmp_path, put(tmp_path, case.file, case.content))
    model = ModelConfig(tokenizer=str(byte_folder), positions=10**7)
    try:
        check_data(CheckDataConfig(task=task, model=model))
        outcome = "trains"
    except SystemExit as stop:
        outcome = "stops"
        assert stop.code == 1
    except UserError:
        outcome = "cannot be read"
    printed = capsys.readouterr().out
    assert outcome == (
        "trains"
        if isinstance(case, Good)
        else "stops"
        if case.place or case.reason == "no example in it"
        else "cannot be read"
    )
    assert ("training would stop" in printed.split("\n\n")[-1]) == (outcome == "stops")
    if isinstance(case, Bad) and case.place:
        assert re.search(rf"^\s+{case.place}", printed, re.M)
    try:
        task.load(("<eos>",))
        assert outcome == "trains"
    except UserError:
        assert outcome != "trains"


@pytest.mark.parametrize(
    "content,message",
    [
        (b"bad\n" * 12, "line 1-12: no '||'"),
        (b"bad\nq||s #### 1\n", "line 1: no '||'"),
        (b"\n", "no example"),
        (b"q||s #### 1\nr||s #### 1\n", "task.test_size=3: must be at most half of the 2 prompts"),
        (
            b"".join(b"q%d||s #### 1\n" % i for i in range(8)),
            "task.validation_size=3: must be at most half of the 5 prompts",
        ),
    ],
    ids=["all bad", "one bad", "empty", "test", "validation"],
)
@pytest.mark.parametrize("tokenizer", ["symbols", "bytes"])
def test_too_few_to_hold_out_stops_both(
    tmp_path: Path, byte_folder, capsys, tokenizer, content: bytes, message: str
) -> None:
    task = Files(train=str(written(tmp_path / "x.txt", content)), test_size=3, validation_size=3)
    model = ModelConfig(tokenizer="symbols" if tokenizer == "symbols" else str(byte_folder))
    with pytest.raises(SystemExit) as stop:
        check_data(CheckDataConfig(task=task, model=model))
    assert stop.value.code == 1
    assert message in capsys.readouterr().out
    with pytest.raises(UserError, match="x.txt"):
        task.load(("<eos>",))


@pytest.mark.long
def test_the_real_data_with_the_real_command(shared_data: Path) -> None:
    gsm8k = shared_data / "gsm8k"
    out = command(
        "check_data", "task=gsm8k", f"task.train={gsm8k / 'openai_train.jsonl'}", "task.test=null", "task.test_size=500",
        f"task.validation={gsm8k / 'icot_valid.txt'}", f"model.tokenizer={shared_data / 'gpt2-tokenizer'}",
        check=False,
    )  # fmt: skip
    assert out.returncode == 1, out.stderr
    report = Report(out.stdout.splitlines())
    for split, count, empty in (("train", 6973, 88), ("validation", 500, 6), ("test", 500, 7)):
        text = part(report, f"{split}: {count} examples from {gsm8k}")
        assert "malformed: 0" in text
        assert f"empty CoT (allowed): {empty}" in text
        assert "occur more than once: 0" in text
        assert "positions" not in part(
            report, f"{split}: length in tokens"
        )  # random weights get as many positions as needed
    assert 88 + 7 == 95
    overlap = part(report, "overlap")
    assert re.search("train and validation: 463 ", overlap)
    assert re.search("validation and test: 37 ", overlap)
    assert "schedule.delta=1/15 " in part(report, "suggested schedule")
    last = out.stdout.strip().splitlines()[-1]
    assert "overlap" in last
    assert "malformed" not in last
