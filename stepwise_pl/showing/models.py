"""The models of the page of `demo`: loaded when they are first asked, and asked one at a time."""

import threading
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stepwise_pl.common.disk import read_json_or_empty
from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.folder import is_export, kept_checkpoints, number_kept
from stepwise_pl.runs.saved_config import saved_config
from stepwise_pl.tasks.questions import printed

if TYPE_CHECKING:
    from stepwise_pl.evaluation.asking import Speaker
    from stepwise_pl.models.trained_run import TrainedRun
    from stepwise_pl.runs.inside import Grid
    from stepwise_pl.runs.replies import Watched

# Weights that are held at a time, bytes; the model that is asked is held in any case.
MOST_BYTES = 2**30
# A model is asked again within so many seconds, up to so many times; the fastest reply counts, because other work on the machine
# only adds to a time.
TRIES_FOR, MOST_TRIES = 1.0, 5
# Replies that are held, so that a look at another stage does not ask all models again.
MOST_REPLIES = 500


class Voice(NamedTuple):
    """A model at a stage.

    Attributes:
        folder: a run folder, or an exported one.
        checkpoint: the name of the checkpoint.
        stage: the stage that a model is told; None: that of its checkpoint.
        number: what the slider shows.
    """

    folder: Path
    checkpoint: str = "best"
    stage: int | None = None
    number: int = 0


class Models:
    """Models by folder and checkpoint. Whoever asks holds the lock, so that no two models are timed at once.

    Args:
        accelerator: `cpu` or `gpu`.

    Raises:
        UserError: this machine has no such device.
    """

    def __init__(self, accelerator: str) -> None:
        from stepwise_pl.models.devices import device_of

        self.device = device_of(accelerator)
        self.lock = threading.Lock()
        self._runs: OrderedDict[tuple[Path, str], TrainedRun] = OrderedDict()
        self._speakers: dict[Voice, Speaker] = {}
        self._replies: OrderedDict[tuple[Voice, str], Watched] = OrderedDict()

    def watch(self, voice: Voice, question: str, *, again: bool = False) -> "Watched":
        """Ask a model; `again`: even if it has answered this question already.

        Raises:
            UserError: the model cannot be read, or cannot be asked this question.
        """
        with self.lock:
            if again or (voice, question) not in self._replies:
                self._replies[voice, question] = fastest(self.speaker(voice), question)
            self._replies.move_to_end((voice, question))
            while len(self._replies) > MOST_REPLIES:
                self._replies.popitem(last=False)
            return self._replies[voice, question]

    def grid(self, voice: Voice, question: str) -> "Grid":
        """Look with the logit lens at a model of a run.

        Raises:
            UserError: the model cannot be read, the task does not know CoT and answer, or the model has no lens.
        """
        import torch

        from stepwise_pl.inside.logit_lens import grids
        from stepwise_pl.inside.subject import Source, Subject

        with self.lock, torch.inference_mode():
            run = self.run(voice.folder, voice.checkpoint)
            task = run.config.task
            (problem,) = task.solved([task.prompt_of(question)])
            if problem is None:
                raise UserError(
                    f"{printed(question)}: the lens reads CoT and answer too, and the task does not know them for this problem"
                )
            if voice.stage is not None:
                run = replace(run, stage=voice.stage)
            (grid,) = grids(Subject.of(run, [problem]), Source.of(run), 1)
            return grid

    def speaker(self, voice: Voice) -> "Speaker":
        """Return a model that can be asked. Raise `UserError` if it cannot be read."""
        from stepwise_pl.evaluation.asking import Speaker

        if is_export(voice.folder):
            if voice not in self._speakers:
                self._speakers[voice] = Speaker.of_export(voice.folder)
                self._speakers[voice].learner.model.to(self.device)  # type: ignore[arg-type]
            return self._speakers[voice]
        run = self.run(voice.folder, voice.checkpoint)
        if voice not in self._speakers:
            last = run.config.method.last_stage(run.limits)
            self._speakers[voice] = Speaker.of_run(run, min(run.stage if voice.stage is None else voice.stage, last))
        return self._speakers[voice]

    def run(self, folder: Path, checkpoint: str) -> "TrainedRun":
        """Return a checkpoint of a run, loaded. Those that were asked least recently make room. Raise `UserError` if it cannot be read."""
        from stepwise_pl.models.trained_run import load_run

        key = (folder, checkpoint)
        if key not in self._runs:
            self._runs[key] = load_run(str(folder), checkpoint)
            self._runs[key].to(self.device)
        self._runs.move_to_end(key)
        while len(self._runs) > 1 and sum(map(num_bytes, self._runs.values())) > MOST_BYTES:
            gone, _ = self._runs.popitem(last=False)
            self._speakers = {voice: one for voice, one in self._speakers.items() if voice[:2] != gone}
        return self._runs[key]


def fastest(speaker: "Speaker", question: str) -> "Watched":
    """Ask a model a few times; return the fastest reply. Raise `UserError` if it cannot be asked this question."""
    begun = time.monotonic()
    found = [speaker.watch(question)]
    while len(found) < MOST_TRIES and time.monotonic() - begun < TRIES_FOR:
        found.append(speaker.watch(question))
    return min(found, key=lambda watched: watched.reply.milliseconds)


def num_bytes(run: "TrainedRun") -> int:
    """Return the bytes of a model's weights."""
    return sum(weight.numel() * weight.element_size() for weight in run.model.parameters())


def is_told(folder: Path) -> bool:
    """Whether the model of a run is told its stage, so that one checkpoint answers at every stage."""
    return bool(getattr(saved_config(folder).method, "tell_stage", False))


def voices_of(folder: Path, models: Models) -> tuple[list[Voice], str]:
    """Return what the slider goes over, by rising stage, and its label: the levels of a model that is told its stage, or the
    kept checkpoints. One alone, if the run kept none or the folder is an export.

    Raises:
        UserError: the run cannot be read.
    """
    if is_export(folder):
        return [Voice(folder)], ""
    if is_told(folder):
        run = models.run(folder, "best")  # its limits say what levels there are
        method, limits = run.config.method, run.limits
        stages = range(method.last_stage(limits) + 1)
        unit = "reasoning steps" if method.unit == "step" else "CoT tokens"
        return [
            Voice(folder, "best", stage, method.removed(stage, limits)) for stage in stages
        ], f"{unit} removed, as told"
    kept = kept_checkpoints(folder / "checkpoints")
    voices = [Voice(folder, path.stem, None, number_kept(path.stem) or 0) for path in kept]
    if saved_config(folder).method.stage_names:
        return voices or [Voice(folder)], "stage"
    removed = read_json_or_empty(folder / "summary.json").get("removed_tokens")
    last = removed if isinstance(removed, int) else 0  # a run that goes on has no summary, and a file may be damaged
    if not voices or last > voices[-1].number:
        voices.append(Voice(folder, "best", None, last))  # its stage was not kept
    return voices, "CoT tokens removed"
