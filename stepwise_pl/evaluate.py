"""`python -m stepwise_pl.evaluate run=<folder>`: accuracy and speed of a trained run."""

from typing import Any

from stepwise_pl import cli
from stepwise_pl.config import EvaluateConfig
from stepwise_pl.errors import UserError


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score a checkpoint as configured; write the result into the run folder; return it.

    Raises:
        UserError: the run or the checkpoint cannot be read.
    """
    import torch

    from stepwise_pl import runs
    from stepwise_pl.cache import encoded_splits
    from stepwise_pl.evaluation import Scorer
    from stepwise_pl.metrics import wilson
    from stepwise_pl.models import check_positions
    from stepwise_pl.results import percent

    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu: this machine has no CUDA device; accelerator=cpu")
    run = runs.load_run(config.run, config.checkpoint)
    schedule, split = run.config.schedule, config.split
    by_step = schedule.unit == "step"
    asked, other = ("removed_steps", "removed_tokens") if by_step else ("removed_tokens", "removed_steps")
    if getattr(config, other) is not None:
        raise UserError(f"{other}={getattr(config, other)}: the run has schedule.unit={schedule.unit}; give {asked}")
    removed = run.removed if getattr(config, asked) is None else getattr(config, asked)
    removed = min(removed, run.limits.max_removed)
    examples = encoded_splits(run.config.task, run.tokenizer, by_step, run.config.data.cache_dir)[split]
    check_positions(run.model, examples.longest(0 if schedule.keep_position else removed, schedule.side))
    if config.accelerator == "gpu":
        run.model.to(torch.device("cuda"))  # type: ignore[call-arg, arg-type]
    scorer = Scorer(run.model, run.tokenizer, examples, run.limits, removed, schedule.side, schedule.keep_position)
    metrics = scorer.evaluate(config.batch_size, config.limit)
    accuracy, count = metrics["answer_accuracy"], round(metrics["examples"])
    result: dict[str, Any] = {
        "checkpoint": run.checkpoint.name,
        "step": run.step,
        "split": split,
        "limit": config.limit,
        "removed_tokens": run.limits.removed_tokens(removed),
        **({"removed_steps": removed} if by_step else {}),
        "max_cot_tokens": run.limits.max_cot,
        **metrics,
        "answer_interval": wilson(accuracy, count),
        "accelerator": config.accelerator,
    }
    if config.speed_problems:
        for batch_size, problems in ((1, config.speed_problems), (config.batch_size, config.batch_size)):
            result[f"problems_per_second_batch_{batch_size}"] = scorer.speed(batch_size, problems)
    first = f"-first{config.limit}" if config.limit else ""
    path = run.path / "evaluations" / f"{run.checkpoint.stem}-{split}{first}-removed{removed}.json"
    path.parent.mkdir(exist_ok=True)
    runs.write_json(result, path)
    speeds = [
        f"speed           {value:.1f} problems per second at batch {key.rpartition('_')[2]} ({config.accelerator})"
        for key, value in result.items()
        if key.startswith("problems_per_second")
    ]
    lines = [
        f"{split} of {run.path}, {run.checkpoint.name} (step {run.step})",
        f"removed tokens  {result['removed_tokens']} of {run.limits.max_cot}",
        f"answer accuracy {percent(accuracy, count)}  [95% Wilson interval]",
        f"token accuracy  {metrics['token_accuracy']:6.2%}",
        f"loss            {metrics['loss']:.4f} (perplexity {metrics['perplexity']:.3f})",
        *speeds,
        f"written to      {path}",
    ]
    cli.say("\n".join(lines))
    return result


if __name__ == "__main__":
    cli.entry_point("evaluate", evaluate)
