"""The content of the page of `demo`: its models side by side, the problems to click, and the facts on top."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepwise_pl.common.disk import read_json_or_empty
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.text import counted, percent
from stepwise_pl.reporting.demo_sheets import Column
from stepwise_pl.reporting.reply_text import where
from stepwise_pl.runs.folder import export_facts, is_export
from stepwise_pl.runs.results import tested_share
from stepwise_pl.runs.saved_config import derived_of, differences_of_task, located, saved_config
from stepwise_pl.showing.models import Models, Voice, voices_of

if TYPE_CHECKING:
    from stepwise_pl.runs.inside import Grid
    from stepwise_pl.runs.replies import Reply
    from stepwise_pl.tasks import Task

# Problems to click.
NUM_EXAMPLES = 5
HEADINGS = {"explicit_cot": "Explicit CoT", "no_cot": "No CoT"}


@dataclass
class Panel:
    """The models of the page.

    Attributes:
        voices: the run at each place of the slider.
        label: of the slider.
        beside: the other columns by their key, each with its heading.
        examples: problems to click.
        form: a sentence that says how the data writes a problem, if people write it otherwise; else empty.
    """

    models: Models
    voices: list[Voice]
    label: str
    beside: dict[str, tuple[str, Voice]]
    examples: list[str]
    form: str

    @classmethod
    def of(cls, folder: Path, baselines: Mapping[str, Path], examples: Sequence[str], accelerator: str) -> "Panel":
        """Return the models of a run or an exported folder, and of baselines by the name of their schedule.

        Only a model that must say its levels, or its task, is loaded.

        Args:
            examples: problems to click; empty: the first ones of the test split.

        Raises:
            UserError: a run cannot be read, or a baseline is of another task or of another schedule.
        """
        models = Models(accelerator)
        task = task_of(folder, models)
        for key, path in baselines.items():
            require_baseline(key, path, task)
        voices, label = voices_of(folder, models)
        beside = {key: (HEADINGS[key], Voice(path)) for key, path in baselines.items()}
        is_numbered = label != "stage" and len(voices) > 1
        if "explicit_cot" not in beside and is_numbered and voices[0].number == 0:
            beside = {"explicit_cot": ("Explicit CoT: stage 0 of this run", voices[0]), **beside}
        shown = list(examples) or examples_of(task)
        for example in examples:
            task.prompt_of(example)  # one that cannot be asked is told before the page is served
        return cls(models, voices, label, beside, shown, form_of(task, shown))

    @property
    def has_lens(self) -> bool:
        """Whether there is a lens: it reads runs, and no exported folders."""
        return not is_export(self.voices[0].folder)

    def answers(self, question: str, number: int, *, again: bool) -> list[Column]:
        """Ask all models; `number` is the place of the slider, and `again` is about models that have answered already.

        Raises:
            UserError: the model of the slider cannot be asked. If another one cannot, its column says so.
        """
        voice = self.voices[number]
        watched = self.models.watch(voice, question, again=again)
        reply = watched.reply
        columns = [Column("run", self.heading(reply), where(reply).partition(f", {reply.removed_tokens} ")[0], watched)]
        for key, (heading, other) in self.beside.items():
            try:
                # At the first place of the slider, stage 0 of the run has answered already.
                watched = self.models.watch(other, question, again=again and other != voice)
                columns.append(Column(key, heading, where(watched.reply), watched))
            except UserError as error:
                columns.append(Column(key, heading, "", error=str(error)))
        return columns

    def grid(self, question: str, number: int) -> "Grid":
        """Return the logit lens on a problem. Raise `UserError` as `Models.grid` does."""
        return self.models.grid(self.voices[number], question)

    def heading(self, reply: "Reply") -> str:
        """Return the heading of the run's own column."""
        name = "This run" if self.has_lens else "This model"
        if reply.max_cot_tokens is None:  # an exported folder that does not say
            return name
        stage = f", stage {reply.stage}" if reply.stage else ""
        return f"{name}, {reply.removed_tokens} of {reply.max_cot_tokens} CoT tokens removed{stage}"


def task_of(folder: Path, models: Models) -> "Task":
    """Return the task of a run, or of an exported model. Raise `UserError` if it cannot be read."""
    if is_export(folder):
        return models.speaker(Voice(folder)).task
    return located(saved_config(folder), folder).task


def require_baseline(key: str, folder: Path, task: "Task") -> None:
    """Raise `UserError` unless a run is one of the same task, trained with the schedule that the setting names."""
    if differ := differences_of_task(folder, task):
        raise UserError(f"{key}={folder}: is a run of another task ({differ[0]}); give one of the same task as run")
    if saved_config(folder).schedule.baseline != key:
        raise UserError(f"{key}={folder}: was not trained with schedule={key}; give a run that was")


def examples_of(task: "Task") -> list[str]:
    """Return the first problems of the test split, as people write them; none if the split cannot be read here."""
    try:
        test = task.splits()["test"]
    except (UserError, NotImplementedError):
        return []
    return [task.readable(one.prompt) for one in test.slice(0, min(NUM_EXAMPLES, len(test)))]


def form_of(task: "Task", examples: Sequence[str]) -> str:
    """Return a sentence about the form of the data, with the first example; empty if people write it so too.

    Raises:
        UserError: the example is no problem of the task.
    """
    if not examples or (prompt := task.prompt_of(examples[0])) == examples[0]:
        return ""
    return f"The model reads and writes texts as its data has them: {examples[0]} is {prompt} there."


def title_of(folder: Path) -> str:
    """Return the name of a run, with its seed; that of the folder, if it is an export."""
    if is_export(folder):
        return f"Ask {folder.resolve().name}"
    return f"Ask {derived_of(folder).get('name') or folder.resolve().name}, seed {saved_config(folder).seed}"


def facts_of(folder: Path, voices: Sequence[Voice]) -> list[tuple[str, str, str]]:
    """Return the facts on top of the page: name, value, and a line below it."""
    if is_export(folder):
        about = export_facts(folder)
        kind = about.get("task", {}).get("kind")
        return [("task", kind if isinstance(kind, str) else "not known", ""), ("method", str(about.get("method", "not known")), "an exported model"),
                ("CoT tokens removed", str(about.get("removed_tokens", "not known")), "")]  # fmt: skip
    config, summary = saved_config(folder), read_json_or_empty(folder / "summary.json")
    facts = [("task", config.task.kind, ""), ("method", config.method.kind, f"schedule {config.schedule.kind}")]
    if len(voices) > 1:
        facts.append(
            (
                "stages to ask",
                str(len(voices)),
                "told to one model" if voices[0].stage is not None else "a checkpoint each",
            )
        )
    if (tested := tested_share(summary)) is not None:
        below = f"best checkpoint, {counted(tested.n, 'test problem')}"
        facts.append(("right answers", percent(tested.accuracy), below))
    return facts
