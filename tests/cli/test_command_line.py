"""The grammar of the command line: texts that Hydra refuses are quoted or explained, and slips get a suggestion."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stepwise_pl.cli.arguments import hydra_arguments
from stepwise_pl.cli.entry import register_schemas
from stepwise_pl.cli.overrides import parsed, quoted, readable, shown
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.known import CONF, set_command
from stepwise_pl.config.plain import config_from, read_yaml, save_yaml, to_object, to_plain
from tests.conftest import REPO, command, schema_of


def composed(*words: str, config_name: str = "train") -> Any:
    """The checked configuration of a command line, made as in the entry point."""
    set_command(config_name, schema_of(config_name))
    register_schemas(config_name, schema_of(config_name))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_object(compose(config_name, hydra_arguments(words)))


def value_of(word: str) -> Any:
    found = parsed(word)
    assert found is not None, word
    return found.value()


TEXTS = [
    "übung.jsonl", "a#1.jsonl", "train (1).jsonl", "<<", "hub:org/ds:train[:10%]", "it's.jsonl", "x=1.jsonl", "a;b", "a&b!", "f(x", "a^b`c",
    "two\nlines", "{a}b", "naïve café.txt", "a b#c", "100%[x]", "a\\b#", "\u200bx",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_hydra_refuses_works(text: str) -> None:
    if text[0] == "{":
        with pytest.raises(UserError, match="for this text write"):
            composed("task=file", f"task.step_start={text}")
        return
    assert composed("task=file", f"task.step_start={text}").task.step_start == text
    assert composed("task=file", f"task.train={text}").task.train == text


@pytest.mark.parametrize(
    "word", ["a=1", "a=[x,y]", "a={b: 3}", "a=${seed}", "a='q'", "a=x y", "a=", "a=null", "a=\\,", "+a=1e-3"]
)
def test_a_word_that_hydra_accepts_keeps_its_meaning(word: str) -> None:
    assert readable(word, sweeps=False) == word


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_every_text_can_be_quoted(text: str) -> None:
    """Any quoted text composes to itself, even after the second reading that jobs of a sweep go through."""
    found = parsed(f"key={quoted(text)}")
    assert found is not None
    once = OmegaConf.create({"key": found.value()})
    assert OmegaConf.to_container(once, resolve=True) == {"key": text} or text == "???"
    again = parsed(f"key={found._get_value_element_as_str(found._value)}")
    assert again is not None and again.value() == found.value()


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from(list("ab ,'\"[](){}$\\#~=:<!`ü1.;")), max_size=8), st.booleans())
def test_a_refusal_shows_the_form_that_works(text: str, sweeps: bool) -> None:
    """Any text is read, or refused in one line that shows a quoted form of this very text."""
    word = f"task.step_start={text}"
    try:
        accepted = readable(word, sweeps)
    except UserError as error:
        message = str(error)
        assert message.startswith("task.step_start=") and "\n" not in message
        form = message.partition("for this text write ")[2].partition(", for a list ")[0]
        assert form == shown("task.step_start=", text)
        (typed,) = shlex.split(form)
        assert OmegaConf.to_container(OmegaConf.create({"k": value_of(typed)}), resolve=True) == {"k": text}
    else:
        assert parsed(accepted) is not None
        if parsed(word) is not None:
            assert accepted == word
        elif not sweeps and text.strip(" \t")[:1] not in ("[", "{") and "choice" not in text:
            assert OmegaConf.to_container(OmegaConf.create({"k": value_of(accepted)}), resolve=True) == {
                "k": text.strip(" \t")
            }


@pytest.mark.parametrize(
    "word,said",
    [
        ("task.train=a,b.jsonl", "needs --multirun"), ("schedule.delta=[3", "the bracket is not closed"), ("task.train='x", "the quote is not closed"),
        ("task.train=${b", "gives the value of another key"), ("schedule.delta=rnage(1,3)", "there is no function rnage"),
        ("schedule.delta=range(1,3)", "need --multirun"),
    ],
)  # fmt: skip
def test_an_ambiguous_value_is_refused_in_one_line(word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        readable(word, sweeps=False)
    key, _, value = word.partition("=")
    assert str(error.value).startswith(f"{key}={value}: ") and said in str(error.value)
    assert shown(f"{key}=", value) in str(error.value)


def test_commas_keep_their_meaning_in_a_sweep() -> None:
    assert readable("task.train=~/a#1.jsonl,b.jsonl", sweeps=True) == "task.train='~/a#1.jsonl',b.jsonl"
    assert readable("task.train=[~/a,b#2],c", sweeps=True) == "task.train=['~/a','b#2'],c"
    assert readable("task.step_start=choice(<<,>>)", sweeps=True) == "task.step_start=choice('<<','>>')"


@pytest.mark.parametrize(
    "config_name,key,more",
    [
        ("train", "run_dir", ()), ("train", "task.train", ("task=file",)), ("train", "task.validation", ("task=file",)), ("train", "task.test", ("task=file",)),
        ("train", "model.name", ()), ("train", "model.tokenizer", ()), ("train", "model.init_from", ()), ("train", "data.cache_dir", ()),
        ("write_data", "out", ()), ("check_data", "task.train", ()), ("sweep", "sweep", ()),
    ],
)  # fmt: skip
def test_home_is_expanded_in_every_path(
    config_name: str, key: str, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for word in (f"{key}=~/x", f"{key}='~/x'"):
        found: Any = composed(*more, word, config_name=config_name)
        for name in key.split("."):
            found = getattr(found, name)
        assert found == str(tmp_path / "x")


def test_home_is_expanded_in_the_folders_of_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    home = str(tmp_path)
    config = composed("run=~/a", "file=~/f", "checkpoint=~/c.ckpt", config_name="evaluate")
    assert (config.run, config.file, config.checkpoint) == (f"{home}/a", f"{home}/f", f"{home}/c.ckpt")
    assert composed("~/a", "out=~/o", config_name="export").out == f"{home}/o"
    config = composed("~/a", "~/b", "out='~/o'", config_name="compare")
    assert (config.runs, config.out) == ([f"{home}/a", f"{home}/b"], f"{home}/o")
    config = composed("runs=[~/a,~/b#1]", "figures=~/f", config_name="report")
    assert (config.runs, config.figures) == ([f"{home}/a", f"{home}/b#1"], f"{home}/f")
    with pytest.raises(UserError, match="run_dir=~nobody-of-that-name/x: ~nobody-of-that-name is the home of nobody"):
        composed("run_dir=~nobody-of-that-name/x")


@pytest.mark.long
def test_no_folder_named_tilde_is_made(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    command(
        "write_data",
        "task=mult2x2",
        "task.digits=1",
        "out='~/data'",
        cwd=tmp_path,
        HOME=str(tmp_path / "home"),
        PYTHONPATH=str(REPO),
    )
    assert {path.name for path in tmp_path.iterdir()} == {"home"} and (
        tmp_path / "home" / "data" / "train.txt"
    ).is_file()


SUGGESTIONS = {
    "experiment=quikstart": "Did you mean experiment=quickstart?",
    "schedule=adaptve": "Did you mean schedule=adaptive?",
    "optimizer=mouon": "Did you mean optimizer=muon?",
    "quikstart": "quikstart: is no setting; a setting is written key=value. Did you mean experiment=quickstart?",
    "quickstart": "Did you mean experiment=quickstart?",
    "shedule=adaptive": "shedule: no such key. Did you mean schedule?",
    "experimnt=quickstart": "experimnt: no such key. Did you mean experiment?",
    "lr=1e-3": "lr: no such key. Did you mean optimizer.lr?",
    "lr=": "lr: no such key. Did you mean optimizer.lr?",
    "optimizer.lr=": "optimizer.lr is empty: give a value, or leave optimizer.lr out",
    "experiment=": "experiment=: no such experiment; choose from",
    "run_dir=": "run_dir is empty: give a path, or leave run_dir out",
    "max_steps=20": "max_steps=20: write trainer.duration=20steps",
    "trainer.max_steps=600": "trainer.max_steps=600: write trainer.duration=600steps",
    "+trainer.max_epochs=3": "trainer.max_epochs=3: write trainer.duration=3epochs",
    "trainer.max_steps=-1": "trainer.max_steps=-1: write trainer.duration=<number>steps",
    "optimizer.decay_steps=1000": "optimizer.decay_steps=1000: write optimizer.decay=<share of the run>",
    "trainer.duration=600": "trainer.duration=600: must be a number with its unit: write 600steps, 600epochs or 600examples",
    "--experimental-rerun=x": "--experimental-rerun: needs a job that Hydra has pickled",
    "--seed=3": "--seed=3: no such flag; a setting is written without hyphens: seed=3",
    "--experiment quickstart": "--experiment: no such flag; a setting is written without hyphens: experiment=<value>",
    "--resolve": "--resolve: is for showing the configuration; add --cfg job",
    "-p model": "--package: is for showing the configuration; add --cfg job",
    "--run --info": "--run and --info: each asks for something else; give one of them",
    "seed = 3": "seed: has no value; write seed=<value>, without blanks around the equals sign",
    "=3": "=3: there is no key before the equals sign",
    "task=mult2x2 hydra=null": "hydra=null: Hydra's settings are set one by one, as hydra.verbose=true; leave it out",
    "task=mult2x2 hydra=x": "hydra=x: Hydra's settings are set one by one, as hydra.verbose=true; leave it out",
    "task=3": "task=3: no such task; choose from",
    "trainer=[1,2]": "trainer=[1,2]: no such trainer; choose from",
    "task=file task.train=???": "task.train=???: three question marks stand for a value that is missing",
    "task=file task.train=a,b.jsonl": """for this text write "task.train='a,b.jsonl'", for a list 'task.train=[a,b.jsonl]'""",
}


@pytest.mark.parametrize("words", SUGGESTIONS)
def test_a_slip_is_refused_in_one_line_with_a_suggestion(words: str, tmp_path: Path) -> None:
    out = command("train", *words.split(), cwd=tmp_path, check=False, PYTHONPATH=str(REPO))
    assert out.returncode == 2 and list(tmp_path.iterdir()) == []
    assert len(out.stderr.splitlines()) == 1 and out.stderr.startswith("error: ") and SUGGESTIONS[words] in out.stderr


def test_texts_with_braces_and_dollars_survive_a_run_folder(tmp_path: Path) -> None:
    for text in ("${seed}", "a${b", "$x", "{y}", "\\${z}", "${", "ü\n"):
        config = composed("task=file", f"task.step_start={quoted(text)}", f"run_dir={quoted(text)}")
        assert (config.task.step_start, config.run_dir) == (text, text)
        save_yaml({**to_plain(config), "derived": {"files": ("a", "b")}}, tmp_path / "config.yaml")
        plain = read_yaml(tmp_path / "config.yaml")
        assert plain.pop("derived") == {"files": ["a", "b"]}
        assert config_from(plain, type(config)) == config


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there")
def test_a_path_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(UserError, match="is no text in this terminal's encoding"):
        composed(os.fsdecode(b"run_dir=\xff"))


def test_a_defect_keeps_its_traceback() -> None:
    code = """
from stepwise_pl.cli.entry import entry_point
from stepwise_pl.write_data import WriteDataConfig

def run(config):
    raise RuntimeError(f"a defect with {config.out}")

entry_point("write_data", WriteDataConfig, run)
"""
    words = [sys.executable, "-c", code, "task=mult2x2", "out=data"]
    found = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
    assert found.returncode == 1 and "Traceback" in found.stderr
    assert found.stderr.endswith("RuntimeError: a defect with data\n")
