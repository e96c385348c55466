"""The tables of this experiment, from the folders `inside/` of some runs.

    python experiments/inside/collect.py quickstart=<run> quickstart=<run> no_cot=<run> ...

probes.csv     the chosen probe of each target at each checkpoint, beside its controls
patches.csv    states of another problem put in, at the checkpoints given to `patch`
ablations.csv  what a linear probe reads, taken out
swaps.csv      words of the prompt exchanged
seeds.csv      the better of the chosen probes and the best control, means over the seeds of an arm with 95% t intervals
lens.csv       for each token that is gone the place and layer at which the lens shows it best, beside random weights

Each row begins with the arm and the seed. A table that no run has is not written.
"""

import csv
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from stepwise_pl.common.disk import read_json
from stepwise_pl.common.statistics import mean_interval
from stepwise_pl.reporting.probe_seeds import over_seeds
from stepwise_pl.reporting.probe_text import KINDS, findings
from stepwise_pl.runs.inside import (
    CONSTANT,
    RANDOM,
    RAW,
    SHUFFLED,
    TRAINED,
    Ablation,
    Lens,
    Patch,
    Probe,
    Swap,
    read_rows,
)

HERE = Path(__file__).parent
Rows = Iterable[dict[str, Any]]


def probes(run: Path) -> Iterator[dict[str, Any]]:
    """The chosen probes of a run: linear and with a hidden layer, for the states and for each control."""
    for finding in findings(read_rows(run, Probe)):
        own = finding.by[TRAINED, KINDS[0]]
        row = {key: getattr(own, key) for key in ("checkpoint", "removed_tokens", "target", "kind", "place", "layer")}
        for source in (TRAINED, RANDOM, RAW, SHUFFLED):
            for kind in KINDS:
                probe = finding.by.get((source, kind))
                row[f"{source}_{kind}"] = probe.score if probe else ""
        constant = finding.by.get((CONSTANT, CONSTANT)) or next(
            (probe for (source, _), probe in finding.by.items() if source == CONSTANT), None
        )
        row |= {"constant": constant.score if constant else "", "low": own.low, "high": own.high, "bits": own.bits,
                "bits_uniform": own.bits_uniform, "error": own.error, "scored": own.num_scored,
                "beyond": finding.is_beyond, "linearly_beyond": finding.is_linearly_beyond}  # fmt: skip
        yield row


def seeds(arm: str, runs: dict[int, Path]) -> Iterator[dict[str, Any]]:
    """Means over the seeds of an arm, which has several."""
    for row in over_seeds({seed: read_rows(run, Probe) for seed, run in runs.items()}):
        values = {"states": row.states, "control": row.controls, "difference": row.differences}
        numbers: dict[str, float] = {}
        for name, scores in values.items():
            numbers[name] = fmean(scores)
            numbers[f"{name}_low"], numbers[f"{name}_high"] = mean_interval(scores)
        yield {"arm": arm, "seeds": len(runs), "target": row.target, "stage": row.stage, "gone": row.is_gone, **numbers}


def lens(run: Path) -> Iterator[dict[str, Any]]:
    """The best place and layer of each token that is looked for, before the token itself is read, beside random weights."""
    best: dict[tuple[str, str, str], Lens] = {}
    for row in read_rows(run, Lens):
        if row.token == "next" or is_from(row.place, row.token):
            continue
        key = (row.checkpoint, row.token, row.source)
        if key not in best or row.top > best[key].top:
            best[key] = row
    for (checkpoint, token, source), row in best.items():
        if source == TRAINED:
            random = best.get((checkpoint, token, RANDOM))
            yield {
                "checkpoint": checkpoint, "removed_tokens": row.removed_tokens, "token": token, "place": row.place,
                "layer": row.layer, "top": row.top, "chance": row.chance, "random": random.top if random else "",
            }  # fmt: skip


def is_from(place: str, token: str) -> bool:
    """Whether a place has read a token of the CoT or of the answer."""
    order = ("prompt", "thought", "cot", "answer")
    (part, number), (other, of_token) = place.split(), token.split()
    return (order.index(part), int(number)) >= (order.index(other), int(of_token)) and part != "thought"


def plain(kind: type[Patch] | type[Ablation] | type[Swap]) -> Any:
    """Rows of a table as they are."""
    return lambda run: map(asdict, read_rows(run, kind))


TABLES = {
    "probes": probes, "patches": plain(Patch), "ablations": plain(Ablation), "swaps": plain(Swap), "lens": lens,
}  # fmt: skip


def main(given: list[str]) -> None:
    """Write the tables beside this file."""
    arms: dict[str, dict[int, Path]] = {}
    for one in given:
        arm, _, folder = one.partition("=")
        arms.setdefault(arm, {})[read_json(Path(folder) / "summary.json")["seed"]] = Path(folder)
    for name, rows_of in TABLES.items():
        of_runs = ((arm, seed, run) for arm, runs in arms.items() for seed, run in runs.items())
        write(name, [{"arm": arm, "seed": seed, **row} for arm, seed, run in of_runs for row in rows_of(run)])
    write("seeds", [row for arm, runs in arms.items() if len(runs) > 1 for row in seeds(arm, runs)])


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write a table, unless it has no row."""
    if not rows:
        return
    with (HERE / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
