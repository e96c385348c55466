"""The result of a comparison as text."""

from collections.abc import Sequence
from typing import Any

from stepwise_pl.common.text import percent, percents, table


def pair_lines(tests: Sequence[dict[str, Any]], runs: Sequence[str]) -> list[str]:
    """The table of McNemar's tests. If there are just two runs, the table of right and wrong answers stands above it."""
    number = {run: str(place) for place, run in enumerate(runs, start=1)}
    lines = []
    if len(tests) == 1:
        counts = {
            key: str(tests[0][key]) for key in ("both_right", "only_first_right", "only_second_right", "both_wrong")
        }
        lines += table(("problems", "2 right", "2 wrong"), [
            ("1 right", counts["both_right"], counts["only_first_right"]),
            ("1 wrong", counts["only_second_right"], counts["both_wrong"]),
        ])  # fmt: skip
        lines.append("")
    head = ["runs", "only first right", "only second right", "difference", "95% interval", "p", "p, Holm"]
    rows = [
        [
            f"{number[test['first']]} - {number[test['second']]}",
            str(test["only_first_right"]),
            str(test["only_second_right"]),
            f"{test['difference']:+.1%}",
            percents(test["interval"]),
            f"{test['p']:.2g}",
            f"{test['p_holm']:.2g}",
        ]
        for test in tests
    ]
    columns = len(head) - (len(tests) == 1)  # A single test needs no correction.
    lines += table(head[:columns], (row[:columns] for row in rows))
    how = "p: McNemar's exact test, two-sided; interval: adjusted Wald (Bonett and Price 2012). Both are about these runs on"
    lines.append(f"{how} problems like these, not about other seeds.")
    if len(tests) > 1:
        lines.append(f"p, Holm: corrected for {len(tests)} tests.")
    return lines


def seed_lines(means: Sequence[dict[str, Any]], runs: Sequence[str]) -> list[str]:
    """The table of configurations: mean accuracy, and the keys in which they differ."""
    number = {run: str(place) for place, run in enumerate(runs, start=1)}
    rows = []
    for mean in means:
        count = len(mean["runs"])
        why = "one seed: no interval" if count == 1 else "seeds not different: no interval"
        rows.append([
            ", ".join(number[run] for run in mean["runs"]),
            ", ".join(map(str, mean["seeds"])),
            percent(mean["mean"]),
            f"{percents(mean['interval'])} {mean['interval_is']}" if mean["interval"] else why,
            " ".join(f"{key}={value}" for key, value in mean["apart"].items()),
        ])  # fmt: skip
    lines = table(("runs that differ in the seed alone", "seeds", "mean", "95% interval", ""), rows)
    if any(mean["interval"] for mean in means):
        lines.append("t: Student's, about other seeds; Wilson: about other problems, where all seeds agree.")
    return lines
