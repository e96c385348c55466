"""The Python interface, for notebooks and scripts: `import stepwise_pl as sp`.

Each verb does what the command of the same name does, with the same code. Libraries that take
seconds to load are imported when a model is needed.
"""

import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from stepwise_pl.common.disk import read_json_or_empty
from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.folder import ALL, kept_checkpoints, number_kept
from stepwise_pl.runs.replies import Reply

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stepwise_pl.models.trained_run import TrainedRun
    from stepwise_pl.tasks import Example

# A `pandas.DataFrame` if pandas is installed, else a list with a dict for each row.
Table: TypeAlias = Any
# Numbers of a metrics.csv that count something.
_COUNTS = ("step", "attempt", "epoch")


class Hidden(NamedTuple):
    """The hidden states of a model that reads problems, each with its answer and the CoT that is left.

    Attributes:
        states: the residual stream, [layers, problems, tokens, width] float; layer 0 is the sum of the embeddings. Rows of
            shorter problems hold padding at their end.
        layers: the numbers of the layers.
        tokens: the tokens that each problem reads, as text; without its last one, after which nothing is predicted.
        places: the name of the place of each of them: `prompt -1`, `cot 3`, `answer 0`.
    """

    states: "Tensor"
    layers: list[int]
    tokens: list[list[str]]
    places: list[list[str]]


@dataclass(frozen=True)
class Picture:
    """A figure. A notebook shows it.

    Attributes:
        png, svg: the content of its files.
    """

    png: bytes = field(repr=False)
    svg: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png

    def save(self, path: str | Path) -> Path:
        """Write the figure to a file `.png` or `.svg`; return it."""
        path = Path(path)
        kinds = {".png": self.png, ".svg": self.svg}
        if path.suffix not in kinds:
            raise UserError(f"{path}: a figure is written as .png or .svg")
        path.write_bytes(kinds[path.suffix])
        return path


@dataclass(frozen=True)
class Run:
    """A training run in its folder. What is read is what the folder holds now, so that a run that goes on can be watched.

    `stage` names a checkpoint everywhere: `best`, `last`, `good`, a file, or the number of removed tokens of a kept stage.

    Attributes:
        path: the run folder.
    """

    path: Path

    @property
    def summary(self) -> dict[str, Any]:
        """The result of the run (summary.json); empty until it has ended."""
        return read_json_or_empty(self.path / "summary.json")

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, with dotted keys."""
        from stepwise_pl.runs.saved_config import comparable_config

        return comparable_config(self.path)

    @property
    def metrics(self) -> Table:
        """Every logged metric, a row for each step at which something was logged; None where a row has no such metric."""
        from stepwise_pl.runs.records import read_metrics

        file = self.path / "metrics.csv"
        rows = read_metrics(file) if file.is_file() else []
        return table([
            {key: (int(float(cell)) if key in _COUNTS else float(cell)) if cell else None for key, cell in row.items()}
            for row in rows
        ])  # fmt: skip

    @property
    def stages(self) -> Table:
        """The last validation of each stage: removed tokens, step, accuracy with its 95% Wilson interval, and the kept checkpoint."""
        from stepwise_pl.runs.saved_config import derived_of
        from stepwise_pl.runs.stages import read_stages

        kept = {number_kept(name): name for name in self.checkpoints}
        names = derived_of(self.path).get("stage_names") or []
        found, _ = read_stages(self.path / "metrics.csv", names)
        rows = []
        for stage in found:
            low, high = stage.interval
            rows.append({
                "removed_tokens": stage.removed_tokens, **({"stage": stage.stage} if stage.stage else {}), "step": stage.step,
                "accuracy": stage.accuracy, "interval_low": low, "interval_high": high, "examples": stage.examples,
                "checkpoint": kept.get(names.index(stage.stage) if stage.stage in names else stage.removed_tokens),
            })  # fmt: skip
        return table(rows)

    @property
    def checkpoints(self) -> list[str]:
        """The names of the checkpoints kept of stages, in the order of the stages."""
        return [path.stem for path in kept_checkpoints(self.path / "checkpoints")]

    def figure(self) -> Picture:
        """Return accuracy against removed tokens. Raise `UserError` if nothing was validated yet."""
        return _accuracy([self.path])

    def loaded(self, stage: int | str | Path = "best") -> "TrainedRun":
        """Return the run with the weights of a checkpoint: model, tokenizer, learner, limits.

        Raises:
            UserError: there is no such checkpoint, or it cannot be read.
        """
        from stepwise_pl.models.trained_run import load_run as load

        return load(str(self.path), self._checkpoint(stage))

    def model(self, stage: int | str | Path = "best") -> "PreTrainedModel":
        """Return the model of a checkpoint, a `transformers` model in evaluation mode. It is a copy of its own."""
        return self.loaded(stage).model

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the run."""
        from stepwise_pl.data.tokenizers import load_tokenizer

        return load_tokenizer("run", str(self.path / "model"))

    def problems(self, split: str = "test", limit: int | None = None) -> "list[Example]":
        """Return the first problems of a split: prompt, CoT and answer as text; `limit` None: all."""
        from stepwise_pl.common.errors import one_of, require
        from stepwise_pl.runs.saved_config import located, saved_config
        from stepwise_pl.tasks.base import SPLITS

        one_of("split", split, SPLITS)
        require(limit is None or limit > 0, "limit", limit, "must be positive, or None for all problems")
        examples = located(saved_config(self.path), self.path).task.splits()[split]
        return examples.slice(0, len(examples) if limit is None else min(limit, len(examples)))

    def ask(self, question: str, stage: int | str | Path = "best", *, removed_tokens: int | None = None) -> Reply:
        """Ask a checkpoint a question as people write it, `38 * 57`, as the command `ask` does.

        Args:
            removed_tokens: the level, for a model that is told the stage; None: as the checkpoint was trained.

        Raises:
            UserError: the question cannot be asked, or there is no such checkpoint.
        """
        from stepwise_pl.ask import AskConfig
        from stepwise_pl.evaluation.asking import Speaker
        from stepwise_pl.evaluation.levels import stage_of

        checkpoint = self._checkpoint(stage)
        config = AskConfig(run=str(self.path), question=question, checkpoint=checkpoint, removed_tokens=removed_tokens)
        run = self._cached(checkpoint)
        return Speaker.of_run(run, stage_of(config, run)).ask(question)

    def ask_all(self, question: str) -> Table:
        """Ask every kept stage the same question; return a row for each (`Reply`)."""
        from stepwise_pl.ask import AskConfig, replies_to

        found = replies_to(question, AskConfig(run=str(self.path), question=question, checkpoint=ALL))
        return table([asdict(reply) for reply in found])

    def hidden(
        self,
        problems: "str | Example | Sequence[str | Example]",
        stage: int | str | Path = "best",
        *,
        layers: Sequence[int] = (),
    ) -> Hidden:
        """Return the hidden states of a checkpoint over problems, at the stage of the checkpoint.

        Args:
            problems: questions as people write them, or examples (`problems`). A question needs a task that knows its answer.
            layers: the layers to return, from 0 on; empty: all.

        Raises:
            UserError: a question cannot be read, or the task does not know its CoT and answer.
        """
        import torch

        from stepwise_pl.inside.subject import Subject
        from stepwise_pl.inside.tokens import named_columns, written
        from stepwise_pl.tasks import Example
        from stepwise_pl.tasks.questions import printed

        run = self._cached(self._checkpoint(stage))
        task = run.config.task
        given: list[str | Example] = [problems] if isinstance(problems, str | Example) else list(problems)
        if not given:
            raise UserError("no problem is given; give one or several")
        texts: list[Example] = []
        for one in given:
            known = task.solved([task.prompt_of(one)])[0] if isinstance(one, str) else one
            if known is None:
                raise UserError(
                    f"{printed(one) if isinstance(one, str) else one}: the task does not know CoT and answer, which the model reads too; give an Example"
                )
            texts.append(known)
        subject = Subject.of(run, texts)
        wanted = list(layers) or list(range(subject.num_layers + 1))
        if bad := [layer for layer in wanted if not 0 <= layer <= subject.num_layers]:
            raise UserError(f"layers={bad}: the layers are 0 to {subject.num_layers}")
        ((_, view),) = subject.batches(len(texts))
        with torch.inference_mode():
            states = subject.learner.hidden(view, wanted).clone()
        places = [[str(place) for place in row] for row in named_columns(subject)]
        rows = [row[: len(names)] for row, names in zip(view.tokens.tolist(), places, strict=True)]
        return Hidden(states, wanted, [[written(subject, token) for token in row] for row in rows], places)

    def evaluate(
        self, stage: int | str | Path = "best", *, split: str | None = None, file: Any = None, suite: str | None = None,
        limit: int | None = None, removed_tokens: int | None = None, batch_size: int = 200, speed_problems: int = 0,
        accelerator: str = "cpu",
    ) -> dict[str, Any]:  # fmt: skip
        """Score a checkpoint, as the command `evaluate` does; summary and predictions go into the run folder.

        Returns:
            The summary.
        """
        from stepwise_pl.evaluate import EvaluateConfig, evaluate_one

        return evaluate_one(EvaluateConfig(
            run=str(self.path), checkpoint=self._checkpoint(stage), split=split, file=file, suite=suite, limit=limit,
            removed_tokens=removed_tokens, batch_size=batch_size, speed_problems=speed_problems, accelerator=accelerator,
        ))[0]  # fmt: skip

    def evaluate_all(
        self, *, split: str | None = None, limit: int | None = None, speed_problems: int = 0, accelerator: str = "cpu"
    ) -> Table:
        """Score every kept stage, as `evaluate checkpoint=all` does; return a row for each."""
        from stepwise_pl.evaluate import EvaluateConfig, evaluate_each
        from stepwise_pl.reporting.tradeoff import row_of

        found, _ = evaluate_each(EvaluateConfig(
            run=str(self.path), checkpoint=ALL, split=split, limit=limit, speed_problems=speed_problems,
            accelerator=accelerator,
        ))  # fmt: skip
        return table([row_of(summary, found[0]) for summary in found])

    def _checkpoint(self, stage: int | str | Path) -> str:
        """Return the name of a checkpoint."""
        stage = str(stage) if isinstance(stage, Path) else stage
        if isinstance(stage, str):
            if stage == ALL:
                raise UserError(f"stage={ALL}: use ask_all or evaluate_all")
            return stage
        kept = {number_kept(name): name for name in self.checkpoints}
        if stage not in kept:
            there = ", ".join(str(number) for number in kept) or "none; train with trainer.keep_every_removed=1"
            raise UserError(f"stage={stage}: {self.path} kept no checkpoint of it (kept: {there})")
        return kept[stage]

    def _cached(self, checkpoint: str) -> "TrainedRun":
        """Return a checkpoint that may have been loaded before; its model must not be changed."""
        files = (self.path / "checkpoints" / f"{checkpoint}.ckpt", Path(checkpoint))
        written = next((file.stat().st_mtime_ns for file in files if file.is_file()), 0)
        return _load(self.path, checkpoint, written)


@functools.lru_cache(maxsize=2)
def _load(path: Path, checkpoint: str, written: int) -> "TrainedRun":
    """Load a checkpoint; `written`: when its file was written, so that a new one is loaded anew."""
    return Run(path).loaded(checkpoint)


@dataclass(frozen=True)
class Sweep:
    """A sweep, or any folder with runs below it.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def runs(self) -> list[Run]:
        """The runs in the folder, in the order of the cells of a sweep."""
        from stepwise_pl.reporting.history import find_runs

        return [Run(path) for path in find_runs([str(self.path)])[0]]

    @property
    def results(self) -> Table:
        """The result of each run, a row for each; empty cells for a run that has not ended."""
        from stepwise_pl.reporting.history import read_runs

        keys = ("seed", "test_accuracy", "test_examples", "removed_tokens", "max_cot_tokens", "steps", "seconds")
        found = read_runs([run.path for run in self.runs])
        return table(
            [{"run": run.label, **{key: run.summary.get(key) for key in keys}, "seed": run.seed} for run in found]
        )

    @property
    def cells(self) -> Table:
        """The table of the sweep, as sweep.csv has it: a row for each cell, the mean over its seeds. Raise `UserError` if the folder is no sweep."""
        from stepwise_pl.runs.cells import cells_of_sweep, row_of
        from stepwise_pl.runs.sweep_folder import read_sweep

        return table([{**cell.config, **row_of(cell)} for cell in cells_of_sweep(read_sweep(self.path))])

    def figure(self) -> Picture:
        """Return accuracy against removed tokens, of all runs. Raise `UserError` if nothing was validated yet."""
        return _accuracy([run.path for run in self.runs])

    def evaluate(self, stage: int | str | Path = "best", **settings: Any) -> Table:
        """Score each run (`Run.evaluate`); return a row for each. If one of several cannot be scored, that is a warning.

        Raises:
            UserError: no run can be scored.
        """
        from stepwise_pl.cli.run_folders import look_at_each

        found = look_at_each(
            [run.path for run in self.runs], lambda path: Run(path).evaluate(stage, **settings), "evaluated"
        )
        return table([
            {"run": str(path), **{key: value for key, value in summary.items() if not isinstance(value, dict | list)}}
            for path, summary in found.items()
        ])  # fmt: skip


def load_run(path: str | Path) -> Run:
    """Return the run in a folder. Raise `UserError` if there is none."""
    path = Path(path).expanduser()
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: no config.yaml there; give the folder of a training run")
    return Run(path)


def load_sweep(path: str | Path) -> Sweep:
    """Return the sweep in a folder, or the runs below it. Raise `UserError` if there is no run."""
    found = Sweep(Path(path).expanduser())
    if not found.runs:
        raise UserError(f"{found.path}: no run in this folder or below")
    return found


def train_run(experiment: str | None = None, overrides: Sequence[str] = (), *, show: bool = True) -> Run:
    """Train, as `python -m stepwise_pl.train experiment=<experiment> <overrides>` does; return the run.

    The command has a process of its own, because training takes signals and may start further processes.

    Args:
        overrides: settings as on the command line, `key=value` each.
        show: print what the command prints.

    Raises:
        UserError: the command fails; the message is its own.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides={overrides!r}: is one text; give a list, overrides=[{overrides!r}]")
    if flags := [word for word in overrides if word.startswith("-")]:
        raise UserError(f"{flags[0]}: train_run trains one run; its overrides are settings, key=value")
    words = [*([f"experiment={experiment}"] if experiment else []), *overrides]
    lines: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "stepwise_pl.train", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if show:
                sys.stdout.write(line)
                sys.stdout.flush()
    except KeyboardInterrupt:
        process.wait()  # A notebook's interrupt has reached the command too, which saves the run.
        raise
    if process.wait():
        told = next((line for line in reversed(lines) if line.startswith("error: ")), "\n".join(lines[-20:]))
        raise UserError(told.removeprefix("error: "))
    folder = next(found[1] for line in lines if (found := re.match(r"run folder: (.+)", line)))
    return load_run(folder)


def table(rows: list[dict[str, Any]]) -> Table:
    """Return rows as a `pandas.DataFrame` if pandas is installed, else as they are."""
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows)


def _accuracy(paths: Sequence[Path]) -> Picture:
    from stepwise_pl.reporting.figures.accuracy import accuracy_chart
    from stepwise_pl.reporting.history import labelled_cells, read_runs
    from stepwise_pl.reporting.static import write_figure

    runs = read_runs(paths)
    chart = accuracy_chart(runs)
    if chart is None:
        raise UserError(f"{paths[0]}: nothing was validated yet, so there is nothing to draw")
    with tempfile.TemporaryDirectory() as folder:
        png, svg = write_figure(chart, [cell.label for cell in labelled_cells(runs)], Path(folder))
        return Picture(png.read_bytes(), svg.read_bytes())
