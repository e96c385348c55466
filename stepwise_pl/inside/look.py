"""Probes of one run: its problems and targets, and the rows of each of its checkpoints."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from stepwise_pl.common.errors import require
from stepwise_pl.data.batch import Part
from stepwise_pl.data.encoding import EncodedExamples
from stepwise_pl.inside.controls import RawTokens
from stepwise_pl.inside.places import Place, places_of
from stepwise_pl.inside.probing import Bench, RawSource, StatesSource
from stepwise_pl.inside.problems import Problems, Sides, draw_problems
from stepwise_pl.inside.reader import StatesReader
from stepwise_pl.inside.states import num_bytes
from stepwise_pl.inside.subject import Source, Subject
from stepwise_pl.inside.targets import targets_of
from stepwise_pl.inside.untrained import untrained
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.runs.inside import RANDOM, Probe
from stepwise_pl.tasks import Task

# Shows the progress of some pieces of work: makes a context with the function that is called after each piece.
Progress = Callable[[int], AbstractContextManager[Callable[[], Any]]]


class Wanted(Protocol):
    """The settings of `probe` (`ProbeConfig`)."""

    targets: list[str]
    problems: int
    scored: int
    split: str
    places: list[str]
    prompt_places: int
    layers: list[int]
    mlp: str
    code: str
    disk_gb: float
    batch_size: int


@dataclass
class Look:
    """Probes of one run. It holds no model.

    Attributes:
        encoded: the problems as tokens.
        answer: the place of the first word of the answer.
        layers: those that are read.
    """

    wanted: Wanted
    task: Task
    problems: Problems
    encoded: EncodedExamples
    bench: Bench
    answer: Place
    layers: Sequence[int]

    @classmethod
    def of(cls, run: TrainedRun, wanted: Wanted) -> "Look":
        """Choose problems and targets.

        Raises:
            UserError: there are too few problems, nothing to probe, or no such layer.
        """
        task = run.config.task
        splits = task.splits((str(run.tokenizer.eos_token),))
        problems = draw_problems(task, splits, wanted.problems, wanted.scored, wanted.split)
        subject = Subject.of(run, problems.texts)
        if (most := run.config.data.max_tokens) is not None:
            is_short = subject.encoded.length <= most
            problems = problems.where(is_short.tolist())
            problems.require_enough(f", of at most data.max_tokens={most} tokens")
            encoded = subject.encoded.take(np.flatnonzero(is_short))
            subject = replace(subject, texts=problems.texts, encoded=encoded)
        for layer in wanted.layers:
            require(layer <= subject.num_layers, "layers", layer, f"must be at most {subject.num_layers}")
        targets, answer = targets_of(task, subject, problems.num_fit, wanted.targets)
        bench = Bench(targets, Sides.of(problems.num_fit, problems.num_scored), wanted.mlp, wanted.code)
        layers = sorted(set(wanted.layers)) or range(subject.num_layers + 1)
        return cls(wanted, task, problems, subject.encoded, bench, answer, layers)

    def line(self, run: TrainedRun, checkpoints: int) -> str:
        """Return how much is going to be read, for reading; `run` is at the first checkpoint."""
        subject = self.subject(run)
        places = self.places(subject)
        on_disk = min(self.wanted.disk_gb, num_bytes(subject, len(places), len(self.layers)) / 1e9)
        names = dict.fromkeys(target.name.rpartition(" ")[0] for target in self.bench.targets)
        return (
            f"{checkpoints} checkpoint{'s' * (checkpoints > 1)}; at the first {len(places)} places, {len(self.layers)} layers of width "
            f"{num_bytes(subject, 1, 1) // (4 * len(subject.texts))} ({on_disk:.2g} GB on the disk), {len(self.bench.targets)} targets ({', '.join(names)}); {self.problems.line(self.task)}"
        )

    def about(self) -> dict[str, Any]:
        """Return what was chosen, for probe.json."""
        return {
            "fit": self.problems.num_fit,
            "scored": self.problems.num_scored,
            "split": self.problems.split,
            "targets": [target.name for target in self.bench.targets],
            "layers": list(self.layers),
        }

    def places(self, subject: Subject) -> list[Place]:
        """Return the places that are read at the stage of a subject; none if it has none of those that are wanted."""
        wanted = self.wanted.places
        # Who names a word of the prompt need not count how many words to read.
        named = [-Place.parse(name).number for name in wanted if name.startswith("prompt ")]
        num_prompt = max([self.wanted.prompt_places, *named])
        found = places_of(subject.batches(self.wanted.batch_size), subject.side, num_prompt)

        def is_wanted(place: Place) -> bool:
            is_near = place.part != "prompt" or -place.number <= self.wanted.prompt_places
            return str(place) in wanted or (is_near and (not wanted or place.part in wanted))

        return [place for place in found if is_wanted(place)]

    def subject(self, run: TrainedRun) -> Subject:
        """Return the model of a checkpoint with the problems. Raise `UserError` if they are too long for it."""
        return Subject.of_encoded(run, self.problems.texts, self.encoded)

    def rows(self, run: TrainedRun, folder: Path, progress: Progress) -> list[Probe]:
        """Probe a checkpoint, and give up its weights; none if it has no place that is wanted.

        Args:
            folder: for the states, which are left there.
        """
        subject = self.subject(run)
        places = self.places(subject)
        if not places:
            return []
        in_view = cot_in_view(subject, self.wanted.batch_size)
        given_from = [target.given_from(in_view, self.answer) for target in self.bench.targets]
        spots = len(places) * (2 * len(self.layers) + 1)
        with progress(self.bench.num_pieces(spots, 3)) as self.bench.advance:
            own = StatesSource(self._reader(subject, places, folder))
            found = self.bench.probe(own, given_from, with_shuffled=True)
            random = StatesSource(self._reader(self.subject(untrained(run, instead=True)), places, folder), RANDOM)
            raw = RawSource(RawTokens(subject, places, self.wanted.batch_size))
            found += [each for control in (random, raw) for each in self.bench.probe(control, given_from, beside=found)]
        found += self.bench.constant()
        return [self.bench.row(each, Source.of(run)) for each in found]

    def _reader(self, subject: Subject, places: Sequence[Place], folder: Path) -> StatesReader:
        return StatesReader(subject, places, self.layers, folder, self.wanted.disk_gb * 1e9, self.wanted.batch_size)


def cot_in_view(subject: Subject, batch_size: int) -> set[int]:
    """Return the numbers of the CoT tokens that the view of any example has."""
    found: set[int] = set()
    for whole, view in subject.batches(batch_size):
        all_tokens, left = whole.length_of(Part.COT), view.length_of(Part.COT)
        begin = all_tokens - left if subject.side == "left" else torch.zeros_like(left)
        for first, count in set(zip(begin.tolist(), left.tolist(), strict=True)):
            found |= set(range(first, first + count))
    return found
