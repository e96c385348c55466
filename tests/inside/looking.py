"""Parts that tests of a look inside share: small models of any type and method with random weights, and their problems."""

from typing import Any

import torch

from stepwise_pl.config.model import ModelConfig
from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.inside.subject import Subject
from stepwise_pl.methods import Method, Stepwise
from stepwise_pl.models.build import build_model
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.own import own_modules
from stepwise_pl.tasks import ModularSum, Multiplication, Task

SUMS = ModularSum(modulus=5, terms=4, train_size=200, validation_size=10, test_size=60)
PRODUCTS = Multiplication(digits=2, min_digits=1, train_size=64, validation_size=10, test_size=30)
KINDS = ("gpt2", "llama", "mistral", "phi3", "qwen2")


def subject(
    kind: str = "gpt2", method: Method | None = None, stage: int = 0, task: Task = SUMS, **config: Any
) -> Subject:
    """A model with large random weights, whose norms are not what they were made as, and the test problems of a task."""
    method = method or Stepwise()
    tokenizer = build_tokenizer("symbols", task.symbols())
    splits = task.load()
    texts = splits["test"].slice(0, len(splits["test"]))
    encoded: dict[str, EncodedExamples] = {
        name: encode(splits[name], tokenizer, name, method.unit == "step") for name in ("train", "test")
    }
    limits = Limits.of(encoded, method.side)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"layers": 2, "heads": 2, "width": 32, "dropout": 0.0} | config
    model = build_model(ModelConfig(type=kind, **shape), tokenizer, 128).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    method.prepare(model, tokenizer, 64)
    extra, tokens = own_modules(method, model, limits, 0)
    learner = Learner(model, int(tokenizer.eos_token_id), method, None if extra is None else extra.eval(), tokens)
    return Subject(learner, tokenizer, limits, stage, texts, encoded["test"])
