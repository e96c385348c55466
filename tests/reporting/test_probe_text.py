"""The table of probes: which targets are beyond their controls, and since which stage."""

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
