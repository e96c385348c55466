"""The table of probes: which targets are beyond their controls, and since which stage."""

from pathlib import Path

import pytest

from stepwise_pl.reporting.probe_seeds import over_seeds, seed_lines
from stepwise_pl.reporting.probe_text import Finding, findings, probe_lines
from stepwise_pl.runs.inside import Probe


def row_of(target: str, checkpoint: str, source: str, score: float, **more: object) -> Probe:
    known = {
        "checkpoint": checkpoint, "removed_tokens": int(checkpoint.rpartition("-")[2]), "stage": int(checkpoint.rpartition("-")[2]), "layer": 1, "place": "prompt -1",
        "target": target, "kind": "class", "source": source, "probe": "linear", "score": score, "low": score - 0.05, "high": score + 0.05,
        "error": 0.1, "bits": 1.0, "bits_uniform": 2.0, "num_fit": 9, "num_scored": 9, "chosen": True, "given": False,
    }  # fmt: skip
    return Probe(**{**known, **more})  # type: ignore[arg-type]


def test_a_target_is_beyond_its_controls_only_if_every_interval_is_below() -> None:
    def at(stage: int, trained: float, raw: float, hidden: float) -> list[Probe]:
        name = f"removed-{stage}"
        return [
            row_of("cot 1", name, "trained", trained), row_of("cot 1", name, "raw", raw), row_of("cot 1", name, "random", 0.2),
            row_of("cot 1", name, "raw", hidden, probe="mlp"), row_of("cot 1", name, "constant", 0.99, probe="constant"),
            row_of("cot 1", name, "raw", 0.99, chosen=False), row_of("cot 1", name, "shuffled", 0.2),
        ]  # fmt: skip

    rows = [*at(0, 0.8, 0.75, 0.2), *at(1, 0.8, 0.6, 0.78), *at(2, 0.9, 0.5, 0.6), *at(3, 0.9, 0.5, 0.5)]
    found = findings(rows)
    assert [(finding.is_linearly_beyond, finding.is_beyond) for finding in found] == [
        (False, False), (True, False), (True, True), (True, True),
    ]  # fmt: skip
    lines = probe_lines(rows)
    # The CoT has one token more than stages 0 and 1 have removed.
    said = "read better from the states than from every control"
    assert f"Gone from the CoT, and {said}: cot 1 since stage 2 (prompt -1, layer 1: 90.0%)." in lines
    assert [line.split()[3] == "gone" for line in lines[1:5]] == [False, False, True, True]
    assert [line.split()[-1] for line in lines[2:5]] == ["+", "*", "*"]
    lines = probe_lines([*at(0, 0.9, 0.5, 0.2), *at(1, 0.8, 0.6, 0.78), *at(2, 0.3, 0.5, 0.6)])
    assert f"Not gone, and {said}: cot 1 at stage 0 (prompt -1, layer 1: 90.0%)." in lines
    assert f"Gone from the CoT, and {said}: none." in lines
    assert "No better than their controls: cot 1." in probe_lines(at(0, 0.2, 0.5, 0.2))
    assert not Finding("cot 1", "best").is_beyond


def test_a_long_table_shows_some_stages_with_the_first_and_the_last() -> None:
    rows = [row_of(f"cot {target}", f"removed-{stage}", "trained", 0.5) for stage in range(20) for target in range(20)]
    lines = probe_lines(rows)
    shown = [line.split()[2] for line in lines if line.startswith("cot 7 ")]
    assert shown == ["0", "5", "10", "14", "19"]
    left_out = ", ".join(str(stage) for stage in range(20) if str(stage) not in shown)
    assert f"(Left out here: stages {left_out}.)" in lines


def test_a_token_is_gone_where_it_is_no_place() -> None:
    """Tokens leave from the right here, so that their number says nothing."""

    def at(stage: int, *left: str) -> list[Probe]:
        name = f"removed-{stage}"
        of_places = [row_of("cot 0", name, "trained", 0.9, place=place, chosen=False) for place in left]
        return [*of_places, *(row_of(f"cot {token}", name, "trained", 0.9) for token in range(2))]

    rows = [*at(0, "cot 0", "cot 1"), *at(1, "cot 0"), *at(2), row_of("answer 2", "removed-2", "trained", 0.9)]
    gone = {(finding.target, finding.stage): finding.is_gone for finding in findings(rows)}
    assert gone == {
        ("cot 0", "0"): False, ("cot 1", "0"): False, ("cot 0", "1"): False, ("cot 1", "1"): True,
        ("cot 0", "2"): True, ("cot 1", "2"): True, ("answer 2", "2"): False,
    }  # fmt: skip


def of_seed(rise: float) -> list[Probe]:
    """A run whose probe reads 0.5 + rise at stage 0 and 0.3 at stage 1, beside a control of 0.4."""
    return [
        row_of("cot 1", "removed-0", "trained", 0.5 + rise), row_of("cot 1", "removed-0", "trained", 0.2, probe="mlp"),
        row_of("cot 1", "removed-0", "raw", 0.4), row_of("cot 1", "removed-0", "shuffled", 0.1),
        row_of("cot 1", "removed-0", "raw", 0.9, chosen=False), row_of("cot 1", "removed-0", "constant", 0.9, probe="constant"),
        row_of("cot 1", "removed-1", "trained", 0.3 + rise), row_of("cot 1", "removed-1", "random", 0.4),
        row_of("cot 2", "removed-0", "trained", 0.3),
    ]  # fmt: skip


def test_seeds_are_averaged_and_compared_pair_by_pair() -> None:
    """A target without a control is left out, and so is a stage that one seed lacks."""
    runs = {seed: of_seed(rise) for seed, rise in ((3, 0.0), (5, 0.02), (8, 0.04))}
    both = over_seeds(runs)
    assert [(row.target, row.stage, row.seeds) for row in both] == [
        ("cot 1", "0", [3, 5, 8]),
        ("cot 1", "1", [3, 5, 8]),
    ]
    assert both[0].states == [0.5, 0.52, 0.54] and both[0].controls == [0.4] * 3
    assert both[0].differences == pytest.approx([0.1, 0.12, 0.14])
    # The half width is 4.303 (t with 2 degrees of freedom) times 0.02 / √3 = 0.0497.
    assert both[0].is_beyond and not both[1].is_beyond
    runs[8] = [row for row in runs[8] if row.checkpoint == "removed-0"]
    assert [row.stage for row in over_seeds(runs)] == ["0"]


def test_seeds_of_one_configuration_get_a_table(tmp_path: Path) -> None:
    for name, seed, width in (("a", 1, 8), ("b", 2, 8), ("c", 1, 16), ("d", 2, 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"seed: {seed}\nmodel:\n  width: {width}\n")
    tables = {tmp_path / name: of_seed(rise) for name, rise in (("a", 0.0), ("b", 0.02), ("c", 0.3))}
    lines = seed_lines(tables)
    assert [line for line in lines if line.startswith(("a", "seed"))] == [lines[1]] and lines[1].endswith("seeds 1, 2")
    (first, second) = (line for line in lines if line.startswith("cot 1"))
    assert first.split()[2:4] == ["0", "51.0%"] and "11.0%" in first
    assert second.split()[2:4] == ["1", "31.0%"]
    assert seed_lines({path: rows for path, rows in tables.items() if path.name != "b"}) == []
    # The same seed twice is not two seeds.
    assert seed_lines({**tables, tmp_path / "d": of_seed(0.0)}) == []
