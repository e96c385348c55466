"""`python -m stepwise_pl.check_data task=<task>`: a report on the data and its faults."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.settings import setting
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.run import require_chosen
from stepwise_pl.config.training import DataConfig
from stepwise_pl.models.early import check_sources
from stepwise_pl.tasks import Task
from stepwise_pl.tasks.file_task import FileTask

if TYPE_CHECKING:
    from stepwise_pl.data.encoding import EncodedExamples


@dataclass
class CheckDataConfig:
    """A report on a task's data: `python -m stepwise_pl.check_data task=<task>`."""

    task: Task = field(default_factory=Task)
    # The model's tokenizer counts the tokens, and its positions bound them.
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    # Modules and files of one's own (docs/extending.md); one of them may register the task.
    plugins: list[str] = setting(factory=list, path=True)

    def __post_init__(self) -> None:
        require_chosen(task=self.task)


def check_data(config: CheckDataConfig) -> None:
    """Print the report; exit with status 1 if training on this data would stop.

    Raises:
        UserError: a file or the tokenizer cannot be read at all.
    """
    check_sources(config.model)
    from stepwise_pl.data.checking import check, summary
    from stepwise_pl.data.tokenizers import build_tokenizer, tokenizer_for
    from stepwise_pl.models.build import positions_of
    from stepwise_pl.training import pace

    task = config.task
    nothing_read = isinstance(task, FileTask) and not len(task.read()["train"])
    name = config.model.tokenizer
    tokenizer = build_tokenizer(name, ("0",)) if nothing_read else tokenizer_for(task, name)
    reserved = (str(tokenizer.eos_token),)

    def measure(train: "EncodedExamples") -> pace.Pace:
        return pace.measure(config.model, tokenizer, train, config.data)

    positions = positions_of(config.model)
    if isinstance(task, FileTask):  # `read` also returns rows that `load` would refuse
        report = check(
            task.read(reserved),
            tokenizer,
            positions,
            config.data,
            task.skip_malformed,
            task.allow_overlap,
            measure,
        )
        report.stops += task.obstacles(reserved)
    else:
        report = check(task.load(reserved), tokenizer, positions, config.data, measure=measure)
    say("\n".join([*report.lines, "", summary(report.stops)]))
    if report.stops:
        raise SystemExit(1)


def main() -> None:
    """Run the command."""
    entry_point("check_data", CheckDataConfig, check_data)


if __name__ == "__main__":
    main()
