"""The auxiliary loss against a loop over examples and digits."""

import numpy as np
import pytest
import torch

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.cache import encoded_splits
from stepwise_pl.methods import Auxiliary, Stepwise
from stepwise_pl.models.learner import Learner
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.tasks import Multiplication
from tests.conftest import small_model

TASK = Multiplication(digits=2, min_digits=1, train_size=64, validation_size=10, test_size=10)


@pytest.fixture
def batch(tokenizer) -> CoTBatch:
    return encoded_splits(TASK, tokenizer, values=("running_sum",))["train"].collate(np.arange(20))


def made(tokenizer, **settings: object) -> Learner:
    method = Auxiliary(**settings)  # type: ignore[arg-type]
    model = small_model(tokenizer)
    return Learner(model, int(tokenizer.eos_token_id), method, method.extra(model))


def running_sums(tokenizer, tokens: torch.Tensor) -> list[int]:
    """The running sums of the product that a prompt asks for, from the whole numbers."""
    first, second = str(tokenizer.decode(tokens)).split("<eos>")[0].replace(" ", "").split("*")
    out = []
    for place in range(len(first) + len(second)):
        pairs = [(i, j) for i in range(len(first)) for j in range(len(second)) if i + j <= place]
        out.append(sum(int(first[i]) * int(second[j]) * 10 ** (i + j) for i, j in pairs) // 10**place)
    return out


@pytest.mark.parametrize("gone", [0, 3, 8])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer,head", [(None, None), (1, None), (2, 1), (1, 0)])
def test_the_second_loss_is_the_squared_error_where_each_digit_is_predicted(
    tokenizer, batch: CoTBatch, gone: int, side: str, layer: int | None, head: int | None
) -> None:
    learner = made(tokenizer, layer=layer, head=head, weight=0.25, side=side)
    losses = learner.method.loss(learner, batch, Stage(gone, 8))
    plain = Stepwise(side=side)
    view = plain.view(learner, batch, Stage(gone, 8))
    assert losses.scored is not None
    torch.testing.assert_close(losses.scored.loss, learner.score(view).loss)

    model, (weight,) = learner.model, learner.extra.parameters()  # type: ignore[union-attr]
    number = (layer or 2) - 1
    expected = torch.zeros(())
    for row in range(len(view)):
        tokens = view.row(row).tokens
        sums = running_sums(tokenizer, tokens[0])
        end = tokens.shape[1] - 1  # the column of the last end token, behind the last digit
        if head is None:
            after = []
            handle = model.transformer.h[number].register_forward_hook(
                lambda module, given, out, after=after: after.append(out if isinstance(out, torch.Tensor) else out[0])
            )
            model(input_ids=tokens)
            handle.remove()
            (states,) = after
        else:
            # The output of a head, from its own attention pattern and values.
            model.set_attn_implementation("eager")
            found = model(input_ids=tokens, output_attentions=True, output_hidden_states=True)
            block, width = model.transformer.h[number], 32
            projected = block.attn.c_attn(block.ln_1(found.hidden_states[number]))
            value = projected[..., 2 * width :].unflatten(-1, (2, 16))[..., head, :]
            states = found.attentions[number][:, head] @ value
            model.set_attn_implementation("sdpa")
        errors = []
        for place, running_sum in enumerate(sums):
            column = end - len(sums) + place - 1  # the token before the digit
            errors.append((states[0, column] @ weight[0] - running_sum) ** 2)
        expected = expected + 0.25 * torch.stack(errors).mean()
    torch.testing.assert_close(losses.more["auxiliary"], expected, rtol=1e-4, atol=1e-3)


def test_the_second_loss_trains_the_map_and_the_layers_up_to_the_one_that_is_read(tokenizer, batch: CoTBatch) -> None:
    learner = made(tokenizer, layer=1)
    learner.method.loss(learner, batch, Stage(8, 8)).more["auxiliary"].backward()
    reached = {
        name for name, weight in learner.model.named_parameters() if weight.grad is not None and weight.grad.any()
    }
    assert reached and all(
        name.startswith(("transformer.wte", "transformer.wpe", "transformer.h.0.")) for name in reached
    )
    assert all(weight.grad is not None for weight in learner.extra.parameters())  # type: ignore[union-attr]


def test_answers_do_not_depend_on_the_second_loss(tokenizer, batch: CoTBatch) -> None:
    learner = made(tokenizer)
    view = learner.method.view(learner, batch, Stage(8, 8))
    plain = Learner(learner.model, learner.eos, Stepwise())
    assert learner.generate(view, 8) == plain.generate(view, 8)
    assert view.length_of(Part.COT).max() == 0


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"weight": 0}, "method.weight=0: must be above 0"),
        ({"layer": 3}, "method.layer=3: must be between 1 and the 2 layers"),
        ({"layer": 0}, "method.layer=0"),
        ({"head": 2}, "method.head=2: must be between 0 and 1"),
        ({"unit": "word"}, "method.unit=word"),
    ],
)
def test_a_bad_value_is_named(tokenizer, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(tokenizer, **settings)
