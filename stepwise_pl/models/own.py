"""The weights that a method trains besides the model: modules, and input vectors that are no words."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepwise_pl.data.limits import Limits
from stepwise_pl.methods import Method

# The prefixes of their weights in a checkpoint.
EXTRA, TOKENS = "extra.", "tokens."


def own_modules(
    method: Method, model: PreTrainedModel, limits: Limits | None, seed: int
) -> tuple[nn.Module | None, nn.Embedding | None]:
    """Return the modules of a method (`Method.extra`), and the inputs that it learns (`Method.num_tokens`); None if there are none.

    They have random numbers of their own, so that model and dropout are the same for every method at one seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extra = method.extra(model)
        count = 0 if limits is None else method.num_tokens(limits)
        return extra, table_of(model, count)


def table_of(model: PreTrainedModel, count: int) -> nn.Embedding | None:
    """Return `count` vectors drawn from a normal distribution with the mean and spread of the words' vectors; None for 0."""
    if not count:
        return None
    words = model.get_input_embeddings().weight.detach().float()  # type: ignore[no-untyped-call, union-attr, operator]
    table = nn.Embedding(count, words.shape[1])
    with torch.no_grad():
        table.weight.copy_(words.mean(0) + words.std(0) * torch.randn(count, words.shape[1]))
    return table


def load_own(module: nn.Module | None, weights: Mapping[str, Tensor], prefix: str) -> None:
    """Put those of a checkpoint's weights into a module that have the prefix, in the precision that they were saved in.

    Raises:
        RuntimeError: they do not fit.
    """
    if module is None:
        return
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    for name, parameter in module.named_parameters():
        if name in own:
            parameter.data = parameter.data.to(own[name].dtype)
    module.eval().load_state_dict(own)
