"""Whether a run falls inside what its recipe promises: bands, what is said of a changed recipe, and both commands."""

import json
from pathlib import Path

import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.training import ExpectedConfig
from stepwise_pl.runs.expected import changed_keys, judge, judged_lines
from tests.conftest import SMALL, command


@pytest.mark.parametrize("accuracy,seconds,inside", [(0.9, 60, (True, True)), (0.899, 59, (False, False)), (1, 120, (True, True)),
                                                     (0.95, 121, (True, False)), (0.95, None, (True, None))])  # fmt: skip
def test_the_ends_of_a_band_belong_to_it(
    accuracy: float, seconds: float | None, inside: tuple[bool, bool | None]
) -> None:
    judged = judge(ExpectedConfig([0.9, 1], [1, 2], "a machine", "a table"), accuracy, seconds, [])
    assert judged is not None and (judged["accuracy_inside"], judged["minutes_inside"]) == inside
    text = "\n".join(judged_lines(judged))
    assert text.count("inside") == sum(one is True for one in inside)
    assert ("BELOW" in text) is (not inside[0])
    assert ("faster" in text or "slower" in text) is (inside[1] is False)
    assert "a machine" in text and text.endswith("says a table")


def test_without_a_band_nothing_is_said() -> None:
    assert judge(ExpectedConfig(), 1.0, 60, []) is None


def test_a_changed_recipe_is_named_and_what_changes_nothing_is_not() -> None:
    aside = {"experiment", "seed", "run_dir", "logger", "logger.offline", "trainer", "trainer.keep_every_removed"}
    changed = changed_keys(aside | {"schedule", "schedule.delta", "trainer.duration"})
    assert changed == ["schedule", "schedule.delta", "trainer.duration"]
    judged = judge(ExpectedConfig([0, 1], source="a table"), 0.5, 60, changed)
    assert judged is not None and judged_lines(judged) == [
        "expected        0.0% to 100.0% of the recipe; not compared, because you changed schedule, schedule.delta, "
        "trainer.duration"
    ]
    # A band on the command line is about this very run.
    assert changed_keys([*changed, "expected.accuracy"]) == []


@pytest.mark.parametrize("values", [{"accuracy": [0.9, 1.1], "source": "x"}, {"accuracy": [1, 0.9], "source": "x"},
                                    {"accuracy": [0.9], "source": "x"}, {"accuracy": [0, 1]}, {"source": "x"},
                                    {"accuracy": [0, 1], "source": "x", "minutes": [1, 2]},
                                    {"machine": "x"}, {"minutes": [1, 2], "machine": "x"}])  # fmt: skip
def test_half_a_band_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match="expected."):
        ExpectedConfig(**values)  # type: ignore[arg-type]


@pytest.mark.long
def test_both_commands_say_where_a_run_lies(tmp_path: Path) -> None:
    run = tmp_path / "run"
    band = [
        "expected.accuracy=[0.99,1]",
        "expected.minutes=[0,30]",
        "expected.machine='any machine'",
        "expected.source=nobody",
    ]
    shown = command("train", *SMALL, *band, "trainer.duration=4steps", f"run_dir={run}").stdout
    summary = json.loads((run / "summary.json").read_text())
    said = f"expected        test accuracy 99.0% to 100.0%: BELOW ({summary['test_accuracy']:.1%})"
    assert said in shown and "0 to 30 minutes on any machine: inside" in shown
    assert summary["expected"]["accuracy_inside"] is False and summary["expected"]["minutes_inside"] is True
    assert "says nobody" in shown
    shown = command("evaluate", f"run={run}", "speed_problems=0").stdout
    assert said in shown and "0 to 30 minutes on any machine: inside" in shown
    (written,) = (run / "evaluations").glob("*.json")
    assert json.loads(written.read_text())["expected"]["accuracy_inside"] is False
    # The band is about a run that is finished, and the test set.
    (run / "summary.json").rename(run / "elsewhere.json")
    assert "expected" not in command("evaluate", f"run={run}", "speed_problems=0").stdout
    (run / "elsewhere.json").rename(run / "summary.json")
    assert "expected" not in command("evaluate", f"run={run}", "speed_problems=0", "split=validation").stdout
    # A run that goes on is still what it was.
    command("train", f"run_dir={run}", "resume=true", "trainer.duration=6steps")
    changed = json.loads((run / "summary.json").read_text())["expected"]["changed"]
    assert changed == ["trainer.duration"]
