"""Quantities behind the answers (`Task.values`), laid beside the tokens of a split."""

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.encoding import EncodedExamples, answer_frame, ranges
from stepwise_pl.tasks.base import Examples, Task, chunks, place


def values_beside(
    task: Task, name: str, examples: Examples, encoded: EncodedExamples, tokenizer: PreTrainedTokenizerBase, split: str
) -> npt.NDArray[np.float32]:
    """Return a quantity of all examples of a split, each number beside its token of the answer.

    Returns:
        [all tokens] float32; nan beside all tokens but those of answers.

    Raises:
        UserError: the task has no such quantity, or an answer has another number of tokens than of values.
    """
    first_answer = encoded.tokens[encoded.start[0] + encoded.answer_start[0] : encoded.start[1]].tolist()
    before, after = answer_frame(first_answer, tokenizer)
    begins = encoded.start[:-1] + encoded.answer_start + before
    tokens = encoded.answer_length - before - after
    out = np.full(len(encoded.tokens), np.nan, np.float32)
    done = 0
    for chunk in chunks(examples):
        numbers = task.values(name, chunk)
        count = np.fromiter(map(len, numbers), np.int64, len(numbers))
        rows = slice(done, done + len(chunk))
        wrong = np.flatnonzero(count != tokens[rows])
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"{place(examples, split, done + row)}: {name} has {count[row]} numbers, and the answer {chunk[row].answer!r} "
                f"has {tokens[done + row]} tokens; a loss on {name} needs a tokenizer that gives every digit a token"
            )
        out[ranges(begins[rows], count)] = np.concatenate(numbers)
        done += len(chunk)
    return out
