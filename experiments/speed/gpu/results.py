"""The records of all cases on the disk, and the table made of them, with ratios and targets."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

COLUMNS = ("kind", "case", "measure", "value", "unit", "outcome", "note")
# A case with another outcome (error, overran, skipped, no time) is tried again by the next call.
DONE = ("measured", "passed", "failed")
Row = tuple[str, str, str, str, str, str, str]


@dataclass
class Record:
    """The end of a case.

    Attributes:
        outcome: `measured`, `passed`, `failed`, `error`, `overran`, `skipped` or `no time`.
        values: measurement to value and unit.
        call: the call of the script that made it; ratios are of one call, or say that they are not.
    """

    name: str
    outcome: str
    note: str = ""
    values: dict[str, tuple[float, str]] = field(default_factory=dict)
    seconds: float = 0.0
    call: str = ""


class Target(NamedTuple):
    """A value that a measurement, or its ratio to that of the baseline, has to reach."""

    case: str
    measure: str
    is_ratio: bool
    bound: float
    at_most: bool = False


def targets(large_batch: int = 256) -> tuple[Target, ...]:
    """The targets of the step on one card."""
    large = f"gpt2, batch {large_batch}"
    names = ("gpt2, batch 32", large, "2 layers of 768, batch 32")
    return (
        Target("gpt2, batch 32", "examples", True, 5),
        Target("2 layers of 768, batch 32", "examples", True, 8),
        Target(large, "share of the matrix peak", False, 0.4),
        *(Target(name, "peak memory", True, 1, at_most=True) for name in names),
    )


def read(path: Path) -> dict[str, Record]:
    """The last record of each case. A line that a kill has cut off is left out."""
    found: dict[str, Record] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError):
            continue
        record.values = {name: (value, unit) for name, (value, unit) in record.values.items()}
        found[record.name] = record
    return found


def add(path: Path, record: Record) -> None:
    """Append a record, on a line of its own."""
    is_cut = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * is_cut + json.dumps(vars(record)) + "\n")


def keep(out: Path, state: Path, record: Record, large_batch: int) -> dict[str, Record]:
    """Add a record to the state, and write state and table into the folder `out`; return all records."""
    add(state, record)
    records = read(state)
    (out / "cases.jsonl").write_bytes(state.read_bytes())
    write(out / "results.csv", table(records, large_batch))
    return records


def read_case(path: Path) -> tuple[dict[str, tuple[float, str]], str, str]:
    """Values, outcome and note that a case has written; the outcome is empty if it has written none."""
    values: dict[str, tuple[float, str]] = {}
    outcome = note = ""
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if "outcome" in row:
            outcome, note = row["outcome"], row["note"]
        else:
            values[row["measure"]] = (row["value"], row["unit"])
    return values, outcome, note


def table(records: Mapping[str, Record], large_batch: int = 256) -> list[Row]:
    """All rows: targets, ratios, then each case with its values."""
    rows: list[Row] = [
        *target_rows(records, large_batch),
        *ratio_rows(records),
    ]
    for record in records.values():
        rows.append(
            ("case", record.name, "time of the case", f"{record.seconds:.1f}", "s", record.outcome, record.note)
        )
        rows += [
            ("value", record.name, measure, f"{value:.5g}", unit, "", "")
            for measure, (value, unit) in record.values.items()
        ]
    return rows


def ratio_rows(records: Mapping[str, Record]) -> Iterator[Row]:
    """Speeds and memory of one model and batch, divided by those of another step."""
    names = dict.fromkeys(
        name.rpartition(": ")[0] for name in records if name.endswith((": compiled", ": plain")) and ", batch " in name
    )
    for name in names:
        if name.startswith("no waits") or not name:
            continue
        for one, other in (
            ("compiled", "cd7dcba"), ("compiled", "bare loop"), ("compiled", "plain"), ("plain", "cd7dcba"), ("plain", "bare loop"),
        ):  # fmt: skip
            for measure in ("examples", "peak memory", "reserved memory"):
                if (ratio := divided(records, name, measure, one, other)) is not None:
                    yield ("ratio", name, f"{measure}, {one} / {other}", f"{ratio[0]:.4g}", "", "", ratio[1])


def divided(records: Mapping[str, Record], name: str, measure: str, one: str, other: str) -> tuple[float, str] | None:
    """The ratio, and a note if its parts are of two calls; None if a part is missing."""
    parts = [records.get(f"{name}: {step}") for step in (one, other)]
    if any(part is None or measure not in part.values or part.outcome not in DONE for part in parts):
        return None
    above, below = (part for part in parts if part is not None)
    note = "" if above.call == below.call else "its parts were measured in two calls"
    return (above.values[measure][0] / below.values[measure][0], note) if below.values[measure][0] else None


def target_rows(records: Mapping[str, Record], large_batch: int = 256) -> Iterator[Row]:
    """Each target: reached, not reached or not measured."""
    for target in targets(large_batch):
        step = records.get(f"{target.case}: compiled")
        found: tuple[float, str] | None
        if target.is_ratio:
            found = divided(records, target.case, target.measure, "compiled", "cd7dcba")
        else:
            is_there = step is not None and step.outcome in DONE and target.measure in step.values
            found = (step.values[target.measure][0], "") if is_there and step is not None else None
        name = f"{target.measure}, compiled / cd7dcba" if target.is_ratio else target.measure
        bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
        if found is None:
            yield ("target", target.case, name, "", "", "not measured", bound)
            continue
        is_reached = found[0] <= target.bound if target.at_most else found[0] >= target.bound
        note = "; ".join(filter(None, (bound, found[1])))
        yield ("target", target.case, name, f"{found[0]:.4g}", "", "reached" if is_reached else "not reached", note)


def write(path: Path, rows: list[Row]) -> None:
    """Write the table, in one go."""
    fresh = path.with_suffix(".tmp")
    with fresh.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    fresh.replace(path)
