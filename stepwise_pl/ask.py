"""`python -m stepwise_pl.ask run=<folder> "38 * 57"`: ask a trained model, in the way people write a problem."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.run_folders import asks_for_several, check_levels
from stepwise_pl.cli.words import fail, say
from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.config.training import ACCELERATORS
from stepwise_pl.reporting.reply_text import reply_lines, reply_table
from stepwise_pl.runs.folder import ALL, is_export, require_run

if TYPE_CHECKING:
    from stepwise_pl.evaluation.asking import Speaker
    from stepwise_pl.runs.replies import Reply


@dataclass
class AskConfig:
    """A question to a trained model: `python -m stepwise_pl.ask run=<folder> "38 * 57"`."""

    # The run folder, or a folder that `export` has written.
    run: str = setting("", path=True)
    # The problem as people write it. Words without a key are the question. null: ask for one after the other; Ctrl-D ends.
    question: str | None = None
    # `best`, `last`, `good`, `removed-<k>` (`stage-<k>` if stages have names), a file, or `all`: the checkpoints of `trainer.keep_every_removed`, as a table.
    checkpoint: str = setting("best", path=True)
    # CoT tokens removed, for a model that is told the stage (method.tell_stage); `all`: every number of them, as a table; null: as the
    # checkpoint was trained.
    removed_tokens: Any = None
    # Reasoning steps removed, for a run with method.unit=step: as removed_tokens.
    removed_steps: Any = None
    # The device of the model: `cpu` or `gpu`.
    accelerator: str = "cpu"
    # Modules and files of one's own (docs/extending.md); those of the run are loaded anyway, if they are still in place.
    plugins: list[str] = setting(factory=list, path=True)

    def __post_init__(self) -> None:
        one_of("accelerator", self.accelerator, ACCELERATORS)
        check_levels(self)
        if not (self.run and is_export(Path(self.run))):
            require_run(self.run, "ask")
            return
        for key, value in (("checkpoint", self.checkpoint), ("removed_tokens", self.removed_tokens), ("removed_steps", self.removed_steps)):  # fmt: skip
            require(value in (None, "best"), key, value, f"is for run folders, and {self.run} is an exported model")


def ask(config: AskConfig) -> "list[Reply]":
    """Ask the question, or those that are typed, and print the answers.

    Returns:
        The replies, in the order asked.

    Raises:
        UserError: the run cannot be read, or the question cannot be asked. A typed one that cannot is a line on standard error.
    """
    if config.question is not None:
        replies = replies_to(config.question, config)
        say("\n".join(lines_of(replies, config)))
        return replies
    one = None if asks_for_several(config) else speaker(config)
    say(f"{config.run}: type a problem; Ctrl-D ends")
    found: list[Reply] = []
    for question in typed():
        try:
            replies = replies_to(question, config) if one is None else [one.ask(question)]
        except UserError as error:
            fail(str(error))
            continue
        say("\n".join([*lines_of(replies, config), ""]))
        found += replies
    return found


def replies_to(question: str, config: AskConfig) -> "list[Reply]":
    """Ask every checkpoint, or every level, that is asked for; one alone if the settings name one."""
    if not asks_for_several(config):
        return [speaker(config).ask(question)]
    from stepwise_pl.evaluation.asking import Speaker
    from stepwise_pl.evaluation.levels import each_of, stage_of

    replies: list[Reply] = []
    for asked, run in each_of(config):
        run.to(device(config))
        replies.append(Speaker.of_run(run, stage_of(asked, run)).ask(question))
        del run  # The next checkpoint is read into the memory that this one leaves.
    if not replies:
        raise UserError(f"checkpoint={ALL}: no checkpoint of {config.run} can be read")
    return sorted(replies, key=lambda reply: (reply.removed_tokens, reply.step or 0))


def speaker(config: AskConfig) -> "Speaker":
    """Load the model that is asked for. Raise `UserError` if it cannot be read."""
    from stepwise_pl.evaluation.asking import Speaker
    from stepwise_pl.evaluation.levels import load, stage_of

    if is_export(Path(config.run)):
        found = Speaker.of_export(Path(config.run))
        found.learner.model.to(device(config))
        return found
    run = load(config)
    run.to(device(config))
    return Speaker.of_run(run, stage_of(config, run))


def device(config: AskConfig) -> Any:
    """The device that is asked for. Raise `UserError` if this machine has none."""
    from stepwise_pl.models.devices import device_of

    return device_of(config.accelerator)


def lines_of(replies: "list[Reply]", config: AskConfig) -> list[str]:
    """The replies to one question, for reading."""
    if asks_for_several(config):
        return reply_table(replies)
    return reply_lines(replies[0], with_source=config.question is not None)


def typed() -> Iterator[str]:
    """Yield the lines of standard input that are not empty, with a mark before each on a terminal."""
    mark = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(mark).strip()
        except EOFError:
            return
        if line:
            yield line


def main() -> None:
    """Run the command."""
    entry_point("ask", AskConfig, ask)


if __name__ == "__main__":
    main()
