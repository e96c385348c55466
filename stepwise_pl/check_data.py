"""`python -m stepwise_pl.check_data task=<task>`: what is in the data, and what is wrong with it."""

from stepwise_pl import cli
from stepwise_pl.commands import CheckDataConfig
from stepwise_pl.early import check_sources
from stepwise_pl.tasks.files import FileTask


def check_data(config: CheckDataConfig) -> None:
    """Print the report. Exit status 1 if training on this data would stop.

    Raises:
        UserError: a file or the tokenizer cannot be read at all.
    """
    check_sources(config.model)
    from stepwise_pl.checking import check, summary
    from stepwise_pl.models import positions_of
    from stepwise_pl.tokenizing import build_tokenizer, tokenizer_for

    task = config.task
    nothing_read = isinstance(task, FileTask) and not len(task.read()["train"])
    name = config.model.tokenizer
    tokenizer = build_tokenizer(name, ("0",)) if nothing_read else tokenizer_for(task, name)
    reserved = (str(tokenizer.eos_token),)
    positions = positions_of(config.model)
    if isinstance(task, FileTask):  # as it is, with what `load` would refuse
        report = check(
            task.read(reserved),
            tokenizer,
            positions,
            config.data,
            task.skip_malformed,
            task.allow_overlap,
            config.model,
        )
        report.stops += task.obstacles(reserved)
    else:
        report = check(task.load(reserved), tokenizer, positions, config.data, model=config.model)
    cli.say("\n".join([*report.lines, "", summary(report.stops)]))
    if report.stops:
        raise SystemExit(1)


if __name__ == "__main__":
    cli.entry_point("check_data", check_data)
