"""A reply that is watched: its moments are the forward passes of the model, no more and no less."""

from pathlib import Path

import pytest
import torch

from stepwise_pl.ask import AskConfig, speaker
from stepwise_pl.evaluation.asking import Speaker


def asked(run: Path, checkpoint: str = "best") -> Speaker:
    return speaker(AskConfig(run=str(run), checkpoint=checkpoint))


@pytest.mark.parametrize("checkpoint", ["removed-0", "removed-1", "removed-2"])
def test_the_moments_are_the_tokens_of_the_reply(run: Path, checkpoint: str) -> None:
    model = asked(run, checkpoint)
    watched = model.watch("7 * 8")
    reply, moments = watched.reply, watched.moments
    cot = [moment.text for moment in moments if moment.kind == "cot"]
    assert (" ".join(cot), len(cot)) == (reply.cot, reply.cot_tokens)
    ends = [number for number, moment in enumerate(moments) if moment.kind == "end"]
    if reply.answer is not None:
        assert ends == [len(cot), len(moments) - 1] and moments[len(cot) + 1].kind == "mark"
        answer = [moment.text for moment in moments if moment.kind == "answer"]
        assert model.task.readable(" ".join(answer)) == reply.answer
    assert (watched.prompt_tokens, watched.inputs, watched.thoughts) == (len(reply.prompt.split()) + 1, 0, 0)


@pytest.mark.parametrize("name", ["run", "told", "thoughts"])
def test_every_forward_pass_is_a_moment_and_has_its_time(run: Path, others: Path, name: str) -> None:
    checkpoint = {"run": "removed-0", "told": "best", "thoughts": "last"}[name]
    model = asked(run if name == "run" else others / name, checkpoint)
    model.watch("7 * 8")  # The first text is read twice.
    passes: list[float] = []
    whole = model.learner.model.base_model  # all passes go through it, those of thoughts too
    hook = whole.register_forward_hook(lambda *_: passes.append(model._now()))
    watched = model.watch("7 * 8")
    hook.remove()
    assert watched.passes == len(passes) > 2
    assert [moment.passes for moment in watched.moments] == list(range(1, len(passes) + 1))
    times = [moment.milliseconds for moment in watched.moments]
    assert times == sorted(times) and times[0] > 0 and times[-1] == watched.reply.milliseconds
    # Between two moments lies a pass, so that the gaps are those of the passes, up to what is done besides.
    apart = torch.tensor(times).diff() - 1000 * torch.tensor(passes).diff()
    assert apart.abs().median() < 5
    last = model.stage.now
    assert watched.thoughts == (2 * last if name == "thoughts" else 0) and (last == 2 or name == "run")
    assert watched.inputs == {"run": 0, "told": 1, "thoughts": watched.thoughts + 2}[name]


def test_a_reply_is_the_same_watched_or_not(run: Path) -> None:
    model = asked(run, "removed-1")
    one, other = model.ask("3 * 4"), model.watch("3 * 4").reply
    assert (one.answer, one.cot, one.right) == (other.answer, other.cot, other.right)
