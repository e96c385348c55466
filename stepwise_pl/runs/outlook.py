"""Lines that say what a run or a sweep will do: its length, the step at which the CoT is gone, and how long it takes."""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stepwise_pl.common.text import counted, duration
from stepwise_pl.config.duration import Duration
from stepwise_pl.config.run import Config

_FAR = 1 << 40  # more optimizer steps than any run has


def most_steps(config: Config) -> int | None:
    """The most optimizer steps that the run can have, before its data are read; None if only the data tell."""
    length, batch_size = Duration.parse(config.trainer.duration), config.data.batch_size
    train_examples = config.data.epoch_size or getattr(config.task, "train_size", None)
    if train_examples is not None:
        return length.steps(config.data.steps_per_epoch(train_examples), batch_size)
    return None if length.unit == "epochs" else length.steps(1, batch_size)


def length_line(begin: int, steps: int, batch_size: int, steps_per_epoch: int) -> str:
    """`length: 4,000 steps of 64 examples: 256,000 examples, 10 epochs of 400 steps`; for a resumed run also the steps that are left."""
    text = (
        f"length: {counted(steps, 'step')} of {counted(batch_size, 'example')}: {counted(steps * batch_size, 'example')}, "
        f"{counted(steps / steps_per_epoch, 'epoch')} of {steps_per_epoch:,} steps"
    )
    return f"{text}; goes on after step {begin:,}, {counted(steps - begin, 'step')} left" if begin else text


@dataclass(frozen=True)
class Removal:
    """The removal of CoT tokens as the schedule foresees it. Tokens are those of the longest CoT of the training set.

    Attributes:
        gone: the tokens gone at an optimizer step, counted from 0; never fewer at a later step.
        total: all tokens of that CoT.
        most: the tokens that the schedule will have removed in the end.
        waits_for: what moves a closed-loop schedule; empty if its stage follows from the step alone.
    """

    gone: Callable[[int], int]
    total: int
    most: int
    waits_for: str = ""

    def step_of(self, tokens: int, begin: int, end: int) -> int | None:
        """Return the first step from `begin` to before `end` that trains with so many tokens gone, counted from 1 as in metrics.csv."""
        steps = range(begin, end)
        found = bisect_left(steps, tokens, key=self.gone)
        return steps[found] + 1 if found < len(steps) else None


class Line(NamedTuple):
    """A line for the person at the keyboard."""

    text: str
    is_warning: bool = False


def removal_line(removal: Removal, begin: int, steps: int) -> Line:
    """The line that says when the CoT is gone.

    Args:
        begin: optimizer steps that are done.
        steps: optimizer steps of the whole run.
    """
    total, most = removal.total, removal.most
    begin = min(begin, steps - 1)
    now = removal.gone(begin)
    if most == 0:
        return Line(f"CoT: all {total:,} tokens stay (explicit CoT)" if total else "CoT: the training set has none")
    goal = (
        f"all {total:,} CoT tokens" if most >= total else f"{most:,} of {total:,} CoT tokens, the most that may leave,"
    )
    if now >= most:
        return Line(f"{goal} are gone {'by now' if begin else 'from the first step on'}")
    if removal.waits_for:
        return Line(
            f"{now:,} of {total:,} CoT tokens are gone; the next leaves once the run has {removal.waits_for}, so the step at "
            f"which {goal} are gone is not known beforehand"
        )
    if (step := removal.step_of(most, begin, steps)) is not None:
        return Line(f"{goal} will be gone at step {step:,} of {steps:,}")
    later = removal.step_of(most, steps, _FAR)
    would = f"; {goal} would be gone at step {later:,}: train longer, or remove faster" if later else ""
    count = removal.gone(steps - 1)
    return Line(
        f"{f'only {count:,}' if count else 'none'} of {total:,} CoT tokens will be gone when the run ends at step "
        f"{steps:,}{would}",
        is_warning=True,
    )


def stages_line(stage: Callable[[int], int], names: Sequence[str], begin: int, steps: int) -> Line:
    """The line that says when each stage of a method with named stages begins.

    Args:
        stage: the stage at an optimizer step, counted from 0; never lower at a later step.
        names: of all stages.
        begin: optimizer steps that are done. Stages that are over are left out.
        steps: optimizer steps of the whole run.
    """
    begin = min(begin, steps - 1)
    now = stage(begin)
    found, missing = [], []
    for number, name in list(enumerate(names))[now if begin else 0 :]:
        first = begin + bisect_left(range(begin, steps), number, key=stage)
        if first == steps or stage(first) != number:
            missing.append(name)
        elif begin and stage(begin - 1) == number:
            found.append(f"stage {number} ({name}) goes on")
        else:
            found.append(f"stage {number} ({name}) from step {first + 1:,}")
    never = f"; never: {', '.join(missing)} (trainer.duration and schedule.delta decide)" if missing else ""
    return Line("; ".join(found) + never, is_warning=bool(missing))


def time_line(
    seconds: float, per_step: float, measured: int, *, is_resumed: bool, is_bound: bool, has_validated: bool
) -> str:
    """The line that says how long the run takes, once its first steps are measured.

    Args:
        seconds: of all steps that this start of the run will do.
        per_step: seconds of a step.
        measured: the number of steps that were measured.
        is_resumed: steps of an earlier start are not in `seconds`.
        is_bound: later steps are not slower, because sequences get shorter.
        has_validated: `seconds` has the time of validations in it.
    """
    subject, most = "the rest of the run" if is_resumed else "the run", "at most " if is_bound else ""
    validations = "" if has_validated else "; validations come on top"
    return (
        f"{subject} takes {most}about {duration(seconds)} at {per_step:.2g} s a step (measured over {counted(measured, 'step')}"
        f"{validations}); Ctrl-C stops, and resume=true goes on"
    )


def sweep_line(steps: Collection[int | None], workers: int | None) -> str:
    """The line that says what a sweep has to do, before it begins.

    Args:
        steps: of each job that is not finished, the most optimizer steps; None where only the data tell.
        workers: processes that do jobs side by side; None: not known.
    """
    known = [count for count in steps if count is not None]
    length = f", at most {counted(sum(known), 'step')} in all" if len(known) == len(steps) else ""
    together = min(workers or 1, len(steps))
    side_by_side = f", {together} at a time" if together > 1 else ""
    return f"{counted(len(steps), 'job')} to do{length}{side_by_side}"


def sweep_time_line(seconds: float, jobs: int, workers: int) -> str:
    """The line that says how long a sweep takes, once its first job has measured its pace.

    Args:
        seconds: of all jobs, one after the other.
    """
    side_by_side = f" with {workers} at a time" if workers > 1 else ""
    # Jobs go in rounds: three jobs, two at a time, take as long as two of them.
    time = duration(seconds / jobs * math.ceil(jobs / workers))
    return f"the whole sweep takes about {time} for {counted(jobs, 'job')}{side_by_side}, if all keep this pace"
