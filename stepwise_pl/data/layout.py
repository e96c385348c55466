"""An example as one text: prompt, CoT and answer with their marks, and the answer read back."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from stepwise_pl.tasks.base import Example, without_thousands_separators

MARK = "####"  # stands before the answer


# Digits and signs of East Asian width: the same numbers. Other characters of another form stay what they are,
# because many mean something else: 10² is not 102.
_NARROW = str.maketrans("０１２３４５６７８９，．－＋", "0123456789,.-+")


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


def normalize_answer(text: str) -> str:
    """An answer as it is compared: single spaces, no thousands separators, digits of ordinary width."""
    return without_thousands_separators(" ".join(text.translate(_NARROW).split()))
