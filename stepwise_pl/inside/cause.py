"""One checkpoint under `patch`: patches and swaps of pairs of problems, and ablations."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from stepwise_pl.common.errors import require
from stepwise_pl.evaluation.problems import digest
from stepwise_pl.inside.ablation import Settings, ablations
from stepwise_pl.inside.directions import Problems
from stepwise_pl.inside.interchange import interchange, patch_places, patch_rows, right_pairs
from stepwise_pl.inside.overview import thinned
from stepwise_pl.inside.pairs import Pairs, find_pairs, tokens_of
from stepwise_pl.inside.places import Place, places_of
from stepwise_pl.inside.subject import Source, Subject
from stepwise_pl.inside.swaps import swap_rows, swaps
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.runs.inside import FOLDER, Ablation, Patch, Swap
from stepwise_pl.tasks import Example, ExampleList

log = logging.getLogger("stepwise_pl")

Progress = Callable[[float], None]


class Wanted(Protocol):
    """The settings of `patch` (`PatchConfig`)."""

    token: str
    pairs: int
    places: list[str]
    most_places: int
    layers: list[int]
    problems: int
    fit_problems: int
    ablate: str
    seed: int
    batch_size: int


@dataclass
class Texts:
    """The problems of a task.

    Attributes:
        pairs: problems that differ in one word of the prompt.
        fit, held_back, scored: problems of training, validation and test, for the ablations.
    """

    pairs: Pairs
    fit: Sequence[Example]
    held_back: Sequence[Example]
    scored: Sequence[Example]

    @property
    def digest(self) -> str:
        """A digest of all problems."""
        return digest(ExampleList([*self.pairs.first, *self.pairs.second, *self.fit, *self.held_back, *self.scored]))


def texts_of(run: TrainedRun, wanted: Wanted) -> Texts:
    """Return the problems of a run's task. A warning tells if there are no pairs, or nothing to ablate.

    Raises:
        UserError: the problems cannot be read.
    """
    task = run.config.task
    splits = task.splits((str(run.tokenizer.eos_token),))
    pairs = find_pairs(task, splits, wanted.pairs, wanted.seed)
    if not pairs.is_solvable:
        why = "does not say which problem a changed prompt is (`solved`, docs/extending.md)"
        log.warning("task=%s: %s; no patches, no swaps", task.kind, why)
    elif not len(pairs):
        why = "every problem that differs in one word from one of test was trained on"
        log.warning("task=%s: %s; no patches, no swaps", task.kind, why)
    most = {"train": wanted.fit_problems, "validation": wanted.problems, "test": wanted.problems}
    fit, held_back, scored = (splits[name].slice(0, min(count, len(splits[name]))) for name, count in most.items())
    if wanted.problems and not (held_back and scored):
        log.warning("task=%s: validation or test has no problem; no ablations", task.kind)
    return Texts(pairs, fit, held_back, scored)


def patches_and_swaps(
    run: TrainedRun, texts: Texts, wanted: Wanted, progress: Progress
) -> tuple[list[Patch], list[Swap], dict[str, Any]]:
    """Return the tables of patches and of swaps of a checkpoint, and the numbers of its pairs.

    Raises:
        UserError: a problem does not fit the model, or the model has no such layer.
    """
    source, size, layers = Source.of(run), wanted.batch_size, layers_of(run, wanted.layers)
    facts = {**source._asdict(), "pairs": len(texts.pairs), "right_pairs": 0}
    if not len(texts.pairs):
        return [], [], facts
    pairs = tokens_of(texts.pairs, partial(Subject.of, run), wanted.token == "written")
    facts |= {"pairs_of_equal_length": len(pairs), "pairs_with_target": int((pairs.target >= 0).sum())}
    if not len(pairs):
        log.warning(
            "%s: no pair has prompts of equally many tokens that differ in one; no patches, no swaps", source.checkpoint
        )
        return [], [], facts
    rows = right_pairs(pairs, size)
    facts["right_pairs"] = len(rows)
    log.info(
        "%s: %d pairs of problems; %s differ in %d, and the model gets both right in %d of these",
        source.checkpoint, len(pairs), "their answers" if wanted.token == "answer" else "the texts to write",
        facts["pairs_with_target"], len(rows),
    )  # fmt: skip
    places = chosen(patch_places(pairs, size), pairs.first, wanted)
    moves = interchange(pairs, rows, places, layers, size, progress)
    return patch_rows(moves, pairs, source), swap_rows(swaps(pairs, size), pairs, source), facts


def ablations_of(run: TrainedRun, texts: Texts, wanted: Wanted, progress: Progress) -> list[Ablation]:
    """Return the table of ablations of a checkpoint; none if they are not wanted, or there are no problems for them.

    Raises:
        UserError: a problem does not fit the model, or the model has no such layer.
    """
    if not (wanted.problems and texts.held_back and texts.scored):
        return []
    parts = texts.fit, texts.held_back, texts.scored
    ends = np.cumsum(list(map(len, parts)))
    subject = Subject.of(run, [text for part in parts for text in part])
    problems = Problems(subject, *np.split(np.arange(ends[-1]), ends[:-1]))
    places = chosen(places_of(subject.batches(wanted.batch_size), subject.side), subject, wanted)
    settings = Settings(
        run.path / FOLDER, wanted.batch_size, wanted.seed, wanted.ablate == "all", wanted.token == "written"
    )
    return ablations(problems, Source.of(run), places, layers_of(run, wanted.layers), settings, progress)


def layers_of(run: TrainedRun, asked: Sequence[int]) -> list[int]:
    """Return the layers asked for, or all but the last: nothing but its own prediction reads the last state.

    Raises:
        UserError: the model has no such layer, or it is the last.
    """
    last = int(run.model.config.get_text_config().num_hidden_layers) - 1
    why = f"the model has {last + 1} layers, and nothing but its own prediction reads the state after the last"
    for layer in asked:
        require(layer <= last, "layers", layer, f"must be at most {last}: {why}")
    return sorted(set(asked)) or list(range(last + 1))


def chosen(places: Sequence[Place], subject: Subject, wanted: Wanted) -> list[Place]:
    """Return the places that have one of the names asked for, or are in one of the parts; some of each part if no names are asked for."""
    if not wanted.places:
        return thinned(places, subject, wanted.most_places)
    return [place for place in places if str(place) in wanted.places or place.part in wanted.places]
