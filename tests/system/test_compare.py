"""`compare` on run folders with made-up predictions, so that the numbers are known."""

import json
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from stepwise_pl.cli.arguments import positional
from stepwise_pl.common.errors import UserError
from stepwise_pl.compare import CompareConfig, compare
from stepwise_pl.config.plain import read_yaml, save_yaml, to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.export import ExportConfig
from stepwise_pl.methods import Stepwise
from stepwise_pl.report import ReportConfig, report
from stepwise_pl.runs.predictions import Prediction, write_predictions
from stepwise_pl.schedules import Linear
from stepwise_pl.sweep import SweepConfig
from stepwise_pl.tasks import Multiplication
from tests.conftest import command

RIGHT = "1101111111" * 10  # of 100 problems


def run_folder(
    path: Path,
    right: str = RIGHT,
    name: str = "best-test-removed2",
    as_trained: bool = True,
    parts: Sequence[str] | None = None,
    **settings: Any,
) -> str:
    """Write a run folder; prediction i is right if `right[i]` is 1."""
    settings = {"task": Multiplication(), "schedule": Linear(), "method": Stepwise(), "run_dir": str(path), **settings}
    folder = path / "evaluations"
    folder.mkdir(parents=True, exist_ok=True)
    save_yaml({**to_plain(Config(**settings)), "derived": {"where": str(path)}}, path / "config.yaml")
    write_predictions(
        (
            Prediction(i, f"problem {i}", "1", "1" if one == "1" else None, one == "1", {"part": parts[i]} if parts else {})
            for i, one in enumerate(right)
        ),
        folder / f"{name}.jsonl",
    )  # fmt: skip
    summary = {"checkpoint": "best.ckpt", "as_trained": as_trained, "step": 7, "removed_tokens": 2, "split": "test"}
    (folder / f"{name}.json").write_text(json.dumps(summary))
    return str(path)


def compared(capsys: pytest.CaptureFixture[str], *runs: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    result = compare(CompareConfig(runs=list(runs), **settings))
    return capsys.readouterr().out, result


def test_predictions_older_than_the_checkpoint_are_refused(tmp_path, capsys) -> None:
    a, b = (run_folder(tmp_path / name) for name in "ab")
    checkpoint = tmp_path / "b" / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_text("")
    predictions = tmp_path / "b" / "evaluations" / "best-test-removed2.jsonl"
    now = predictions.stat().st_mtime
    os.utime(checkpoint, (now - 5, now - 5))
    compared(capsys, a, b)
    os.utime(checkpoint, (now + 5, now + 5))
    with pytest.raises(UserError, match=f"is older than best.ckpt.* stepwise_pl.evaluate run={b}"):
        compared(capsys, a, b)


def test_no_command_overwrites_the_measurements_of_a_run(tmp_path, capsys) -> None:
    a, b = (run_folder(tmp_path / name) for name in "ab")
    measured = tmp_path / "a" / "summary.json"
    measured.write_text('{"test_accuracy": 1.0}\n')
    for out, why in ((measured, "holds something else"), (tmp_path / "a", "is a folder")):
        with pytest.raises(UserError, match=f"^out={out}: {why}"):
            compared(capsys, a, b, out=str(out))
        with pytest.raises(UserError, match=f"^out={out}: {why}"):
            report(ReportConfig(runs=[a], out=str(out)))
    assert measured.read_text() == '{"test_accuracy": 1.0}\n'
    for _ in range(2):  # the command may replace its own output
        compared(capsys, a, b, out=str(tmp_path / "numbers.json"))


def test_two_runs_by_hand(tmp_path, capsys) -> None:
    """Both runs are right on 60 problems, only one of them on 25 and 10, neither on 5."""
    a = run_folder(tmp_path / "a", "1" * 60 + "1" * 25 + "0" * 10 + "0" * 5)
    b = run_folder(tmp_path / "b", "1" * 60 + "0" * 25 + "1" * 10 + "0" * 5, task=Multiplication(digits=5))
    out, result = compared(capsys, a, b)
    (test,) = result["pairs"]
    assert [test[key] for key in ("both_right", "only_first_right", "only_second_right", "both_wrong")] == [
        60,
        25,
        10,
        5,
    ]
    assert test["difference"] == pytest.approx(0.15)
    assert test["p"] == pytest.approx(stats.binomtest(10, 35).pvalue)
    assert test["p_holm"] == test["p"]
    low, high = test["interval"]
    first, second = 26 / 102, 11 / 102
    half = stats.norm.ppf(0.975) * ((first + second - (first - second) ** 2) / 102) ** 0.5
    assert (low, high) == pytest.approx((15 / 102 - half, 15 / 102 + half), abs=1e-6)
    assert [line.split() for line in out.splitlines() if line.startswith(("1 right", "1 wrong"))] == [
        ["1", "right", "60", "25"],
        ["1", "wrong", "10", "5"],
    ]
    line = next(line for line in out.splitlines() if line.startswith("1 - 2"))
    assert line.split() == ["1", "-", "2", "25", "10", "+15.0%", f"[{low:.1%},", f"{high:.1%}]", f"{test['p']:.2g}"]
    accuracies = [(run["run"], run["accuracy"], run["n"], run["step"]) for run in result["runs"]]
    assert accuracies == [(a, 0.85, 100, 7), (b, 0.7, 100, 7)]
    assert "85.0%" in out and "70.0%" in out


def test_equal_predictions_are_no_difference(tmp_path, capsys) -> None:
    out, result = compared(capsys, run_folder(tmp_path / "a"), run_folder(tmp_path / "b", seed=1))
    assert (result["pairs"][0]["p"], result["pairs"][0]["difference"]) == (1, 0)
    assert "+0.0%" in out
    # Nor do equal predictions show that any seed would do as well.
    (mean,) = result["seeds"]
    wilson = stats.binomtest(RIGHT.count("1"), 100).proportion_ci(method="wilson")
    assert mean["interval"] == pytest.approx((wilson.low, wilson.high), abs=1e-6)
    assert f"[{wilson.low:.1%}, {wilson.high:.1%}] Wilson" in out


def test_every_pair_of_more_runs_is_corrected(tmp_path, capsys) -> None:
    right = ["1" * 90 + "0" * 10, "1" * 70 + "0" * 30, "0" * 20 + "1" * 66 + "0" * 14]
    runs = [run_folder(tmp_path / name, one, seed=i) for i, (name, one) in enumerate(zip("abc", right, strict=True))]
    out, result = compared(capsys, *runs)
    assert [(test["first"], test["second"]) for test in result["pairs"]] == list(combinations(runs, 2))
    plain = []
    for one, other in combinations(right, 2):
        pairs = list(zip(one, other, strict=True))
        first, second = pairs.count(("1", "0")), pairs.count(("0", "1"))
        plain.append(stats.binomtest(first, first + second).pvalue)
    assert [test["p"] for test in result["pairs"]] == pytest.approx(plain)
    order = sorted(range(3), key=plain.__getitem__)
    wanted = [0.0] * 3
    for rank, i in enumerate(order):
        wanted[i] = max([min(1, (3 - rank) * plain[i]), *(wanted[j] for j in order[:rank])])
    assert [test["p_holm"] for test in result["pairs"]] == pytest.approx(wanted)
    assert wanted != pytest.approx(plain)
    assert "corrected for 3 tests" in out
    assert "1 right" not in out


def test_seeds_of_one_configuration_are_averaged(tmp_path, capsys) -> None:
    """Settings that change nothing about learning do not set runs apart; all others do."""
    counts = (90, 84, 96)
    same = [run_folder(tmp_path / f"s{seed}", "1" * n + "0" * (100 - n), seed=seed) for seed, n in enumerate(counts)]
    for key, old, new in (("num_workers", "0", "3"), ("log_every_n_steps", "50", "7"), ("project", "stepwise_pl", "x")):
        path = tmp_path / "s1" / "config.yaml"
        text = path.read_text()
        assert f"{key}: {old}" in text
        path.write_text(text.replace(f"{key}: {old}", f"{key}: {new}"))
    other = run_folder(tmp_path / "other", schedule=Linear(delta=4))
    out, result = compared(capsys, *same, other)
    seeds, alone = result["seeds"]
    values = [0.9, 0.84, 0.96]
    assert (seeds["runs"], seeds["seeds"], seeds["accuracies"]) == (same, [0, 1, 2], values)
    assert seeds["mean"] == pytest.approx(0.9)
    wanted = stats.t.interval(0.95, 2, loc=0.9, scale=stats.sem(values))
    assert seeds["interval"] == pytest.approx((wanted[0], min(1, wanted[1])))
    assert (alone["runs"], alone["interval"], alone["mean"]) == ([other], None, 0.9)
    assert [group["apart"] for group in result["seeds"]] == [{"schedule.delta": 8}, {"schedule.delta": 4}]
    lines = out.splitlines()
    assert any(line.startswith("1, 2, 3") and "90.0%" in line and "schedule.delta=8" in line for line in lines)
    assert any(line.startswith("4 ") and "one seed: no interval" in line for line in lines)


def test_a_repeated_seed_is_no_sample_of_seeds(tmp_path, capsys) -> None:
    out, result = compared(capsys, run_folder(tmp_path / "a"), run_folder(tmp_path / "b", "1" * 100))
    assert (result["seeds"][0]["interval"], result["seeds"][0]["seeds"]) == (None, [0, 0])
    assert "seeds not different: no interval" in out


def test_the_evaluation_at_the_trained_stage_is_compared(tmp_path, capsys) -> None:
    runs = []
    for name in "ab":
        run_folder(tmp_path / name, "0" * 100, "best-test-removed0", as_trained=False)
        run_folder(tmp_path / name, "0" * 100, "last-test-removed2")
        run_folder(tmp_path / name, "0" * 100, "best-validation-removed2")
        run_folder(tmp_path / name, "0" * 5, "best-test-first5-removed2")
        runs.append(run_folder(tmp_path / name))
    assert compared(capsys, *runs)[1]["runs"][0]["accuracy"] == 0.9
    assert compared(capsys, *runs, split="validation")[1]["runs"][0]["accuracy"] == 0
    assert compared(capsys, *runs, checkpoint="last")[1]["runs"][0]["accuracy"] == 0
    assert compared(capsys, *runs, name="best-test-first5-removed2")[1]["runs"][0]["n"] == 5


def test_a_suite_is_compared_part_by_part(tmp_path, capsys) -> None:
    parts = ["test"] * 50 + ["swapped"] * 50
    a = run_folder(tmp_path / "a", "1" * 50 + "0" * 50, "best-ood-removed2", parts=parts)
    b = run_folder(tmp_path / "b", "1" * 100, "best-ood-removed2", parts=parts, seed=1)
    for part, accuracies in (("test", [1, 1]), ("swapped", [0, 1])):
        result = compared(capsys, a, b, name="best-ood-removed2", part=part)[1]
        assert [(run["accuracy"], run["n"]) for run in result["runs"]] == [(accuracy, 50) for accuracy in accuracies]
    for part in (None, "other"):
        with pytest.raises(UserError, match=r"no such part in .*; choose one with part= \(test, swapped\)"):
            compared(capsys, a, b, name="best-ood-removed2", part=part)


def test_only_the_same_problems_are_compared(tmp_path, capsys) -> None:
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", RIGHT[:50])
    with pytest.raises(UserError, match="have not answered the same problems: 100 of them and 50"):
        compared(capsys, a, b)
    file = tmp_path / "a" / "evaluations" / "best-test-removed2.jsonl"
    lines = file.read_text().splitlines()
    for changed, message in (
        (lines[1::-1] + lines[2:], "prompt 1 is 'problem 1' in the first, 'problem 0' in the second"),
        (
            [*lines[:4], lines[4].replace('"target": "1"', '"target": "2"'), *lines[5:]],
            "answer 5 is '2' in the first, '1' in the second",
        ),
    ):
        file.write_text("\n".join(changed) + "\n")
        with pytest.raises(UserError, match=message):
            compared(capsys, a, run_folder(tmp_path / "c"))
    assert not capsys.readouterr().out


def test_a_missing_evaluation_is_named(tmp_path, capsys) -> None:
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", name="best-test-removed0", as_trained=False)
    make = f"python -m stepwise_pl.evaluate run={b} split=test"
    with pytest.raises(UserError, match=f"run {b} has no predictions for split=test; make them with: {make}$"):
        compared(capsys, a, b)
    with pytest.raises(UserError, match="evaluate run=.*a checkpoint=last split=test"):
        compared(capsys, a, b, checkpoint="last")
    with pytest.raises(UserError, match=r"name=x: run .*a has no such predictions \(there: best-test-removed2\)"):
        compared(capsys, a, b, name="x")
    with pytest.raises(UserError, match="is given twice"):
        compared(capsys, a, a)
    for text, message in (("", "holds no prediction"), ("{}\n", "line 1 is no prediction"), ("[", "line 1 is no")):
        (tmp_path / "a" / "evaluations" / "best-test-removed2.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            compared(capsys, a, run_folder(tmp_path / "c"))


@pytest.mark.parametrize("name", ["run", "runs", "sweep", "split", "out", "hydra", "hydra-runs"])
def test_a_folder_may_have_the_name_of_a_key(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    assert positional([name, "split=test"], ExportConfig) == [f"run='{name}'", "split=test"]
    assert positional([name, "other", "out=x"], CompareConfig) == [f"runs=['{name}','other']", "out=x"]
    assert positional([name], SweepConfig) == [f"sweep='{name}'"]


def test_folders_of_any_name_become_a_list(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["plain", "schedule.delta=1_2", "a,b [c]", "it's", "back\\slash's", "two\\\\'s", "end\\"]
    for name in names:
        Path(name).mkdir()
    given = positional([*names, "split=validation"], CompareConfig)
    assert given[1:] == ["split=validation"]
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(given[0])
    assert parsed.key_or_group == "runs"
    assert [str(getattr(value, "text", value)) for value in parsed.value()] == names  # type: ignore[union-attr]
    assert positional(["runs=[a,b]", "nowhere=3"], CompareConfig) == ["runs=[a,b]", "nowhere=3"]
    assert positional(["missing"], CompareConfig) == ["runs=['missing']"]
    assert positional(["it's", "split=test"], ExportConfig) == ["run='it\\'s'", "split=test"]
    assert positional(["schedule.delta=1_2"], SweepConfig) == ["sweep='schedule.delta=1_2'"]
    # A command of several keys takes it for a key, because no such folder is there.
    assert positional(["not/there=1"], SweepConfig) == ["not/there=1"]
    assert positional(["run=plain"], ExportConfig) == ["run=plain"]
    assert positional(["task=mult4x4", "plain"], Config) == ["task=mult4x4", "plain"]
    for arguments, schema in (
        (["plain", "it's"], ExportConfig),
        (["plain", "run=x"], ExportConfig),
        (["plain", "runs=[x]"], CompareConfig),
    ):
        with pytest.raises(UserError):
            positional(arguments, schema)


def test_the_command(tmp_path) -> None:
    a, b = run_folder(tmp_path / "a,=1"), run_folder(tmp_path / "it's b", "1" * 100, seed=1)
    out = command("compare", a, b, f"out={tmp_path / 'new' / 'numbers.json'}")
    assert "McNemar" in out.stdout
    result = json.loads((tmp_path / "new" / "numbers.json").read_text())
    assert result["pairs"][0]["p"] == pytest.approx(2 / 2**10)
    assert [run["run"] for run in result["runs"]] == [a, b]
    for arguments, message in (
        ((a,), "two or more runs are needed: python -m stepwise_pl.compare <run folder> <run folder>"),
        ((a, "nowhere"), "run=nowhere: no config.yaml there"),
        ((a, b, "split=validation"), "has no predictions for split=validation; make them with: python -m"),
        ((a, b, "splitt=test"), "splitt: no such key. Did you mean split?"),
        ((a, b, "part=x"), "part=x: no such part in"),
    ):
        out = command("compare", *arguments, check=False)
        assert (out.returncode, len(out.stderr.strip().splitlines())) == (2, 1), out.stderr
        assert out.stderr.startswith("error: ") and message in out.stderr


def test_a_key_that_came_later_does_not_set_runs_apart(tmp_path, capsys) -> None:
    one, other = run_folder(tmp_path / "one", seed=0), run_folder(tmp_path / "other", "1" * 80 + "0" * 20, seed=1)
    path = tmp_path / "one" / "config.yaml"
    older = read_yaml(path)
    del older["data"]["max_tokens"], older["schedule"]["rewarmup_steps"]
    save_yaml(older, path)
    _, result = compared(capsys, one, other)
    (mean,) = result["seeds"]
    assert (mean["seeds"], mean["apart"]) == ([0, 1], {})
    # A configuration with keys that this version does not know is compared as it is written.
    for group in ("data", "schedule", "task"):
        save_yaml({**older, group: {**older[group], "gone": 1}}, path)
        _, result = compared(capsys, one, other)
        assert [mean["apart"].get(f"{group}.gone") for mean in result["seeds"]] == [1, None]


# Another model.


def outside_file(path: Path, lines: Sequence[dict[str, Any] | str]) -> str:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return str(path)


def predicted(right: str) -> list[dict[str, Any]]:
    return [{"prompt": f"problem {i}", "prediction": one} for i, one in enumerate(right)]


def test_another_model_is_tested_against_a_run_as_a_second_run_is(tmp_path, capsys) -> None:
    """A run with the same answers gives the same numbers, in whatever order the file has them."""
    other = "1" * 60 + "0" * 25 + "1" * 10 + "0" * 5
    run = run_folder(tmp_path / "a", "1" * 60 + "1" * 25 + "0" * 10 + "0" * 5)
    _, of_runs = compared(capsys, run, run_folder(tmp_path / "b", other, task=Multiplication(digits=5)))
    file = outside_file(tmp_path / "other.jsonl", predicted(other)[::-1])
    result = compare(CompareConfig(run=run, predictions=file, out=str(tmp_path / "out.json")))
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{file}: one prediction for each of the 100 problems"
    assert [{**test, "second": ""} for test in result["pairs"]] == [{**test, "second": ""} for test in of_runs["pairs"]]
    assert (result["pairs"][0]["second"], result["pairs"][0]["difference"]) == (file, pytest.approx(0.15))
    assert [one["accuracy"] for one in result["runs"]] == [0.85, 0.7]
    assert result["runs"][1]["interval"] == pytest.approx(
        tuple(stats.binomtest(70, 100).proportion_ci(method="wilson")), abs=1e-6
    )
    # The other model has no seed, so that no mean is about it.
    assert [mean["runs"] for mean in result["seeds"]] == [[run]]
    assert json.loads((tmp_path / "out.json").read_text())["runs"][1]["matched"] == 100


def test_what_does_not_match_is_left_out_and_told_in_one_line(tmp_path, capsys) -> None:
    run, same = run_folder(tmp_path / "a", RIGHT), run_folder(tmp_path / "b", "1" * 100, seed=1)
    lines = predicted("1" * 90)  # nothing about the last ten problems
    lines += [{"prompt": "problem 5", "prediction": "0"}, {"prompt": "problem 500", "prediction": "1"}]
    file = outside_file(tmp_path / "other.jsonl", lines)
    result = compare(CompareConfig(runs=[run, same], predictions=file))
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{file}: predictions for 90 of 100 problems; 10 without one, left out for every model; 1 line about other problems; "
        "1 line too many for their problem, of which the first counts"
    )
    assert [one["n"] for one in result["runs"]] == [90, 90, 90]
    assert result["runs"][0]["accuracy"] == RIGHT[:90].count("1") / 90
    assert [result["runs"][2][key] for key in ("matched", "missing", "extra", "repeated", "accuracy")] == [
        90,
        10,
        1,
        1,
        1,
    ]
    assert len(result["pairs"]) == 3 and all(test["p_holm"] >= test["p"] for test in result["pairs"])


def test_answers_are_compared_as_those_of_runs_are(tmp_path, capsys) -> None:
    run = run_folder(tmp_path / "a", "1" * 8)
    lines = [
        {"prompt": "  problem   0 ", "prediction": " 1 "},  # blanks do not matter
        {"prompt": "problem 1", "prediction": 1, "target": "1", "more": [2]},
        {"prompt": "problem 2", "prediction": "6 + 5 is 11 #### 1"},
        {"prompt": "problem 3", "prediction": "one", "right": True},  # the file says so
        {"prompt": "problem 4", "prediction": "1", "right": False},
        {"prompt": "problem 5", "prediction": None},
        {"prompt": "problem 6", "prediction": "1."},
        {"prompt": "problem 7", "prediction": ""},
    ]
    file = outside_file(tmp_path / "other.jsonl", ["", *lines])
    result = compare(CompareConfig(run=run, predictions=file))
    assert result["runs"][1]["accuracy"] == 4 / 8
    # The file of an evaluation is such a file as well.
    again = compare(CompareConfig(run=run, predictions=str(tmp_path / "a/evaluations/best-test-removed2.jsonl")))
    assert (again["runs"][1]["accuracy"], again["pairs"][0]["p"]) == (1, 1)
    capsys.readouterr()


def test_a_prompt_that_a_run_has_twice_is_answered_twice(tmp_path, capsys) -> None:
    run = run_folder(tmp_path / "a", "1111")
    predictions = tmp_path / "a" / "evaluations" / "best-test-removed2.jsonl"
    predictions.write_text(predictions.read_text().replace("problem 1", "problem 0"))
    lines = [{"prompt": "problem 0", "prediction": one} for one in "10"] + predicted("1111")[2:]
    result = compare(CompareConfig(run=run, predictions=outside_file(tmp_path / "two.jsonl", lines)))
    assert (result["runs"][1]["matched"], result["runs"][1]["repeated"], result["runs"][1]["accuracy"]) == (4, 0, 0.75)
    result = compare(CompareConfig(run=run, predictions=outside_file(tmp_path / "one.jsonl", lines[1:])))
    assert (result["runs"][1]["missing"], result["runs"][1]["accuracy"]) == (0, 0.5)
    capsys.readouterr()


def test_a_file_that_is_about_something_else_is_refused_in_one_line(tmp_path) -> None:
    run = run_folder(tmp_path / "a")
    good = predicted("1")[0]
    for lines, message in (
        ([], "holds no prediction"),
        ([good, "{"], 'line 2 is no prediction; a line is a JSON object such as {"prompt"'),
        ([good, "3"], "line 2 is no prediction"),
        ([good, "[" * 100_000], "line 2 is no prediction"),
        ([{"prompt": "problem 0"}], "line 1 is no prediction"),
        ([{**good, "prediction": True}], "line 1 is no prediction"),
        ([{**good, "right": "yes"}], "line 1 is no prediction"),
        (
            [{"prompt": "2 * 2", "prediction": "4"}],
            "no prompt is one of the run's; the first of the file is '2 * 2', the first of the run 'problem 0'",
        ),
        ([{**good, "target": "7"}], "line 1: the answer to 'problem 0' is '7' here, '1' in the run"),
    ):
        file = outside_file(tmp_path / "other.jsonl", lines)
        out = command("compare", f"run={run}", f"predictions={file}", check=False)
        assert (out.returncode, len(out.stderr.strip().splitlines())) == (2, 1), out.stderr
        assert f"predictions={file}: " in out.stderr and message in out.stderr
    for arguments, message in (
        ((f"run={run}", f"predictions={tmp_path / 'none.jsonl'}"), "No such file"),
        (("predictions=x.jsonl",), "run is not set: python -m stepwise_pl.compare run=<run folder> predictions=<file>"),
        ((f"run={run}",), "two or more runs are needed"),
    ):
        out = command("compare", *arguments, check=False)
        assert (out.returncode, len(out.stderr.strip().splitlines())) == (2, 1), out.stderr
        assert message in out.stderr
