"""`ask`: a question to a trained model, as people write it."""

import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from stepwise_pl.ask import AskConfig, ask
from stepwise_pl.cli.arguments import positional
from stepwise_pl.common.errors import UserError
from stepwise_pl.evaluate import EvaluateConfig, evaluate
from stepwise_pl.evaluation.asking import Speaker
from stepwise_pl.evaluation.levels import load, stage_of
from stepwise_pl.models.export import write_model
from stepwise_pl.reporting.reply_text import reply_lines
from stepwise_pl.runs.predictions import read_predictions
from stepwise_pl.runs.replies import Reply
from stepwise_pl.showing.panel import facts_of
from stepwise_pl.tasks import Task
from tests.conftest import command


@pytest.fixture(scope="module")
def run(kept_run: Path) -> Path:
    return kept_run


def speaker(run: Path, checkpoint: str = "best") -> Speaker:
    config = AskConfig(run=str(run), checkpoint=checkpoint)
    loaded = load(config)
    return Speaker.of_run(loaded, stage_of(config, loaded))


@pytest.mark.parametrize("checkpoint", ["removed-0", "removed-2"])
def test_each_answer_is_that_of_an_evaluation(run: Path, checkpoint: str) -> None:
    evaluate(EvaluateConfig(run=str(run), checkpoint=checkpoint, speed_problems=0))
    (file,) = (run / "evaluations").glob(f"{checkpoint}-test-*.jsonl")
    predictions = read_predictions(file)
    asked = speaker(run, checkpoint)
    for one in predictions:
        first, second = one.prompt.split(" * ")
        reply = asked.ask(f"what is {first} times {second}?")
        answer = None if one.prediction is None else str(int(one.prediction.replace(" ", "")[::-1]))
        assert (reply.prompt, reply.answer, reply.cot_tokens) == (one.prompt, answer, one.cot_tokens)
        assert reply.wanted == str(int(first) * int(second))
        assert reply.right is one.right_any_length and reply.milliseconds > 0
        assert len(reply.cot.split()) == reply.cot_tokens
    assert len(predictions) == 17 and len({one.prediction for one in predictions}) > 3


def test_a_question_is_answered_in_lines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (reply,) = ask(AskConfig(run=str(run), question="7 * 8"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["answer", "CoT", "time", "model"]
    assert lines[0].split()[1:3] == [reply.answer, f"{reply.verdict}{'' if reply.right else ';'}"]
    assert reply.verdict in ("right", "wrong")
    assert "best.ckpt, step" in lines[3] and "2 of 2 CoT tokens removed" in lines[3]
    assert ("right is 56" in lines[0]) == (reply.answer != "56")


def test_all_stages_are_asked_as_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replies = ask(AskConfig(run=str(run), question="7 * 8", checkpoint="all"))
    assert [reply.removed_tokens for reply in replies] == [0, 1, 2]
    alone = [speaker(run, f"removed-{removed}").ask("7 * 8") for removed in range(3)]
    timeless = [[{**asdict(reply), "milliseconds": 0} for reply in some] for some in (replies, alone)]
    assert timeless[0] == timeless[1]
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[1:4]] == ["0", "1", "2"] and out[4] == "The right answer is 56."


def test_lines_of_standard_input_are_asked_until_it_ends(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("7 * 8\n\nseven times eight\n7x9\n"))
    replies = ask(AskConfig(run=str(run)))
    assert [reply.prompt for reply in replies] == ["7 * 8", "7 * 9"]
    out, error = capsys.readouterr()
    assert out.count("answer ") == 2 and "Ctrl-D ends" in out.splitlines()[0] and "> " not in out
    assert error.startswith("error: 'seven times eight': is no problem of this task") and error.count("\n") == 1


def test_a_problem_unlike_those_of_the_run_is_answered_and_not_checked(run: Path) -> None:
    reply = speaker(run).ask("12 * 345")
    assert (reply.prompt, reply.right, reply.wanted, reply.verdict) == ("2 1 * 5 4 3", None, None, reply.verdict)
    assert reply.verdict in ("not checked", "no answer")


def test_a_word_that_the_tokenizer_does_not_know_is_one_line(run: Path) -> None:
    asked = speaker(run)
    asked.task = Task()  # a task that takes any text
    with pytest.raises(
        UserError, match=r"^the question: the tokenizer does not know '\?'; its words are \( \) \* \+ 0 1 2"
    ):
        asked.ask("7 * 8 ?")
    assert asked.ask("7 * 8").prompt == "7 * 8"
    with pytest.raises(UserError, match="the question has .* tokens, and the model reads"):
        asked.ask("1 " * 2000)


def test_an_exported_folder_answers_as_its_run(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for checkpoint in ("removed-1", "best"):  # one still writes CoT, the other does not
        out = write_model(run, checkpoint, tmp_path / checkpoint)
        of_run, of_export = speaker(run, checkpoint), Speaker.of_export(out)
        for question in ("7 * 8", "3 * 4", "9x9", "2 times 6"):
            one, other = of_run.ask(question), of_export.ask(question)
            same = (
                "prompt",
                "answer",
                "right",
                "wanted",
                "cot",
                "cot_tokens",
                "removed_tokens",
                "max_cot_tokens",
                "step",
            )
            assert [getattr(one, key) for key in same] == [getattr(other, key) for key in same]
    facts = json.loads((out / "stepwise_pl.json").read_text())
    assert facts["task"]["kind"] == "multiplication" and str(tmp_path) not in json.dumps(facts)
    with pytest.raises(UserError, match="checkpoint=last: is for run folders, and .* is an exported model"):
        AskConfig(run=str(out), checkpoint="last")
    (out / "stepwise_pl.json").unlink()  # as in an export of an older version
    assert Speaker.of_export(out).ask("7 * 8").answer == " ".join(f"{of_run.ask('7 * 8').answer:0>2}"[::-1])
    assert "has no stepwise_pl.json" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "answers"),
    [
        ("stepwise_pl.json", '{"task": "x"}', True), ("stepwise_pl.json", "[1", True),
        ("stepwise_pl.json", '{"removed_tokens": null, "max_cot_tokens": "many", "step": "x", "stage": 3, "task": {"kind": []}}', True),
        ("generation_config.json", "{", False), ("generation_config.json", '{"max_new_tokens": "x"}', False),
        ("model.safetensors", "cut off", False), ("config.json", "[]", False), ("tokenizer.json", "{", False),
    ],
)  # fmt: skip
def test_a_damaged_file_of_an_exported_folder_is_left_out_or_told_in_one_line(
    run: Path, tmp_path: Path, name: str, content: str, answers: bool
) -> None:
    out = write_model(run, "best", tmp_path / "exported")
    (out / name).write_text(content)
    if not answers:
        with pytest.raises(UserError, match="exported"):
            Speaker.of_export(out)
        return
    reply = Speaker.of_export(out).ask("7 * 8")
    # The number of removed tokens is not known, and is not said.
    assert reply.max_cot_tokens is None and "removed" not in reply_lines(reply)[-1]
    assert facts_of(out, [])[0] == ("task", "not known", "")


def test_words_without_a_key_are_the_question(run: Path, tmp_path: Path) -> None:
    for words, wanted in (
        ([f"run={run}", "7 * 8"], ["question='7 * 8'"]),
        ([str(run), "7", "x", "8"], ["question='7 x 8'"]),
        ([f"run={run}", "what is 7 * 8 = ?", "checkpoint=all"], ["checkpoint=all", "question='what is 7 * 8 = ?'"]),
        ([f"run={run}", "checkpoint=all"], ["checkpoint=all"]),
        ([f"run={run}", "7 " * 3000], [f"question='{'7 ' * 3000}'"]),
    ):
        found = positional(words, AskConfig)
        assert [word for word in found if not word.startswith("run=")] == wanted
        assert len(found) == len(wanted) + 1
    with pytest.raises(UserError, match="give one question"):
        positional(["7 * 8", "question=1 * 1"], AskConfig)


@pytest.mark.long
def test_the_command(run: Path) -> None:
    out = command("ask", f"run={run}", "7 * 8")
    assert out.stdout.startswith("answer ") and out.stdout.count("\n") == 4
    assert command("ask", str(run), "7", "x", "8").stdout.splitlines()[0] == out.stdout.splitlines()[0]
    for words in (("7 + 8",), ("7 * 8", "checkpoint=none"), ("7 * 8", "removed_tokens=x")):
        refused = command("ask", f"run={run}", *words, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1) and refused.stderr.startswith("error: ")
    without = Path(shutil.copytree(run, run.with_name("without"), ignore=shutil.ignore_patterns("removed-*")))
    assert "kept no checkpoint" in command("ask", f"run={without}", "7 * 8", "checkpoint=all", check=False).stderr


def test_a_reply_without_an_answer_says_what_was_written() -> None:
    reply = Reply("1 * 2", "1 * 2", None, False, "2", "1 1", 2, "1 1", 3.0, "best.ckpt", 0)
    assert reply.verdict == str(reply) == "no answer"
    assert reply_lines(reply)[0] == "answer      none was finished (written: 1 1); right is 2"
