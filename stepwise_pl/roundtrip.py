"""An example as one text, and the check that a tokenizer keeps the text: it is encoded, decoded and compared before any training."""

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from stepwise_pl.errors import UserError
from stepwise_pl.metrics import normalize_answer
from stepwise_pl.tasks.base import Example, Examples, chunks, place

log = logging.getLogger(__name__)

MARK = "####"  # stands before the answer
DRAWN = 200  # examples of a split that are checked as a whole, besides the first, the last and the longest
LONGEST_CHECKED = 50_000  # tokens of an example that is checked as a whole
WORDS_KEPT = 1_000_000  # words remembered as checked
PLACES_SHOWN = 5
EXCERPT = 60  # characters shown of a text that did not come back


def layout(example: Example, eos: str) -> str:
    """One example as the reference writes it: ` {prompt} {eos} {cot} {eos} #### {answer} {eos}`."""
    return f" {example.prompt} {eos} {example.cot} {eos} {MARK} {example.answer} {eos}"


def export_prompt(prompt: str, eos: str, internalized: bool) -> str:
    """The text to give an exported model: the prompt's part of `layout`.

    With all CoT gone the second separator follows the first at once, and is given as well.
    """
    return f" {prompt} {eos}{eos if internalized else ''}"


def written_answer(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The normalised answer in what follows a prompt; None where none was finished.

    The answer is what stands between the first and the second end token, after `####`.
    """
    _, mark, answer = answer_text(tokens, tokenizer).partition(MARK)
    return normalize_answer(answer) if mark else None


def answer_text(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text between the first and the second end token; empty if there are no two."""
    ends = [i for i, token in enumerate(tokens) if token == tokenizer.eos_token_id][:2]
    return str(tokenizer.decode(list(tokens[ends[0] + 1 : ends[1]]))) if len(ends) == 2 else ""


def is_word_list(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens are the words between spaces and nothing else happens to a text, as with the small tokenizer.

    Only then may a dictionary of words take the tokenizer's place.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if (
        backend is None
        or not isinstance(backend.model, models.WordLevel)
        or not isinstance(backend.pre_tokenizer, pre_tokenizers.WhitespaceSplit)
        or backend.normalizer is not None
        or backend.num_special_tokens_to_add(False)  # A post-processor that adds none does nothing.
        or tokenizer.unk_token is None
        or tokenizer.unk_token != backend.model.unk_token
    ):
        return False
    # Added tokens are found inside words as well. Harmless are those that no word holds.
    vocabulary = tokenizer.get_vocab()
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return all(token.split() == [token] for token in added) and not any(
        token in word and token != word for word in vocabulary for token in added
    )


def give_decoder(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a word list without a decoder join its tokens as they are, if they are the text itself, spaces included.

    Without a decoder, tokens are joined with spaces, and `####` of four characters would
    never come back. The tokens of other models than word lists may be written in an
    alphabet of their own: nobody can know how they are to be joined.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is not None or not isinstance(backend.model, models.WordLevel):
        return
    text = f" {MARK} "
    try:
        tokens = backend.encode(text, add_special_tokens=False).tokens
    except Exception:  # The text holds what the tokenizer does not know.
        return
    if "".join(tokens) == text:
        log.info("the tokenizer has no decoder: its tokens are joined as they are, without spaces between")
        backend.decoder = decoders.Fuse()


def without_spaces(text: str) -> str:
    """The text for comparisons: spaces aside, and accents composed, as tokenizers may do both without losing anything."""
    return "".join(unicodedata.normalize("NFC", text).split())


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    """The token ids of one text."""
    return list(tokenizer(text, **options)["input_ids"])


class Survey:
    """The findings about a split while it is encoded, chunk by chunk: lost text is refused, special tokens are counted.

    Attributes:
        special: for every special token that occurs in texts, the number of examples and the first places.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, examples: Examples, split: str) -> None:
        self.tokenizer, self.examples, self.split = tokenizer, examples, split
        self.special: dict[int, tuple[int, list[str]]] = {}
        self._words: set[str] = set()
        marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        # The end token in a text is refused elsewhere, as is the unknown token.
        aside = {tokenizer.eos_token_id, tokenizer.unk_token_id}
        self._special_ids = np.array(sorted({*marked, *tokenizer.all_special_ids} - aside), np.int64)
        # The tokenizer puts these into every text by itself; a start token, for instance.
        self._added = [number for number in ids_of(tokenizer, "") if number in self._special_ids]

    def check_words(self, chunk: list[Example], done: int) -> None:
        """Raise `UserError` if a word of these examples does not come back from the tokenizer.

        Args:
            done: how many examples of the split stand before the chunk.
        """
        if len(self._words) > WORDS_KEPT:
            self._words.clear()
        words = {word for example in chunk for text in example[:3] for word in text.split()} - self._words
        self._words |= words
        listed = sorted(words)
        if not listed:
            return
        encoded = self.tokenizer([f" {word}" for word in listed], add_special_tokens=False)["input_ids"]
        for word, ids in zip(listed, encoded, strict=True):
            back = str(self.tokenizer.decode(ids))
            if without_spaces(back) == without_spaces(word):
                continue
            texts = ((row, text) for row, example in enumerate(chunk) for text in example[:3])
            row, text = next((row, text) for row, text in texts if word in text.split())
            where = place(self.examples, self.split, done + row)
            if self.tokenizer.unk_token_id in ids:
                raise UserError(f"{where}: the tokenizer does not know {word!r}")
            raise _not_kept(where, word, back.strip(), "" if text == word else f" in {text[:EXCERPT]!r}")

    def count_special(self, ids: npt.NDArray[np.int64], count: npt.NDArray[np.int64], done: int) -> None:
        """Note the special tokens that these texts hold; `ids` [tokens] of all texts, `count` [texts] tokens of each."""
        if not len(self._special_ids):
            return
        found = np.flatnonzero(np.isin(ids, self._special_ids))
        if len(found) == len(count) * len(self._added):
            return
        owner = np.searchsorted(count.cumsum(), found, side="right")
        for number in np.unique(ids[found]):
            each = np.bincount(owner[ids[found] == number], minlength=len(count))
            rows = np.flatnonzero(each > self._added.count(int(number)))
            before, places = self.special.get(int(number), (0, []))
            places += [place(self.examples, self.split, done + int(row)) for row in rows[: PLACES_SHOWN - len(places)]]
            if len(rows):
                self.special[int(number)] = (before + len(rows), places)

    def notes(self) -> list[str]:
        """A line for every special token that occurs in texts."""
        return [
            f"{self.split}: the text {self.tokenizer.convert_ids_to_tokens(number)!r} in {count} examples "
            f"({', '.join(places)}{', ...' if count > len(places) else ''}) becomes one control token of the tokenizer"
            for number, (count, places) in sorted(self.special.items())
        ]


def drawn_rows(count: int, lengths: npt.NDArray[np.integer[Any]] | None = None) -> list[int]:
    """The rows of `count` examples that are checked as a whole: the first, the last, the longest, and some at random, always the same."""
    rows = {0, count - 1, *np.random.default_rng(0).integers(0, count, min(count, DRAWN)).tolist()}
    if lengths is not None:
        short = np.flatnonzero(lengths <= LONGEST_CHECKED)
        rows = rows & set(short.tolist())
        if len(short):
            rows.add(int(short[lengths[short].argmax()]))
    return sorted(rows)


def check_examples(
    examples: Examples,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[int],
    parts: Iterable[tuple[list[int], list[int]]],
) -> list[str]:
    """Look at some examples as a whole: does the text come back, and the answer, and is the prompt alone encoded alike?

    Args:
        rows: the examples to look at.
        parts: the tokens of each, prompt with its separator, and what follows.

    Returns:
        Notes: what is not as a person would expect.

    Raises:
        UserError: a text does not come back; or an exported model would read another prompt than training does.
    """
    eos, end = str(tokenizer.eos_token), int(tokenizer.eos_token_id)
    moved: tuple[str, str] | None = None
    keeps_spaces = True
    for row, (prompt, target) in zip(rows, parts, strict=True):
        example = examples.slice(row, row + 1)[0]
        where = place(examples, split, row)
        wanted, found = normalize_answer(example.answer), written_answer(target, tokenizer)
        if found is None:
            back = str(tokenizer.decode(ids_of(tokenizer, f" {MARK}", add_special_tokens=False))).strip()
            shown = (MARK, back) if MARK not in back else (f"{MARK} {example.answer}", answer_text(target, tokenizer))
            raise _not_kept(where, *shown, ", the mark before the answer")
        if without_spaces(found) != without_spaces(wanted):
            raise _not_kept(where, wanted, found, ", the answer")
        if found != wanted:
            moved = moved or (wanted, found)
        text = layout(example, eos)
        back = str(tokenizer.decode(ids_of(tokenizer, text, add_special_tokens=False)))
        if without_spaces(back) != without_spaces(text):
            raise _not_kept(where, *_difference(text, back))
        keeps_spaces &= back.split() == text.split()
        for internalized in (False, True):
            alone = ids_of(tokenizer, export_prompt(example.prompt, eos, internalized))
            if alone != prompt + [end] * internalized:
                read, trained = (
                    " ".join(map(str, tokenizer.convert_ids_to_tokens(ids)))[-EXCERPT:] for ids in (alone, prompt)
                )
                raise UserError(
                    f"{where}: the tokenizer makes {read!r} of the prompt alone and {trained!r} of it before its CoT, so that "
                    "an exported model would not read what training reads; choose another tokenizer, or one that adds no token at the end"
                )
    if not keeps_spaces:
        _refuse_equal_but_for_spaces(examples, split, tokenizer)
    if moved is None:
        return []
    return [f"{split}: the tokenizer gives answers back with other spaces ({moved[0]!r} as {moved[1]!r})"]


def _refuse_equal_but_for_spaces(examples: Examples, split: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` if spaces alone tell two prompts, or two answers, apart, and the tokenizer does not keep those."""
    seen: dict[tuple[str, str], str] = {}
    done = 0
    for chunk in chunks(examples):
        for row, example in enumerate(chunk):
            for part, given in (("prompts", example.prompt), ("answers", normalize_answer(example.answer))):
                text = " ".join(given.split())
                other = seen.setdefault((part, without_spaces(text)), text)
                if other != text and ids_of(tokenizer, f" {text}") == ids_of(tokenizer, f" {other}"):
                    raise UserError(
                        f"{place(examples, split, done + row)}: the tokenizer cannot tell the {part} {text[:EXCERPT]!r} and "
                        f"{other[:EXCERPT]!r} apart, because it does not keep spaces; choose another tokenizer"
                    )
        done += len(chunk)


def _not_kept(where: str, text: str, back: str, what: str = "") -> UserError:
    return UserError(
        f"{where}: the tokenizer gives back {back[:EXCERPT]!r} for {text[:EXCERPT]!r}{what}; "
        "choose a tokenizer that keeps every text, such as model.tokenizer=gpt2"
    )


def _difference(text: str, back: str) -> tuple[str, str]:
    """The words from the first difference on; of the text, and of what came back."""
    words, others = text.split(), back.split()
    first = next(
        (i for i, (a, b) in enumerate(zip(words, others, strict=False)) if a != b), min(len(words), len(others))
    )
    return " ".join(words[first:]), " ".join(others[first:])
