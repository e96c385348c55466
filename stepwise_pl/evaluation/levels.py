"""The checkpoints of a run that a command asks for, and the stage at which each is asked: `evaluate` and `ask` share them."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.encoding import encode
from stepwise_pl.evaluation.problems import Problems
from stepwise_pl.evaluation.scorer import Scorer
from stepwise_pl.methods import Method
from stepwise_pl.models import trained_run as runs
from stepwise_pl.models.architecture import check_positions
from stepwise_pl.models.devices import device_of
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.runs.folder import ALL, kept_checkpoints, kept_name

log = logging.getLogger("stepwise_pl")


class Wanted(Protocol):
    """The settings that choose checkpoints and stages (`EvaluateConfig`, `AskConfig`); a dataclass.

    Attributes:
        run: the run folder.
        checkpoint: a name, a file, or `ALL`.
        removed_tokens, removed_steps: a number, `ALL`, or None: as the checkpoint was trained.
        accelerator: `cpu` or `gpu`.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    run: str
    checkpoint: str
    removed_tokens: Any
    removed_steps: Any
    accelerator: str


W = TypeVar("W", bound=Wanted)


def each_of(wanted: W) -> Iterator[tuple[W, TrainedRun]]:
    """Yield each checkpoint at each level that is asked for, with the settings that ask for it alone."""
    if wanted.checkpoint == ALL:
        yield from kept_stages(wanted)
    elif ALL in (wanted.removed_tokens, wanted.removed_steps):
        yield from levels(wanted)
    else:
        yield wanted, load(wanted)


def kept_stages(wanted: W) -> Iterator[tuple[W, TrainedRun]]:
    """Yield every checkpoint that the run kept, one after the other, with the settings that ask for it alone.

    The best checkpoint comes last, if none was kept of its stage. A checkpoint that cannot be read is a warning.

    Raises:
        UserError: the run kept no checkpoint.
    """
    folder = Path(wanted.run) / "checkpoints"
    kept = kept_checkpoints(folder)
    if not kept:
        raise UserError(
            f"checkpoint={ALL}: run {wanted.run} kept no checkpoint of its stages; train with trainer.keep_every_removed=1"
        )
    names = [path.stem for path in kept]
    for name in [*names, *["best"] * (folder / "best.ckpt").is_file()]:
        asked = replace(wanted, checkpoint=name)
        try:
            run = load(asked)
        except UserError as error:
            log.warning("%s; the table goes without it", error)
            continue
        if name != "best" or kept_name(run.stage, run.stage_name, run.removed_tokens) not in names:
            yield asked, run
        del run  # The next checkpoint is read into the memory that this one leaves.


def levels(wanted: W) -> Iterator[tuple[W, TrainedRun]]:
    """Yield one checkpoint, loaded once, with settings for every level: for every number of removed units.

    Raises:
        UserError: the checkpoint cannot be read, or its stages are no numbers of removed units.
    """
    run = load(wanted)
    key, method = key_of_units(wanted, run), run.config.method
    if method.stage_names:
        raise no_level(method, key, ALL)
    stages = range(method.last_stage(run.limits) + 1)
    for removed in sorted({method.removed(stage, run.limits) for stage in stages}):
        level: dict[str, Any] = {key: removed}
        yield replace(wanted, **level), run


def load(wanted: Wanted) -> TrainedRun:
    """Load the run with its checkpoint.

    Raises:
        UserError: they cannot be read, or this machine has no GPU that is asked for.
    """
    device_of(wanted.accelerator)  # before the run is read
    return runs.load_run(wanted.run, wanted.checkpoint)


def stage_of(wanted: Wanted, run: TrainedRun) -> int:
    """Return the first stage with as many units (tokens, or reasoning steps) removed as asked for; else the checkpoint's stage."""
    key, method, limits = key_of_units(wanted, run), run.config.method, run.limits
    units = getattr(wanted, key)
    last = method.last_stage(limits)
    own = min(run.stage, last)
    if units is None or method.removed(own, limits) == min(units, limits.max_removed):
        return own
    if method.stage_names:
        raise no_level(method, key, units)
    return next((stage for stage in range(last + 1) if method.removed(stage, limits) >= units), last)


def key_of_units(wanted: Wanted, run: TrainedRun) -> str:
    """Return the setting that counts removed units for the run, `removed_tokens` or `removed_steps`. Raise `UserError` if the other is given."""
    unit = run.config.method.unit
    key, other = ("removed_steps", "removed_tokens") if unit == "step" else ("removed_tokens", "removed_steps")
    if getattr(wanted, other) is not None:
        raise UserError(f"{other}={getattr(wanted, other)}: the run has method.unit={unit}; give {key}")
    return key


def no_level(method: Method, key: str, wanted: object) -> UserError:
    """Return the error for a method whose stages are no numbers of removed units."""
    return UserError(f"{key}={wanted}: the stages of method={method.kind} are no removed {method.unit}s; leave it out")


def scorer_of(wanted: Wanted, run: TrainedRun, problems: Problems) -> Scorer:
    """The scorer of the run's model on the problems, on the device asked for.

    Raises:
        UserError: the problems do not fit the run.
    """
    method, limits, stage = run.config.method, run.limits, stage_of(wanted, run)
    # If the whole CoT is removed, step boundaries are not needed. A file may lack them.
    by_step = method.unit == "step" and method.removed(stage, limits) < limits.max_removed
    examples = encode(problems.examples, run.tokenizer, problems.name, by_step)
    scorer = Scorer(run.learner, run.tokenizer, examples, limits, stage)
    longest = examples.longest(0 if method.keep_position else scorer.count, method.side)
    check_positions(run.model, longest + method.added(stage, limits))
    run.to(device_of(wanted.accelerator))
    return scorer
