"""`python -m stepwise_pl.evaluate run=<folder>`: accuracy and speed of a trained run."""

from typing import Any

from stepwise_pl import cli
from stepwise_pl.config import EvaluateConfig


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score a checkpoint as configured; write the result into the run folder; return it.

    Raises:
        UserError: the run or the checkpoint cannot be read.
    """
    from stepwise_pl import runs
    from stepwise_pl.evaluation import Scorer
    from stepwise_pl.results import percent

    run = runs.load_run(config.run, config.checkpoint)
    removed = run.removed_tokens if config.removed_tokens is None else config.removed_tokens
    removed = min(removed, run.data.max_cot)
    schedule = run.config.schedule
    scorer = Scorer(run.model, run.tokenizer, run.data, removed, schedule.side, schedule.keep_position)
    metrics = scorer.evaluate(config.split, config.batch_size, config.limit)
    result: dict[str, Any] = {
        "checkpoint": run.checkpoint.name,
        "step": run.step,
        "split": config.split,
        "removed_tokens": removed,
        "max_cot_tokens": run.data.max_cot,
        **metrics,
    }
    if config.speed_problems:
        result["problems_per_second_batch_1"] = scorer.speed(config.split, 1, config.speed_problems)
        result[f"problems_per_second_batch_{config.batch_size}"] = scorer.speed(
            config.split, config.batch_size, config.batch_size
        )
    name = f"{run.checkpoint.stem}-{config.split}-removed{removed}.json"
    (run.path / "evaluations").mkdir(exist_ok=True)
    runs.write_json(result, run.path / "evaluations" / name)
    speeds = [
        f"speed           {value:.1f} problems per second at batch {key.rpartition('_')[2]}"
        for key, value in result.items()
        if key.startswith("problems_per_second")
    ]
    cli.say(
        "\n".join(
            [
                f"{config.split} of {run.path}, {run.checkpoint.name} (step {run.step})",
                f"removed tokens  {removed} of {run.data.max_cot}",
                f"answer accuracy {percent(metrics['answer_accuracy'], round(metrics['examples']))}  [95% Wilson interval]",
                f"token accuracy  {metrics['token_accuracy']:6.2%}   loss {metrics['loss']:.4f}   perplexity {metrics['perplexity']:.3f}",
                *speeds,
                f"written to      {run.path / 'evaluations' / name}",
            ]
        )
    )
    return result


if __name__ == "__main__":
    cli.entry_point("evaluate", evaluate)
