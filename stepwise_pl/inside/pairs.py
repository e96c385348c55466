"""Pairs of problems that differ in one word of the prompt: A, held out from training, and B, which A becomes by another word."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.inside.places import Place, columns
from stepwise_pl.inside.subject import Subject
from stepwise_pl.inside.tokens import tokens_at
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
        is_solvable: whether the task knows the problem of a prompt. If not, there are no pairs.
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
    is_solvable = any(task.solved([example.prompt for example in test[:1]]))
    return Pairs([test[row] for _, row in pairs], list(pairs.values()), [word for word, _ in pairs], is_solvable)


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
    """Pairs as a model reads them at a stage.

    Attributes:
        first, second: the problems A and B.
        forced: the problems B, with the answers of A.
        changed: the token in which the prompts differ, counted from their end, as places are, [pairs].
        targets: tokens in which A and B differ; their CoTs, as far as they are scored, and answers are the same before.
        target: the number of a pair's target in `targets`; -1: A and B do not differ, [pairs].
    """

    first: Subject
    second: Subject
    forced: Subject
    changed: Ints
    targets: tuple[Place, ...]
    target: Ints

    def __len__(self) -> int:
        return len(self.changed)

    def labels(self, side: Subject) -> Ints:
        """Return the target of each problem of a side as a token; -1: it has none; [pairs]."""
        found = np.full(len(self), -1)
        for number, place in enumerate(self.targets):
            found = np.where(self.target == number, tokens_at(side, place), found)
        return found

    def column(self, side: Subject, whole: CoTBatch, view: CoTBatch) -> Tensor:
        """Return the column of the target in each row of a view of a side, [batch]; -1: it has none."""
        target = torch.from_numpy(self.target)[whole.draw]
        found = torch.full_like(target, -1)
        for number, place in enumerate(self.targets):
            found = torch.where(target == number, columns(place, view, whole, side.side), found)
        return found

    def portions(self, rows: Ints, size: int) -> Iterator[Ints]:
        """Yield the pairs `rows`, by number, `size` at a time. Long problems stand together, so that there is little padding."""
        by_length = rows[np.argsort(-self.first.encoded.length[rows], kind="stable")]
        for start in range(0, len(by_length), size):
            yield by_length[start : start + size]


def tokens_of(pairs: Pairs, subject_of: Callable[[list[Example]], Subject], written: bool = False) -> TokenPairs:
    """Return the pairs whose prompts have equally many tokens, all but one the same. Some tokenizers make more of one word.

    Args:
        subject_of: gives a model problems to read.
        written: the target is the first token in which A and B differ of all that the model writes, CoT that is left included.
            Otherwise it is the first of the answer.

    Raises:
        UserError: a problem cannot be encoded.
    """
    first, second = subject_of(pairs.first), subject_of(pairs.second)
    forced = subject_of([b._replace(answer=a.answer) for a, b in zip(pairs.first, pairs.second, strict=True)])
    rows, changed = [], []
    for row in range(len(pairs)):
        one, other = (side.encoded.prompt_and_target(row)[0] for side in (first, second))
        different = [number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
        if len(one) == len(other) and len(different) == 1:
            rows.append(row)
            changed.append(different[0] - len(one))
    kept = np.array(rows, np.int64)
    first, second, forced = (side.take(kept) for side in (first, second, forced))
    targets, target = _first_differences(first, second, written)
    return TokenPairs(first, second, forced, np.array(changed, np.int64), targets, target)


def _first_differences(first: Subject, second: Subject, written: bool) -> tuple[tuple[Place, ...], Ints]:
    """Return the places at which A and B differ first, and the number of each pair's place among them, -1: none; [pairs]."""
    longest = int(max(first.encoded.answer_length.max(initial=0), second.encoded.answer_length.max(initial=0)))
    places = [Place("answer", number) for number in range(longest)]
    if written:
        most = int(first.encoded.cot_length.max(initial=0))
        places = [*(Place("cot", number) for number in range(most)), *places]
    target = np.full(len(first.texts), -1)
    for place in reversed(places):
        differs = tokens_at(first, place) != tokens_at(second, place)
        is_scored = is_written(first, place) & is_written(second, place)
        target = np.where(differs & is_scored, places.index(place), target)
    used = sorted(set(target.tolist()) - {-1})
    return tuple(places[number] for number in used), np.where(target < 0, -1, np.searchsorted(used, target))


def is_written(subject: Subject, place: Place) -> npt.NDArray[np.bool_]:
    """Whether the model writes the token at a place, in each problem, [problems]."""
    found = np.zeros(len(subject.texts), bool)
    for whole, view in subject.batches(1024):
        found[view.draw.numpy()] = (columns(place, view, whole, subject.side) >= 0).numpy()
    return found
