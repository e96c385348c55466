"""`python -m stepwise_pl.train`: one training run, from the configuration to the summary."""

import logging
import time
from pathlib import Path
from typing import Any

from stepwise_pl import cli
from stepwise_pl.config import Config

log = logging.getLogger("stepwise_pl")


def train(config: Config) -> dict[str, Any]:
    """Train as configured; write the run folder; return the summary.

    Raises:
        UserError: something the user can put right.
    """
    # Heavy imports come after the configuration has been checked.
    import lightning as L

    from stepwise_pl import loggers, provenance, runs
    from stepwise_pl.building import build_trainer, check_machine, describe
    from stepwise_pl.datamodule import CoTDataModule
    from stepwise_pl.metrics import wilson
    from stepwise_pl.models import build_model, check_positions, read_checkpoint
    from stepwise_pl.module import StepwiseModule
    from stepwise_pl.removal import removal_count
    from stepwise_pl.tokenizing import tokenizer_for

    started = time.monotonic()
    name = cli.run_name()
    run_dir = runs.open_run_dir(config.run_dir, name, config.seed, config.resume)
    if config.resume:
        config = runs.resumed_config(run_dir, config, cli.given_keys())
        name = runs.derived_of(run_dir).get("name", name)
    check_machine(config)

    L.seed_everything(config.seed, workers=True, verbose=False)
    schedule, micro_batches = config.schedule, config.trainer.accumulate_grad_batches
    tokenizer = tokenizer_for(config.task, config.model.tokenizer)
    data = CoTDataModule(
        config.task, tokenizer, config.data, config.seed, micro_batches, schedule.unit, schedule.side
    ).prepare()
    model = build_model(config.model, tokenizer)
    schedule.bind(data.steps_per_epoch, data.limits.max_removed)
    at_start = 0 if schedule.keep_position else int(removal_count(schedule.removed(0), data.limits.max_removed))
    check_positions(model, max(split.longest(at_start, schedule.side) for split in data.encoded.values()))
    module = StepwiseModule(model, tokenizer, schedule, config.optimizer, config.seed, config.trainer.max_steps)

    derived = describe(config, data)
    plain = {**cli.to_plain(config), "derived": {"name": name, **derived}}

    def describe_run() -> None:
        """What makes a checkpoint loadable; written before the first."""
        model.config.save_pretrained(run_dir / "model")
        tokenizer.save_pretrained(run_dir / "model")
        cli.save_yaml(plain, run_dir / "config.yaml")

    trainer = build_trainer(config, run_dir, describe_run)
    checkpoints = run_dir / "checkpoints"
    with loggers.environment_kept():
        resume_from, step = None, 0
        if runs.holds_run(run_dir):
            resume_from = checkpoints / "last.ckpt"
            step = int(read_checkpoint(resume_from)["global_step"])
            runs.require_same_data(run_dir, derived["data"])
            log.info("resuming at step %d", step)
            loggers.MetricsFile(run_dir / "metrics.csv").resume_from(step)
        if trainer.is_global_zero:
            describe_run()
            provenance.record(run_dir / "environment.json", from_step=step)
            log.info("run folder: %s", run_dir)
        if config.logger.wandb:
            trainer.loggers.append(loggers.wandb_logger(config.logger, run_dir, name, plain))
        try:
            trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
        except BaseException:
            if (run_dir / "config.yaml").is_file():
                log.error("stopped; the same command with run_dir=%s resume=true goes on", run_dir)
            raise
        best = next(path for path in (checkpoints / "best.ckpt", checkpoints / "last.ckpt") if path.is_file())
        trainer.test(module, data, ckpt_path=best, weights_only=True, verbose=False)
        tested = {key: float(value) for key, value in trainer.callback_metrics.items()}
    accuracy, examples = tested["test/answer_accuracy"], round(tested["test/examples"])
    summary = {
        "name": name,
        "seed": config.seed,
        "removed_tokens": module.removed_tokens,
        "test_accuracy": accuracy,
        "test_interval": wilson(accuracy, examples),
        "test_examples": examples,
        "checkpoint": best.name,
        "steps": trainer.global_step,
        "examples_seen": trainer.global_step * config.data.batch_size,
        **derived,
        "seconds": round(time.monotonic() - started, 1),
    }
    if trainer.is_global_zero:
        runs.write_json(summary, run_dir / "summary.json")
        report(run_dir, summary)
    runs.unlock(run_dir)
    return summary


def report(run_dir: Path, summary: dict[str, Any]) -> None:
    """Draw the figure and print the summary."""
    from stepwise_pl.results import percent, plot_stages, read_stages, stage_table

    stages = read_stages(run_dir / "metrics.csv")
    plot_stages({summary["name"]: stages}, summary["name"], run_dir / "accuracy")
    per_token = summary["examples_per_token"]
    per_token = f"{per_token:.0f} examples per removed token, " if per_token else ""
    cli.say(f"""
{stage_table(stages)}

test accuracy   {percent(summary["test_accuracy"], summary["test_examples"])}  [95% Wilson interval]
                with {summary["removed_tokens"]} of {summary["max_cot_tokens"]} CoT tokens removed ({summary["checkpoint"]})
training        {summary["steps"]} steps, {summary["examples_seen"]} examples, {per_token}{summary["seconds"]:.0f} s
run folder      {run_dir}
                config.yaml, metrics.csv, summary.json, accuracy.png, checkpoints/
next            python -m stepwise_pl.evaluate run={run_dir}
                python -m stepwise_pl.export run={run_dir}
""")


if __name__ == "__main__":
    cli.entry_point("train", train)
