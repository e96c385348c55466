"""Pairs of problems that differ in one word of the prompt: A, held out from training, and B, which A becomes by another word."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from stepwise_pl.inside.subject import Subject
from stepwise_pl.tasks.base import Example, Examples, Task, chunks

Ints = npt.NDArray[np.int64]

# Problems that are tried for each pair: not every word has another, and many a B was trained on.
TRIED = 4
# Other words that are tried in one place of a problem.
WORDS = 12
HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class Pairs:
    """Problems A and B by pairs; their prompts have the same words but one.

    Attributes:
        word: the word in which a pair differs, counted from the end of the prompt: -1 is the last.
        is_solvable: whether the task knows the problem of any changed prompt. If not, there are no pairs.
    """

    first: list[Example]
    second: list[Example]
    word: list[int]
    is_solvable: bool = True

    def __len__(self) -> int:
        return len(self.word)


def find_pairs(task: Task, splits: Mapping[str, Examples], count: int, seed: int) -> Pairs:
    """Return pairs of problems that differ in one word. No B is a problem of training either.

    A is a problem of the test split. A word becomes another that stands in the same place of a test problem, if the result is a
    problem of the task (`Task.solved`). Every place gets the same number of pairs, or fewer if the split has no more.

    Args:
        count: pairs for each place.
        seed: the same seed gives the same pairs.
    """
    test = splits["test"].slice(0, len(splits["test"]))
    rng = np.random.default_rng(seed)
    tried = [each for word in _places(test) for each in _candidates(test, word, count, rng)]
    solved = task.solved([prompt for _, _, prompt in tried])
    found = [(*one, other) for one, other in zip(tried, solved, strict=True) if other is not None]
    trained = _trained(splits, {prompt for _, _, prompt, _ in found})
    pairs: dict[tuple[int, int], Example] = {}
    taken: dict[int, int] = {}
    for word, row, prompt, other in found:
        if prompt not in trained and (word, row) not in pairs and taken.get(word, 0) < count:
            pairs[word, row] = other
            taken[word] = taken.get(word, 0) + 1
    return Pairs([test[row] for _, row in pairs], list(pairs.values()), [word for word, _ in pairs], bool(found))


def _places(examples: Sequence[Example]) -> range:
    """Return the words of the longest prompt, the first of them first, as they count from the end."""
    return range(-max((len(_words(example)) for example in examples), default=0), 0)


def _words(example: Example) -> list[str]:
    """Return the words of a prompt; none if the prompt is more than its words with a space between them."""
    words = example.prompt.split()
    return words if " ".join(words) == example.prompt else []


def _candidates(
    examples: Sequence[Example], word: int, count: int, rng: np.random.Generator
) -> list[tuple[int, int, str]]:
    """Return prompts with another word in one place: the place, the number of the example, and the prompt."""
    rows = [row for row, example in enumerate(examples) if len(_words(example)) >= -word]
    known = sorted({_words(examples[row])[word] for row in rows})
    out = []
    for row in rng.permutation(np.array(rows, np.int64))[: TRIED * count].tolist():
        words = _words(examples[row])
        own = words[word]
        for place in rng.permutation(len(known))[: WORDS + 1].tolist():
            if known[place] != own:
                words[word] = known[place]
                out.append((word, row, " ".join(words)))
    return out


def _trained(splits: Mapping[str, Examples], prompts: set[str]) -> set[str]:
    """Return those of the prompts that training has read."""
    of_training = [split for name, split in splits.items() if name not in HELD_OUT]
    return {
        example.prompt
        for split in of_training
        for chunk in chunks(split)
        for example in chunk
        if example.prompt in prompts
    }


@dataclass(frozen=True)
class TokenPairs:
    """Pairs as a model reads them at a stage; all arrays are over the pairs, [pairs].

    Attributes:
        first, second: the problems A and B.
        forced: the problems B, with the answers of A.
        changed: the token in which the prompts differ, counted from their end, as places are.
        target: the number of the first token of the answer's part in which A and B differ; -1: their answers are the same.
    """

    first: Subject
    second: Subject
    forced: Subject
    changed: Ints
    target: Ints

    def __len__(self) -> int:
        return len(self.changed)

    def labels(self, side: Subject, number: Ints) -> Ints:
        """Return token `number` of the answer's part for each problem of a side; -1 where there is none; both [pairs]."""
        length = side.encoded.answer_length
        begin = side.encoded.start[:-1] + side.encoded.answer_start
        is_there = (number >= 0) & (number < length)
        tokens = side.encoded.tokens[np.where(is_there, begin + number, 0)].astype(np.int64)
        return np.where(is_there, tokens, -1)

    def portions(self, rows: Ints, size: int) -> Iterator[Ints]:
        """Yield the pairs `rows`, by number, `size` at a time. Long problems stand together, so that there is little padding."""
        by_length = rows[np.argsort(-self.first.encoded.length[rows], kind="stable")]
        for start in range(0, len(by_length), size):
            yield by_length[start : start + size]


def tokens_of(pairs: Pairs, subject_of: Callable[[list[Example]], Subject]) -> TokenPairs:
    """Return the pairs whose prompts have equally many tokens, all but one the same. Some tokenizers make more of one word.

    Args:
        subject_of: gives a model problems to read.

    Raises:
        UserError: a problem cannot be encoded.
    """
    first, second = subject_of(pairs.first), subject_of(pairs.second)
    forced = subject_of([b._replace(answer=a.answer) for a, b in zip(pairs.first, pairs.second, strict=True)])
    rows, changed, target = [], [], []
    for row in range(len(pairs)):
        one, other = (side.encoded.prompt_and_target(row)[0] for side in (first, second))
        different = [number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
        if len(one) == len(other) and len(different) == 1:
            rows.append(row)
            changed.append(different[0] - len(one))
            answers = zip_longest(_answer(first, row), _answer(second, row))
            target.append(next((number for number, (a, b) in enumerate(answers) if a != b), -1))
    kept = np.array(rows, np.int64)
    apart = np.array(changed, np.int64), np.array(target, np.int64)
    return TokenPairs(first.take(kept), second.take(kept), forced.take(kept), *apart)


def _answer(subject: Subject, row: int) -> list[int]:
    """Return the tokens of the answer's part: separator, mark, the answer itself, end token."""
    encoded = subject.encoded
    tokens: list[int] = encoded.tokens[encoded.start[row] + encoded.answer_start[row] : encoded.start[row + 1]].tolist()
    return tokens
