"""`python -m stepwise_pl.evaluate run=<folder>`: accuracy and speed of trained runs, and every prediction."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.run_folders import asks_for_several, check_levels, look_at_each, run_folders
from stepwise_pl.cli.words import say
from stepwise_pl.common.disk import make_folder, require_own_or_new, write_text
from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.common.text import with_wilson
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.config.training import ACCELERATORS
from stepwise_pl.config.upgrade import upgraded
from stepwise_pl.reporting.evaluation_text import result_lines, runs_table, written_lines
from stepwise_pl.reporting.suite_text import CSV_START, csv_text, side_by_side, suite_lines
from stepwise_pl.runs.folder import ALL, require_run
from stepwise_pl.runs.saved_config import require_same_files
from stepwise_pl.runs.suites import part_results, suite_results

if TYPE_CHECKING:
    from stepwise_pl.evaluation.problems import Problems
    from stepwise_pl.models.trained_run import TrainedRun

log = logging.getLogger(__name__)

SUITES = ("ood", "format")


@dataclass
class EvaluateConfig:
    """An evaluation of a trained run, or of several: `python -m stepwise_pl.evaluate run=<folder>`."""

    # The run folder.
    run: str = setting("", path=True)
    # Several run folders, or folders above them, such as that of a sweep. Words without a key are such folders.
    runs: list[str] = setting(factory=list, path=True)
    # `best`, `last`, `good`, `removed-<k>` (`stage-<k>` if stages have names), a file, or `all`: the checkpoints of `trainer.keep_every_removed`, as one table and figure.
    checkpoint: str = setting("best", path=True)
    # The problems: a split of the run's task, `train`, `validation` or `test`. Give only one of split, file and
    # suite; all null: test.
    split: str | None = None
    # The problems: any file, pattern, Hub data set or list of these, in a format of stepwise_pl/tasks/reading. Its
    # columns are named as in the run's task if that task reads files, else as in task=file.
    file: Any = setting(None, path=True)
    # The problems, in parts, the test split first: `ood`, problems unlike the training set; `format`, test problems in other forms.
    suite: str | None = None
    # Problems in each part of a suite, at most.
    suite_size: int = 500
    # The CSV file of the table of several runs on a suite; null: `suite-<suite>.csv` in evaluations/ of the first run.
    out: str | None = setting(None, path=True)
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
        if not self.runs:
            require_run(self.run, "evaluate")
        elif self.run:
            raise UserError(f"run={self.run} and {' '.join(self.runs)}: give all folders in one way")
        given = [f"{key}={value}" for key in ("split", "file", "suite") if (value := getattr(self, key)) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: give one of split, file and suite")
        if self.split is not None:
            one_of("split", self.split, ("train", "validation", "test"))
        if self.offline and not self.wandb:
            raise UserError("offline=true: is about W&B; add wandb=true")
        if self.suite is not None:
            one_of("suite", self.suite, SUITES)
            require(self.limit is None, "limit", self.limit, "is not for a suite; give suite_size")
        if self.out is not None:
            require(
                self.suite is not None and bool(self.runs), "out", self.out,
                "is the table of several runs on a suite (evaluate <run> <run> suite=ood out=<file>.csv)",
            )  # fmt: skip
            require_own_or_new(Path(self.out), "out", CSV_START)
        require(self.suite_size >= 1, "suite_size", self.suite_size, "must be at least 1")
        one_of("accelerator", self.accelerator, ACCELERATORS)
        require(self.batch_size >= 1, "batch_size", self.batch_size, "must be at least 1")
        require(self.speed_problems >= 0, "speed_problems", self.speed_problems, "must be at least 0")
        require(self.limit is None or self.limit >= 1, "limit", self.limit, "must be at least 1")
        check_levels(self)
        if self.suite is not None:
            for key in ("checkpoint", "removed_tokens", "removed_steps"):
                if getattr(self, key) == ALL:
                    what = "name one checkpoint" if key == "checkpoint" else "give a number"
                    raise UserError(f"suite={self.suite}: is not for {key}={ALL}; {what}")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Answer problems with a checkpoint, as configured; write the summary and predictions into the run folder, and print them.

    Returns:
        The summary.

    Raises:
        UserError: the run, the checkpoint or the file cannot be read, or the task has no such suite.
    """
    summary, lines = evaluate_one(config)
    say("\n".join(lines))
    return summary


def evaluate_one(config: EvaluateConfig) -> tuple[dict[str, Any], list[str]]:
    """Do the work of `evaluate` without a word. Return the summary, and the same as lines for reading."""
    from stepwise_pl.evaluation.levels import load

    run = load(config)
    return score(config, run, problems_for(config, run))


def evaluate_all(config: EvaluateConfig) -> list[dict[str, Any]]:
    """Evaluate every kept checkpoint, or one at every level; print and write one table, and draw its figure.

    Returns:
        The summaries, in the order of removed tokens.

    Raises:
        UserError: there is nothing to evaluate, or `evaluate` would raise it.
    """
    summaries, lines = evaluate_each(config)
    say("\n".join(lines))
    return summaries


def evaluate_each(config: EvaluateConfig) -> tuple[list[dict[str, Any]], list[str]]:
    """Do the work of `evaluate_all` without a word. Return the summaries, and lines for reading.

    A checkpoint is evaluated as it would be alone. Whatever was scored stays in the run folder if the command is stopped.
    """
    from stepwise_pl.evaluation.levels import each_of
    from stepwise_pl.models.devices import accelerator_of
    from stepwise_pl.reporting import tradeoff

    folder = Path(config.run)
    problems: Problems | None = None
    summaries: list[dict[str, Any]] = []
    for asked, run in each_of(config):
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
    first = f"-first{config.limit}" if config.limit else ""
    files = tradeoff.write(summaries, folder, folder / "evaluations" / f"{kind}-{problems.name}{first}")
    head = f"{problems.title} of {folder}, {scored} ({accelerator_of(config.accelerator)})"
    written = [f"{'written to' * (not place):16}{file}" for place, file in enumerate(files)]
    unmeasured = [] if config.speed_problems else ["no figure       speed was not measured (speed_problems=0)"]
    return summaries, [head, "", *tradeoff.lines(summaries), "", *unmeasured, *written]


def evaluate_runs(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate one run after the other, each as it would be alone; print the result of each, and one table of all at the end.

    Returns:
        The summary of each run by its folder; a list of them where several checkpoints or levels are asked for.

    Raises:
        UserError: no run can be evaluated. If some of several cannot, that is a warning.
    """
    several = asks_for_several(config)
    is_first = True

    def one(folder: Path) -> Any:
        nonlocal is_first
        asked = replace(config, run=str(folder), runs=[], out=None)
        result, lines = evaluate_each(asked) if several else evaluate_one(asked)
        say("\n".join([*([] if is_first else [""]), *lines]))
        is_first = False
        return result

    if config.out is not None:
        make_folder(Path(config.out).parent, "out")
    found = look_at_each(run_folders(config), one, "evaluated")
    if len(found) > 1 and config.suite is None:
        rows = {str(folder): result if several else [result] for folder, result in found.items()}
        say("\n".join(["", *runs_table(rows)]))
    elif len(found) > 1:
        parts = {str(folder): (summary, suite_results(summary)) for folder, summary in found.items()}
        out = Path(config.out) if config.out else next(iter(found)) / "evaluations" / f"suite-{config.suite}.csv"
        write_text(out, csv_text(parts))
        say("\n".join(["", *side_by_side(parts), f"written to {out}"]))
    return {str(folder): result for folder, result in found.items()}


def problems_for(config: EvaluateConfig, run: "TrainedRun") -> "Problems":
    """The problems that are asked for.

    Raises:
        UserError: they cannot be read, or the run's own files have changed.
    """
    from stepwise_pl.evaluation.levels import stage_of
    from stepwise_pl.evaluation.problems import problems_of
    from stepwise_pl.evaluation.writable import Reader

    if config.file is None:
        require_same_files(run.path, run.config.task)
    reader = None if config.suite is None else Reader.of(run, stage_of(config, run))
    return problems_of(config, run.config.task, (str(run.tokenizer.eos_token),), reader=reader)


def score(config: EvaluateConfig, run: "TrainedRun", problems: "Problems") -> tuple[dict[str, Any], list[str]]:
    """Answer the problems with the run's checkpoint; write the summary and predictions into the run folder, and to W&B.

    Returns:
        The summary, and the same as lines for reading.

    Raises:
        UserError: the problems do not fit the run.
    """
    from stepwise_pl.evaluation.judging import judged_by_recipe
    from stepwise_pl.evaluation.levels import scorer_of
    from stepwise_pl.evaluation.record import Source, predictions_of, strata_of, summary_of, write
    from stepwise_pl.models.devices import accelerator_of

    scorer = scorer_of(config, run, problems)
    make_folder(run.path / "evaluations", "run")  # before the problems are answered, not after it
    metrics, answered = scorer.evaluate(config.batch_size)
    source = Source.of(
        run,
        scorer.stage,
        scorer.bounds,
        config.batch_size,
        accelerator=accelerator_of(config.accelerator),
        limit=config.limit,
    )
    predictions = predictions_of(problems, answered)
    summary = summary_of(source, problems, answered, predictions, metrics)
    if config.suite is None:
        if (judged := judged_by_recipe(config, run, summary)) is not None:
            summary["expected"] = judged
        # A batch size of 1 is measured once, on `speed_problems`.
        speeds = {config.batch_size: config.batch_size, 1: config.speed_problems} if config.speed_problems else {}
        for batch_size in sorted(speeds):
            summary[f"problems_per_second_batch_{batch_size}"] = scorer.speed(batch_size, speeds[batch_size])
    else:
        summary["suite_results"] = [part.record() for part in part_results(predictions, summary)]
    summary["strata"] = strata_of(predictions)
    path = source.file(problems.name)
    write(path, summary, predictions)
    if config.wandb:
        from stepwise_pl.training import wandb_runs

        plain = upgraded(read_yaml(run.path / "config.yaml"), run.path / "config.yaml")
        with wandb_runs.environment_kept():
            wandb_runs.log_evaluation(run.path, run.config.logger, plain, summary, predictions, config.offline)
    result = (
        result_lines(predictions, summary)
        if config.suite is None
        else suite_lines(suite_results(summary), config.suite_size)
    )
    return summary, [
        f"{problems.title} of {run.path}, {run.checkpoint.name} (step {run.step})",
        f"removed tokens  {summary['removed_tokens']} of {run.limits.max_cot} from the targets",
        *([f"stage           {summary['stage']}"] if "stage" in summary else []),
        *written_lines(summary),
        *result,
        f"written to      {path}; predictions: {path.name}l",
    ]


def run_command(config: EvaluateConfig) -> Any:
    """Evaluate one checkpoint at one level, or several; of one run, or of several."""
    if config.runs:
        return evaluate_runs(config)
    return evaluate_all(config) if asks_for_several(config) else evaluate(config)


def main() -> None:
    """Run the command."""
    entry_point("evaluate", EvaluateConfig, run_command)


if __name__ == "__main__":
    main()
