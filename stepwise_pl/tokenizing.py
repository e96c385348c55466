"""From texts to tokens: the small offline tokenizer, any Hugging Face tokenizer, and encoded splits."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stepwise_pl.batch import CoTBatch, Part
from stepwise_pl.errors import UserError, first_line
from stepwise_pl.tasks.base import Example, Examples, chunks

MARK = "####"  # stands before the answer
SMALL = "symbols"


def build_tokenizer(name: str, symbols: tuple[str, ...]) -> PreTrainedTokenizerBase:
    """`symbols`: one token per word in `symbols`; otherwise a Hugging Face tokenizer by Hub name or folder.

    Raises:
        UserError: the task's words are not known, or the tokenizer cannot be loaded.
    """
    if name == SMALL:
        if not symbols:
            raise UserError(
                "model.tokenizer=symbols: this task has no fixed set of words; name a Hugging Face tokenizer"
            )
        return small_tokenizer(symbols)
    try:
        # GPT-2's vocabulary is often handed round as two bare files, which name no tokenizer class.
        bare = (Path(name) / "merges.txt").is_file() and not (Path(name) / "tokenizer_config.json").is_file()
        tokenizer = (GPT2Tokenizer if bare else AutoTokenizer).from_pretrained(name)
    except Exception as error:
        raise UserError(
            f"model.tokenizer={name}: cannot be loaded ({first_line(error)}); without network give a local folder, "
            f"or model.tokenizer={SMALL} with model.pretrained=false"
        ) from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.tokenizer={name}: it has no end token, which separates prompt, CoT and answer")
    return tokenizer


def small_tokenizer(symbols: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """One token per word: `symbols`, the answer mark, and the end and unknown tokens. Padding is the end token.

    Sorted, so that tasks with the same words have the same ids and can share weights.
    """
    words = dict.fromkeys((*sorted(symbols), MARK, "<eos>", "<unk>"))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def layout(example: Example, eos: str) -> str:
    """One example as the reference writes it: ` {prompt} {eos} {cot} {eos} #### {answer} {eos}`."""
    return f" {example.prompt} {eos} {example.cot} {eos} {MARK} {example.answer} {eos}"


def export_prompt(prompt: str, eos: str, internalized: bool) -> str:
    """The text to give an exported model: the prompt's part of `layout`.

    With all CoT gone the second separator follows the first at once, and is given as well.
    """
    return f" {prompt} {eos}{eos if internalized else ''}"


class EncodedExamples:
    """A tokenised split, as flat arrays.

    Attributes:
        tokens: all examples' token ids, one after the other, [all tokens].
        start: where each example begins in `tokens`, and the end, [examples + 1].
        cot_start, answer_start: where those parts begin within each example, [examples].
    """

    def __init__(
        self,
        tokens: npt.NDArray[Any],
        start: npt.NDArray[np.int64],
        cot_start: npt.NDArray[np.int64],
        answer_start: npt.NDArray[np.int64],
    ) -> None:
        self.tokens, self.start, self.cot_start, self.answer_start = tokens, start, cot_start, answer_start

    def __len__(self) -> int:
        return len(self.cot_start)

    @property
    def length(self) -> npt.NDArray[np.int64]:
        """Tokens of each example, [examples]."""
        return np.diff(self.start)

    @property
    def cot_length(self) -> npt.NDArray[np.int64]:
        """m: CoT tokens of each example, [examples]."""
        return self.answer_start - self.cot_start

    def longest(self, removed: int) -> int:
        """Tokens of the longest example once `removed` CoT tokens are gone."""
        return int((self.length - np.minimum(self.cot_length, removed)).max())

    @property
    def answer_length(self) -> npt.NDArray[np.int64]:
        """Answer tokens of each example, with the second separator and the end token, [examples]."""
        return self.length - self.answer_start

    def collate(self, rows: npt.NDArray[np.int64], draw: npt.NDArray[np.int64] | None = None) -> CoTBatch:
        """The examples `rows` [batch] as one batch; `draw` [batch] numbers them in the stream (default: `rows`)."""
        length = (self.start[rows + 1] - self.start[rows])[:, None]
        column = np.arange(length.max())[None]
        inside = column < length
        tokens = self.tokens[np.where(inside, self.start[rows, None] + column, 0)].astype(np.int64)
        after_prompt = column >= self.cot_start[rows, None]
        after_cot = column >= self.answer_start[rows, None]
        part = np.where(inside, after_prompt.astype(np.int8) + after_cot, np.int8(Part.PAD))
        return CoTBatch(
            tokens=torch.from_numpy(np.where(inside, tokens, 0)),
            part=torch.from_numpy(part),
            position=torch.from_numpy(np.where(inside, column, 0)),
            draw=torch.from_numpy(np.ascontiguousarray(rows if draw is None else draw, np.int64)),
        )


def encode(examples: Examples, tokenizer: PreTrainedTokenizerBase, split: str) -> EncodedExamples:
    """Tokenise a split as one string per example, and find its parts by the separators.

    With GPT-2's tokenizer the ids are those of the reference implementation.

    Raises:
        UserError: an example holds the end token or a word that the tokenizer does not know.
    """
    eos = tokenizer.eos_token
    small = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    flat, lengths = [], []
    done = 0
    for chunk in chunks(examples):
        ids = _token_ids(tokenizer, [layout(example, eos) for example in chunk])
        lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        flat.append(np.fromiter(chain.from_iterable(ids), small, int(lengths[-1].sum())))
        _refuse_unknown(flat[-1], lengths[-1], tokenizer, chunk, split, done)
        done += len(chunk)
    tokens = np.concatenate(flat)
    start = np.concatenate([[0], np.concatenate(lengths).cumsum()])
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    owner = np.searchsorted(start, ends, side="right") - 1
    wrong = np.flatnonzero(np.bincount(owner, minlength=len(start) - 1) != 3)
    if len(wrong):
        raise UserError(
            f"{split} example {wrong[0] + 1}: has {(owner == wrong[0]).sum()} end tokens {eos!r} where 3 belong (after "
            "prompt, CoT and answer): the text must not hold one, and the tokenizer must not add any"
        )
    separators = ends.reshape(-1, 3) - start[:-1, None]
    return EncodedExamples(tokens, start, separators[:, 0] + 1, separators[:, 1])


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text. The small tokenizer is a dictionary of words, and a dictionary is ten times faster."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(getattr(backend, "model", None), models.WordLevel):
        vocabulary, unknown = tokenizer.get_vocab(), tokenizer.unk_token_id
        return [[vocabulary.get(word, unknown) for word in text.split()] for text in texts]
    return list(tokenizer(texts, return_attention_mask=False)["input_ids"])


def _refuse_unknown(
    tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], tokenizer: PreTrainedTokenizerBase,
    chunk: list[Example], split: str, done: int,
) -> None:  # fmt: skip
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return
    where = np.flatnonzero(tokens == unknown)
    if not len(where):
        return
    row = int(np.searchsorted(lengths.cumsum(), where[0], side="right"))
    words = sorted({word for word in layout(chunk[row], "").split() if unknown in tokenizer(word)["input_ids"]})
    raise UserError(f"{split} example {done + row + 1}: the tokenizer does not know {' '.join(words[:5])!r}")
