"""`python -m stepwise_pl.train`: one training run, from the configuration to the summary."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise_pl.cli.choices import request
from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common import processes
from stepwise_pl.common.disk import write_json
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.debug import debug_line
from stepwise_pl.config.duration import seconds_of
from stepwise_pl.config.plain import save_yaml, to_plain
from stepwise_pl.config.request import Request
from stepwise_pl.config.run import Config
from stepwise_pl.reporting.run_text import report
from stepwise_pl.runs.at_work import at_work, begin_anew
from stepwise_pl.runs.expected import judge
from stepwise_pl.runs.folder import choose_run_dir, require_checkpoint_or_nothing
from stepwise_pl.runs.marks import holds_run
from stepwise_pl.runs.resumed_config import changes_of, finished, resumed_config
from stepwise_pl.runs.saved_config import derived_of, located, require_same_files
from stepwise_pl.training.stopping import stop_explained

if TYPE_CHECKING:
    from lightning import Trainer

    from stepwise_pl.training.build import Parts
    from stepwise_pl.training.module import StepwiseModule
    from stepwise_pl.training.rollback import Fitted

log = logging.getLogger("stepwise_pl")


def train(config: Config, asked: Request) -> dict[str, Any]:
    """Train as configured; write the run folder; return the summary.

    Raises:
        UserError: something the user can put right.
    """
    launch = processes.launch()
    if launch is None:
        if config.trainer.processes > 1 and processes.is_alone_under_torchrun():
            raise UserError(
                f"trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}: torchrun has started one process; "
                "give it --nproc_per_node, or leave torchrun out"
            )
        processes.require_first()
        if config.trainer.num_nodes > 1:
            raise UserError(
                f"trainer.num_nodes={config.trainer.num_nodes}: the processes of several machines are started by torchrun or srun; "
                "docs/gpus.md shows how"
            )
        return train_together(config, asked)
    from stepwise_pl.training.launched import gathered

    with gathered(config.trainer, launch) as others:
        return train_together(config, asked, others.tell)


def train_together(
    config: Config, asked: Request, let_others_begin: Callable[[Path], None] = lambda run_dir: None
) -> dict[str, Any]:
    """Choose the run folder, and train there.

    Args:
        let_others_begin: called in the first process once the others may read the run folder, if a launcher has started them.
    """
    if config.debug and not processes.is_further():
        log.info("%s", debug_line(config))
    limit = None if config.trainer.max_time is None else seconds_of(config.trainer.max_time)
    run_dir = choose_run_dir(config, asked)
    with at_work(run_dir), stop_explained(run_dir, asked, limit):
        return train_in(run_dir, config, asked, let_others_begin)


def train_in(run_dir: Path, config: Config, asked: Request, let_others_begin: Callable[[Path], None]) -> dict[str, Any]:
    """Train as `train` does, in a folder where no other run is at work."""
    name, changes = asked.name, {}
    if config.resume and (run_dir / "config.yaml").is_file():
        changes = changes_of(run_dir, config, asked.given)
        config = resumed_config(run_dir, config, asked.given)
        name = derived_of(run_dir).get("name", name)
        if asked.job and (summary := finished(run_dir, config)) is not None:
            log.info("finished already: %s", run_dir)
            return summary
    require_checkpoint_or_nothing(run_dir, bool(asked.job))
    labelled = labels(config, run_dir, asked)
    # Imports that take seconds come after all that can be refused without them: Lightning last.
    from stepwise_pl.models.early import check

    typed = to_plain(config)
    config = located(config, run_dir) if config.resume else config
    check(config)
    from stepwise_pl.training import wandb_runs
    from stepwise_pl.training.build import build_parts, describe, examples_per_token
    from stepwise_pl.training.outlook import introduce

    parts = build_parts(config)
    introduce(config.trainer, parts.data, parts.model, parts.compiled_blocks)
    derived = describe(parts)
    plain = {**typed, "derived": {"name": name, **labelled, **derived}}
    with wandb_runs.environment_kept():
        fitted = fit(parts, run_dir, plain, asked, changes, let_others_begin)
        # As it was at the end: the test takes the schedule back to the checkpoint that is tested.
        derived["examples_per_token"] = examples_per_token(parts)
        tested = test(parts, fitted, run_dir)
        if parts.compiled_blocks is not None:
            derived["compilations"] = parts.compiled_blocks.compilations
        derived["can_export"] = config.method.can_export(parts.data.limits)
        summary = summarise(config, run_dir, name, fitted, tested, derived, labelled["changed"])
        if fitted.trainer.is_global_zero:
            write_json(run_dir / "summary.json", summary)
            say(report(run_dir, summary, asked))
            add_to_wandb(config, run_dir, summary)
    return summary


def labels(config: Config, run_dir: Path, asked: Request) -> dict[str, Any]:
    """Group, tags, and the changes to the recipe. A resumed run keeps those that it had; new changes are added."""
    changed = asked.changed
    if config.resume and (run_dir / "config.yaml").is_file():
        before = derived_of(run_dir)
        changed = sorted({*(before.get("changed") or ()), *changed})
        return {**{key: before.get(key) for key in ("group", "tags")}, "changed": changed}
    return {"group": config.logger.group, "tags": [*asked.chosen, *config.logger.tags], "changed": changed}


def add_to_wandb(config: Config, run_dir: Path, summary: dict[str, Any]) -> None:
    """Add the result, tables and, if asked for, the model to the run's page."""
    if not config.logger.wandb:
        return
    from stepwise_pl.common.errors import go_on_without
    from stepwise_pl.training import wandb_runs

    wandb_runs.add_result(run_dir, summary)
    if config.logger.artifact:
        with go_on_without("W&B's artifact"):
            from stepwise_pl.models.export import write_model

            with tempfile.TemporaryDirectory(dir=run_dir, prefix="artifact-") as folder:
                wandb_runs.add_model(summary, write_model(run_dir, "best", Path(folder) / "model"))


def summarise(
    config: Config, run_dir: Path, name: str, fitted: "Fitted", tested: dict[str, Any], derived: dict[str, Any],
    changed: list[str],
) -> dict[str, Any]:  # fmt: skip
    """The content of summary.json."""
    from stepwise_pl.training.checkpoints import bytes_in

    abandoned = sum(rollback["at_step"] - rollback["to_step"] for rollback in fitted.rollbacks)
    return {
        "name": name,
        "seed": config.seed,
        **tested,
        **on_validation(run_dir),
        "collapsed": fitted.collapsed,
        "collapsed_at": fitted.collapsed_at,
        "rollbacks": fitted.rollbacks,
        "steps": fitted.steps,
        "ended_early": fitted.ended_early or None,
        "examples_seen": fitted.steps * config.data.batch_size,
        "tokens_read": fitted.tokens_read,
        "method": config.method.kind,
        "abandoned_examples": abandoned * config.data.batch_size,
        **derived,
        "seconds": round(fitted.seconds, 1),
        # The test of a run counts whole answers.
        "expected": judge(config.expected, tested["test_accuracy"], fitted.seconds, changed)
        if config.expected.counts == "answer"
        else None,
        "checkpoint_bytes": bytes_in(run_dir / "checkpoints"),
    }


def fit(
    parts: "Parts",
    run_dir: Path,
    plain: dict[str, Any],
    asked: Request,
    changes: Mapping[str, tuple[Any, Any]],
    let_others_begin: Callable[[Path], None],
) -> "Fitted":
    """Train, from the last checkpoint if there is one, under the guard.

    Args:
        changes: the keys that a resumed run changes, with the value before and the new one.
        let_others_begin: see `train_together`.
    """
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.utilities import rank_zero_only

    from stepwise_pl.runs import provenance
    from stepwise_pl.training import loggers, rollback, wandb_runs
    from stepwise_pl.training.build import build_attempt
    from stepwise_pl.training.resume import resume

    def describe_run() -> None:
        """Write the files that make a checkpoint loadable, before the first checkpoint."""
        parts.model.config.save_pretrained(run_dir / "model")
        parts.tokenizer.save_pretrained(run_dir / "model")
        save_yaml(plain, run_dir / "config.yaml")

    logger, guard = parts.config.logger, parts.config.guard
    more: list[Logger] = []
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    step, session = 0, dict[str, Any]()
    if holds_run(run_dir):
        session = {} if (run_dir / "metrics.csv").is_file() else {"metrics_lost": True}
        step = resume(run_dir, plain, changes)
        if step > parts.steps:
            raise UserError(
                f"trainer.duration={parts.config.trainer.duration}: is {parts.steps} steps, and the run is at step {step} already; "
                "give more"
            )
        session |= {"changed": changes} if changes else {}
    elif is_first:
        begin_anew(run_dir)
    if is_first:
        # The old summary goes first: beside the new configuration, it would call a run finished that has only begun.
        (run_dir / "summary.json").unlink(missing_ok=True)
        describe_run()
        provenance.record(run_dir / "environment.json", asked.words, from_step=step, **session)
        log.info("run folder: %s", run_dir)
    if logger.wandb:
        more.append(wandb_runs.wandb_logger(logger, run_dir, plain))
    if logger.tensorboard:
        more.append(loggers.TensorBoard(run_dir, parts.config.data.batch_size))

    def attempt() -> "tuple[Trainer, StepwiseModule]":
        built = build_attempt(parts, run_dir, plain, describe_run, more, asked)
        let_others_begin(run_dir)
        return built

    return rollback.fit(attempt, parts.data, run_dir / "checkpoints", guard)


def test(parts: "Parts", fitted: "Fitted", run_dir: Path) -> dict[str, Any]:
    """Read the test set, once, with the checkpoint chosen on validation. Its predictions go into the run folder, as `evaluate` writes them."""
    from stepwise_pl.common.errors import go_on_without
    from stepwise_pl.common.statistics import wilson
    from stepwise_pl.models.checkpoint import read_checkpoint

    checkpoints = run_dir / "checkpoints"
    best = next(path for path in (checkpoints / "best.ckpt", checkpoints / "last.ckpt") if path.is_file())
    step = int(read_checkpoint(best)["global_step"])  # says so if it is damaged
    trainer, module = fitted.trainer, fitted.module
    module.steps = fitted.steps
    trainer.test(module, parts.data, ckpt_path=best, weights_only=True, verbose=False)
    accuracy, any_length, examples = (
        float(trainer.callback_metrics[f"test/{key}"])
        for key in ("answer_accuracy", "answer_accuracy_any_length", "examples")
    )
    if trainer.is_global_zero:
        with go_on_without("the file of the test's predictions"):
            keep_predictions(parts, fitted, best, step)
    return {
        "removed_tokens": module.removed_tokens,
        **({"stage": name} if (name := module.method.stage_name(module.stage)) else {}),
        "test_accuracy": accuracy,
        "test_accuracy_any_length": any_length,
        "test_interval": wilson(accuracy, round(examples)),
        "test_examples": round(examples),
        "checkpoint": best.name,
    }


def keep_predictions(parts: "Parts", fitted: "Fitted", checkpoint: Path, step: int) -> None:
    """Write the answers of the test as an evaluation, so that `compare` finds them. Its speed is not measured.

    Args:
        step: optimizer steps of the checkpoint.
    """
    from stepwise_pl.evaluation.answers import Answers
    from stepwise_pl.evaluation.problems import WholeSplit, problems_of
    from stepwise_pl.evaluation.record import Source, predictions_of, strata_of, summary_of, write
    from stepwise_pl.evaluation.verifier import Bounds

    run_dir = checkpoint.parent.parent
    config, limits, module, metrics = parts.config, parts.data.limits, fitted.module, fitted.trainer.callback_metrics
    # Training read tokens. The texts are read again, and a file may have changed meanwhile.
    require_same_files(run_dir, config.task)
    problems = problems_of(WholeSplit("test"), config.task, (str(parts.tokenizer.eos_token),), notes=False)
    answered = Answers(module.tested[index] for index in range(len(problems.examples)))
    bounds = Bounds.of(limits, config.method.removed(module.stage, limits))
    device = fitted.trainer.strategy.root_device.type  # Lightning has moved the model back to the CPU.
    source = Source(
        run_dir, config, checkpoint, step, limits, module.stage, module.stage, bounds,
        parts.data.eval_batch_size, device.replace("cuda", "gpu"),
    )  # fmt: skip
    predictions = predictions_of(problems, answered)
    found = {key.removeprefix("test/"): float(value) for key, value in metrics.items() if key.startswith("test/")}
    summary = summary_of(source, problems, answered, predictions, found)
    write(source.file(problems.name), {**summary, "strata": strata_of(predictions)}, predictions)


def on_validation(run_dir: Path) -> dict[str, Any]:
    """The objectives that are measured on validation (`objective` in config/run.py); None if metrics were lost on the way."""
    from stepwise_pl.runs.provenance import has_lost_metrics
    from stepwise_pl.runs.stages import read_stages, removed_at, selected

    metrics = run_dir / "metrics.csv"
    if has_lost_metrics(run_dir / "environment.json"):
        return {"val_accuracy": None, "val_accuracy_any_length": None, "removed_at_95": None}
    best = selected(metrics)
    return {
        "val_accuracy": best and best.accuracy,
        "val_accuracy_any_length": best and best.accuracy_any_length,
        "removed_at_95": removed_at(read_stages(metrics)[0]),
    }


def main() -> None:
    """The command."""
    entry_point("train", Config, lambda config: train(config, request(config.name)))


if __name__ == "__main__":
    main()
