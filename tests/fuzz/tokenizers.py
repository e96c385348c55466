"""Small Hugging Face tokenizers for the fuzz, as users have them, and judges of a run that uses one."""

import contextlib
import io
import json
import shutil
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stepwise_pl.check_data import CheckDataConfig, check_data
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.run import Config
from stepwise_pl.config.training import DataConfig
from stepwise_pl.data.batch import Part, continuation
from stepwise_pl.data.encoding import EncodedExamples, export_prompt
from stepwise_pl.data.layout import normalize_answer
from stepwise_pl.evaluation.answers import answers
from stepwise_pl.methods import Stepwise
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Example, Files
from stepwise_pl.training.build import build_parts
from tests.fuzz.fuzzing import Timeout, found, within

SECONDS = 30
PLAIN = "0123456789+-*=#().abc "
MORE = "é５<>|,ABZ\u00a0▁Ġ🙂\t\u200d"


class Recipe(NamedTuple):
    """The parts of a tokenizer, by name, so that a person can make it again."""

    model: str
    normalizer: str
    pre_tokenizer: str
    decoder: str
    post_processor: str
    vocabulary: str  # `all` characters of the examples, or some are `missing`
    merges: int
    unknown: str  # `<unk>`, declared; `silent`: known to the model only; `none`
    eos: str
    added: tuple[str, ...]
    stored: str  # truncation or padding, stored in the file


NORMALIZERS: dict[str, Any] = {
    "none": None, "NFC": normalizers.NFC(), "NFKC": normalizers.NFKC(), "NFD": normalizers.NFD(), "lower": normalizers.Lowercase(),
    "strip": normalizers.Strip(), "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "bert": normalizers.BertNormalizer(lowercase=True), "bert cased": normalizers.BertNormalizer(lowercase=False),
    "llama": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "replace": normalizers.Replace("-", ""), "spaces": normalizers.Replace(Regex(" +"), " "),
}  # fmt: skip
PRE_TOKENIZERS: dict[str, Any] = {
    "none": None, "whitespace": pre_tokenizers.Whitespace(), "whitespace split": pre_tokenizers.WhitespaceSplit(),
    "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False), "bytes, space": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "metaspace": pre_tokenizers.Metaspace(), "metaspace, first": pre_tokenizers.Metaspace(prepend_scheme="first"),
    "digits": pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]),
    "digits, bytes": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "punctuation": pre_tokenizers.Punctuation(), "bert": pre_tokenizers.BertPreTokenizer(),
    "characters": pre_tokenizers.Split(Regex("."), "isolated"), "characters removed": pre_tokenizers.Split(Regex(" "), "removed"),
    "space": pre_tokenizers.CharDelimiterSplit(" "), "hash": pre_tokenizers.Split("#", "removed"),
}  # fmt: skip
DECODERS: dict[str, Any] = {
    "none": None, "bytes": decoders.ByteLevel(), "metaspace": decoders.Metaspace(), "wordpiece": decoders.WordPiece(),
    "fuse": decoders.Fuse(), "bpe": decoders.BPEDecoder(), "strip": decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    "llama": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    "ctc": decoders.CTC(),
}  # fmt: skip
POST = ("none", "none", "bos", "bos and eos", "eos", "bytes", "bert")
# Sets of parts as in well-known models. Other tokenizers are drawn part by part.
FAMILIES: tuple[dict[str, Any], ...] = (
    {"model": "bpe", "normalizer": "none", "pre_tokenizer": "bytes", "decoder": "bytes"},
    {"model": "bpe", "normalizer": "llama", "pre_tokenizer": "none", "decoder": "llama"},
    {"model": "bpe", "normalizer": "none", "pre_tokenizer": "digits, bytes", "decoder": "bytes"},
    {"model": "bpe", "normalizer": "none", "pre_tokenizer": "none", "decoder": "fuse"},
    {"model": "unigram", "normalizer": "NFKC", "pre_tokenizer": "metaspace", "decoder": "metaspace"},
    {"model": "wordpiece", "normalizer": "bert", "pre_tokenizer": "bert", "decoder": "wordpiece"},
    {"model": "wordlevel", "normalizer": "none", "pre_tokenizer": "whitespace split", "decoder": "none"},
    {"model": "wordlevel", "normalizer": "none", "pre_tokenizer": "characters", "decoder": "none"},
    {"model": "wordlevel", "normalizer": "none", "pre_tokenizer": "characters", "decoder": "fuse"},
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """A recipe of a known model with at most two parts exchanged, or any recipe."""
    of = {
        "model": ("bpe", "bytes", "wordlevel", "wordpiece", "unigram"), "normalizer": tuple(NORMALIZERS),
        "pre_tokenizer": tuple(PRE_TOKENIZERS), "decoder": tuple(DECODERS), "post_processor": POST,
        "vocabulary": ("all", "all", "all", "missing"), "merges": (0, 0, 3, 12), "unknown": ("<unk>", "<unk>", "silent", "none"),
        "eos": ("<eos>", "<eos>", "<|endoftext|>", "</s>", "[SEP]", "plain", "letter", "lstrip", "rstrip"),
        "added": ((), (), ("####",), ("<<", ">>"), ("<s>",), ("12",), (" ",), ("a",), ("#",)),
        "stored": ("none", "none", "none", "truncation", "padding"),
    }  # fmt: skip
    chosen = {
        "post_processor": "none",
        "vocabulary": "all",
        "merges": 0,
        "unknown": "<unk>",
        "eos": "<eos>",
        "added": (),
        "stored": "none",
    }
    chosen |= draw(st.sampled_from(FAMILIES))
    for part in draw(st.lists(st.sampled_from(sorted(of)), max_size=3)):
        chosen[part] = draw(st.sampled_from(of[part]))
    return Recipe(**chosen)


def letters(examples: list[Example], recipe: Recipe) -> list[str]:
    """The characters that the tokenizer knows."""
    there = sorted({c for example in examples for part in example[:3] for c in part} | set("# "))
    if recipe.vocabulary == "missing":
        there = [c for i, c in enumerate(there) if (i + len(there)) % 4]
    return there


def words_of(texts: list[str], tokenizer: Tokenizer) -> list[str]:
    """The texts after normalizer and pre-tokenizer."""
    out: dict[str, None] = {}
    for text in texts:
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        pieces = [(text, None)] if tokenizer.pre_tokenizer is None else tokenizer.pre_tokenizer.pre_tokenize_str(text)
        out |= dict.fromkeys(piece for piece, _ in pieces)
    return list(out)


def made(recipe: Recipe, examples: list[Example], folder: Path) -> None:
    """Make the tokenizer and save it."""
    eos = {"plain": ".", "letter": "E", "lstrip": "<eos>", "rstrip": "<eos>"}.get(recipe.eos, recipe.eos)
    known = letters(examples, recipe)
    texts = [f" {text} " for example in examples for text in example[:3]] + [" #### "]
    if recipe.vocabulary == "missing":
        texts = ["".join(c for c in text if c in known) for text in texts]
    empty = Tokenizer(models.BPE())
    empty.normalizer, empty.pre_tokenizer = NORMALIZERS[recipe.normalizer], PRE_TOKENIZERS[recipe.pre_tokenizer]
    words = words_of(texts, empty)
    characters = sorted({c for word in words for c in word})
    if recipe.pre_tokenizer.endswith("bytes") or recipe.pre_tokenizer == "bytes, space":
        characters = sorted(pre_tokenizers.ByteLevel.alphabet()) if recipe.vocabulary == "all" else characters
    unknown = None if recipe.unknown == "none" else "<unk>"
    start = [*([unknown] if unknown else []), "<s>"]
    pairs = list(dict.fromkeys(pair for word in words for pair in pairwise(word)))[: recipe.merges]
    merged = [a + b for a, b in pairs]
    tokens: dict[str, int] = {}
    if recipe.model in ("bpe", "bytes"):
        fallback = [f"<0x{byte:02X}>" for byte in range(256)] if recipe.model == "bytes" else []
        tokens = numbered([*start, *fallback, *characters, *merged])
        model: Any = models.BPE(tokens, pairs, unk_token=unknown, byte_fallback=bool(fallback), fuse_unk=False)
    elif recipe.model == "wordlevel":
        tokens = numbered([*start, *words])
        model = models.WordLevel(tokens, unk_token=unknown) if unknown else models.WordLevel(tokens)
    elif recipe.model == "wordpiece":
        tokens = numbered([*start, *characters, *(f"##{c}" for c in characters), *words[: recipe.merges]])
        model = models.WordPiece(tokens, unk_token=unknown) if unknown else models.WordPiece(tokens)
    else:
        pieces = list(numbered([*start, *characters, *merged]))
        tokens = numbered(pieces)
        scores = [(piece, -1.0 * i / len(pieces) - (2 if len(piece) == 1 else 0)) for i, piece in enumerate(pieces)]
        model = models.Unigram(scores, 0 if unknown else None, False)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = empty.normalizer, empty.pre_tokenizer
    tokenizer.decoder = DECODERS[recipe.decoder]
    special = [AddedToken("<s>", special=True)]
    if recipe.eos == "plain":
        tokenizer.add_tokens(["."])
    elif recipe.eos == "letter":
        tokenizer.add_tokens([AddedToken("E", normalized=True)])
    else:
        special.append(AddedToken(eos, special=True, lstrip=recipe.eos == "lstrip", rstrip=recipe.eos == "rstrip"))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in recipe.added])
    ids = {name: tokenizer.token_to_id(name) for name in ("<s>", eos)}
    if recipe.post_processor in ("bos", "bos and eos", "eos"):
        single = {"bos": "<s> $A", "bos and eos": f"<s> $A {eos}", "eos": f"$A {eos}"}[recipe.post_processor]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=list(ids.items()))
    elif recipe.post_processor == "bytes":
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    elif recipe.post_processor == "bert":
        tokenizer.post_processor = processors.BertProcessing((eos, ids[eos]), ("<s>", ids["<s>"]))
    if recipe.stored == "truncation":
        tokenizer.enable_truncation(6)
    elif recipe.stored == "padding":
        tokenizer.enable_padding(length=40)
    more = {"unk_token": "<unk>"} if recipe.unknown == "<unk>" else {}
    shutil.rmtree(folder, ignore_errors=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token="<s>", **more).save_pretrained(folder)


def numbered(words: list[str]) -> dict[str, int]:
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


word = st.text(PLAIN + PLAIN + PLAIN + MORE, min_size=1, max_size=6) | st.sampled_from(
    ["12+5", "-38", "13 - 61", "1,234", "a b", "sum of 3", "<s>", "1 2 3", "٣", "Ab", "<<1+1=2>>", "e\u0301"]
)
part = word.map(lambda t: " ".join(t.replace("\u00a0", "é").split())).filter(
    lambda t: t and "#" * 4 not in t and not t.endswith("#") and not t.startswith("#")
)
examples = st.lists(
    st.builds(lambda p, steps, a: Example.of_steps(p, steps, a), part, st.lists(part, max_size=3), part),
    min_size=1,
    max_size=4,
)


def squeezed(text: str) -> str:
    """The text without spaces and in composed form, for comparisons."""
    return "".join(unicodedata.normalize("NFC", text).split())


def reproduction(recipe: Recipe, given: list[Example], by_step: bool) -> str:
    parts = ", ".join(f"{name}={value!r}" for name, value in recipe._asdict().items())
    return f"Recipe({parts})\nby_step={by_step}, examples {[tuple(e) for e in given]!r}"


def judge(recipe: Recipe, given: list[Example], by_step: bool, folder: Path) -> None:
    """Judge a start of training with this tokenizer: it is refused in one line, or every text is complete."""
    repro = reproduction(recipe, given, by_step)
    try:
        made(recipe, given, folder / "tokenizer")
    except Exception:
        return  # the library itself cannot make this tokenizer
    path = folder / "tokenized.jsonl"
    by_split = {"train": given, "validation": given[:1], "test": given[-1:]}
    names = {}
    for split, some in by_split.items():
        names[split] = str(path.with_name(f"tokenized-{split}.jsonl"))
        Path(names[split]).write_text(
            "".join(json.dumps({"question": e.prompt, "steps": steps_of(e), "answer": e.answer}) + "\n" for e in some)
        )

    def task() -> Files:
        return Files(**names, allow_overlap=True)  # type: ignore[arg-type]

    model = ModelConfig(tokenizer=str(folder / "tokenizer"), layers=1, heads=1, width=8)
    refused = None
    try:
        with within(SECONDS):
            parts = build_parts(
                Config(
                    task=task(), model=model, schedule=Linear(), method=Stepwise(unit="step" if by_step else "token"),
                    data=DataConfig(batch_size=1, cache_dir=None),
                )
            )  # fmt: skip
    except UserError as error:
        refused = str(error)
        if not refused.isprintable():
            found("tokenizer: an error is not one line", repr(refused), repro)
    except Timeout as error:
        found("tokenizer: time", str(error), repro)
        return
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        found(f"tokenizer: {type(error).__name__} at the start", repr(error)[:300], repro)
        return
    if refused is None:
        for split, some in by_split.items():
            compare(parts.tokenizer, parts.data.encoded[split], some, by_step, repro)
    if not by_step:
        judge_check(task(), model, refused, repro)


def steps_of(example: Example) -> list[str]:
    if not example.steps:
        return []
    ends = [*example.steps[1:], len(example.cot) + 1]
    return [example.cot[start : end - 1] for start, end in zip(example.steps, ends, strict=True)]


def judge_check(task: Files, model: ModelConfig, refused: str | None, repro: str) -> None:
    """`check_data` must say "would stop" exactly if the start is refused."""
    out, stops = io.StringIO(), False
    try:
        with within(SECONDS), contextlib.redirect_stdout(out):
            check_data(CheckDataConfig(task=task, model=model, data=DataConfig(batch_size=1, cache_dir=None)))
    except SystemExit as error:
        stops = bool(error.code)
    except UserError:
        stops = True
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        found(f"tokenizer: {type(error).__name__} in check_data", repr(error)[:300], repro)
        return
    if stops != (refused is not None):
        said = out.getvalue().strip().splitlines()[-1:] or [""]
        found("tokenizer: check_data and the start disagree", f"check_data: {said[0]!r}; the start: {refused!r}", repro)


def compare(
    tokenizer: PreTrainedTokenizerBase, encoded: EncodedExamples, given: list[Example], by_step: bool, repro: str
) -> None:
    """Every example must be complete: its three parts, its answer and its steps agree with the texts."""
    if len(encoded) != len(given):
        found("tokenizer: examples lost", f"{len(encoded)} of {len(given)}", repro)
        return
    batch = encoded.collate(np.arange(len(given)))
    eos = tokenizer.eos_token_id
    start = [token for token in tokenizer("")["input_ids"] if token != eos]  # the tokenizer puts it before every text
    predicted = answers(continuation(batch), tokenizer)
    for row, example in enumerate(given):
        tokens = {p: batch.tokens[row][batch.part[row] == p].tolist() for p in (Part.PROMPT, Part.COT, Part.ANSWER)}
        begins = tokens[Part.PROMPT][: len(start)] == start
        written = tokens | {Part.PROMPT: tokens[Part.PROMPT][len(start) if begins else 0 :]}
        texts = {p: str(tokenizer.decode([t for t in ids if t != eos])) for p, ids in written.items()}
        expected = {Part.PROMPT: example.prompt, Part.COT: example.cot, Part.ANSWER: f"####{example.answer}"}
        for p, text in expected.items():
            if squeezed(texts[p]) != squeezed(text):
                found(f"tokenizer: {p.name.lower()} does not come back", f"{text!r} became {texts[p]!r}", repro)
                return
        answer = predicted[row]
        if answer is None or squeezed(answer) != squeezed(normalize_answer(example.answer)):
            found("tokenizer: the target's answer is another", f"{example.answer!r} is scored as {answer!r}", repro)
        used = tokenizer(export_prompt(example.prompt, str(tokenizer.eos_token), False))["input_ids"]
        if list(used) != tokens[Part.PROMPT]:
            found(
                "tokenizer: an export reads another prompt",
                f"trained on {tokens[Part.PROMPT]}, its README gives {used}",
                repro,
            )
        if by_step and example.cot:
            compare_steps(
                tokenizer, tokens[Part.COT], batch.unit_start[row][batch.part[row] == Part.COT], example, repro
            )


def compare_steps(tokenizer: PreTrainedTokenizerBase, cot: list[int], start: Any, example: Example, repro: str) -> None:
    """A step must begin with the first token that reaches beyond the text before the step."""
    if not example.cot.isascii():
        return  # a character may be several tokens
    places = start.nonzero().flatten().tolist()
    if places[:1] != [0]:
        found("tokenizer: the first step does not begin the CoT", str(places), repro)
        return
    reach = [0, *(len(squeezed(str(tokenizer.decode(cot[: i + 1])))) for i in range(len(cot)))]  # before each token
    if any(a > b for a, b in pairwise(reach)):
        return
    before = [len(squeezed(example.cot[:step])) for step in example.steps]
    right = sorted({next((i for i, r in enumerate(reach[1:]) if r > b), len(cot)) for b in before})
    # Tokens of spaces alone may stand on either side of a cut.
    if len(right) != len(places) or any(i > r or reach[i] != reach[r] for i, r in zip(places, right, strict=True)):
        texts = [str(tokenizer.decode([t])) for t in cot]
        found("tokenizer: a step begins elsewhere", f"steps at tokens {places}, not {right}, of {texts}", repro)
