"""Muon and AdamW in one optimizer, against singular values, torch's own Muon and AdamW."""

import copy
import math

import pytest
import torch

from stepwise_pl.config.training import OptimizerConfig
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.training.optimizers import QUINTIC, MuonAdamW, build_optimizer, matrices_of, orthogonal
from tests.conftest import small_model

TOKENIZER = build_tokenizer("symbols", "0123456789")
SHAPES = [(6, 18), (18, 6), (6, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_singular_values_change(shape) -> None:
    """The oracle: an odd polynomial acts on each singular value alone, and so does the iteration."""
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    expected = values / values.norm(dim=-1, keepdim=True)
    a, b, c = QUINTIC
    for _ in range(5):
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(orthogonal(matrices), u @ torch.diag_embed(expected) @ vh)
    assert float(expected.min()) > 0.5 and float(expected.max()) < 1.3
    assert not orthogonal(torch.zeros(1, *shape)).any()


def test_only_matrices_inside_the_blocks_go_to_muon() -> None:
    model = small_model(TOKENIZER)
    chosen = {id(parameter) for parameter in matrices_of(model)}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in chosen]
    assert len(names) == 4 * model.config.n_layer
    assert all(name.startswith("transformer.h.") and name.endswith(".weight") and "ln" not in name for name in names)


def gradients(model, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 0.1


CFG = OptimizerConfig(lr=1e-2, matrices="muon", matrix_lr=3e-2, weight_decay=0.1, momentum=0.9)


def test_both_parts_move_as_the_optimizers_of_torch_do() -> None:
    ours = small_model(TOKENIZER)
    theirs = copy.deepcopy(ours)
    start = copy.deepcopy(ours)
    optimizer = build_optimizer(ours, CFG)
    chosen = {id(parameter) for parameter in matrices_of(theirs)}
    rest = [parameter for parameter in theirs.parameters() if id(parameter) not in chosen]
    muon = torch.optim.Muon(
        matrices_of(theirs), lr=3e-2, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.1)
    for step in range(4):
        gradients(ours, step)
        gradients(theirs, step)
        for one in (optimizer, muon, adamw):
            one.step()
    for (name, a), b, before in zip(ours.named_parameters(), theirs.parameters(), start.parameters(), strict=True):
        if id(b) in chosen:  # torch's Muon works in bf16, and the iteration multiplies the rounding
            off = float((a - b).norm() / (a - before).norm())
            assert off < 0.05, (name, off)
        else:
            torch.testing.assert_close(a, b)


def test_frozen_and_unused_parameters_stay() -> None:
    model = small_model(TOKENIZER)
    before = copy.deepcopy(model)
    optimizer = build_optimizer(model, CFG)
    gradients(model, 0)
    left = matrices_of(model)[1]
    left.grad = None
    optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert same == [parameter is left for parameter in model.parameters()]


def test_a_loaded_state_continues_exactly() -> None:
    model = small_model(TOKENIZER)
    optimizer = build_optimizer(model, CFG)
    for step in range(3):
        gradients(model, step)
        optimizer.step()
    again = copy.deepcopy(model)
    resumed = build_optimizer(again, CFG)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        for one, built in ((model, optimizer), (again, resumed)):
            gradients(one, step)
            built.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    # A reset leaves no trace of the steps before it.
    optimizer.state.clear()
    fresh = build_optimizer(again, CFG)
    for one, built in ((model, optimizer), (again, fresh)):
        gradients(one, 9)
        built.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_each_group_has_its_own_learning_rate() -> None:
    optimizer = build_optimizer(small_model(TOKENIZER), CFG)
    assert isinstance(optimizer, MuonAdamW)
    assert [(group["full_lr"], group["lr"]) for group in optimizer.param_groups] == [(1e-2, 1e-2), (3e-2, 3e-2)]
    plain = build_optimizer(small_model(TOKENIZER), OptimizerConfig(lr=1e-2))
    assert type(plain) is torch.optim.AdamW and math.isclose(plain.param_groups[0]["full_lr"], 1e-2)


@pytest.mark.parametrize("saved_by", ["this version", "one whose groups did not say fused"])
def test_a_resumed_muon_keeps_step_counts_on_the_device_of_the_parameters(saved_by: str) -> None:
    """The meta device stands for a GPU: AdamW's fused kernel refuses step counts on the CPU."""

    def optimizer(device: str) -> MuonAdamW:
        with torch.device(device):
            matrix, vector = (torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 4), (4,)))
        groups = [{"params": [vector]}, {"params": [matrix], "momentum": 0.9, "weight_decay": 0.0}]
        return MuonAdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-8)

    first = optimizer("cpu")
    for group in first.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    first.step()
    saved = first.state_dict()
    if saved_by != "this version":
        for group in saved["param_groups"]:
            del group["fused"]
    resumed = optimizer("meta")
    resumed.load_state_dict(saved)
    values = {key: value for state in resumed.state.values() for key, value in state.items()}
    assert {key: value.device.type for key, value in values.items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq", "momentum"), "meta"
    )
    assert values["step"].dtype == torch.float32
    assert all(group["fused"] for group in resumed.param_groups)
