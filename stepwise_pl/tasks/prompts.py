"""Prompts of own data: how two are compared, how some are held out, and the prompts that two splits share."""

import hashlib
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import combinations, groupby

from stepwise_pl.tasks.base import SPLITS, ExampleList, Examples, Splits, chunks

COMPARED = "compared without regard to spaces and Unicode forms (NFKC); case counts"
# Characters without width. They are not part of the text: soft hyphen, zero-width space, word joiner, byte-order mark.
_NO_WIDTH = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))


def has_no_width(text: str) -> bool:
    return not text.isascii() and text != text.translate(_NO_WIDTH)


def normal(prompt: str) -> str:
    """Return a prompt for comparisons. Spaces, line breaks and Unicode forms do not count; case does.

    `é` may be one character or two, digits may be wide, `ﬁ` may be one letter (NFKC). Exponents, indices and fractions
    stay, though NFKC would make 52 of 5².
    """
    if not prompt.isascii():
        prompt = "".join(
            "".join(part) if stays else unicodedata.normalize("NFKC", "".join(part))
            for stays, part in groupby(prompt.translate(_NO_WIDTH), _keeps_meaning)
        )
    return " ".join(prompt.split())


@cache
def _keeps_meaning(character: str) -> bool:
    return unicodedata.decomposition(character).startswith(("<super>", "<sub>", "<fraction>"))


def prompts(examples: Examples) -> dict[str, str]:
    """Return the distinct prompts of a split, in order, each with the first of its spellings in alphabetical order."""
    found: dict[str, str] = {}
    for chunk in chunks(examples):
        for example in chunk:
            spelled = " ".join(example.prompt.split())
            key = normal(spelled)
            found[key] = min(found.get(key, spelled), spelled)
    return found


def hold_out(examples: ExampleList, size: int, salt: str) -> tuple[ExampleList, ExampleList]:
    """Hold the examples of `size` distinct prompts out, chosen by a hash of their text.

    Returns:
        The examples that stay, and those that are held out.
    """
    # The hash takes the text as it is spelled. Older runs, made before Unicode forms were compared, so keep their splits.
    spelled = prompts(examples)

    def rank(prompt: str) -> bytes:
        return hashlib.blake2b(spelled[prompt].encode(), key=salt.encode()).digest()

    chosen = set(sorted(spelled, key=rank)[:size])
    inside = [normal(example.prompt) in chosen for example in examples]
    kept, held = examples.where([not here for here in inside]), examples.where(inside)
    kept.malformed = examples.malformed
    return kept, held


def overlaps(splits: Splits) -> Iterable[tuple[str, str, list[str]]]:
    """Yield every two splits that share prompts, with those prompts."""
    of = {split: prompts(examples) for split, examples in splits.items()}
    for one, other in combinations(SPLITS, 2):
        if shared := [prompt for prompt in of[other] if prompt in of[one]]:
            yield one, other, shared
