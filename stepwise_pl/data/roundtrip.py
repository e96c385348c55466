"""The check that a tokenizer keeps a text: texts are encoded, decoded and compared before any training."""

import logging
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.layout import MARK, answer_text, export_prompt, layout, normalize_answer, written_answer
from stepwise_pl.data.tokenizers import ids_of
from stepwise_pl.tasks.base import Example, Examples, chunks, place

log = logging.getLogger(__name__)

DRAWN = 200  # random examples of a split that are checked as a whole
LONGEST_CHECKED = 50_000  # tokens of an example that is checked as a whole
WORDS_KEPT = 1_000_000  # checked words kept in memory
PLACES_SHOWN = 5
EXCERPT = 60  # characters shown of a text that the tokenizer does not keep


def without_spaces(text: str) -> str:
    """Return the text for comparisons: without spaces, and with composed accents. A tokenizer may change both."""
    return "".join(unicodedata.normalize("NFC", text).split())


class Survey:
    """The checks of a split while it is encoded, chunk by chunk: lost text is refused, special tokens are counted.

    Attributes:
        special: for every special token that occurs in texts, the number of examples and the first places.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, examples: Examples, split: str) -> None:
        self.tokenizer, self.examples, self.split = tokenizer, examples, split
        self.special: dict[int, tuple[int, list[str]]] = {}
        self._words: set[str] = set()
        marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        # `encode` refuses the end token and the unknown token in a text.
        refused = {tokenizer.eos_token_id, tokenizer.unk_token_id}
        self._special_ids = np.array(sorted({*marked, *tokenizer.all_special_ids} - refused), np.int64)
        # The tokenizer adds these to every text by itself, for example a start token.
        self._added = [number for number in ids_of(tokenizer, "") if number in self._special_ids]

    def check_words(self, chunk: list[Example], done: int) -> None:
        """Raise `UserError` if a word of these examples does not come back from the tokenizer.

        Args:
            done: the examples of the split before the chunk.
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
        """Count the special tokens that texts hold.

        Args:
            ids: token ids of all texts, [tokens].
            count: tokens of each text, [texts].
            done: the examples of the split before the chunk.
        """
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
        """Return a line for every special token that occurs in texts."""
        return [
            f"{self.split}: the text {self.tokenizer.convert_ids_to_tokens(number)!r} in {count} examples "
            f"({', '.join(places)}{', ...' if count > len(places) else ''}) becomes one control token of the tokenizer"
            for number, (count, places) in sorted(self.special.items())
        ]


def drawn_rows(count: int, lengths: npt.NDArray[np.integer[Any]] | None = None) -> list[int]:
    """Return the rows of `count` examples to check as a whole: the first, the last, the longest, and `DRAWN` at random.

    The same arguments give the same rows.
    """
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
    """Check some examples as a whole: the tokenizer gives text and answer back, and encodes the prompt alone alike.

    Args:
        rows: the examples to check.
        parts: the tokens of each example: the prompt with its separator, and the rest.

    Returns:
        Notes on surprises that do no harm.

    Raises:
        UserError: a text is not given back; or an exported model would read another prompt than training does.
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
                    f"{where}: the tokenizer makes {read!r} of the prompt alone, but {trained!r} if a CoT follows, so that "
                    "an exported model would not read what training reads; choose another tokenizer, or one that adds no token at the end"
                )
    if not keeps_spaces:
        _refuse_equal_but_for_spaces(examples, split, tokenizer)
    if moved is None:
        return []
    return [f"{split}: the tokenizer gives answers back with other spaces ({moved[0]!r} as {moved[1]!r})"]


def _refuse_equal_but_for_spaces(examples: Examples, split: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` if two prompts, or two answers, differ in spaces alone, and the tokenizer encodes them alike."""
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
    """Return the error for a text that the tokenizer gives back as another one; `what` tells what the text is."""
    return UserError(
        f"{where}: the tokenizer gives back {back[:EXCERPT]!r} for {text[:EXCERPT]!r}{what}; "
        "choose a tokenizer that keeps every text, such as model.tokenizer=gpt2"
    )


def _difference(text: str, back: str) -> tuple[str, str]:
    """Return the words of both texts from the first difference on."""
    words, others = text.split(), back.split()
    first = next(
        (i for i, (a, b) in enumerate(zip(words, others, strict=False)) if a != b), min(len(words), len(others))
    )
    return " ".join(words[first:]), " ".join(others[first:])
