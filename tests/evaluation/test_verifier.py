"""Verified evaluation decides as plain greedy decoding does, for good and bad models."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.data.batch import CoTBatch, Part, continuation
from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.evaluation.answers import answers
from stepwise_pl.evaluation.scorer import Scorer
from stepwise_pl.evaluation.verifier import Verifier
from stepwise_pl.models.decoding import generate
from stepwise_pl.models.forward import Targets, target_logits
from stepwise_pl.schedules.spread import ALL
from stepwise_pl.tasks import Multiplication
from tests.conftest import DATA, learner, small_model

TASK = Multiplication(digits=2, min_digits=1, train_size=48, validation_size=30, test_size=30)
COUNTS = (0, 1, 3, 6, ALL)


def trained(tokenizer: PreTrainedTokenizerBase, examples: EncodedExamples, steps: int, **kinds: Any) -> PreTrainedModel:
    """Return a small model after `steps` on the first 24 examples, at changing numbers of removed tokens."""
    model = small_model(tokenizer, 0, width=64).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = examples.collate(np.arange(24))
    for step in range(steps):
        targets = Targets.of(batch.remove(COUNTS[step % len(COUNTS)], **kinds))
        loss = torch.nn.functional.cross_entropy(target_logits(model, targets), targets.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def compare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: EncodedExamples, **kinds: Any
) -> set[str]:
    """Check every removal level; return the kinds of outcome that occurred."""
    eos, bound, seen = tokenizer.eos_token_id, 40, set()
    for count in COUNTS:
        verifier = Verifier(learner(model, tokenizer), tokenizer, 7)
        found: dict[int, tuple[str | None, str | None]] = {}
        batches = [examples.collate(np.arange(i, i + 16)).remove(count, **kinds) for i in (0, 16, 32)]
        for index, batch in enumerate(batches):
            batch.draw += index * 16
            assert batch.draw.tolist() == list(range(index * 16, index * 16 + 16))
            scored, proved = verifier.verify(batch)
            targets = Targets.of(batch)
            logits = target_logits(model, targets)
            assert float(scored.loss) == pytest.approx(
                float(torch.nn.functional.cross_entropy(logits, targets.label, reduction="sum"))
            )
            assert len(scored.label) == int(batch.is_target.sum())
            assert int(scored.right.sum()) == int((logits.argmax(-1) == targets.label).sum())
            seen |= {"proved"} if proved else set()
            for row in proved:
                (answer,) = answers([continuation(batch)[row]], tokenizer)
                found[int(batch.draw[row])] = (answer, answer)
        for draw, decoded in verifier.decode(bound):
            assert draw not in found
            found[draw] = (decoded.predicted, decoded.target)
            seen.add("right all the same" if decoded.right else "unfinished" if decoded.predicted is None else "wrong")
        assert sorted(found) == list(range(48))
        assert sorted(verifier.right) == [draw for draw in range(48) if found[draw][0] == found[draw][1]]
        assert verifier.wrong == {draw: one for draw, (one, other) in found.items() if one != other}
        assert verifier.digit_counts.T.tolist() == digits_by_hand(model, tokenizer, batches)
        for index, batch in enumerate(batches):
            plain = answers(generate(model, batch, eos, bound), tokenizer)
            target = answers(continuation(batch), tokenizer)
            assert [found[index * 16 + row] for row in range(16)] == list(zip(plain, target, strict=True))
    return seen


def digits_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batches: list[CoTBatch]
) -> list[list[int]]:
    """Count, digit by digit, the examples that have it, and those that have it right. A digit is one token here."""
    out: list[list[int]] = []
    for batch in batches:
        for number in range(len(batch)):
            alone = batch.row(number)
            tokens = alone.tokens[0]
            logits = model(
                alone.tokens, attention_mask=torch.ones_like(alone.tokens), position_ids=alone.position
            ).logits[0]
            words = [str(tokenizer.decode([token])).strip() for token in tokens.tolist()]
            last_mark = max(i for i, word in enumerate(words) if word.endswith("#"))
            places = [i for i in range(last_mark + 1, len(words)) if words[i].isdigit()]
            for digit, place in enumerate(places):
                if digit == len(out):
                    out.append([0, 0])
                out[digit][0] += 1
                out[digit][1] += int(logits[place - 1].argmax() == tokens[place])
    return out


@pytest.fixture(scope="module")
def small() -> tuple[PreTrainedTokenizerBase, EncodedExamples]:
    tokenizer = build_tokenizer("symbols", TASK.symbols())
    return tokenizer, numbered(encode(TASK.load()["train"], tokenizer, "train"))


def numbered(examples: EncodedExamples) -> EncodedExamples:
    """Let `draw` of every batch be the index in the batch."""
    collate = examples.collate
    examples.collate = lambda rows: collate(rows, np.arange(len(rows)))  # type: ignore[method-assign]
    return examples


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("keep_position", [False, True])
@pytest.mark.parametrize("steps", [0, 60, pytest.param(250, marks=pytest.mark.long)])
def test_it_decides_as_greedy_decoding_does(small: Any, steps: int, side: str, keep_position: bool) -> None:
    kinds = {"side": side, "keep_position": keep_position}
    seen = compare(trained(*small, steps, **kinds), *small, **kinds)
    # Some examples were trained on, others not, so that every path is taken by some model.
    assert {"wrong", "unfinished"} & seen
    if steps == 250:
        assert {"proved", "wrong"} <= seen


@pytest.mark.long
@pytest.mark.parametrize("steps", [pytest.param(0, marks=pytest.mark.long), 60])
def test_with_gpt2s_tokenizer(steps: int) -> None:
    folder = DATA / "gpt2-tokenizer"
    if not folder.is_dir():
        pytest.skip("no ../shared/data here")
    tokenizer = build_tokenizer(str(folder), ())
    examples = numbered(encode(TASK.load()["train"], tokenizer, "train"))
    seen = compare(trained(tokenizer, examples, steps), tokenizer, examples)
    assert {"proved", "wrong"} <= seen or not steps


def test_an_answer_may_be_right_behind_a_wrong_step(small: Any) -> None:
    """A model that departs from the CoT and still ends with the right answer counts as right."""
    tokenizer, examples = small
    model = trained(tokenizer, examples, 250)
    batch = examples.collate(np.arange(24))
    # The targets have a CoT that no model would write: the model departs from it, and answers as without it.
    spoiled = batch.remove(0)
    cot = spoiled.part == Part.COT
    spoiled.tokens[cot] = (spoiled.tokens[cot] + 1) % 10
    verifier = Verifier(learner(model, tokenizer), tokenizer, 10)
    _, proved = verifier.verify(spoiled)
    right = {draw for draw, decoded in verifier.decode(40) if decoded.right}
    plain = answers(generate(model, batch, tokenizer.eos_token_id, 40), tokenizer)
    target = answers(continuation(batch), tokenizer)
    assert right | set(proved) == {row for row in range(24) if plain[row] == target[row]}
    assert right


def test_the_scorer_does_the_same_at_any_batch_size(small: Any) -> None:
    tokenizer, examples = small
    model = trained(tokenizer, examples, 250)
    encoded = encode(TASK.load()["train"], tokenizer, "train")
    limits = Limits.of({"train": encoded}, "left")
    results = [Scorer(learner(model, tokenizer), tokenizer, encoded, limits, 3).evaluate(size) for size in (1, 5, 48)]
    for metrics, found in results:
        assert found == results[0][1]
        assert metrics == pytest.approx(results[0][0], rel=1e-5)
        assert 0 < metrics["answer_accuracy"] < 1
        assert math.isfinite(metrics["loss"])


def test_rows_stack_to_the_same_batch(small: Any) -> None:
    batch = small[1].collate(np.arange(8)).remove(2, "left", True)
    again = CoTBatch.stack([batch.row(number) for number in range(8)])
    for name in ("part", "position", "unit_start", "draw"):
        assert torch.equal(getattr(again, name), getattr(batch, name)), name
    assert torch.equal(
        again.tokens.masked_fill(again.part == Part.PAD, 0), batch.tokens.masked_fill(batch.part == Part.PAD, 0)
    )
