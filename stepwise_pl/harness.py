"""`python -m stepwise_pl.harness run=<folder> out=<folder>`: a run's problems as a task of lm-evaluation-harness."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.disk import require_new
from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.runs.folder import require_run
from stepwise_pl.tasks.base import SPLITS

# lm-evaluation-harness separates tasks by commas and reads `*` as a pattern.
NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass
class HarnessConfig:
    """A run's problems for lm-evaluation-harness: `python -m stepwise_pl.harness run=<folder> out=<folder>`."""

    # The run folder. Its data and its tokenizer make the task.
    run: str = setting("", path=True)
    # The folder to write the task into; needed.
    out: str = setting("", path=True)
    # The name of the task; null: stepwise_pl_<kind of the run's task>.
    name: str | None = None
    # `best`, `last`, `good`, `removed-<k>` (`stage-<k>` if stages have names), or a file; its model must write no CoT any more.
    checkpoint: str = setting("best", path=True)
    # `test`, `validation` or `train`.
    split: str = "test"
    # The first N problems of the split; null: all.
    limit: int | None = None
    # Modules and files of one's own (docs/extending.md); those of the run are loaded anyway, if they are still in place.
    plugins: list[str] = setting(factory=list, path=True)

    def __post_init__(self) -> None:
        require_run(self.run, "harness")
        if not self.out:
            raise UserError("out is not set: python -m stepwise_pl.harness run=<folder> out=<folder>")
        one_of("split", self.split, SPLITS)
        require(self.limit is None or self.limit > 0, "limit", self.limit, "must be positive, or null for all problems")
        named = self.name is None or NAME.fullmatch(self.name)
        require(
            bool(named),
            "name",
            self.name,
            "may hold letters, digits, '_', '-' and '.' only, and begins with a letter or digit",
        )


def harness(config: HarnessConfig) -> Path:
    """Write the task as configured; return its folder.

    Raises:
        UserError: the folder is not empty, the run or its data cannot be read, or the harness cannot score such a model.
    """
    from stepwise_pl.evaluation.harness import write_task
    from stepwise_pl.evaluation.problems import WholeSplit, problems_of
    from stepwise_pl.models.trained_run import load_run
    from stepwise_pl.runs.saved_config import require_same_files

    out = Path(config.out)
    require_new("out", out)
    run = load_run(config.run, config.checkpoint)
    require_same_files(run.path, run.config.task)
    wanted = WholeSplit(config.split, limit=config.limit)
    problems = problems_of(wanted, run.config.task, (str(run.tokenizer.eos_token),))
    name = config.name or f"stepwise_pl_{run.config.task.kind}"
    model_args = write_task(run, problems, name, out)
    say(
        f"{len(problems.examples)} problems written to {out}; export the same checkpoint (stepwise_pl.export), and score it by\n"
        f"  lm_eval --model hf --model_args pretrained=<exported folder>{model_args} --include_path {shlex.quote(str(out))} --tasks {name}"
    )
    return out


def main() -> None:
    """Run the command."""
    entry_point("harness", HarnessConfig, harness)


if __name__ == "__main__":
    main()
