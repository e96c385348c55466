"""`python -m stepwise_pl.evaluate run=<folder>`: accuracy and speed of a trained run, and every prediction."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from stepwise_pl import cli
from stepwise_pl.commands import EvaluateConfig
from stepwise_pl.errors import UserError
from stepwise_pl.expected import judge, told
from stepwise_pl.predictions import (
    HEAD,
    PART,
    Prediction,
    Share,
    by_position,
    by_stratum,
    digest_of,
    percents,
    table,
    write_predictions,
)
from stepwise_pl.run_folder import derived_of, read_json
from stepwise_pl.tasks import ExampleList, Examples, Files, Task
from stepwise_pl.tasks.files import FileTask
from stepwise_pl.tasks.reading import names_in

if TYPE_CHECKING:
    from stepwise_pl.runs import TrainedRun

log = logging.getLogger(__name__)

DIGITS_A_LINE = 10


class Problems(NamedTuple):
    """What is to be answered.

    Attributes:
        name, title: in file names (`test`, `file-mine-1f3a5c70`, `ood`), and for reading.
        asked: what the summary says of where they come from.
        strata, places: of each example; where it stands in its split, file or part.
    """

    name: str
    title: str
    asked: dict[str, Any]
    examples: ExampleList
    strata: list[dict[str, str]]
    places: list[int]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Answer problems with a checkpoint as configured; write summary and predictions into the run folder.

    Returns:
        The summary.

    Raises:
        UserError: the run, the checkpoint or the file cannot be read, or the task has no such suite.
    """
    import torch

    from stepwise_pl import run_folder, runs
    from stepwise_pl.architecture import check_positions
    from stepwise_pl.evaluation import Scorer
    from stepwise_pl.tokenizing import encode

    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu: this machine has no CUDA device; accelerator=cpu")
    run = runs.load_run(config.run, config.checkpoint)
    schedule, limits = run.config.schedule, run.limits
    removed = removed_units(config, run)
    if config.file is None:
        run_folder.require_same_files(run.path, run.config.task)
    problems = problems_of(config, run.config.task, (str(run.tokenizer.eos_token),))
    # If the whole CoT is removed, step boundaries are not needed. A file may lack them.
    by_step = schedule.unit == "step" and removed < limits.max_removed
    examples = encode(problems.examples, run.tokenizer, problems.name, by_step)
    scorer = Scorer(run.model, run.tokenizer, examples, limits, removed, schedule.side, schedule.keep_position)
    check_positions(run.model, examples.longest(0 if schedule.keep_position else scorer.count, schedule.side))
    if config.accelerator == "gpu":
        run.model.to(torch.device("cuda"))  # type: ignore[call-arg, arg-type]
    metrics, answered = scorer.evaluate(config.batch_size)
    predictions = [
        Prediction(
            index, example.prompt, one.target or "", one.predicted, one.right, strata, one.within_length, one.cot_tokens
        )
        for index, example, strata, one in zip(
            problems.places, problems.examples, problems.strata, answered, strict=True
        )
    ]
    summary: dict[str, Any] = {
        "checkpoint": run.checkpoint.name,
        "checkpoint_digest": digest_of(run.checkpoint),
        "step": run.step,
        **problems.asked,
        "data_digest": digest(problems.examples),
        "limit": config.limit,
        "removed_tokens": limits.removed_tokens(removed),
        **({"removed_steps": removed} if schedule.unit == "step" else {}),
        "as_trained": removed == min(run.removed, limits.max_removed),
        "max_cot_tokens": limits.max_cot,
        "batch_size": config.batch_size,
        "accelerator": config.accelerator,
        "examples": len(predictions),
        "max_new_tokens": scorer.bound,
        "unfinished_answers": sum(one.prediction is None or not one.within_length for one in predictions),
        "decoded_up_to": scorer.bounds.whole,
        "cot_tokens_written": span([one.cot_tokens for one in answered]),
        "cot_tokens_of_targets": span([one.target_cot_tokens for one in answered]),
    }
    if config.suite is None:  # a mixture of unlike parts has no accuracy
        whole = Share.of(one.right for one in predictions)
        summary |= {**metrics, "examples": whole.n, "answer_interval": whole.interval}
        summary["answer_positions"] = [share.record() for share in by_position(predictions)]
        if (judged := judged_by_recipe(config, run, summary)) is not None:
            summary["expected"] = judged
        speeds = ((1, config.speed_problems), (config.batch_size, config.batch_size)) if config.speed_problems else ()
        for batch_size, count in speeds:
            summary[f"problems_per_second_batch_{batch_size}"] = scorer.speed(batch_size, count)
    summary["strata"] = {
        name: {value: share.record() for value, share in shares.items()}
        for name, shares in by_stratum(predictions).items()
    }
    first = f"-first{config.limit}" if config.limit else ""
    path = run.path / "evaluations" / f"{run.checkpoint.stem}-{problems.name}{first}-removed{removed}.json"
    path.parent.mkdir(exist_ok=True)
    write_predictions(predictions, path.with_suffix(".jsonl"))
    run_folder.write_json(summary, path)
    result = result_lines(predictions, summary) if config.suite is None else suite_lines(predictions, problems.asked)
    lines = [
        f"{problems.title} of {run.path}, {run.checkpoint.name} (step {run.step})",
        f"removed tokens  {summary['removed_tokens']} of {limits.max_cot} from the targets",
        *written_lines(summary),
        *result,
        f"written to      {path}; predictions: {path.name}l",
    ]
    cli.say("\n".join(lines))
    if config.wandb:
        from stepwise_pl import wandb_runs

        plain = cli.read_yaml(run.path / "config.yaml")
        with wandb_runs.environment_kept():
            wandb_runs.log_evaluation(run.path, run.config.logger, plain, summary, predictions, config.offline)
    return summary


def span(counts: Sequence[int]) -> dict[str, float]:
    """Mean, least and most."""
    return {"mean": fmean(counts), "least": min(counts), "most": max(counts)}


def written_lines(summary: Mapping[str, Any]) -> list[str]:
    """How much CoT the model wrote, beside that of the targets, for reading."""
    written, wanted = (
        f"{found['mean']:.1f} per answer ({found['least']} to {found['most']})"
        for found in (summary["cot_tokens_written"], summary["cot_tokens_of_targets"])
    )
    lines = [f"CoT tokens      written: {written}; in the targets: {wanted}"]
    if not summary["as_trained"]:
        key = "removed_steps" if "removed_steps" in summary else "removed_tokens"
        lines.append(f"{'':16}{key}= sets only the targets of loss and length: the model writes what it has learned to")
    return lines


def judged_by_recipe(config: EvaluateConfig, run: "TrainedRun", summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where a finished run lies in the band of its recipe; None for other problems or checkpoints than the band is about."""
    asked = config.file is None and config.split in (None, "test") and config.limit is None
    finished = run.path / "summary.json"
    if not (asked and summary["as_trained"] and config.checkpoint == "best" and finished.is_file()):
        return None
    seconds = read_json(finished).get("seconds")
    changed = derived_of(run.path).get("changed") or []
    return judge(run.config.expected, summary["answer_accuracy"], seconds, changed)


def removed_units(config: EvaluateConfig, run: "TrainedRun") -> int:
    """How many units (tokens, or reasoning steps) of each CoT to remove: as asked for, or as the checkpoint had it."""
    unit = run.config.schedule.unit
    asked, other = ("removed_steps", "removed_tokens") if unit == "step" else ("removed_tokens", "removed_steps")
    if getattr(config, other) is not None:
        raise UserError(f"{other}={getattr(config, other)}: the run has schedule.unit={unit}; give {asked}")
    removed: int = run.removed if getattr(config, asked) is None else getattr(config, asked)
    return min(removed, run.limits.max_removed)


def problems_of(config: EvaluateConfig, task: Task, reserved: tuple[str, ...]) -> Problems:
    """The problems that `split`, `file` or `suite` asks for.

    Raises:
        UserError: they cannot be read, there is none, or the task has no suite.
    """
    if config.file is not None:
        examples = (task if isinstance(task, FileTask) else Files()).read_other(config.file, "file", reserved)
        stem = re.sub(r"[^\w.-]", "-", Path(names_in(config.file, "file")[0]).stem)
        # With a digest, because files in two folders may have the same name, and a list has more than one.
        name, title, asked = f"file-{stem}-{digest(examples)[:8]}", examples.source, {"file": config.file}
        return Problems(name, title, asked, *_listed({"": examples}, task, config.limit))
    splits = task.load(reserved)
    if config.suite is not None:
        suite = task.ood(splits["train"], config.suite_size)
        if not suite:
            raise UserError(f"suite={config.suite}: task {task.kind} has none; multiplication has one")
        parts = {"test": splits["test"], **suite}
        sizes = {part: len(problems) for part, problems in parts.items()}
        of_suite = {"suite": config.suite, "suite_size": config.suite_size, "suite_sizes": sizes}
        return Problems(config.suite, f"suite {config.suite}", of_suite, *_listed(parts, task, None))
    for note in splits.notes:
        log.warning("%s", note)
    split = config.split or "test"
    if not len(splits[split]):
        raise UserError(f"the {split} split has no example")
    return Problems(split, split, {"split": split}, *_listed({"": splits[split]}, task, config.limit))


def _listed(
    parts: Mapping[str, Examples], task: Task, limit: int | None
) -> tuple[ExampleList, list[dict[str, str]], list[int]]:
    """The first `limit` examples of each part (None: all), one part after the other, their strata and their places."""
    examples = ExampleList()
    strata: list[dict[str, str]] = []
    places: list[int] = []
    for part, of_part in parts.items():
        there = of_part.slice(0, len(of_part) if limit is None else min(limit, len(of_part)))
        examples += there
        strata += [{**({PART: part} if part else {}), **task.strata(example)} for example in there]
        places += range(len(there))
    return examples, strata, places


def digest(examples: ExampleList) -> str:
    """Changes whenever the text of an example or the order does."""
    lines = "\n".join(json.dumps(example[:3]) for example in examples)
    return hashlib.sha256(lines.encode()).hexdigest()


def result_lines(predictions: list[Prediction], summary: dict[str, Any]) -> list[str]:
    """Accuracy of a split or file in all its aspects, for reading."""
    whole = Share.of(one.right for one in predictions)
    positions = by_position(predictions)
    shown = [
        f"{place}: {share.accuracy:.1%}{f' (n={share.n})' if share.n < whole.n else ''}"
        for place, share in enumerate(positions, start=1)
    ]
    lines = [
        f"answer accuracy {whole.accuracy:6.1%}  {percents(whole.interval)}  n={whole.n}  [95% Wilson interval]",
        *any_length_lines(whole, predictions, summary),
        f"token accuracy  {summary['token_accuracy']:6.2%}",
        f"loss            {summary['loss']:.4f} (perplexity {summary['perplexity']:.3f})",
    ]
    if judged := summary.get("expected"):
        lines += told(judged)
    if summary["unfinished_answers"]:
        lines.append(
            f"no answer       {summary['unfinished_answers']} of {whole.n} were not finished within the "
            f"{summary['max_new_tokens']} tokens that a target may take, and count as wrong"
        )
    if len(positions) > 1:
        starts = range(0, len(shown), DIGITS_A_LINE)
        lines += [("digit accuracy  " if not i else " " * 16) + "  ".join(shown[i : i + DIGITS_A_LINE]) for i in starts]
    lines += [
        f"speed           {value:.1f} problems per second at batch {key.rpartition('_')[2]} ({summary['accelerator']})"
        for key, value in summary.items()
        if key.startswith("problems_per_second")
    ]
    for name, shares in by_stratum(predictions).items():
        if len(shares) > 1:
            lines += ["", *table((name, *HEAD), ([value, *share.row()] for value, share in shares.items()))]
    return [*lines, ""] if summary["strata"] else lines


def any_length_lines(whole: Share, predictions: Sequence[Prediction], summary: Mapping[str, Any]) -> list[str]:
    """Accuracy of answers of any length, for reading; nothing where it is the same."""
    at_all = Share.of(one.right_any_length for one in predictions)
    if at_all == whole:
        return []
    return [
        f"at any length   {at_all.accuracy:6.1%}  {percents(at_all.interval)}  n={at_all.n}  "
        f"({at_all.right - whole.right} right answers took more than {summary['max_new_tokens']} tokens)"
    ]


def suite_lines(predictions: list[Prediction], asked: dict[str, Any]) -> list[str]:
    """Accuracy in every part of a suite, the test split first, for reading."""
    shares, sizes = by_stratum(predictions)[PART], asked["suite_sizes"]
    rows = [[part, *(shares[part].row() if size else ["0", "-", "-"])] for part, size in sizes.items()]
    short = any(size < asked["suite_size"] for part, size in sizes.items() if part != "test")
    return [
        "",
        *table((PART, *HEAD), (row + [""] * (1 + len(HEAD) - len(row)) for row in rows)),
        *[f"Where n is below {asked['suite_size']} there are no more such problems that were not trained on."] * short,
        "",
    ]


if __name__ == "__main__":
    cli.entry_point("evaluate", evaluate)
