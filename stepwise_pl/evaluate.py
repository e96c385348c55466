"""`python -m stepwise_pl.evaluate run=<folder>`: accuracy and speed of a trained run, and every prediction."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.disk import read_json, write_json
from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.common.text import with_wilson
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.config.upgrade import upgraded
from stepwise_pl.evaluation.problems import Problems, digest, problems_of
from stepwise_pl.reporting.evaluation_text import result_lines, suite_lines, written_lines
from stepwise_pl.runs.expected import judge
from stepwise_pl.runs.folder import kept_checkpoints, kept_name, require_run
from stepwise_pl.runs.predictions import (
    Prediction,
    Share,
    by_last_number,
    by_position,
    by_stratum,
    digest_of,
    write_predictions,
)
from stepwise_pl.runs.saved_config import derived_of, require_same_files

if TYPE_CHECKING:
    from stepwise_pl.evaluation.scorer import Scorer
    from stepwise_pl.methods import Method
    from stepwise_pl.models.trained_run import TrainedRun

log = logging.getLogger(__name__)

# In the place of a checkpoint: every one that the run kept. In the place of removed tokens or steps: every number of them.
ALL = "all"


@dataclass
class EvaluateConfig:
    """One evaluation of a trained run: `python -m stepwise_pl.evaluate run=<folder>`."""

    # The run folder.
    run: str = setting("", path=True)
    # `best`, `last`, `good`, `removed-<k>` (`stage-<k>` if stages have names), a file, or `all`: the checkpoints of `trainer.keep_every_removed`, as one table and figure.
    checkpoint: str = setting("best", path=True)
    # The problems: a split of the run's task, `train`, `validation` or `test`. Give only one of split, file and
    # suite; all null: test.
    split: str | None = None
    # The problems: any file, pattern, Hub data set or list of these, in a format of stepwise_pl/tasks/reading. Its
    # columns are named as in the run's task if that task reads files, else as in task=file.
    file: Any = setting(None, path=True)
    # The problems: `ood`, the test split and problems unlike the training set, in parts (multiplication only).
    suite: str | None = None
    # Problems in each part of a suite, at most.
    suite_size: int = 500
    # CoT tokens to remove; `all`: every number from 0 to the whole CoT, as one table and figure; null: as many as the
    # checkpoint was trained with.
    removed_tokens: Any = None
    # Reasoning steps to remove, for a run with method.unit=step: as removed_tokens.
    removed_steps: Any = None
    # Examples to score, from the start; null: all.
    limit: int | None = None
    # Problems scored at a time; at least 1.
    batch_size: int = 200
    # Problems decoded one at a time to measure the speed a user feels; 0: no speed measurement.
    speed_problems: int = 50
    # The device to evaluate on: `cpu` or `gpu`.
    accelerator: str = "cpu"
    # Log the evaluation as a W&B run of job type `eval`, in the project of the run's logger. offline=true needs no account.
    wandb: bool = False
    # Use W&B without network or account; needs wandb=true.
    offline: bool = False
    # Modules and files of one's own (docs/extending.md); those of the run are loaded anyway, if they are still in place.
    plugins: list[str] = setting(factory=list, path=True)

    def __post_init__(self) -> None:
        require_run(self.run, "evaluate")
        given = [f"{key}={value}" for key in ("split", "file", "suite") if (value := getattr(self, key)) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: give one of split, file and suite")
        if self.split is not None:
            one_of("split", self.split, ("train", "validation", "test"))
        if self.offline and not self.wandb:
            raise UserError("offline=true: is about W&B; add wandb=true")
        if self.suite is not None:
            one_of("suite", self.suite, ("ood",))
            require(self.limit is None, "limit", self.limit, "is not for a suite; give suite_size")
        require(self.suite_size >= 1, "suite_size", self.suite_size, "must be at least 1")
        one_of("accelerator", self.accelerator, ("cpu", "gpu"))
        require(self.batch_size >= 1, "batch_size", self.batch_size, "must be at least 1")
        require(self.speed_problems >= 0, "speed_problems", self.speed_problems, "must be at least 0")
        require(self.limit is None or self.limit >= 1, "limit", self.limit, "must be at least 1")
        for key in ("removed_tokens", "removed_steps"):
            value = getattr(self, key)
            is_level = value in (None, ALL) or (type(value) is int and value >= 0)
            require(is_level, key, value, f"must be a whole number, at least 0, or {ALL}")
            if value == ALL and self.suite is not None:
                raise UserError(f"suite={self.suite}: is not for {key}={ALL}; give a number")
        if self.checkpoint == ALL:
            for key in ("removed_tokens", "removed_steps", "suite"):
                value = getattr(self, key)
                require(value is None, key, value, f"is not for checkpoint={ALL}; name one checkpoint")

    @property
    def is_tradeoff(self) -> bool:
        """Whether several evaluations are asked for, as one table of accuracy against speed."""
        return ALL in (self.checkpoint, self.removed_tokens, self.removed_steps)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Answer problems with a checkpoint, as configured; write the summary and predictions into the run folder.

    Returns:
        The summary.

    Raises:
        UserError: the run, the checkpoint or the file cannot be read, or the task has no such suite.
    """
    run = load(config)
    problems = problems_for(config, run)
    summary, lines = score(config, run, problems)
    say("\n".join(lines))
    return summary


def evaluate_all(config: EvaluateConfig) -> list[dict[str, Any]]:
    """Evaluate every kept checkpoint, or one at every level; print and write one table, and draw its figure.

    A checkpoint is evaluated as it would be alone. Whatever was scored stays in the run folder if the command is stopped.

    Returns:
        The summaries, in the order of removed tokens.

    Raises:
        UserError: there is nothing to evaluate, or `evaluate` would raise it.
    """
    from stepwise_pl.reporting import tradeoff

    folder = Path(config.run)
    problems: Problems | None = None
    summaries: list[dict[str, Any]] = []
    for asked, run in kept_stages(config) if config.checkpoint == ALL else levels(config):
        problems = problems or problems_for(asked, run)
        summary, _ = score(asked, run, problems)
        summaries.append(summary)
        accuracy = with_wilson(summary["answer_accuracy"], summary["examples"]).strip()
        log.info("%s, %d removed tokens: %s", run.checkpoint.name, summary["removed_tokens"], accuracy)
        del run  # The next checkpoint is read into the memory that this one leaves.
    if problems is None:
        raise UserError(f"checkpoint={ALL}: no checkpoint of {config.run} can be read")
    summaries.sort(key=lambda summary: (summary["removed_tokens"], summary["step"]))
    if config.checkpoint == ALL:
        kind, scored = "tradeoff", "every kept checkpoint"
    else:
        checkpoint = Path(summaries[0]["checkpoint"])
        kind, scored = f"levels-{checkpoint.stem}", f"{checkpoint.name} at every level"
    files = tradeoff.write(summaries, folder, folder / "evaluations" / f"{kind}-{problems.name}{first(config)}")
    head = f"{problems.title} of {folder}, {scored} ({config.accelerator})"
    written = [f"{'written to' * (not place):16}{file}" for place, file in enumerate(files)]
    unmeasured = [] if config.speed_problems else ["no figure       speed was not measured (speed_problems=0)"]
    say("\n".join([head, "", *tradeoff.lines(summaries), "", *unmeasured, *written]))
    return summaries


def kept_stages(config: EvaluateConfig) -> Iterator[tuple[EvaluateConfig, "TrainedRun"]]:
    """Yield every checkpoint that the run kept, one after the other, with the settings of its evaluation.

    The best checkpoint comes last, if none was kept of its stage. A checkpoint that cannot be read is a warning.

    Raises:
        UserError: the run kept no checkpoint.
    """
    folder = Path(config.run) / "checkpoints"
    kept = kept_checkpoints(folder)
    if not kept:
        raise UserError(
            f"checkpoint={ALL}: run {config.run} kept no checkpoint of its stages; train with trainer.keep_every_removed=1"
        )
    names = [path.stem for path in kept]
    for name in [*names, *["best"] * (folder / "best.ckpt").is_file()]:
        asked = replace(config, checkpoint=name)
        try:
            run = load(asked)
        except UserError as error:
            log.warning("%s; the table goes without it", error)
            continue
        if name != "best" or kept_name(run.stage, run.stage_name, run.removed_tokens) not in names:
            yield asked, run
        del run


def levels(config: EvaluateConfig) -> Iterator[tuple[EvaluateConfig, "TrainedRun"]]:
    """Yield one checkpoint, loaded once, with the settings of an evaluation at every level: at every number of removed units.

    Raises:
        UserError: the checkpoint cannot be read, or its stages are no numbers of removed units.
    """
    run = load(config)
    key, method = key_of_units(config, run), run.config.method
    if method.stage_names:
        raise no_level(method, key, ALL)
    stages = range(method.last_stage(run.limits) + 1)
    for removed in sorted({method.removed(stage, run.limits) for stage in stages}):
        level: dict[str, Any] = {key: removed}
        yield replace(config, **level), run


def load(config: EvaluateConfig) -> "TrainedRun":
    """Load the run with its checkpoint.

    Raises:
        UserError: they cannot be read, or this machine has no GPU to score them on.
    """
    from stepwise_pl.models import trained_run as runs

    runs.device_of(config.accelerator)  # before the run is read
    return runs.load_run(config.run, config.checkpoint)


def problems_for(config: EvaluateConfig, run: "TrainedRun") -> Problems:
    """The problems that are asked for.

    Raises:
        UserError: they cannot be read, or the run's own files have changed.
    """
    if config.file is None:
        require_same_files(run.path, run.config.task)
    return problems_of(config, run.config.task, (str(run.tokenizer.eos_token),))


def score(config: EvaluateConfig, run: "TrainedRun", problems: Problems) -> tuple[dict[str, Any], list[str]]:
    """Answer the problems with the run's checkpoint; write the summary and predictions into the run folder, and to W&B.

    Returns:
        The summary, and the same as lines for reading.

    Raises:
        UserError: the problems do not fit the run.
    """
    scorer = scorer_of(config, run, problems)
    metrics, answered = scorer.evaluate(config.batch_size)
    places = zip(problems.places, problems.examples, problems.strata, answered, strict=True)
    predictions = [
        Prediction(
            place, example.prompt, answer.target or "", answer.predicted, answer.right, strata, answer.within_length,
            answer.cot_tokens, answer.unfinished,
        )
        for place, example, strata, answer in places
    ]  # fmt: skip
    summary = {
        **about(config, run, problems, scorer),
        "examples": len(predictions),
        "unfinished_answers": sum(
            prediction.prediction is None or not prediction.within_length for prediction in predictions
        ),
        "cot_tokens_written": span([answer.cot_tokens for answer in answered]),
        "cot_tokens_of_targets": span([answer.target_cot_tokens for answer in answered]),
    }
    if config.suite is None:  # the parts of a suite are too unlike for one accuracy
        whole = Share.of(prediction.right for prediction in predictions)
        summary |= {**metrics, "examples": whole.n, "answer_interval": whole.interval}
        if (by_number := by_last_number(predictions)) is not None:
            summary |= {"last_number_accuracy": by_number.accuracy, "last_number_interval": by_number.interval}
        summary["answer_positions"] = [share.record() for share in by_position(predictions)]
        if (judged := judged_by_recipe(config, run, summary)) is not None:
            summary["expected"] = judged
        # A batch size of 1 is measured once, on `speed_problems`.
        speeds = {config.batch_size: config.batch_size, 1: config.speed_problems} if config.speed_problems else {}
        for batch_size in sorted(speeds):
            summary[f"problems_per_second_batch_{batch_size}"] = scorer.speed(batch_size, speeds[batch_size])
    summary["strata"] = {
        name: {value: share.record() for value, share in shares.items()}
        for name, shares in by_stratum(predictions).items()
    }
    path = (
        run.path / "evaluations" / f"{run.checkpoint.stem}-{problems.name}{first(config)}-removed{scorer.removed}.json"
    )
    path.parent.mkdir(exist_ok=True)
    write_predictions(predictions, path.with_suffix(".jsonl"))
    write_json(path, summary)
    if config.wandb:
        from stepwise_pl.training import wandb_runs

        plain = upgraded(read_yaml(run.path / "config.yaml"), run.path / "config.yaml")
        with wandb_runs.environment_kept():
            wandb_runs.log_evaluation(run.path, run.config.logger, plain, summary, predictions, config.offline)
    result = result_lines(predictions, summary) if config.suite is None else suite_lines(predictions, problems.asked)
    return summary, [
        f"{problems.title} of {run.path}, {run.checkpoint.name} (step {run.step})",
        f"removed tokens  {summary['removed_tokens']} of {run.limits.max_cot} from the targets",
        *([f"stage           {summary['stage']}"] if "stage" in summary else []),
        *written_lines(summary),
        *result,
        f"written to      {path}; predictions: {path.name}l",
    ]


def scorer_of(config: EvaluateConfig, run: "TrainedRun", problems: Problems) -> "Scorer":
    """The scorer of the run's model on the problems, on the device asked for.

    Raises:
        UserError: the problems do not fit the run.
    """
    import torch

    from stepwise_pl.data.encoding import encode
    from stepwise_pl.evaluation.scorer import Scorer
    from stepwise_pl.models.architecture import check_positions

    method, limits, stage = run.config.method, run.limits, stage_of(config, run)
    # If the whole CoT is removed, step boundaries are not needed. A file may lack them.
    by_step = method.unit == "step" and method.removed(stage, limits) < limits.max_removed
    examples = encode(problems.examples, run.tokenizer, problems.name, by_step)
    scorer = Scorer(run.learner, run.tokenizer, examples, limits, stage)
    longest = examples.longest(0 if method.keep_position else scorer.count, method.side)
    check_positions(run.model, longest + method.added(stage, limits))
    if config.accelerator == "gpu":
        run.to(torch.device("cuda"))
    return scorer


def about(config: EvaluateConfig, run: "TrainedRun", problems: Problems, scorer: "Scorer") -> dict[str, Any]:
    """The part of a summary that says what is scored, and how."""
    method, limits, stage = run.config.method, run.limits, stage_of(config, run)
    removed = method.removed(stage, limits)
    return {
        "checkpoint": run.checkpoint.name,
        "checkpoint_digest": digest_of(run.checkpoint),
        "step": run.step,
        **problems.asked,
        "data_digest": digest(problems.examples),
        "limit": config.limit,
        "removed_tokens": limits.removed_tokens(removed),
        **({"removed_steps": removed} if method.unit == "step" else {}),
        **({"stage": name} if (name := method.stage_name(stage)) else {}),
        "as_trained": stage == min(run.stage, method.last_stage(limits)),
        "max_cot_tokens": limits.max_cot,
        "batch_size": config.batch_size,
        "accelerator": config.accelerator,
        "max_new_tokens": scorer.bound,
        "decoded_up_to": scorer.bounds.whole,
    }


def first(config: EvaluateConfig) -> str:
    """The part of a file's name that says how many problems were scored; empty for all."""
    return f"-first{config.limit}" if config.limit else ""


def span(counts: Sequence[int]) -> dict[str, float]:
    """Mean, least and most of the counts."""
    return {"mean": fmean(counts), "least": min(counts), "most": max(counts)}


def judged_by_recipe(config: EvaluateConfig, run: "TrainedRun", summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a finished run against the band of its recipe; None if the band is about other problems or checkpoints."""
    asked = config.file is None and config.split in (None, "test") and config.limit is None
    finished = run.path / "summary.json"
    if not (asked and summary["as_trained"] and config.checkpoint == "best" and finished.is_file()):
        return None
    seconds = read_json(finished).get("seconds")
    changed = derived_of(run.path).get("changed") or []
    counted = f"{run.config.expected.counts}_accuracy"
    return judge(run.config.expected, summary[counted], seconds, changed) if counted in summary else None


def stage_of(config: EvaluateConfig, run: "TrainedRun") -> int:
    """The first stage with as many units (tokens, or reasoning steps) removed as asked for; else the checkpoint's stage."""
    key, method, limits = key_of_units(config, run), run.config.method, run.limits
    wanted = getattr(config, key)
    last = method.last_stage(limits)
    own = min(run.stage, last)
    if wanted is None or method.removed(own, limits) == min(wanted, limits.max_removed):
        return own
    if method.stage_names:
        raise no_level(method, key, wanted)
    return next((stage for stage in range(last + 1) if method.removed(stage, limits) >= wanted), last)


def key_of_units(config: EvaluateConfig, run: "TrainedRun") -> str:
    """The setting that counts removed units for the run, `removed_tokens` or `removed_steps`. Raise `UserError` if the other is given."""
    unit = run.config.method.unit
    key, other = ("removed_steps", "removed_tokens") if unit == "step" else ("removed_tokens", "removed_steps")
    if getattr(config, other) is not None:
        raise UserError(f"{other}={getattr(config, other)}: the run has method.unit={unit}; give {key}")
    return key


def no_level(method: "Method", key: str, wanted: object) -> UserError:
    """The error for a method whose stages are no numbers of removed units."""
    return UserError(f"{key}={wanted}: the stages of method={method.kind} are no removed {method.unit}s; leave it out")


def run_command(config: EvaluateConfig) -> Any:
    """Evaluate one checkpoint at one level, or several."""
    return evaluate_all(config) if config.is_tradeoff else evaluate(config)


def main() -> None:
    """Run the command."""
    entry_point("evaluate", EvaluateConfig, run_command)


if __name__ == "__main__":
    main()
