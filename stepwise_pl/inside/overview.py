"""Lens, attention, geometry of digits and similarity of a run: one kept checkpoint after the other, on the same problems."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from stepwise_pl.common.errors import UserError
from stepwise_pl.inside.attention import attention_rows, mean_attention, most_places, num_heads
from stepwise_pl.inside.fourier import LEAST_DIGITS, fourier_of_embeddings, fourier_of_states
from stepwise_pl.inside.logit_lens import grids, lens_rows
from stepwise_pl.inside.places import Place, places_of
from stepwise_pl.inside.similarity import similarity_rows
from stepwise_pl.inside.states import States, num_bytes, room, write_states
from stepwise_pl.inside.subject import Source, Subject
from stepwise_pl.inside.tokens import BATCH_SIZE, copies, digit_tokens, gone, looked_for
from stepwise_pl.inside.untrained import untrained
from stepwise_pl.models.trained_run import TrainedRun, load_run
from stepwise_pl.runs.inside import Attention, Fourier, Grid, Lens, Similarity
from stepwise_pl.runs.predictions import digest_of
from stepwise_pl.runs.saved_config import differences_of_task
from stepwise_pl.tasks import Example

log = logging.getLogger(__name__)

RANDOM = "random"
# The parts of the look at a checkpoint that `tick` is told of.
PHASES = 5


class Asked(Protocol):
    """The bounds of a look (`LensConfig`)."""

    shown: int
    prompt_places: int | None
    places: int
    tokens: int
    attention_rows: int
    batch_size: int


@dataclass
class Tables:
    """The findings of a look: the rows of all tables, and facts about them.

    Attributes:
        checkpoints: an entry for each checkpoint: its name, digest, step, stage, places, and tokens that are gone.
        copies: tokens that are looked for, and where the same token stands in every problem.
        notes: sentences about what could not be made.
    """

    lens: list[Lens] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    fourier: list[Fourier] = field(default_factory=list)
    similarity: list[Similarity] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    copies: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Note why something is missing; each reason once."""
        if text not in self.notes:
            self.notes.append(text)
            log.warning("%s", text)


@dataclass
class Overview:
    """A look at the checkpoints of one run.

    Args:
        texts: the problems.
        scratch: a folder for states, which is gone afterwards.
        beside: folders of other runs, by the names they go by in the table.
        tick: called before each part of the look, with words for the progress bar.
    """

    asked: Asked
    texts: list[Example]
    scratch: Path
    device: torch.device
    num_checkpoints: int
    tick: Callable[[str], object]
    tables: Tables = field(default_factory=Tables)
    first: tuple[str, States] | None = None
    beside: dict[str, States] = field(default_factory=dict)

    def add_beside(self, name: str, run: TrainedRun) -> dict[str, Any]:
        """Read the problems with the last checkpoint of another run; return what it was.

        Args:
            run: the run that is looked at.

        Raises:
            UserError: the other run cannot be read, or has another task or vocabulary.
        """
        where = f"beside={name}"
        if not (Path(name) / "config.yaml").is_file():
            raise UserError(f"{where}: no config.yaml there; give the folder of a training run")
        if differ := differences_of_task(Path(name), run.config.task):
            raise UserError(f"{where}: has another task ({'; '.join(differ)}); give a run of the same one")
        other = load_run(name, "last")
        if other.tokenizer.get_vocab() != run.tokenizer.get_vocab():
            raise UserError(f"{where}: has another vocabulary; give a run of the same tokenizer")
        other.to(self.device)
        self.beside[name] = self._states(Subject.of(other, self.texts), f"beside-{len(self.beside)}")
        return {"run": name, "checkpoint": other.checkpoint.name, "digest": digest_of(other.checkpoint)}

    def look(self, run: TrainedRun) -> None:
        """Look at a checkpoint of the run, and add what is found to the tables.

        Raises:
            UserError: the problems cannot be read by the model, or the disk does not hold its states.
        """
        run.to(self.device)
        subject = Subject.of(run, self.texts)
        where = Source.of(run)
        tokens = looked_for(subject, self.asked.tokens)
        self.tick(f"{where.checkpoint}: reading")
        states = self._states(subject, "trained" if self.first else "first")
        self.tick(f"{where.checkpoint}: lens")
        self._lens(subject, states, tokens, where, "trained")
        self.tick(f"{where.checkpoint}: attention")
        self._attention(subject, states.places, where)
        self._fourier(subject, states, where)
        if self.first is not None:
            self.tables.similarity += similarity_rows(states, self.first[1], self.first[0], where)
        for name, others in self.beside.items():
            self.tables.similarity += similarity_rows(states, others, name, where)
        self.tables.checkpoints.append({
            "checkpoint": where.checkpoint, "digest": digest_of(run.checkpoint), "step": run.step, "stage": run.stage,
            "stage_name": run.stage_name, "removed_tokens": run.removed_tokens, "places": list(map(str, states.places)),
            "gone": list(map(str, gone(subject, tokens))),
        })  # fmt: skip
        self.tables.copies |= {str(place): list(map(str, others)) for place, others in copies(subject, tokens).items()}
        self.first = self.first or (f"stage {run.stage}", states)
        self._look_at_random(run, subject, states, tokens, where)

    def _look_at_random(
        self, run: TrainedRun, subject: Subject, states: States, tokens: Sequence[Place], where: Source
    ) -> None:
        """Add what the same model shows with random weights."""
        self.tick(f"{where.checkpoint}: reading with random weights")
        fresh = Subject.of(untrained(run), self.texts)
        of_random = write_states(fresh, states.places, states.layers, self.scratch / RANDOM, self.asked.batch_size)
        self.tick(f"{where.checkpoint}: lens with random weights")
        self._lens(fresh, of_random, tokens, where, RANDOM)
        self.tables.similarity += similarity_rows(states, of_random, RANDOM, where)

    def _states(self, subject: Subject, name: str) -> States:
        """Read the problems; return the states at the places that all of them have, after all layers."""
        asked = self.asked
        places = thinned(
            places_of(subject.batches(BATCH_SIZE), subject.side, asked.prompt_places), subject, asked.places
        )
        layers = range(subject.num_layers + 1)
        needed, free = num_bytes(subject, len(places), len(layers)), room(self.scratch)
        # The first, the present and the random ones are there together, and those of other runs.
        if needed > free // (4 + len(self.beside)):
            raise UserError(
                f"problems={len(self.texts)}: their states take {needed / 2**30:.1f} GiB at a time, several times, and {free / 2**30:.1f} GiB "
                "are free; give fewer problems=, places= or prompt_places="
            )
        return write_states(subject, places, layers, self.scratch / name, asked.batch_size)

    def _lens(self, subject: Subject, states: States, tokens: Sequence[Place], where: Source, source: str) -> None:
        try:
            self.tables.lens += lens_rows(subject, states, tokens, where, source)
            if source != RANDOM and self.asked.shown:
                self.tables.grids += grids(
                    subject.take(np.arange(min(self.asked.shown, len(self.texts)))), where, self.asked.batch_size
                )
        except UserError as error:
            self.tables.note(str(error))

    def _attention(self, subject: Subject, places: Sequence[Place], where: Source) -> None:
        heads = num_heads(subject.learner.model)
        most = most_places(subject.num_layers, heads, self.num_checkpoints, self.asked.attention_rows)
        try:
            found = mean_attention(subject, places[-most:], self.asked.batch_size)
        except UserError as error:
            return self.tables.note(str(error))
        if len(places) > most:
            self.tables.note(
                f"attention.csv: the last {most} places only; attention_rows={self.asked.attention_rows} has room for no more"
            )
        self.tables.attention += attention_rows(found, places[-most:], where)

    def _fourier(self, subject: Subject, states: States, where: Source) -> None:
        digits = digit_tokens(subject)
        if len(digits) < LEAST_DIGITS:
            return self.tables.note(
                f"the problems hold {len(digits)} consecutive digits as tokens; a Fourier fit needs {LEAST_DIGITS}: there is none"
            )
        self.tables.fourier += fourier_of_embeddings(subject, digits, where)
        self.tables.fourier += fourier_of_states(subject, states, digits, where)


def thinned(places: Sequence[Place], subject: Subject, most: int) -> list[Place]:
    """Return places of which thoughts, CoT and answer have at most `most` each, evenly spaced.

    The places that stay are the same ones at every stage, so that stages can be compared.
    """
    method, limits = subject.learner.method, subject.limits
    longest = {
        "thought": max(method.added(stage, limits) for stage in range(method.last_stage(limits) + 1)),
        "cot": limits.max_cot,
        "answer": limits.longest_answer,
    }
    every = {part: max(1, -(-length // most)) for part, length in longest.items()}
    return [place for place in places if place.number % every.get(place.part, 1) == 0]
