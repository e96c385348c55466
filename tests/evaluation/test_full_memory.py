"""A device whose memory is full: the batch is halved, and answers and metrics stay as they are."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.evaluation.answers import Decoded
from stepwise_pl.evaluation.scorer import Scorer
from stepwise_pl.models import static_rows
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.memory import in_portions
from tests.conftest import learner
from tests.evaluation.test_verifier import TASK, trained


@pytest.fixture
def examples(tokenizer) -> EncodedExamples:
    return encode(TASK.load()["train"], tokenizer, "train")


@pytest.fixture
def model(tokenizer, examples: EncodedExamples) -> PreTrainedModel:
    """A model that answers some problems and not others."""
    return trained(tokenizer, examples, 60)


def hold(model: PreTrainedModel, most: int) -> list[int]:
    """Have the model hold at most so many rows at a time. Return a list that gets the rows of each plain pass."""
    forward, passes = model.base_model.forward, list[int]()

    def limited(*args: Any, **kwargs: Any) -> Any:
        rows = len(kwargs["input_ids"] if "input_ids" in kwargs else args[0])
        # A compiled pass has the rows of the plain pass before it. To keep its rows too would compile it anew at every token.
        if not torch.compiler.is_compiling():
            passes.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {rows} rows")
        return forward(*args, **kwargs)

    model.base_model.forward = limited
    return passes


def evaluated(whose: Learner, tokenizer: Any, examples: EncodedExamples) -> tuple[dict[str, float], list[Decoded]]:
    scorer = Scorer(whose, tokenizer, examples, Limits.of({"train": examples}, "left"), 2)
    metrics, answers = scorer.evaluate(48)
    return metrics, list(answers)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("stepwise_pl")]


@pytest.mark.parametrize("compiled", [False, True])
def test_answers_and_metrics_are_those_of_a_memory_that_holds_all(
    compiled: bool, model, tokenizer, examples: EncodedExamples, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_rows, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    metrics, answers = evaluated(learner(model, tokenizer), tokenizer, examples)
    assert 0 < metrics["answer_accuracy"] < 1
    passes = hold(model, 16)
    limited = learner(model, tokenizer)
    limited.decodes_compiled = compiled
    found, same = evaluated(limited, tokenizer, examples)
    assert same == answers
    assert (counters["stats"]["unique_graphs"] > 0) == compiled
    assert found == pytest.approx(metrics, rel=1e-5)
    assert max(passes) > 16 and limited.fitting["scored"] == 12 and limited.fitting["decoded"] <= 16
    # Each size is said once, and tried once.
    scored, decoded = said(caplog)
    assert scored == "the memory was full when 48 examples were to be scored at a time; now 12 are"
    assert "to be decoded at a time; now" in decoded
    caplog.clear()
    tried = len(passes)
    assert evaluated(limited, tokenizer, examples)[1] == answers
    assert max(passes[tried:]) <= 16 and not said(caplog)


def test_one_example_that_does_not_fit_is_an_error(model, tokenizer, examples: EncodedExamples) -> None:
    hold(model, 0)
    with pytest.raises(torch.OutOfMemoryError):
        evaluated(learner(model, tokenizer), tokenizer, examples)


@pytest.mark.parametrize(
    "count,fits,most", [(1, 1, None), (7, 2, None), (100, 9, 40), (100, 50, 40), (5, 5, 2), (0, 1, None)]
)
def test_every_example_is_worked_on_once_and_in_order(count: int, fits: int, most: int | None) -> None:
    done: list[int] = []
    fitting: dict[str, int] = {}

    def work(rows: range) -> int:
        if len(rows) > fits:
            raise torch.OutOfMemoryError
        return len(rows)

    for rows, size in in_portions(fitting, "read", count, work, most):
        assert size == len(rows) <= min(fits, most or fits)
        done += rows
    assert done == list(range(count))
    assert (fitting == {}) == (min(count, most or count) <= fits)
