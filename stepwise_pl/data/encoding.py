"""From texts to tokens: encoded splits, with the beginnings of parts and steps."""

import re
from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.config.model import SMALL
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.layout import MARK, layout
from stepwise_pl.data.layout import export_prompt as export_prompt
from stepwise_pl.data.roundtrip import Survey, check_examples, drawn_rows
from stepwise_pl.data.tokenizers import backend_model, give_decoder, ids_of, is_word_list, num_ids
from stepwise_pl.tasks.base import Example, Examples, chunks, place

Ints = npt.NDArray[np.integer[Any]]

# Python's `split` counts these four as spaces. Tokenizers do not.
PYTHON_SPACES = re.compile("[\x1c-\x1f]")


def answer_frame(answer: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return how many tokens of the answer's part stand before the answer itself, and how many after it.

    Separator and mark stand before it, the end token after it. Some tokenizers, for example
    GPT-2's, have a space before the end token. If tokens are characters, a space also stands
    between mark and answer.
    """
    before = next(i for i in range(1, len(answer) + 1) if i == len(answer) or MARK in tokenizer.decode(answer[1:i]))
    while before < len(answer) - 1 and not str(tokenizer.decode([answer[before]])).strip():
        before += 1
    after = 1
    while before + after < len(answer) and not str(tokenizer.decode([answer[-after - 1]])).strip():
        after += 1
    return before, after


class EncodedExamples:
    """A tokenised split, as flat arrays.

    Attributes:
        tokens: token ids of all examples, one after the other, [all tokens].
        start: index in `tokens` at which each example begins, and at last their end, [examples + 1].
        cot_start, answer_start: tokens of each example before its CoT, and before its answer's part, [examples].
        step_start: indices in `tokens` at which reasoning steps begin, ascending, [all steps];
            None if the unit of removal is a token.
        values: quantities by name (`Task.values`), each [all tokens] float32: the number behind an answer token at its
            place, nan elsewhere.
    """

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        start: Ints,
        cot_start: Ints,
        answer_start: Ints,
        step_start: Ints | None = None,
        values: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        self.tokens, self.start, self.cot_start, self.answer_start = tokens, start, cot_start, answer_start
        self.values = dict(values or {})
        self.step_start = step_start
        self._first_step = None if step_start is None else np.searchsorted(step_start, start)

    def __len__(self) -> int:
        return len(self.cot_start)

    def prompt_and_target(self, row: int) -> tuple[list[int], list[int]]:
        """Return the tokens of an example's prompt, with the first separator, and of its CoT and answer."""
        tokens = self.tokens[self.start[row] : self.start[row + 1]].tolist()
        return tokens[: self.cot_start[row]], tokens[self.cot_start[row] :]

    def take(self, rows: Ints) -> "EncodedExamples":
        """Return the examples `rows` [n], in that order."""
        first_step = self._first_step
        steps = None
        if self.step_start is not None and first_step is not None:
            shift = np.cumsum(self.length[rows]) - self.length[rows] - self.start[rows]
            steps = self.step_start[ranges(first_step[rows], self.units[rows])] + np.repeat(shift, self.units[rows])
        kept = ranges(self.start[rows], self.length[rows])
        return EncodedExamples(
            self.tokens[kept],
            np.concatenate([[0], np.cumsum(self.length[rows])]),
            self.cot_start[rows],
            self.answer_start[rows],
            steps,
            {name: numbers[kept] for name, numbers in self.values.items()},
        )

    @property
    def length(self) -> Ints:
        """Tokens of each example, [examples]."""
        return np.diff(self.start)

    @property
    def prompt_length(self) -> Ints:
        """Prompt tokens of each example, with the first separator, [examples]."""
        return self.cot_start

    @property
    def cot_length(self) -> Ints:
        """CoT tokens of each example, [examples]."""
        return self.answer_start - self.cot_start

    @property
    def answer_length(self) -> Ints:
        """Answer tokens of each example, with the second separator and the end token, [examples]."""
        return self.length - self.answer_start

    @property
    def units(self) -> Ints:
        """m: units of removal (tokens, or reasoning steps) in the CoT of each example, [examples]."""
        return self.cot_length if self._first_step is None else np.diff(self._first_step)

    def cot_left(self, removed: int, side: str = "left") -> Ints:
        """Return the CoT tokens left in each example once `removed` units are gone, [examples]."""
        if self.step_start is None or self._first_step is None:
            return np.maximum(self.cot_length - removed, 0)
        if removed == 0:
            return self.cot_length
        left = np.zeros(len(self), np.int64)
        rows = np.flatnonzero(self.units > removed)
        if side == "left":
            first_kept = self.step_start[self._first_step[rows] + removed]
            left[rows] = self.start[rows] + self.answer_start[rows] - first_kept
        else:
            first_gone = self.step_start[self._first_step[rows + 1] - removed]
            left[rows] = first_gone - self.start[rows] - self.cot_start[rows]
        return left

    def longest_cot(self, removed: int, side: str = "left") -> int:
        """Return the tokens of the longest CoT once `removed` units are gone."""
        if self.step_start is None:  # a quicker way to the same number
            return max(int(self.cot_length.max()) - removed, 0)
        return int(self.cot_left(removed, side).max())

    def longest(self, removed: int, side: str = "left") -> int:
        """Return the tokens of the longest example once `removed` units of its CoT are gone."""
        return int((self.length - self.cot_length + self.cot_left(removed, side)).max())

    def collate(self, rows: npt.NDArray[np.int64], draw: npt.NDArray[np.int64] | None = None) -> CoTBatch:
        """Return the examples `rows` [batch] as one batch; `draw` [batch] are their numbers in the stream (default: `rows`)."""
        start = self.start[rows, None]
        length = self.start[rows + 1, None] - start
        column = np.arange(length.max())[None]
        inside = column < length
        place = np.where(inside, start + column, 0)
        tokens = self.tokens[place].astype(np.int64)
        after_prompt = column >= self.cot_start[rows, None]
        after_cot = column >= self.answer_start[rows, None]
        part = np.where(after_prompt, np.int8(Part.COT), np.int8(Part.PROMPT))
        part = np.where(after_cot, np.int8(Part.ANSWER), part)
        part = np.where(inside, part, np.int8(Part.PAD))
        return CoTBatch(
            tokens=torch.from_numpy(np.where(inside, tokens, 0)),
            part=torch.from_numpy(part),
            position=torch.from_numpy(np.where(inside, column, 0)),
            unit_start=torch.from_numpy(part == Part.COT if self.step_start is None else self._steps(rows, column)),
            draw=torch.from_numpy(np.ascontiguousarray(rows if draw is None else draw, np.int64)),
            values={
                name: torch.from_numpy(np.where(inside, numbers[place], np.float32(np.nan)))
                for name, numbers in self.values.items()
            },
        )

    def _steps(self, rows: npt.NDArray[np.int64], column: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return whether a reasoning step begins at each token; [batch, seq]."""
        assert self.step_start is not None and self._first_step is not None
        out = np.zeros((len(rows), column.shape[1]), bool)
        for index, row in enumerate(rows):
            out[index, self.step_start[self._first_step[row] : self._first_step[row + 1]] - self.start[row]] = True
        return out


def ranges(start: Ints, count: Ints) -> Ints:
    """Return start[0], start[0] + 1, ... (`count[0]` numbers), start[1], ...; [sum of counts]."""
    ends = np.cumsum(count)
    return np.arange(count.sum()) + np.repeat(start - ends + count, count)


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    by_step: bool = False,
    notes: list[str] | None = None,
) -> EncodedExamples:
    """Tokenise a split as one string per example, and find its parts by the separators.

    With GPT-2's tokenizer the ids are those of the reference implementation.

    Args:
        by_step: find the beginnings of reasoning steps as well; the unit of removal is then a step.
        notes: a list to add notes for a person to, for example on special tokens in the texts.

    Raises:
        UserError: an example holds the end token, a word that the tokenizer does not know or
            does not give back, or (with `by_step`) a CoT without steps.
    """
    give_decoder(tokenizer)
    eos = str(tokenizer.eos_token)
    quick = is_word_list(tokenizer) and _same_as_words(examples, tokenizer)
    small = np.min_scalar_type(num_ids(tokenizer) - 1)
    survey = Survey(tokenizer, examples, split)
    flat, lengths, steps = [], [], []
    done = written = 0
    for chunk in chunks(examples):
        texts = [layout(example, eos) for example in chunk]
        try:
            ids, count, ends = _token_ids(tokenizer, texts, by_step, quick)
        except NotEncoded as error:
            raise UserError(f"{place(examples, split, done + error.row)}: {error}") from None
        _refuse_unknown(ids, count, tokenizer, examples, chunk, split, done, quick)
        if not quick:  # a dictionary of words keeps every word that it knows
            survey.check_words(chunk, done)
        survey.count_special(ids, count, done)
        if by_step:
            without = next((i for i, example in enumerate(chunk) if example.cot and not example.steps), None)
            if without is not None:
                raise UserError(
                    f"{place(examples, split, done + without)}: its CoT has no reasoning steps, which method.unit=step "
                    "removes: give the CoT as a list of steps, or set the text that begins a step (task.step_start of task=file), or remove tokens"
                )
            steps.append(written + _step_starts(chunk, eos, count, ends))
        flat.append(ids.astype(small))
        lengths.append(count)
        done += len(chunk)
        written += len(ids)
    tokens = np.concatenate(flat)
    start = np.concatenate([[0], np.concatenate(lengths).cumsum()])
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    owner = np.searchsorted(start, ends, side="right") - 1
    wrong = np.flatnonzero(np.bincount(owner, minlength=len(start) - 1) != 3)
    if len(wrong):
        row = int(wrong[0])
        held = any(eos in text for text in examples.slice(row, row + 1)[0][:3])
        reason = (
            "the text must not hold one" if held else "the tokenizer must know it as one token, and add none by itself"
        )
        raise UserError(
            f"{place(examples, split, row)}: has {(owner == row).sum()} end tokens {eos!r} where 3 belong "
            f"(after prompt, CoT and answer): {reason}"
        )
    separators = (ends.reshape(-1, 3)[:, :2] - start[:-1, None]).astype(np.int32)
    encoded = EncodedExamples(tokens, start, separators[:, 0] + 1, separators[:, 1].copy())
    rows = drawn_rows(len(encoded), encoded.length)
    example_notes = check_examples(examples, split, tokenizer, rows, map(encoded.prompt_and_target, rows))
    if notes is not None:
        notes += [*survey.notes(), *example_notes]
    if not by_step:
        return encoded
    # The first step begins with the CoT.
    first = (start[:-1] + encoded.cot_start)[encoded.cot_length > 0]
    step_start = np.unique(np.concatenate([first, *steps]))
    return EncodedExamples(tokens, start, encoded.cot_start, encoded.answer_start, step_start)


def _step_starts(
    chunk: list[Example], eos: str, count: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the first token of every reasoning step but the first one of each example, counted over the chunk; [steps].

    A step begins with the first token that ends behind the step's first character.

    Args:
        eos: the end token as text.
        count: tokens of each example, [examples].
        ends: end of each token in its text, [tokens]; empty for a word list, whose tokens are words.
    """
    out = []
    for example, first, tokens in zip(chunk, count.cumsum() - count, count, strict=True):
        if len(ends):
            before = layout(example, eos).index(eos) + len(eos) + 1
            at = [before + step for step in example.steps[1:]]
            out.append(first + np.searchsorted(ends[first : first + tokens], at, side="right"))
        else:
            before = len(example.prompt.split()) + 1
            words = [len(example.cot[:step].split()) for step in example.steps[1:]]
            out.append(first + before + np.array(words, np.int64))
    return np.concatenate(out) if out else np.empty(0, np.int64)


def _same_as_words(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a dictionary of words gives the tokenizer's own ids for some of the examples."""
    eos = str(tokenizer.eos_token)
    texts = [layout(examples.slice(row, row + 1)[0], eos) for row in drawn_rows(len(examples))]
    ids, count, _ = _word_ids(tokenizer, texts)
    return [row.tolist() for row in np.split(ids, count.cumsum()[:-1])] == [ids_of(tokenizer, text) for text in texts]


def _word_ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Do the work of `_token_ids` with a dictionary of words, ten times faster than the tokenizer."""
    vocabulary, unknown = tokenizer.get_vocab(), tokenizer.unk_token_id
    words = [text.split() for text in texts]
    ids = np.fromiter(map(vocabulary.get, chain.from_iterable(words), repeat(unknown)), np.int64)
    return ids, np.fromiter(map(len, words), np.int64, len(words)), np.empty(0, np.int64)


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], offsets: bool, quick: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the token ids of all texts [tokens], the tokens of each text [texts], and the end of each token in its text.

    Args:
        offsets: whether to find the ends, [tokens]; they are empty otherwise.
        quick: whether tokens are words (`is_word_list`). The ends are then always empty.

    Raises:
        NotEncoded: the tokenizer fails on a text.
        UserError: ends are wanted, and the tokenizer is not a fast one.
    """
    if quick and not PYTHON_SPACES.search("".join(texts)):
        return _word_ids(tokenizer, texts)
    if offsets and backend_model(tokenizer) is None:
        raise UserError(
            "method.unit=step needs a fast tokenizer, because only that gives the place of each token in the text"
        )
    try:
        out = tokenizer(texts, return_attention_mask=False, return_offsets_mapping=offsets)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no `Exception`
        raise NotEncoded(tokenizer, texts, error) from None
    count = np.fromiter(map(len, out["input_ids"]), np.int64, len(texts))
    ids = np.fromiter(chain.from_iterable(out["input_ids"]), np.int64, int(count.sum()))
    ends = [end for pairs in out["offset_mapping"] for _, end in pairs] if offsets else []
    return ids, count, np.array(ends, np.int64)


class NotEncoded(Exception):
    """A tokenizer fails on a text, as a word list without an unknown token does. The message names the unknown words.

    Attributes:
        row: the first text that it cannot encode.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[str], error: BaseException) -> None:
        def breaks(text: str) -> bool:
            try:
                tokenizer(text)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                return True
            return False

        self.row = next((row for row, text in enumerate(texts) if breaks(text)), 0)
        text = texts[self.row].replace(str(tokenizer.eos_token), " ")
        pieces = set(filter(breaks, set(text))) or set(filter(breaks, text.split()))
        known = f"the tokenizer does not know {' '.join(sorted(pieces)[:5])!r}" if pieces else "the tokenizer fails"
        super().__init__(f"{known} ({first_line(error)}); choose another tokenizer")


def _refuse_unknown(
    tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], tokenizer: PreTrainedTokenizerBase,
    examples: Examples, chunk: list[Example], split: str, done: int, quick: bool,
) -> None:  # fmt: skip
    """Raise `UserError` if a text of the chunk holds the unknown token; the arguments are those of the loop in `encode`."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:  # `Survey.check_words` finds the word in the second case
        return
    where = np.flatnonzero(tokens == unknown)
    if not len(where):
        return
    row = int(np.searchsorted(lengths.cumsum(), where[0], side="right"))
    pieces = sorted(_unknown_pieces(tokenizer, layout(chunk[row], "")))
    hint = (
        f"; for free text set model.tokenizer to a Hugging Face tokenizer (name or folder), not {SMALL}"
        if quick
        else ""
    )
    if tokenizer.unk_token in pieces:
        hint = f" ({tokenizer.unk_token} stands for all that it does not know)" + hint
    raise UserError(f"{place(examples, split, done + row)}: the tokenizer does not know {' '.join(pieces[:5])!r}{hint}")


def _unknown_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> set[str]:
    """Return the words of a text that become the unknown token; if no single word does, its characters that do."""
    unknown, pieces = tokenizer.unk_token_id, set[str]()
    if tokenizer.is_fast:
        out = tokenizer(text, return_offsets_mapping=True)
        places = zip(out["input_ids"], out["offset_mapping"], strict=True)
        pieces = {text[begin:end] for number, (begin, end) in places if number == unknown}
        pieces = {piece.strip() or piece for piece in pieces}
    if pieces and all(pieces):
        return pieces
    words = {word for word in text.split() if unknown in ids_of(tokenizer, word)}
    return words or {letter for letter in text if unknown in ids_of(tokenizer, letter)}
