"""Estimates of memory, compared with the tensors that they are about; `data.eval_batch_size=auto`."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.training import DataConfig
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.methods import Stepwise
from stepwise_pl.models.build import build_model
from stepwise_pl.models.memory import MOST_EXAMPLES, cache_bytes, examples_that_fit, pass_bytes
from stepwise_pl.models.static_rows import Shape
from stepwise_pl.tasks import Multiplication
from stepwise_pl.training import eval_size
from stepwise_pl.training.eval_size import set_eval_batch_size

KINDS = {"gpt2": {}, "llama": {"num_key_value_heads": 1}, "qwen3": {"head_dim": 24, "num_key_value_heads": 2}}


def model_of(kind: str, tokenizer: Any) -> PreTrainedModel:
    cfg = ModelConfig(type=kind, layers=3, heads=4, width=32, positions=128, dropout=0.0, config=KINDS[kind])
    return build_model(cfg, tokenizer).eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_bytes_of_a_cache_are_those_of_its_tensors(kind: str, tokenizer) -> None:
    model = model_of(kind, tokenizer)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        for cache, length in (
            (DynamicCache(config=model.config), 9),
            (StaticCache(config=model.config, max_cache_len=20), 20),
        ):
            model(torch.ones(5, 9, dtype=torch.long), past_key_values=cache, use_cache=True)
            tensors = [getattr(layer, name) for layer in cache.layers for name in ("keys", "values")]
            assert sum(tensor.nbytes for tensor in tensors) == 5 * cache_bytes(model, length)


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes that tensors made inside of this context hold at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.alive = 0, 0, dict[int, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata)
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_pass_needs_no_more_than_its_estimate(kind: str, tokenizer) -> None:
    model = model_of(kind, tokenizer)
    rows, columns = 8, 40
    with Peak() as peak:
        model.base_model(torch.ones(rows, columns, dtype=torch.long), use_cache=False)
    found, estimate = peak.peak / rows, pass_bytes(model, columns, 0)
    assert estimate / 4 < found < estimate


def test_the_number_of_examples_follows_the_memory(tokenizer) -> None:
    model = model_of("llama", tokenizer)
    found = [examples_that_fit(model, 60, 30, free) for free in (0, *(10**power for power in range(3, 15)))]
    assert found[0] == 1 and found == sorted(found) and found[-1] == MOST_EXAMPLES
    assert all(Shape.of(model, size, 60).rows == size for size in found)
    assert len(set(found)) >= 5
    # Longer texts, and other heads than plain ones, take more.
    assert examples_that_fit(model, 600, 300, 10**9) < examples_that_fit(model, 60, 30, 10**9)


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "most", None])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(UserError, match=r"data.eval_batch_size.*must be a number of at least 1, or auto"):
        DataConfig(eval_batch_size=size)


def trainer_of(data: CoTDataModule, device: str) -> Any:
    """The parts of a trainer that the function asks. This machine need not have the device."""
    strategy = SimpleNamespace(root_device=torch.device(device), broadcast=lambda size: size)
    return SimpleNamespace(datamodule=data, strategy=strategy)


def test_auto_takes_what_fits_on_cuda_and_200_elsewhere(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Multiplication(digits=2, train_size=20, validation_size=300, test_size=20)
    model = model_of("gpt2", tokenizer)
    asked: list[int] = []

    def free(device: torch.device, model: PreTrainedModel, copies: int) -> int:
        asked.append(copies)
        return 10**8

    monkeypatch.setattr(eval_size, "free_bytes", free)
    sizes: dict[str, int] = {}
    for device, setting in (("cpu", "auto"), ("cuda", "auto"), ("cuda", 7)):
        data = CoTDataModule(task, tokenizer, DataConfig(eval_batch_size=setting, cache_dir=None)).prepare()
        set_eval_batch_size(trainer_of(data, device), model, Stepwise(), trains=True)
        sizes[f"{device} {setting}"] = len(next(iter(data.val_dataloader())))
    assert sizes["cpu auto"] == 200 and sizes["cuda 7"] == 7 and asked == [4]
    longest = int(data.encoded["validation"].length.max())
    expected = examples_that_fit(model, longest, data.limits.max_new_tokens(0), 10**8)
    assert sizes["cuda auto"] == min(300, expected) != 200
