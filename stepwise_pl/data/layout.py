"""The text of an example: prompt, CoT and answer with their marks; and the answer read back from tokens."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.thousands import without_thousands_separators

MARK = "####"  # stands before the answer


# Wide digits and signs of East Asian fonts mean the same numbers. Other Unicode forms stay, because many mean
# something else: 10² is not 102.
_NARROW = str.maketrans("０１２３４５６７８９，．－＋", "0123456789,.-+")


def layout(example: Example, eos: str) -> str:
    """Return one example as the reference writes it: ` {prompt} {eos} {cot} {eos} #### {answer} {eos}`."""
    return f" {example.prompt} {eos} {example.cot} {eos} {MARK} {example.answer} {eos}"


def export_prompt(prompt: str, eos: str, internalized: bool) -> str:
    """Return the text to give an exported model: the prompt's part of `layout`.

    If the model is `internalized`, no CoT stands between the two separators. The text then ends with both.
    """
    return f" {prompt} {eos}{eos if internalized else ''}"


def written_answer(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the normalised answer in the tokens that follow a prompt; None if no answer was finished.

    The answer stands after `####`, between the first and the second end token.
    """
    _, mark, answer = answer_text(tokens, tokenizer).partition(MARK)
    return normalize_answer(answer) if mark else None


def answer_text(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text between the first and the second end token; empty if there are not two."""
    ends = [i for i, token in enumerate(tokens) if token == tokenizer.eos_token_id][:2]
    return str(tokenizer.decode(list(tokens[ends[0] + 1 : ends[1]]))) if len(ends) == 2 else ""


def unfinished_answer(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text in the place of an answer in the tokens that follow a prompt, normalised; empty if an answer was finished.

    It is the text behind the last `####`, or all text if there is no mark.
    """
    if written_answer(tokens, tokenizer) is not None:
        return ""
    text = str(tokenizer.decode(list(tokens))).replace(str(tokenizer.eos_token), " ")
    return normalize_answer(text.rpartition(MARK)[2])


def normalize_answer(text: str) -> str:
    """Return an answer for comparisons: with single spaces, no thousands separators, and digits of ordinary width."""
    return without_thousands_separators(" ".join(text.translate(_NARROW).split()))
