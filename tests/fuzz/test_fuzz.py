"""Fuzz data files, tokenizers and command lines. `tests.fuzz.fuzzing` explains the options."""

import contextlib
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stepwise_pl.tasks import Example
from tests.fuzz import commands as fuzz_commands
from tests.fuzz import data as fuzz_data
from tests.fuzz import fuzzing
from tests.fuzz import tokenizers as fuzz_tokenizers
from tests.fuzz.fuzzing import examples_of, fuzz, is_over

pytestmark = [pytest.mark.long, pytest.mark.longest, pytest.mark.timeout(1200 * max(1, fuzzing.TIMES))]
MEMORY = 12 * 1024**3  # bytes of address space


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every example overwrites. The tokenizer `bytes` in it knows any text."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("fuzz")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder / "bytes")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _counted() -> Iterator[None]:
    """Print the numbers of examples, and of findings if these are kept. Malformed lines are not logged."""
    logging.disable(logging.CRITICAL)
    # With a limit, a reader that takes all memory fails by its name. Without one, the system may end another process.
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    logging.disable(logging.NOTSET)
    print(f"\ntried: {dict(fuzzing.tried)}")  # noqa: T201
    if fuzzing.FINDINGS is not None:
        print(f"found: {dict(sorted(fuzzing.counts.items()))}")  # noqa: T201


@fuzz(2500)
@given(fuzz_data.damaged())
def test_text_files_are_read_exactly_or_reported(folder: Path, file: fuzz_data.Written) -> None:
    if is_over("text files", 1.5):
        return
    with examples_of("text files"):
        fuzz_data.judge(file, folder)


@fuzz(150)
@given(fuzz_data.several())
def test_several_files_give_the_rows_of_all_files(
    folder: Path, case: tuple[str, list[list[fuzz_data.Row]], str]
) -> None:
    if is_over("several files", 0.3):
        return
    with examples_of("several files"):
        fuzz_data.judge_several(*case, folder)


@fuzz(200)
@given(
    st.lists(st.lists(fuzz_data.form_letters, min_size=1, max_size=4).map("".join).map(str.strip).filter(bool), min_size=1, max_size=3),
    st.integers(0, 9),
    fuzz_data.forms,
)  # fmt: skip
def test_a_prompt_in_another_form_is_an_overlap(folder: Path, prompts: list[str], which: int, form: str) -> None:
    if is_over("forms", 0.3):
        return
    with examples_of("forms"):
        fuzz_data.judge_forms(prompts, which, form, folder)


@fuzz(300)
@given(fuzz_data.gsm8k())
def test_every_equation_of_gsm8k_is_a_step_or_reported(folder: Path, case: tuple[list[str], str, str]) -> None:
    if is_over("gsm8k", 0.3):
        return
    with examples_of("gsm8k"):
        fuzz_data.judge_gsm8k(*case, folder)


@fuzz(300)
@given(fuzz_data.parquet_files)
def test_parquet_keeps_its_text_or_is_reported(
    folder: Path, case: tuple[str, int, int | None, str, str, int, int]
) -> None:
    if is_over("parquet", 0.5):
        return
    with examples_of("parquet"):
        fuzz_data.judge_parquet(*case, folder)


@fuzz(900)
@given(fuzz_tokenizers.recipes(), fuzz_tokenizers.examples, st.booleans())
def test_a_tokenizer_gives_every_text_back_or_is_refused(
    folder: Path, recipe: fuzz_tokenizers.Recipe, given: list[Example], by_step: bool
) -> None:
    if is_over("tokenizers", 2.5):
        return
    with examples_of("tokenizers"):
        fuzz_tokenizers.judge(recipe, given, by_step, folder)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("template")
    fuzz_commands.build(base)
    return base


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Path]:
    """The folder whose copies the commands start in. This process works in such a copy too."""
    base = tmp_path_factory.mktemp("fuzz-commands")
    with contextlib.chdir(template / "here"):
        yield base / "base"


@fuzz(400)
@given(fuzz_commands.commands())
def test_a_command_line_composes_or_is_refused_in_one_line(place: Path, command: fuzz_commands.Command) -> None:
    if is_over("composed commands", 2):
        return
    with examples_of("composed commands"):
        fuzz_commands.judge_composed(command)


@fuzz(160)
@given(fuzz_commands.commands())
def test_a_command_ends_well_or_in_one_line(place: Path, template: Path, command: fuzz_commands.Command) -> None:
    if is_over("commands", 2.5):
        return
    with examples_of("commands"):
        fuzz_commands.judge_run(command, template, place)


@fuzz(10)
@given(fuzz_commands.sweeps())
def test_a_sweep_has_a_job_for_every_value(place: Path, template: Path, command: fuzz_commands.Command) -> None:
    if is_over("sweeps", 1):
        return
    with examples_of("sweeps"):
        fuzz_commands.judge_sweep(command, template, place)
