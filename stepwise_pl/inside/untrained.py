"""The model of a run with random weights: what an architecture shows before it has learned anything."""

import copy
from dataclasses import replace

import torch

from stepwise_pl.models.architecture import build
from stepwise_pl.models.build import model_setting
from stepwise_pl.models.own import own_modules
from stepwise_pl.models.trained_run import TrainedRun

# Hardly a seed of a run: the weights should not be those that the run began with, which trained ones still resemble. A seed of
# more than 32 bits would not do: torch takes its lower 32 bits, so that 2**32 is 0.
SEED = 20_251_209


def untrained(run: TrainedRun, *, instead: bool = False) -> TrainedRun:
    """Return a run with fresh random weights in the place of its own, also in the modules and inputs of its method.

    They are the same for every checkpoint of a run.

    Args:
        instead: give up the run's own weights first (they go to torch's `meta` device), so that both are never in memory together.
    """
    config, device = copy.deepcopy(run.model.config), run.model.device
    if instead:
        run.to("meta")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = build(config, model_setting(run.config.model), run.model.dtype).eval()  # type: ignore[no-untyped-call]
    extra, tokens = own_modules(run.config.method, model, run.limits, SEED)
    fresh = replace(run, model=model, extra=None if extra is None else extra.eval(), tokens=tokens)
    fresh.to(device)
    return fresh
