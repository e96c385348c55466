"""Write signals.csv, results.csv and guard.csv beside this file from two sweep folders. Rows of other runs do not stay.

python experiments/early_warning/collect.py outputs/sweeps/early_warning outputs/sweeps/guarded
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from experiments.early_warning.roc import HERE, HIGHER_IS_WORSE
from experiments.readme import write_rows
from stepwise_pl.common.disk import read_json
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.runs.records import read_metrics, read_stage_records

RUN = ("pace", "seed")


def facts_of(run: Path) -> dict[str, object]:
    """The run's pace, in optimizer steps for each token (Δ is 1 token an epoch), and its seed."""
    config = read_yaml(run / "config.yaml")
    data = config["data"]
    return {"pace": data["epoch_size"] // data["batch_size"], "seed": config["seed"]}


def signals_of(run: Path) -> Iterator[dict[str, object]]:
    """A row for each step at which signals were logged."""
    facts = facts_of(run)
    for row in read_metrics(run / "metrics.csv"):
        if row.get("signals/loss"):
            values = {name: float(row[f"signals/{name}"]) for name in HIGHER_IS_WORSE if row.get(f"signals/{name}")}
            rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
            yield {**facts, "step": row["step"], "removed_tokens": row["schedule/removed_tokens"], **rounded}


def validations_of(run: Path) -> Iterator[dict[str, object]]:
    """A row for each validation, one at the end of each stage, with the guard's verdict on the run."""
    summary = read_json(run / "summary.json")
    at = summary["collapsed_at"]
    about = {**facts_of(run), "collapsed": summary["collapsed"], "collapsed_at": "" if at is None else at}
    for record in read_stage_records(run / "stages.jsonl"):
        found = {key: record[key] for key in ("step", "removed_tokens", "accuracy_any_length", "examples")}  # type: ignore[literal-required]
        yield {**about, **found}


def guarded(run: Path) -> dict[str, object]:
    """The row of a guarded run: how often it went back and what that cost, and where it ended."""
    summary, guard = read_json(run / "summary.json"), read_yaml(run / "config.yaml")["guard"]
    back = [f"{one['at_step']} to {one['to_step']}" for one in summary["rollbacks"]]
    found = {
        key: summary[key] for key in ("abandoned_examples", "steps", "removed_tokens", "test_accuracy", "test_examples")
    }
    early = "" if guard["early"] is None else guard["early"]
    return {**facts_of(run), "early": early, "went_back": "; ".join(back), **found}


def finished(sweep: Path) -> list[Path]:
    """The finished runs of a sweep, by pace and seed.

    Raises:
        UserError: there is none.
    """
    runs = [path.parent for path in sweep.glob("**/summary.json")]
    if not runs:
        raise UserError(f"{sweep}: no finished run there; give the folder of the sweep (outputs/sweeps/<name>)")
    return sorted(runs, key=lambda run: tuple(facts_of(run).values()))


def main(sweep: Path, guarded_sweep: Path) -> None:
    """Write the three files beside this one.

    Args:
        sweep: runs at several paces, without the guard.
        guarded_sweep: runs with `guard=halve`, with and without `guard.early`.

    Raises:
        UserError: a folder has no finished run.
    """
    rows = [guarded(run) for run in finished(guarded_sweep)]
    rows.sort(key=lambda row: (str(row["early"]), row["seed"]))
    runs = finished(sweep)
    about = ("abandoned_examples", "steps", "removed_tokens", "test_accuracy", "test_examples")
    write_rows(HERE / "guard.csv", (*RUN, "early", "went_back", *about), rows)
    columns = (*RUN, "step", "removed_tokens", *HIGHER_IS_WORSE)
    write_rows(HERE / "signals.csv", columns, (row for run in runs for row in signals_of(run)))
    columns = (*RUN, "step", "removed_tokens", "accuracy_any_length", "examples", "collapsed", "collapsed_at")
    write_rows(HERE / "results.csv", columns, (row for run in runs for row in validations_of(run)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="sweep folder of the runs without the guard")
    parser.add_argument("guarded", type=Path, help="sweep folder of the guarded runs")
    given = parser.parse_args()
    try:
        main(given.sweep, given.guarded)
    except UserError as error:
        parser.error(str(error))
