"""A text that the tokenizer does not give back is refused before training, and an export reads the tokens of training."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, pipeline

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.data.batch import Part
from stepwise_pl.data.cache import Form, cache_key, encoded_splits
from stepwise_pl.data.encoding import answer_frame, encode
from stepwise_pl.data.tokenizers import build_tokenizer, is_word_list, num_ids, small_tokenizer
from stepwise_pl.evaluation.answers import answers
from stepwise_pl.models.build import build_model
from stepwise_pl.runs.predictions import read_predictions
from stepwise_pl.tasks import Example, ExampleList, Files
from stepwise_pl.tasks.base import parse_line
from tests.conftest import command

CHARACTERS = [*"0123456789+# ", "<eos>"]
WORDS = ["sum", "of", "####", "<eos>", "<unk>", "<s>", *map(str, range(100))]


def saved(folder: Path, backend: Tokenizer, **special: str) -> str:
    """Return the folder of a tokenizer, as users have it."""
    PreTrainedTokenizerFast(tokenizer_object=backend, **{"eos_token": "<eos>", **special}).save_pretrained(folder)
    return str(folder)


def characters(folder: Path, unknown: bool = True) -> str:
    """Return a word list of characters, without a decoder."""
    vocabulary = {c: i for i, c in enumerate([*CHARACTERS, *["<unk>"] * unknown])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>") if unknown else models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return saved(folder, backend, **({"unk_token": "<unk>"} if unknown else {}))


def character_pairs(folder: Path, decoder: decoders.Decoder | None) -> str:
    """Return a BPE of characters without merges. It drops unknown characters."""
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(CHARACTERS)}, []))
    if decoder is not None:
        backend.decoder = decoder
    return saved(folder, backend)


def words(
    folder: Path, start: bool = False, digits: bool = False, normalizer: normalizers.Normalizer | None = None
) -> str:
    """Return a list of words: with a start token, with split digits, or with a changed text."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    split = [pre_tokenizers.WhitespaceSplit(), *[pre_tokenizers.Digits(individual_digits=True)] * digits]
    backend.pre_tokenizer = pre_tokenizers.Sequence(split) if digits else split[0]
    if start:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    if normalizer is not None:
        backend.normalizer = normalizer
    return saved(folder, backend, unk_token="<unk>", **({"bos_token": "<s>"} if start else {}))


def bytes_of(folder: Path, normalizer: normalizers.Normalizer | None = None, **special: str) -> str:
    """Return a tokenizer with a token for each byte. It keeps any text, unless a normalizer changes the text first."""
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    return saved(folder, backend, **special)


def split_of(*lines: str) -> ExampleList:
    return ExampleList(map(parse_line, lines))


def encoded_tokens(folder: str, *lines: str, row: int = 0) -> tuple[list[str], list[str]]:
    """Return the tokens of prompt and target of an example."""
    tokenizer = build_tokenizer(folder, ())
    prompt, target = encode(split_of(*lines), tokenizer, "train").prompt_and_target(row)
    return tokenizer.convert_ids_to_tokens(prompt), tokenizer.convert_ids_to_tokens(target)  # type: ignore[return-value]


@pytest.mark.parametrize("unknown", [True, False])
def test_a_word_list_of_characters_is_split_by_its_own_rule_and_gives_answers_back(
    tmp_path: Path, unknown: bool
) -> None:
    folder = characters(tmp_path / "t", unknown)
    prompt, _ = encoded_tokens(folder, "12+5||12 #### 17")
    assert prompt == [" ", *"12+5", " ", "<eos>"]
    tokenizer = build_tokenizer(folder, ())
    encoded = encode(split_of("12+5||12 #### 17", "1+1||1 #### 2"), tokenizer, "train")
    assert answers([encoded.prompt_and_target(row)[1] for row in (0, 1)], tokenizer) == ["17", "2"]
    # The tokenizer saved with a run decodes in the same way.
    tokenizer.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.decode(again("12+5")["input_ids"]) == "12+5"


@pytest.mark.parametrize(
    "make,line,message",
    [
        (lambda at: character_pairs(at, None), "12+5||12 #### 17", "line 2: the tokenizer gives back '# # # #' for '####'"),
        (lambda at: character_pairs(at, decoders.Fuse()), "12+5||1-2 #### 17", "line 2: the tokenizer gives back '12' for '1-2'"),
        (lambda at: character_pairs(at, decoders.Fuse()), "13 - 61||4 #### 48", "line 2: .* gives back '' for '-' in '13 - 61'"),
        (lambda at: character_pairs(at, decoders.Fuse()), "12+5||12 #### -38", "line 2: the tokenizer gives back '38' for '-38'"),
        (characters, "12+x||1 #### 2", "line 2: the tokenizer does not know 'x'"),
        (lambda at: characters(at, False), "12+x||1 #### 2", "line 2: the tokenizer does not know 'x' "),
        (words, "sum of 1 apple||1 #### 2", "line 2: the tokenizer does not know 'apple'"),
        (words, "sum of 1 <unk>||1 #### 2", "line 2: the tokenizer does not know '<unk>' .<unk> stands for all"),
        (lambda at: words(at, digits=True), "sum of 1||1 #### 1 2", "line 2: .*cannot tell the answers '1 2' and '12' apart"),
        (lambda at: words(at, digits=True), "sum of 1 2||1 #### 3", "line 2: .*the prompts 'sum of 1 2' and 'sum of 12' apart"),
        (lambda at: bytes_of(at, normalizers.Lowercase()), "Sum of 1||1 #### 2", "line 2: .* gives back 'sum' for 'Sum' in"),
        (lambda at: bytes_of(at, normalizers.NFKC()), "x²||1 #### 2", "line 2: .* gives back 'x2' for 'x²'"),
        (lambda at: bytes_of(at, normalizers.Replace("-", "")), "x||1 #### -2", "line 2: .* gives back '2' for '-2'"),
        (lambda at: bytes_of(at, normalizers.StripAccents()), "e\u0301||1 #### 2", "line 2: .* gives back 'e' for"),
    ],
)  # fmt: skip
def test_text_that_is_lost_or_changed_is_refused_by_line(
    tmp_path: Path, make: Callable[[Path], str], line: str, message: str
) -> None:
    good = "1+1||1 #### 12" if "+" in line or "-" in line else "sum of 12||1 #### 12"
    (tmp_path / "x.txt").write_text(f"{good}\n{line}\n", encoding="utf-8")
    read = Files(train=str(tmp_path / "x.txt"), validation_size=1, test_size=0).read_other(
        str(tmp_path / "x.txt"), "file"
    )
    tokenizer = build_tokenizer(make(tmp_path / "t"), ())
    if "# # # #" in message:
        message = message.replace("line 2", "line 1")
    with pytest.raises(UserError, match=message):
        encode(read, tokenizer, "train")


def wordpiece(folder: Path) -> str:
    """Return a tokenizer like BERT's: lower case, pieces of words, separate punctuation."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = (
        normalizers.BertNormalizer(lowercase=True),
        pre_tokenizers.BertPreTokenizer(),
    )
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=100, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    backend.train_from_iterator(["13 - 61 = - 48 ####", "0 1 2 3 4 5 6 7 8 9"] * 20, trainer)
    return saved(folder, backend, eos_token="[SEP]", unk_token="[UNK]")


def test_pieces_of_words_that_never_give_the_mark_back_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gives back '# # # #' for '####', the mark before the answer"):
        encode(split_of("13 - 61||- 48 #### -48"), build_tokenizer(wordpiece(tmp_path), ()), "train")


def test_a_lost_character_is_found_in_any_example(tmp_path: Path) -> None:
    """A sample would miss the one example among thousands."""
    tokenizer = build_tokenizer(character_pairs(tmp_path, decoders.Fuse()), ())
    lines = [f"{i}+1||1 #### {i + 1}" for i in range(12_000)]
    encode(split_of(*lines), tokenizer, "train")
    lines[11_007] = "1-1||1 #### 0"
    with pytest.raises(UserError, match="train example 11008: the tokenizer gives back '11' for '1-1'"):
        encode(split_of(*lines), tokenizer, "train")


def test_composed_and_decomposed_accents_are_the_same_text(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(bytes_of(tmp_path, normalizers.NFC()), ())
    assert len(encode(split_of("cafe\u0301||1 #### 2"), tokenizer, "train")) == 1


def test_only_the_small_tokenizer_is_a_list_of_words(tmp_path: Path) -> None:
    assert is_word_list(small_tokenizer(("1", "2")))
    small_tokenizer(("1", "2")).save_pretrained(tmp_path / "small")
    assert is_word_list(AutoTokenizer.from_pretrained(tmp_path / "small"))
    assert is_word_list(build_tokenizer(words(tmp_path / "words"), ()))
    others = [
        characters(tmp_path / "characters"),
        words(tmp_path / "start", start=True),
        words(tmp_path / "digits", digits=True),
        words(tmp_path / "lower", normalizer=normalizers.Lowercase()),
        bytes_of(tmp_path / "bytes"),
    ]
    assert not any(is_word_list(build_tokenizer(folder, ())) for folder in others)
    inside = build_tokenizer("symbols", ("a<x>b",))
    inside.add_tokens([AddedToken("<x>")])
    assert not is_word_list(inside)


def test_a_separator_that_only_python_takes_for_a_space_is_refused_as_unknown(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(words(tmp_path), ())
    with pytest.raises(UserError, match="does not know"):
        encode(ExampleList([Example("sum of 1\x1c2", "1", "3")]), tokenizer, "train")


@pytest.mark.parametrize("unknown", ["<eos>", "<unk>"])
def test_a_word_that_becomes_the_end_token_is_named_as_unknown(tmp_path: Path, unknown: str) -> None:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer = build_tokenizer(saved(tmp_path, backend, unk_token=unknown, pad_token="<eos>"), ())
    with pytest.raises(UserError, match="train example 2: the tokenizer does not know 'apple'"):
        encode(split_of("sum of 1||1 #### 1", "sum of apple||1 #### 1"), tokenizer, "train")


@pytest.mark.parametrize(
    "token,places", [("<|im_start|>", "train example 2, train example 3"), ("<s>", "train example 2")]
)
def test_special_tokens_in_the_text_are_reported_with_place_and_token(tmp_path: Path, token: str, places: str) -> None:
    folder = bytes_of(tmp_path, bos_token="<s>")
    tokenizer = build_tokenizer(folder, ())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    notes: list[str] = []
    lines = ["a||b #### c", f"{token}a||b #### c", "a||b<|im_start|> #### c" if token != "<s>" else "a||b #### c"]
    encode(split_of(*lines), tokenizer, "train", notes=notes)
    count = places.count("example")
    assert notes == [
        f"train: the text {token!r} in {count} examples ({places}) becomes one control token of the tokenizer"
    ]


def test_a_start_token_of_every_text_is_not_reported(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(words(tmp_path, start=True), ())
    notes: list[str] = []
    encode(split_of("sum of 1||1 #### 1", "sum of 2||2 #### 2"), tokenizer, "train", notes=notes)
    assert notes == []
    encode(split_of("sum of 1||1 #### 1", "sum of <s> 2||2 #### 2"), tokenizer, "train", notes=notes)
    assert notes == ["train: the text '<s>' in 1 examples (train example 2) becomes one control token of the tokenizer"]


def test_a_tokenizer_that_ends_every_text_is_refused_because_an_export_would_read_it_in_the_prompt(
    tmp_path: Path,
) -> None:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*WORDS, "[SEP]"])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", len(WORDS))])
    tokenizer = build_tokenizer(saved(tmp_path, backend, unk_token="<unk>"), ())
    with pytest.raises(UserError, match="an exported model would not read what training reads"):
        encode(split_of("sum of 1||1 #### 1"), tokenizer, "train")


def test_a_vocabulary_with_holes_gets_a_row_for_its_highest_token(tmp_path: Path) -> None:
    vocabulary = {word: 3 * i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = build_tokenizer(saved(tmp_path, backend, unk_token="<unk>"), ())
    encoded = encode(split_of("sum of 99||99 #### 99"), tokenizer, "train")
    model = build_model(ModelConfig(layers=1, heads=1, width=8), tokenizer)
    assert int(encoded.tokens.max()) < num_ids(tokenizer) == model.config.vocab_size
    model(torch.from_numpy(encoded.tokens.astype(np.int64))[None])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        lambda folder: (folder / "tokenizer.json").write_text("[]"),
        lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "tokenizer_config.json").write_text("[1]"),
        lambda folder: (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}'),
        lambda folder: (folder / "tokenizer.json").write_text(
            (folder / "tokenizer.json").read_text().replace('"WordLevel"', '"ModelOfAnotherVersion"')
        ),
        lambda folder: [path.unlink() for path in folder.iterdir()],
    ],
)
def test_a_tokenizer_folder_that_cannot_be_read_is_one_line(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = words(tmp_path / "t")
    damage(tmp_path / "t")
    try:
        tokenizer: PreTrainedTokenizerBase = build_tokenizer(folder, ())
    except UserError as error:
        assert str(error).startswith(f"model.tokenizer={folder}: ")
        return
    # A folder whose settings are odd may still hold a tokenizer. It must then be one that keeps texts.
    assert encode(split_of("sum of 1||1 #### 1"), tokenizer, "train").tokens.size


def test_stored_truncation_finds_its_cache_entry_again(tmp_path: Path) -> None:
    folder = words(tmp_path / "t", start=True)
    path = tmp_path / "t" / "tokenizer.json"
    stored = json.loads(path.read_text())
    stored["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(stored))
    (tmp_path / "x.txt").write_text("".join(f"sum of {i}||{i} #### {i}\n" for i in range(9)))
    task = Files(train=str(tmp_path / "x.txt"), validation_size=2, test_size=2)
    keys = []
    for _ in range(2):
        tokenizer = build_tokenizer(folder, ())
        keys.append(cache_key(task, tokenizer, Form(False, ())))
        encoded = encoded_splits(task, tokenizer, cache_dir=str(tmp_path / "cache"))
        keys.append(cache_key(task, tokenizer, Form(False, ())))
        assert set(encoded["train"].length.tolist()) == {10}  # <s>, sum of n, a separator, n, a separator, mark, n, end
    assert len(set(keys)) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [keys[0]]


SUMS = [
    "model.layers=1", "model.width=64", "model.heads=2", "data.batch_size=32", "data.epoch_size=640", "optimizer.lr=5e-3",
    "schedule=no_cot", "task.validation_size=20", "task.test_size=20", "trainer.duration=150steps",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    ["start", pytest.param("digits", marks=pytest.mark.long), pytest.param("characters", marks=pytest.mark.long)],
)
def test_an_export_answers_as_the_evaluation_does(tmp_path: Path, kind: str) -> None:
    """The README's code and a pipeline give the evaluation's answers, with three tokenizers."""
    make = {
        "start": lambda at: words(at, start=True),
        "digits": lambda at: words(at, digits=True),
        "characters": characters,
    }
    folder = make[kind](tmp_path / "t")
    prompt = "{}+{}" if kind == "characters" else "sum of {} {}"
    lines = [f"{prompt.format(i, j)}||{i} #### {j}\n" for i in range(10, 25) for j in range(10, 20)]
    (tmp_path / "x.txt").write_text("".join(lines))
    run = tmp_path / "run"
    command(
        "train", "task=file", f"task.train={tmp_path / 'x.txt'}", f"model.tokenizer={folder}", *SUMS, f"run_dir={run}"
    )
    command("evaluate", f"run={run}", "speed_problems=0")
    command("export", f"run={run}", f"out={tmp_path / 'hf'}")
    (found,) = (run / "evaluations").glob("*.jsonl")
    predictions = read_predictions(found)
    assert len({one.prediction for one in predictions} - {None}) > 1
    code = (tmp_path / "hf" / "README.md").read_text().split("```python")[1].split("```")[0]
    shown = next(one.prompt for one in predictions if f" {one.prompt} <eos>" in code)
    for number in range(5):
        one = predictions[number]
        asked = code.replace(f" {shown} <eos>", f" {one.prompt} <eos>").replace('"."', f'"{tmp_path / "hf"}"')
        (tmp_path / f"ask{number}.py").write_text(asked)
        generate = pipeline("text-generation", model=str(tmp_path / "hf"))
        text = generate(f" {one.prompt} <eos><eos>", return_full_text=False)[0]["generated_text"]
        assert one.prediction is None or text.partition("####")[2].strip() == one.prediction
        if number < 2:
            out = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
            assert out.stdout.strip() == one.prediction, out.stderr


@pytest.mark.parametrize("kind", ["characters", "words"])
def test_the_frame_of_an_answer_leaves_the_answer_alone(kind: str, tmp_path: Path) -> None:
    """Separator, mark, end and the spaces between them belong to the frame, whatever a token is."""
    folder = characters(tmp_path / "t") if kind == "characters" else words(tmp_path / "t", digits=True)
    tokenizer = build_tokenizer(folder, ())
    example = Example("1 2", "3 4", "1 7") if kind == "words" else Example("12+5", "12", "17")
    row = encode(ExampleList([example]), tokenizer, "train").collate(np.array([0]), np.array([0])).row(0)
    answer = row.tokens[row.part == Part.ANSWER].tolist()
    before, after = answer_frame(answer, tokenizer)
    inside = [tokenizer.decode([token]) for token in answer[before : len(answer) - after]]
    assert inside == ["1", "7"]
    assert tokenizer.decode(answer[-after:]).strip() == "<eos>"
    assert tokenizer.decode(answer[:before]).replace(" ", "").endswith("####")
