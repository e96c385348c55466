"""The checks before any data is made and Lightning is imported, the quickest first."""

import importlib.util
import re
from pathlib import Path

from stepwise_pl.common import hub, plugins
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import SMALL, ModelConfig, no_such_type
from stepwise_pl.config.run import Config
from stepwise_pl.methods import Method


def check(config: Config) -> None:
    """Raise `UserError` if the machine lacks a device or package that is asked for, or if settings do not fit together."""
    config.schedule.require_slow_down(config.guard.action)
    if config.guard.early is not None and config.schedule.waits_for():
        raise UserError(
            f"guard.early={config.guard.early}: schedule.kind={config.schedule.kind} waits for accuracy, whatever it is right after a token "
            "has left; set guard.early=null"
        )
    if type(config.method).view is Method.view:
        raise config.method.mistake("view", "is missing: it says what is read and written at a stage")
    if config.schedule.needs_accuracy() and not config.method.is_judged_at(0):
        raise UserError(
            f"schedule.kind={config.schedule.kind} waits for good answers, and method={config.method.kind} gives none before its "
            "last stage: set schedule.max_stay=<steps of a stage>, or choose schedule=stepwise schedule.delta=<stages per epoch>"
        )
    config.method.check(config.task)
    for name in config.callbacks:
        plugins.named(name, "callbacks")
    check_type(config.model)
    if config.logger.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("logger=tensorboard: TensorBoard is not installed; pip install tensorboard")
    check_sources(config.model)
    import torch

    from stepwise_pl.models.build import check_architecture, require_memory
    from stepwise_pl.models.devices import accelerator_of

    cfg = config.trainer
    if accelerator_of(cfg.accelerator, "trainer.accelerator") == "gpu" and torch.cuda.device_count() < cfg.devices:
        raise UserError(
            f"trainer.accelerator=gpu with trainer.devices={cfg.devices}: this machine has {torch.cuda.device_count()} "
            "CUDA devices; trainer=cpu trains on the CPU"
        )
    holds_more = config.method.frozen_models > 0 or type(config.method).extra is not Method.extra
    holder = f"the model, with all that method={config.method.kind} holds besides," if holds_more else "the model"
    require_memory(check_architecture(config.model, config.method), 2 if cfg.precision == "bf16-true" else 4, holder)


def check_type(cfg: ModelConfig) -> None:
    """Raise `UserError` if transformers has no causal LM of this type."""
    known = causal_types()
    if not cfg.pretrained and known and cfg.type not in known:
        raise no_such_type(cfg.type)


def check_sources(cfg: ModelConfig) -> None:
    """Raise `UserError` if weights or tokenizer are neither on this machine nor available from the Hub."""
    if cfg.pretrained and cfg.init_from is None:
        hub.require("model.name", cfg.name)
    if cfg.tokenizer != SMALL:
        hub.require("model.tokenizer", cfg.tokenizer)


def causal_types() -> set[str]:
    """Return the types of model that have a causal LM in transformers; empty if its source is not found.

    The table is read from the source, because its import takes seconds: it loads all of torch.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return set()
    source = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    table = re.search(r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict\((.*?)^\)", text, re.DOTALL | re.MULTILINE)
    return set(re.findall(r'\(\s*"([\w-]+)",', table[1])) if table else set()
