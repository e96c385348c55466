"""The end of a run: its figure, and its result as text."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise_pl.common.text import percent, with_wilson
from stepwise_pl.config.request import Request
from stepwise_pl.runs.expected import judged_lines

if TYPE_CHECKING:
    from stepwise_pl.runs.stages import StageAccuracy


def report(run_dir: Path, summary: dict[str, Any], asked: Request) -> str:
    """Draw accuracy.png and accuracy.svg into the run folder; return the summary for reading.

    A job of a sweep gets one line, because the sweep ends with a table. A figure that cannot be drawn is a warning.
    """
    from stepwise_pl.common.errors import go_on_without
    from stepwise_pl.runs.stages import read_stages, stage_table

    stages, given_up = read_stages(run_dir / "metrics.csv", summary.get("stage_names", ()))
    with go_on_without("accuracy.png"):
        _draw(run_dir, summary, stages, given_up)
    accuracy = with_wilson(summary["test_accuracy"], summary["test_examples"])
    stage = f", stage {summary['stage']}" if "stage" in summary else ""
    if asked.job:
        removed = f"{summary['removed_tokens']} of {summary['max_cot_tokens']} removed{stage}"
        return f"[{asked.job}] {asked.label}: test accuracy {accuracy.strip()}, {removed}, {summary['seconds']:.0f} s"
    guard = [
        f"back from step {rollback['at_step']} ({rollback['at_removed_tokens']} removed) to {rollback['to_step']} "
        f"({rollback['to_removed_tokens']} removed): {rollback['does']}"
        for rollback in summary["rollbacks"]
    ]
    if summary["collapsed"]:
        guard.append(
            "accuracy has collapsed; slower removal (a lower schedule.delta, a higher schedule.keep), schedule.smoothing or "
            "guard=halve may prevent it"
        )
    elif summary["collapsed_at"] is not None:
        guard.append(f"accuracy had collapsed with {summary['collapsed_at']} tokens removed, and came back")
    guard = [f"{'' if i else 'guard':16}{line}\n" for i, line in enumerate(guard)]
    judged = summary["expected"]
    expected = "".join(f"{line}\n" for line in judged_lines(judged)) if judged else ""
    figure = "accuracy.png, " if (run_dir / "accuracy.png").is_file() else ""
    at_all = summary["test_accuracy_any_length"]
    at_all = f"{'':16}{percent(at_all):>6} at any length\n" if at_all != summary["test_accuracy"] else ""
    per_token = summary["examples_per_token"]
    per_token = f"{per_token:.0f} examples per removed token, " if per_token else ""
    run = shlex.quote(f"run={run_dir}")  # for a shell, because a folder may have blanks in its name
    export = f"{'':16}python -m stepwise_pl.export {run}\n" if summary["can_export"] else ""
    tokens = f"{summary['tokens_read']:,} tokens read, " if summary["tokens_read"] else ""
    return f"""
{stage_table(stages)}

test accuracy   {accuracy}  [95% Wilson interval]
{at_all}                with {summary["removed_tokens"]} of {summary["max_cot_tokens"]} CoT tokens removed{stage} ({summary["checkpoint"]})
{"".join(guard)}training        {summary["steps"]} steps, {summary["examples_seen"]} examples, {per_token}{tokens}{summary["seconds"]:.0f} s
{expected}run folder      {run_dir}
                config.yaml, metrics.csv, stages.jsonl, summary.json, {figure}checkpoints/
next            python -m stepwise_pl.evaluate {run}
{export}                python -m stepwise_pl.report {shlex.quote(str(run_dir))}
"""


def _draw(
    run_dir: Path, summary: dict[str, Any], stages: "list[StageAccuracy]", given_up: "list[list[StageAccuracy]]"
) -> None:
    """The run's own figure, from its validations and its summary; nothing else of the folder is read."""
    from stepwise_pl.reporting.figures.accuracy import accuracy_chart
    from stepwise_pl.reporting.history import History
    from stepwise_pl.reporting.static import write_figure

    name = summary["name"]
    run = History(run_dir, name, summary=summary, stages=stages, stages_given_up=given_up)
    chart = accuracy_chart([run], title=name)
    if chart is not None:
        write_figure(chart, [name], run_dir)
