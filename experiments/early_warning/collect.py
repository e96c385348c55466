"""What the runs of the early warning logged: signals.csv and results.csv, from a sweep folder.

python experiments/early_warning/collect.py <sweep folder>
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.readme import write_rows
from stepwise_pl.common.disk import read_json
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.runs.records import read_metrics, read_stage_records

HERE = Path(__file__).resolve().parent
SIGNALS = (
    "gradient_norm",
    "update_size",
    "loss",
    "first_token_loss",
    "next_stage_loss",
    "accuracy",
    "averaged_accuracy",
)
RUN = ("pace", "seed")


def facts_of(run: Path) -> dict[str, object]:
    """The run's pace, in optimizer steps for each token, and its seed."""
    config = read_yaml(run / "config.yaml")
    data = config["data"]
    return {"pace": data["epoch_size"] // data["batch_size"], "seed": config["seed"]}


def signals_of(run: Path) -> Iterator[dict[str, object]]:
    """A row for each step at which signals were logged."""
    for row in read_metrics(run / "metrics.csv"):
        if row.get("signals/loss"):
            values = {name: float(row[f"signals/{name}"]) for name in SIGNALS if row.get(f"signals/{name}")}
            rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
            yield {**facts_of(run), "step": row["step"], "removed_tokens": row["schedule/removed_tokens"], **rounded}


def validations_of(run: Path) -> Iterator[dict[str, object]]:
    """A row for each validation, the last of its number of removed tokens, and what the guard said at the end of the run."""
    summary = read_json(run / "summary.json")
    guard = {"collapsed": summary["collapsed"], "collapsed_at": summary["collapsed_at"]}
    for record in read_stage_records(run / "stages.jsonl"):
        found = {key: record[key] for key in ("step", "removed_tokens", "accuracy_any_length", "examples")}  # type: ignore[literal-required]
        yield {**facts_of(run), **found, **{key: "" if value is None else value for key, value in guard.items()}}


def main(sweep: Path) -> None:
    """Write both files beside this one."""
    runs = sorted(
        (path.parent for path in sweep.glob("**/summary.json")), key=lambda run: tuple(facts_of(run).values())
    )
    write_rows(
        HERE / "signals.csv",
        (*RUN, "step", "removed_tokens", *SIGNALS),
        (row for run in runs for row in signals_of(run)),
    )
    columns = (*RUN, "step", "removed_tokens", "accuracy_any_length", "examples", "collapsed", "collapsed_at")
    write_rows(HERE / "results.csv", columns, (row for run in runs for row in validations_of(run)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
