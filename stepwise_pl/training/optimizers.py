"""The optimizer of a run: AdamW, or Muon for the matrices of the model and AdamW for all else.

The reset when a token leaves is in `StepwiseModule.follow_schedule`.
"""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepwise_pl.config.training import OptimizerConfig

# Coefficients of the quintic iteration, which bring every singular value near 1 in five steps rather than to exactly 1 in
# many (Keller Jordan, "Muon", 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)


def lr_factor(cfg: OptimizerConfig, step: int, max_steps: int, reset_step: int, rewarmup_steps: int) -> float:
    """The learning rate at a step as a fraction of the configured one: the least of warm-up, climb after a reset and final fall.

    Args:
        max_steps: optimizer steps of the whole run; the fall ends with the last.
        reset_step: the step of the last optimizer reset.
        rewarmup_steps: steps of the climb after a reset; 0: no climb.
    """
    decay_steps = cfg.decay_steps(max_steps)
    return min(
        1.0,
        (step + 1) / cfg.warmup_steps if cfg.warmup_steps else 1.0,
        (step - reset_step + 1) / rewarmup_steps if rewarmup_steps else 1.0,
        max(0, max_steps - step) / decay_steps if decay_steps else 1.0,
    )


def build_optimizer(
    model: PreTrainedModel, cfg: OptimizerConfig, extra: torch.nn.Module | None = None,
    tokens: torch.nn.Module | None = None,
) -> torch.optim.Optimizer:  # fmt: skip
    """Build the optimizer of all trained parameters. Each group's `full_lr` is its learning rate after warm-up.

    Args:
        extra: the modules that a method trains besides the model; with AdamW, but for matrices of a language model among them.
        tokens: the inputs that a method learns.
    """
    # A language model among the modules of a method is trained as the model is.
    models = [
        model,
        *(m for m in (extra.modules() if extra else ()) if isinstance(m, PreTrainedModel) and m.can_generate()),
    ]
    matrices = [matrix for each in models for matrix in matrices_of(each)] if cfg.matrices == "muon" else []
    chosen = {id(parameter) for parameter in matrices}
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for parameter in chain.from_iterable(each.parameters() for each in (model, extra, tokens) if each is not None):
        if parameter.requires_grad and id(parameter) not in chosen:
            decay = cfg.weight_decay if cfg.decay_all or parameter.dim() >= 2 else 0.0
            groups.setdefault(decay, []).append(parameter)
    rest: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "full_lr": cfg.lr} for decay, parameters in groups.items()
    ]
    settings: dict[str, Any] = {"lr": cfg.lr, "betas": (cfg.betas[0], cfg.betas[1]), "eps": cfg.eps}
    if not matrices:
        return torch.optim.AdamW(rest, fused=True, **settings)
    muon = {
        "params": matrices, "weight_decay": cfg.weight_decay, "full_lr": cfg.matrix_lr, "lr": cfg.matrix_lr,
        "momentum": cfg.momentum,
    }  # fmt: skip
    return MuonAdamW([*rest, muon], **settings)


def matrices_of(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The weights that multiply hidden states: two-dimensional, and neither an embedding nor the output head."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    spared = {id(parameter) for module in [*tables, head] if module is not None for parameter in module.parameters()}
    return [parameter for parameter in model.parameters() if parameter.dim() == 2 and id(parameter) not in spared]


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups that have a `momentum`, AdamW for the others, as one optimizer.

    Two optimizers would count every step of training twice. Muon moves a matrix W by

        W <- W - lr · 0.2 · sqrt(max(rows, columns)) · orthogonal(Nesterov momentum of the gradient)

    (Keller Jordan 2024). The factor of Liu et al. (arXiv 2502.16982) makes an update about as
    large as one of AdamW. `torch.optim.Muon` orthogonalises in bf16, which a CPU without bf16
    units must emulate. This class keeps the parameter's own precision, and orthogonalises
    matrices of one shape together.

    Args:
        groups: parameter groups. Those with a `momentum` hold matrices only.
        settings: of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        # With `fused` in the groups, `load_state_dict` puts AdamW's count of steps on the parameter's device.
        settings = {**settings, "fused": True}
        super().__init__(groups, settings)
        self._adamw = torch.optim.AdamW([torch.nn.Parameter(torch.empty(0))], **settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state. Groups of older versions lack `fused`, and get it here."""
        groups = [{**group, "fused": True} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Set at every step, because loading a checkpoint replaces the state and the groups.
        self._adamw.state = self.state
        defaults = self._adamw.defaults
        self._adamw.param_groups = [{**defaults, **group} for group in self.param_groups if "momentum" not in group]
        self._adamw.step()
        for group in self.param_groups:
            if "momentum" in group:
                self._muon(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in by_shape.items():
            updates = []
            for parameter in parameters:
                state, gradient = self.state[parameter], parameter.grad
                assert gradient is not None
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(gradient, 1 - group["momentum"])
                updates.append(gradient.lerp(state["momentum"], group["momentum"]))
            size = 0.2 * math.sqrt(max(shape))
            for parameter, update in zip(parameters, orthogonal(torch.stack(updates)), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * size)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix near 1, except tiny ones; keep the singular vectors.

    Args:
        matrices: [batch, rows, columns].

    Returns:
        [batch, rows, columns].
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    # Wide matrices make the products below small.
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
