"""Two results of benchmark.py side by side: `python experiments/speed/compare.py <old.csv> <new.csv>`.

Only ratios of numbers from the same machine mean something; both machines are printed.
"""

import csv
import sys
from pathlib import Path

Key = tuple[str, str, str]


def read(path: Path) -> tuple[str, dict[Key, float]]:
    """The machine, and each value by measure, case and unit."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    machine = next((row["case"] for row in rows if row["measure"] == "machine"), "unknown")
    values = {(row["measure"], row["case"], row["unit"]): float(row["value"]) for row in rows if row["value"]}
    return machine, values


def lines(old: Path, new: Path) -> list[str]:
    """One line per measurement that both have, and the names of those that only one has."""
    (old_machine, before), (new_machine, after) = read(old), read(new)
    out = [f"old: {old_machine}", f"new: {new_machine}"]
    out.append(f"{'measure':36} {'case':58} {'old':>10} {'new':>10} {'new/old':>8}")
    for key in (key for key in before if key in after):
        ratio = f"{after[key] / before[key]:8.2f}" if before[key] else f"{'-':>8}"
        out.append(f"{key[0]:36} {key[1]:58} {before[key]:10.4g} {after[key]:10.4g} {ratio} {key[2]}".rstrip())
    for name, keys in (("old", before.keys() - after.keys()), ("new", after.keys() - before.keys())):
        out += [f"only in {name}: {measure}, {case}" for measure, case, _ in sorted(keys)]
    return out


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: compare.py <old.csv> <new.csv>")
    sys.stdout.write("\n".join(lines(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
