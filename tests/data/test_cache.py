"""Tokenised data on disk: found again if nothing changed, made again if anything did, and never used if damaged."""

import dataclasses
import importlib
import json
import logging
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from stepwise_pl.data import cache
from stepwise_pl.data.cache import Form, cache_key, encoded_splits
from stepwise_pl.data.encoding import EncodedExamples
from stepwise_pl.data.tokenizers import small_tokenizer
from stepwise_pl.tasks import EASY, SPLITS, Files, Multiplication
from tests.conftest import REPO

Splits = dict[str, EncodedExamples]
WORDS = ("1", "2", "3", "+", "q")


@pytest.fixture
def tok() -> PreTrainedTokenizerBase:
    return small_tokenizer(WORDS)


@pytest.fixture
def task(tmp_path: Path) -> Files:
    lines = [f"q {a} {b} {c}||{a} + {b} + {c} #### 1" for a in "123" for b in "123" for c in "123"]
    (tmp_path / "data.txt").write_text("\n".join(lines))
    return Files(train=str(tmp_path / "data.txt"), validation_size=5, test_size=4, step_start="+")


def again(task: Files) -> Files:
    """Return the same task, with nothing read yet, as in a new process."""
    return dataclasses.replace(task)


def arrays(splits: Splits) -> dict[str, list[int] | None]:
    return {
        f"{split}.{name}": None if (array := getattr(splits[split], name)) is None else array.tolist()
        for split in SPLITS
        for name in cache.ARRAYS
    }


def entry(folder: Path) -> Path:
    """Return the only entry of the cache."""
    (path,) = folder.iterdir()
    return path


class Encoded(Exception):
    pass


def refuse(*args: object) -> None:
    raise Encoded


@pytest.mark.parametrize("by_step", [False, True])
def test_a_second_start_maps_the_same_arrays(task, tok, tmp_path: Path, monkeypatch, by_step: bool) -> None:
    plain = encoded_splits(again(task), tok, by_step)
    folder = tmp_path / "cache" / "new"
    first = encoded_splits(task, tok, by_step, str(folder))
    monkeypatch.setattr(cache, "encode", refuse)
    second = encoded_splits(again(task), tok, by_step, str(folder))
    assert arrays(plain) == arrays(first) == arrays(second)
    assert [len(second[split]) for split in SPLITS] == [18, 5, 4]
    for splits in (first, second):
        for split in SPLITS:
            for name in cache.ARRAYS:
                array = getattr(splits[split], name)
                assert (array is None) == (name == "step_start" and not by_step)
                assert array is None or isinstance(array.base, np.memmap)
                assert array is None or array.dtype == getattr(plain[split], name).dtype
    assert first["train"].units.tolist() == ([3] * 18 if by_step else [5] * 18)
    with pytest.raises(Encoded):
        encoded_splits(again(task), tok, not by_step, str(folder))


def test_easy_examples_are_kept_with_the_splits(tmp_path: Path, monkeypatch) -> None:
    task = Multiplication(digits=2, zeros=0.5, train_size=50, validation_size=5, test_size=5)
    words = small_tokenizer(task.symbols())
    first = encoded_splits(task, words, cache_dir=str(tmp_path))
    monkeypatch.setattr(cache, "encode", refuse)
    second = encoded_splits(dataclasses.replace(task), words, cache_dir=str(tmp_path))
    assert list(first) == list(second) == [*SPLITS, EASY]
    assert np.array_equal(first[EASY].tokens, second[EASY].tokens) and isinstance(second[EASY].tokens.base, np.memmap)


def test_mapped_arrays_cannot_be_changed(task, tok, tmp_path: Path) -> None:
    first = encoded_splits(task, tok, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="read-only"):
        first["train"].tokens[0] = 1


def test_without_a_cache_nothing_is_written(task, tok, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    encoded_splits(task, tok)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.txt"]


def test_home_is_expanded(task, tok, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    encoded_splits(task, tok, cache_dir="~/deep/cache")
    assert (entry(tmp_path / "home" / "deep" / "cache") / "notes.json").is_file()
    assert not (tmp_path / "~").exists()


def test_the_key_is_the_same_if_nothing_changed(task, tok) -> None:
    keys = {cache_key(again(task), small_tokenizer(words), Form(False, ())) for words in (WORDS, WORDS[::-1])}
    task.load()
    keys.add(cache_key(task, tok, Form(False, ())))
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    assert cache_key(Multiplication(digits=2), tok, Form(False, ())) == cache_key(
        Multiplication(digits=2), tok, Form(False, ())
    )


def test_the_key_changes_with_each_of_its_inputs(task, tok, tmp_path: Path) -> None:
    keys = [cache_key(task, tok, Form(False, ())), cache_key(task, tok, Form(True, ()))]
    keys.append(cache_key(task, small_tokenizer((*WORDS, "4")), Form(False, ())))
    changes = {
        "validation_size": 6, "test_size": 5, "step_start": "1", "skip_malformed": True, "allow_overlap": True,
        "prompt_field": "q", "cot_field": "c", "answer_field": "a",
    }  # fmt: skip
    keys += [
        cache_key(dataclasses.replace(task, **{key: value}), tok, Form(False, ())) for key, value in changes.items()
    ]  # type: ignore[arg-type]
    copy = shutil.copy(task.train, tmp_path / "copy.txt")  # type: ignore[arg-type]
    keys.append(cache_key(dataclasses.replace(task, train=str(copy)), tok, Form(False, ())))
    keys.append(cache_key(dataclasses.replace(task, validation=task.train), tok, Form(False, ())))
    keys.append(cache_key(dataclasses.replace(task, test=task.train), tok, Form(False, ())))
    keys += [cache_key(Multiplication(digits=digits), tok, Form(False, ())) for digits in (2, 3)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("split", SPLITS)
def test_the_key_changes_with_a_byte_of_any_file(task, tok, tmp_path: Path, split: str) -> None:
    path = tmp_path / "other.txt"
    path.write_text("q 1 1||1 + 1 #### 2\n")
    task = dataclasses.replace(task, **{split: str(path)})
    before, stat = cache_key(task, tok, Form(False, ())), path.stat()
    path.write_text("q 1 2||1 + 1 #### 2\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert cache_key(again(task), tok, Form(False, ())) != before


def test_the_key_covers_the_code_of_every_task_and_reader(task, tok, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: hashed.append(path) or read_bytes(path))
    cache_key(task, tok, Form(False, ()))
    code = set((REPO / "stepwise_pl" / "tasks").rglob("*.py"))
    assert REPO / "stepwise_pl" / "tasks" / "reading" / "source.py" in code and code <= set(hashed)


def test_changed_data_is_tokenised_anew(task, tok, tmp_path: Path) -> None:
    folder, path = tmp_path / "cache", Path(task.train)  # type: ignore[arg-type]
    first = arrays(encoded_splits(task, tok, cache_dir=str(folder)))
    content = path.read_text()
    path.write_text(content.replace("#### 1", "#### 2"))
    second = arrays(encoded_splits(again(task), tok, cache_dir=str(folder)))
    assert first != second == arrays(encoded_splits(again(task), tok))
    assert len(list(folder.iterdir())) == 2
    path.write_text(content)
    assert arrays(encoded_splits(again(task), tok, cache_dir=str(folder))) == first


MODULE = """
from dataclasses import dataclass
from stepwise_pl.tasks import Example, Files

@dataclass
class Mine(Files):
    kind: str = "mine"

    def example(self, record):
        prompt, cot, answer, _ = super().example(record)
        return Example(prompt, cot, "1")
"""


def test_the_key_changes_with_the_code_of_a_task_from_elsewhere(task, tok, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "my_task.py").write_text(MODULE)
    folder = str(tmp_path / "cache")
    keys, data = [], []
    for answer in ("1", "2", "1"):
        (tmp_path / "my_task.py").write_text(MODULE.replace('"1")', f'"{answer}")'))
        sys.modules.pop("my_task", None)
        mine = importlib.import_module("my_task").Mine(**dataclasses.asdict(task) | {"kind": "mine"})
        keys.append(cache_key(mine, tok, Form(False, ())))
        data.append(arrays(encoded_splits(mine, tok, cache_dir=folder)))
    del sys.modules["my_task"]
    assert keys[0] == keys[2] != keys[1]
    assert data[0] == data[2] != data[1]
    assert keys[0] != cache_key(task, tok, Form(False, ()))


@pytest.mark.parametrize("module", ["__main__", "typed_in"])
def test_a_task_without_a_source_file_can_be_used(task, tok, tmp_path: Path, monkeypatch, module: str) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # as in a notebook
    names: dict[str, object] = {"__name__": module}
    exec(MODULE, names)
    mine = names["Mine"](**dataclasses.asdict(task) | {"kind": "mine"})  # type: ignore[operator]
    assert arrays(encoded_splits(mine, tok, cache_dir=str(tmp_path / "cache"))) == arrays(encoded_splits(mine, tok))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGE: dict[str, Callable[[Path], object]] = {
    **{f"no {split}.{name}": lambda p, f=f"{split}.{name}.npy": (p / f).unlink() for split in SPLITS for name in cache.ARRAYS},
    "no notes": lambda p: (p / "notes.json").unlink(),
    "empty notes": lambda p: cut(p / "notes.json", 0),
    "garbage notes": lambda p: (p / "notes.json").write_bytes(b"\xff{"),
    "half notes": lambda p: cut(p / "notes.json", 5),
    "number notes": lambda p: (p / "notes.json").write_text("3"),
    "null notes": lambda p: (p / "notes.json").write_text("null"),
    "text notes": lambda p: (p / "notes.json").write_text('"abc"'),
    "empty array": lambda p: cut(p / "train.tokens.npy", 0),
    "half header": lambda p: cut(p / "train.tokens.npy", 60),
    "header only": lambda p: cut(p / "train.start.npy", 128),
    "a byte short": lambda p: cut(p / "test.tokens.npy", (p / "test.tokens.npy").stat().st_size - 1),
    "garbage array": lambda p: (p / "train.tokens.npy").write_bytes(b"garbage" * 100),
    "an archive": lambda p: (p / "validation.start.npy").write_bytes(b"PK\x03\x04" + b"0" * 200),
    "broken header": lambda p: (p / "train.start.npy").write_bytes((p / "train.start.npy").read_bytes().replace(b"}", b"(")),
    "nothing in it": lambda p: [path.unlink() for path in p.iterdir()],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(task, tok, tmp_path: Path, monkeypatch, damage: str, caplog) -> None:
    folder = tmp_path / "cache"
    good = arrays(encoded_splits(task, tok, True, str(folder)))
    path = entry(folder)
    DAMAGE[damage](path)
    caplog.clear()
    assert arrays(encoded_splits(again(task), tok, True, str(folder))) == good
    assert entry(folder) == path
    assert [message.split(":")[0] for message in caplog.messages] == [
        "test",
        "validation",
    ]  # the notes are those of the first start
    monkeypatch.setattr(cache, "encode", refuse)
    assert arrays(encoded_splits(again(task), tok, True, str(folder))) == good


@pytest.mark.parametrize("where", ["file", "file/inside", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written(task, tok, tmp_path: Path, caplog, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    cache_dir = str(tmp_path / where)  # an absolute `where` stays
    with caplog.at_level(logging.INFO):
        splits = encoded_splits(task, tok, cache_dir=cache_dir)
    assert arrays(splits) == arrays(encoded_splits(again(task), tok))
    warnings = [record.message for record in caplog.records if "cache_dir" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"data.cache_dir={cache_dir}: not written (")
    assert not [message for message in caplog.messages if "kept in" in message]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_home_that_is_not_known(task, tok, tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    splits = encoded_splits(task, tok, cache_dir="~nobody_of_this_name/cache")
    assert [path.name for path in tmp_path.iterdir()] == ["data.txt"]
    assert arrays(splits) == arrays(encoded_splits(again(task), tok))
    assert any("cache_dir" in message for message in caplog.messages)


def test_notes_are_shown_at_every_start(task, tok, tmp_path: Path, caplog) -> None:
    for _ in range(2):
        caplog.clear()
        encoded_splits(again(task), tok, cache_dir=str(tmp_path / "cache"))
        warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert warnings == [f"{split}: {count} examples held out of {task.train}" for split, count in (("test", 4), ("validation", 5))]  # fmt: skip
    notes = json.loads((entry(tmp_path / "cache") / "notes.json").read_text())
    assert notes == warnings


@pytest.mark.parametrize("error", [Encoded, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(task, tok, tmp_path: Path, monkeypatch, error: type[BaseException]) -> None:
    calls = []

    def fail(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise error
        return cache_encode(*args)  # type: ignore[arg-type]

    cache_encode = cache.encode
    monkeypatch.setattr(cache, "encode", fail)
    with pytest.raises(error):
        encoded_splits(task, tok, cache_dir=str(tmp_path / "cache"))
    assert len(calls) == 3
    assert not list(tmp_path.glob("cache/*"))


def started(count: int, work: Callable[[Callable[[float], object]], object]) -> list[object]:
    """Return the results of the same work in `count` processes at the same time; None for a process that fails.

    `work` is given a function that waits for the others.
    """
    context = multiprocessing.get_context("fork")
    go, results = context.Barrier(count), context.SimpleQueue()

    def run() -> None:
        result = None
        try:
            result = work(go.wait)
        finally:
            if result is None:
                go.abort()
            results.put(result)

    processes = [context.Process(target=run) for _ in range(count)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join(30)
    return found


def test_a_full_disk_leaves_nothing(tok, tmp_path: Path, caplog) -> None:
    lines = [f"q {i % 2 + 1} {'1 ' * (i // 2)}||1 #### 1" for i in range(400)]
    (tmp_path / "data.txt").write_text("\n".join(lines))
    task = Files(train=str(tmp_path / "data.txt"), validation_size=5, test_size=4)

    def work(_: object) -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a longer file cannot be written
        caplog.clear()
        splits = encoded_splits(task, tok, cache_dir=str(tmp_path / "cache"))
        return arrays(splits), [message for message in caplog.messages if "not written" in message]

    (result,) = started(1, work)
    assert isinstance(result, tuple)
    assert result[0] == arrays(encoded_splits(task, tok))
    assert len(result[1]) == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_processes_that_write_at_the_same_time(task, tok, tmp_path: Path, monkeypatch, caplog) -> None:
    folders = [tmp_path / "cache" / str(i) for i in range(20)]

    def work(wait: Callable[[float], object]) -> object:
        caplog.clear()
        right = 0
        for folder in folders:
            wait(30)
            right += arrays(encoded_splits(again(task), tok, True, str(folder))) == expected
        return right, [message for message in caplog.messages if "not written" in message]

    expected = arrays(encoded_splits(again(task), tok, True))
    assert started(4, work) == [(20, [])] * 4
    monkeypatch.setattr(cache, "encode", refuse)
    for folder in folders:
        assert entry(folder).is_dir()  # one, and no half-written folder
        assert arrays(encoded_splits(again(task), tok, True, str(folder))) == expected


def test_an_entry_is_not_taken_away_while_it_is_read(task, tok, tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    first = encoded_splits(task, tok, cache_dir=folder)
    expected = arrays(encoded_splits(again(task), tok))
    shutil.rmtree(folder)  # the user empties the cache during a run
    assert arrays(first) == expected


def test_the_folder_of_a_killed_write_is_removed_and_a_live_one_is_not(
    task: Files, tok: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = platform.node()
    names = {
        "dead": f"writing-{dead.pid}-{here}-abcdefgh",
        "alive": f"writing-{os.getpid()}-{here}-abcdefgh",
        "elsewhere": f"writing-{dead.pid}-not-{here}-abcdefgh",
        "of before": "writing-abcdefgh",
        "old": "writing-hgfedcba",
        "elsewhere, old": f"writing-{os.getpid()}-not-{here}-hgfedcba",
    }
    for name in names.values():
        (folder / name / "entry").mkdir(parents=True)
        (folder / name / "entry" / "train.tokens.npy").write_bytes(b"half")
    for name in ("old", "elsewhere, old"):
        for path in (folder / names[name], *(folder / names[name]).rglob("*")):
            os.utime(path, (0, time.time() - 2 * cache.LEFT_OVER))
    encoded_splits(task, tok, cache_dir=str(folder))
    left = {path.name for path in folder.glob("writing-*")}
    assert left == {names[name] for name in ("alive", "elsewhere", "of before")}


@pytest.mark.long
def test_a_write_that_is_killed_is_removed_by_the_next_start(task: Files, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    code = (
        "import os, signal, sys, numpy; from tests.data.test_cache import WORDS; from stepwise_pl.data.cache import encoded_splits;"
        "from stepwise_pl.tasks import Files; from stepwise_pl.data.tokenizers import small_tokenizer;"
        "numpy.save = lambda *a: os.kill(os.getpid(), signal.SIGKILL);"
        f"encoded_splits(Files(train={task.train!r}, validation_size=5, test_size=4, step_start='+'), small_tokenizer(WORDS), cache_dir={str(folder)!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == -9
    assert entry(folder).name.startswith("writing-")
    encoded_splits(again(task), small_tokenizer(WORDS), cache_dir=str(folder))
    assert not entry(folder).name.startswith("writing-")
