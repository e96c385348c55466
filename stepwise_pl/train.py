"""`python -m stepwise_pl.train`: one training run, from the configuration to the summary."""

import contextlib
import logging
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from stepwise_pl import cli, multirun, processes, run_folder, signals
from stepwise_pl.config import Config
from stepwise_pl.errors import UserError
from stepwise_pl.expected import judge, told
from stepwise_pl.marks import holds_run, is_begun

if TYPE_CHECKING:
    from stepwise_pl.building import Parts
    from stepwise_pl.guard import Fitted

log = logging.getLogger("stepwise_pl")


def train(config: Config) -> dict[str, Any]:
    """Train as configured; write the run folder; return the summary.

    Raises:
        UserError: something the user can put right.
    """
    processes.require_first()
    name = cli.run_name()
    if config.resume and not config.run_dir:
        config.run_dir = run_folder.former_run_dir(config, name, cli.run_name(former=True), cli.given_keys())
    run_dir = run_folder.choose_run_dir(config.run_dir, name, config.seed, config.resume, cli.in_sweep())
    with run_folder.at_work(run_dir), stop_explained(run_dir):
        return train_in(run_dir, name, config)


def train_in(run_dir: Path, name: str, config: Config) -> dict[str, Any]:
    """The same, in a folder where nobody else is at work."""
    if config.resume and (run_dir / "config.yaml").is_file():
        config = run_folder.resumed_config(run_dir, config, cli.given_keys())
        name = run_folder.derived_of(run_dir).get("name", name)
        if cli.in_sweep() and (summary := multirun.finished(run_dir, config)) is not None:
            log.info("finished already: %s", run_dir)
            return summary
    run_folder.require_checkpoint_or_nothing(run_dir, cli.in_sweep())
    # What takes seconds to import comes after all that can be refused without it: Lightning last.
    from stepwise_pl.early import check

    typed = cli.to_plain(config)
    config = run_folder.located(config, run_dir) if config.resume else config
    check(config)
    from stepwise_pl import wandb_runs
    from stepwise_pl.building import build_parts, describe, examples_per_token

    parts = build_parts(config)
    derived = describe(config, parts)
    labelled = labels(config, run_dir)
    plain = {**typed, "derived": {"name": name, **labelled, **derived}}
    with wandb_runs.environment_kept():
        fitted = fit(config, parts, run_dir, plain)
        # As it was at the end: the test takes the schedule back to the checkpoint that is tested.
        derived["examples_per_token"] = examples_per_token(config, parts.data)
        tested = test(parts, fitted, run_dir / "checkpoints")
        summary = summarise(config, run_dir, name, fitted, tested, derived, labelled["changed"])
        if fitted.trainer.is_global_zero:
            run_folder.write_json(summary, run_dir / "summary.json")
            report(run_dir, summary)
            add_to_wandb(config, run_dir, summary)
    return summary


def labels(config: Config, run_dir: Path) -> dict[str, Any]:
    """Group, tags and what sets the run apart from its recipe; a resumed one keeps those it had, and what is new is added."""
    changed = cli.changed_from_recipe()
    if config.resume and (run_dir / "config.yaml").is_file():
        before = run_folder.derived_of(run_dir)
        changed = sorted({*(before.get("changed") or ()), *changed})
        return {**{key: before.get(key) for key in ("group", "tags")}, "changed": changed}
    return {"group": config.logger.group, "tags": [*cli.chosen(), *config.logger.tags], "changed": changed}


def add_to_wandb(config: Config, run_dir: Path, summary: dict[str, Any]) -> None:
    """Result, tables and, if asked for, the model."""
    if not config.logger.wandb:
        return
    from stepwise_pl import wandb_runs
    from stepwise_pl.errors import go_on_without

    wandb_runs.add_result(run_dir, summary)
    if config.logger.artifact:
        with go_on_without("W&B's artifact"):
            from stepwise_pl.export import write_model

            with tempfile.TemporaryDirectory(dir=run_dir, prefix="artifact-") as folder:
                wandb_runs.add_model(summary, write_model(run_dir, "best", Path(folder) / "model"))


def summarise(
    config: Config, run_dir: Path, name: str, fitted: "Fitted", tested: dict[str, Any], derived: dict[str, Any],
    changed: list[str],
) -> dict[str, Any]:  # fmt: skip
    """What summary.json says."""
    from stepwise_pl.callbacks import bytes_in

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
        "examples_seen": fitted.steps * config.data.batch_size,
        "abandoned_examples": abandoned * config.data.batch_size,
        **derived,
        "seconds": round(fitted.seconds, 1),
        "expected": judge(config.expected, tested["test_accuracy"], fitted.seconds, changed),
        "checkpoint_bytes": bytes_in(run_dir / "checkpoints"),
    }


def fit(config: Config, parts: "Parts", run_dir: Path, plain: dict[str, Any]) -> "Fitted":
    """Train, from the last checkpoint if there is one, under the guard."""
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.utilities import rank_zero_only

    from stepwise_pl import guard, loggers, provenance, runs, wandb_runs
    from stepwise_pl.building import build_attempt

    def describe_run() -> None:
        """What makes a checkpoint loadable; written before the first."""
        parts.model.config.save_pretrained(run_dir / "model")
        parts.tokenizer.save_pretrained(run_dir / "model")
        cli.save_yaml(plain, run_dir / "config.yaml")

    more: list[Logger] = []
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    step, lost = 0, {}
    if holds_run(run_dir):
        lost = {} if (run_dir / "metrics.csv").is_file() else {"metrics_lost": True}
        step = runs.resume(run_dir, plain)
    elif is_first:
        run_folder.begin_anew(run_dir)
    if is_first:
        # First: beside the new configuration it would call finished what has only begun.
        (run_dir / "summary.json").unlink(missing_ok=True)
        describe_run()
        provenance.record(run_dir / "environment.json", from_step=step, **lost)
        log.info("run folder: %s", run_dir)
    if config.logger.wandb:
        more.append(wandb_runs.wandb_logger(config.logger, run_dir, plain))
    if config.logger.tensorboard:
        more.append(loggers.TensorBoard(run_dir, config.data.batch_size))
    return guard.fit(
        lambda: build_attempt(config, parts, run_dir, plain, describe_run, more),
        parts.data, run_dir / "checkpoints", config.guard,
    )  # fmt: skip


@contextlib.contextmanager
def stop_explained(run_dir: Path) -> Iterator[None]:
    """Let signals end the run after its step, and say how it goes on. A second Ctrl-C does not wait for the step.

    Raises:
        SystemExit: a signal has ended the run; the status is 128 and its number.
    """
    reason: int | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal reason
        again = reason in (signal.SIGINT, signal.SIGQUIT)
        reason = number if reason is None else reason
        if number == signal.SIGHUP:
            signals.leave_dead_terminal()
        # While it trains, Lightning takes SIGTERM for a wish to stop between two steps, where everything can be saved.
        if signal.getsignal(signal.SIGTERM) is stop:
            raise SystemExit(128 + reason)
        if number == signal.SIGTERM:
            return  # Lightning's handler, which calls this one, has taken note
        if number in (signal.SIGINT, signal.SIGQUIT):
            if again:
                raise KeyboardInterrupt
            log.warning(
                "stopping after this step; Ctrl-C again stops at once, and what came after the last checkpoint is lost"
            )
        signal.raise_signal(signal.SIGTERM)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals.STOPS:
            # A Ctrl-C is taken also where a shell has started the run in its background; as a job of another process,
            # which tells it, it is not.
            always = number == signal.SIGTERM or (number == signal.SIGINT and not multirun.here.worker)
            if always or signals.is_free(number):
                before[number] = signal.signal(number, stop)
    try:
        yield
    except BaseException as error:
        is_stop = is_signal(error)
        begun = holds_run(run_dir) or is_begun(run_dir)
        # A user's error says itself what to do, and a sweep says it at its end.
        told = isinstance(error, UserError) or cli.in_sweep() or processes.is_further()
        if not told and (is_stop or begun):
            log.error("%s", run_folder.how_to_go_on(run_dir))
        if is_stop:
            raise SystemExit(128 + (reason or signal.SIGTERM)) from None
        raise
    finally:
        ends = reason is not None and not cli.in_sweep()
        for number, handler in before.items():
            # A terminal that closes hangs up more than once: the process still ends with the status of the first signal.
            signal.signal(number, signal.SIG_IGN if ends and number == signal.SIGHUP else handler)


def is_signal(error: BaseException) -> bool:
    """Whether this is how a signal ends a run: Lightning makes an exit of status 1 of some, by which nobody would know."""
    # By name: whoever has not got to Lightning yet need not wait for its import.
    return isinstance(error, SystemExit | KeyboardInterrupt) or type(error).__name__ == "SIGTERMException"


def test(parts: "Parts", fitted: "Fitted", checkpoints: Path) -> dict[str, Any]:
    """Read the test set, once, with the checkpoint chosen on validation."""
    from stepwise_pl.models import read_checkpoint
    from stepwise_pl.statistics import wilson

    best = next(path for path in (checkpoints / "best.ckpt", checkpoints / "last.ckpt") if path.is_file())
    read_checkpoint(best)  # says so if it is damaged
    trainer, module = fitted.trainer, fitted.module
    module.steps = fitted.steps
    trainer.test(module, parts.data, ckpt_path=best, weights_only=True, verbose=False)
    accuracy, any_length, examples = (
        float(trainer.callback_metrics[f"test/{key}"])
        for key in ("answer_accuracy", "answer_accuracy_any_length", "examples")
    )
    return {
        "removed_tokens": module.removed_tokens,
        "test_accuracy": accuracy,
        "test_accuracy_any_length": any_length,
        "test_interval": wilson(accuracy, round(examples)),
        "test_examples": round(examples),
        "checkpoint": best.name,
    }


def on_validation(run_dir: Path) -> dict[str, Any]:
    """What a run may be asked to be good at on validation (`results.py`); None where its metrics were lost on the way."""
    from stepwise_pl.provenance import has_lost_metrics
    from stepwise_pl.results import read_stages, removed_at, selected

    metrics = run_dir / "metrics.csv"
    if has_lost_metrics(run_dir / "environment.json"):
        return {"val_accuracy": None, "val_accuracy_any_length": None, "removed_at_95": None}
    best = selected(metrics)
    return {
        "val_accuracy": best and best.accuracy,
        "val_accuracy_any_length": best and best.accuracy_any_length,
        "removed_at_95": removed_at(read_stages(metrics)[0]),
    }


def report(run_dir: Path, summary: dict[str, Any]) -> None:
    """Draw the figure and print the summary; in a sweep, which ends with a table, a line of it."""
    from stepwise_pl.errors import go_on_without
    from stepwise_pl.results import percent, plot_stages, read_stages, stage_table

    stages, given_up = read_stages(run_dir / "metrics.csv")
    name = summary["name"]
    with go_on_without("accuracy.png"):
        plot_stages({name: stages}, name, run_dir / "accuracy", {name: given_up})
    accuracy = percent(summary["test_accuracy"], summary["test_examples"])
    if cli.in_sweep():
        removed = f"{summary['removed_tokens']} of {summary['max_cot_tokens']} removed"
        here = multirun.here
        cli.say(f"[{here.job}] {here.label}: test accuracy {accuracy.strip()}, {removed}, {summary['seconds']:.0f} s")
        return
    guard = [
        f"back from step {one['at_step']} ({one['at_removed_tokens']} removed) to {one['to_step']} "
        f"({one['to_removed_tokens']} removed): {one['does']}"
        for one in summary["rollbacks"]
    ]
    if summary["collapsed"]:
        guard.append("accuracy has collapsed; a slower schedule (schedule.delta) or guard=halve may prevent it")
    elif summary["collapsed_at"] is not None:
        guard.append(f"accuracy had collapsed with {summary['collapsed_at']} tokens removed, and came back")
    guard = [f"{'' if i else 'guard':16}{line}\n" for i, line in enumerate(guard)]
    judged = summary["expected"]
    expected = "".join(f"{line}\n" for line in told(judged)) if judged else ""
    figure = "accuracy.png, " if (run_dir / "accuracy.png").is_file() else ""
    at_all = summary["test_accuracy_any_length"]
    at_all = f"{'':16}{at_all:6.1%} at any length\n" if at_all != summary["test_accuracy"] else ""
    per_token = summary["examples_per_token"]
    per_token = f"{per_token:.0f} examples per removed token, " if per_token else ""
    cli.say(f"""
{stage_table(stages)}

test accuracy   {accuracy}  [95% Wilson interval]
{at_all}                with {summary["removed_tokens"]} of {summary["max_cot_tokens"]} CoT tokens removed ({summary["checkpoint"]})
{"".join(guard)}training        {summary["steps"]} steps, {summary["examples_seen"]} examples, {per_token}{summary["seconds"]:.0f} s
{expected}run folder      {run_dir}
                config.yaml, metrics.csv, stages.jsonl, summary.json, {figure}checkpoints/
next            python -m stepwise_pl.evaluate run={run_dir}
                python -m stepwise_pl.export run={run_dir}
                python -m stepwise_pl.report {run_dir}
""")


if __name__ == "__main__":
    cli.entry_point("train", train)
