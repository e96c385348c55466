"""Builds the causal LM with the weights that it starts from."""

import dataclasses
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import quantization_config

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.common.hub import not_loaded, source
from stepwise_pl.config.model import LoRAConfig, ModelConfig
from stepwise_pl.data.tokenizers import load_tokenizer, num_ids
from stepwise_pl.methods import Method
from stepwise_pl.models.architecture import (
    adjusted,
    build,
    cast_weights,
    check_positions,
    grow_positions,
    memory,
    num_positions,
    num_weights,
    own_config,
    position_table,
    pretrained_config,
)
from stepwise_pl.models.checkpoint import (
    PREFIX,
    REFERENCE_PREFIX,
    kept_weights,
    load_weights,
    named_weights,
    read_checkpoint,
)
from stepwise_pl.models.lora import add_adapters, frozen_digest, load_adapters, merge_adapters
from stepwise_pl.models.own import EXTRA, TOKENS
from stepwise_pl.runs.provenance import located_model, other_version

log = logging.getLogger(__name__)


def build_model(
    cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase, positions: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Return the model: pretrained, with random weights from torch's generator, or from `cfg.init_from`; maybe with adapters.

    Args:
        positions: tokens of the longest example. A model with random weights gets as many
            positions; learned absolute positions grow to as many (`grow_positions`).
        dtype: precision of weights that are loaded. Random weights and adapters are in float32.

    Raises:
        UserError: the model or its weights cannot be loaded, do not fit together, or have too few positions.
    """
    if cfg.init_from is not None:
        model = _from_folder(cfg, tokenizer, Path(cfg.init_from), dtype)
    elif cfg.pretrained:
        model = _pretrained(cfg.name, "model.name", cfg.dropout, dtype)
    else:
        model = build(_own_config(cfg, tokenizer, positions), f"model.type={cfg.type}")
    rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    if num_ids(tokenizer) > rows:
        raise UserError(
            f"model.tokenizer={cfg.tokenizer}: has {num_ids(tokenizer)} tokens, the model embeds only {rows}; "
            "use the model's own tokenizer"
        )
    before = num_positions(model)
    if grow_positions(model, positions):
        log.info("the model's %s positions have grown to %d", before, positions)
        if cfg.lora.rank:
            raise UserError(
                f"model.lora.rank={cfg.lora.rank}: the longest example has {positions} tokens, the model {before} positions; "
                "new ones would have to be trained, which LoRA does not do: use model.lora.rank=0, or a smaller task"
            )
    check_positions(model, positions)
    prepare(model, cfg)
    return model


def model_setting(cfg: ModelConfig) -> str:
    """Return the setting that chooses the model, for messages."""
    if cfg.init_from is not None:
        return f"model.init_from={cfg.init_from}"
    return f"model.name={cfg.name}" if cfg.pretrained else f"model.type={cfg.type}"


def check_architecture(cfg: ModelConfig, method: Method | None = None) -> int:
    """Check that the model, and what the method trains besides it, can be built, without memory for weights.

    Returns:
        The number of weights that training holds, those of the method too; 0 for a model from a folder (`cfg.init_from`).

    Raises:
        UserError: the model cannot be built, or the method refuses it, as far as that is known without its weights.
    """
    if cfg.init_from is not None:
        _folder(cfg.init_from)
        return 0
    with torch.device("meta"):
        if cfg.pretrained:
            model = build(pretrained_config(cfg.name, "model.name", cfg.dropout), f"model.name={cfg.name}")
        else:
            model = build(own_config(cfg, vocabulary=2, eos=0), f"model.type={cfg.type}")
        prepare(model, cfg)
        return num_weights(model) + (0 if method is None else _weights_besides(method, model))


def _weights_besides(method: Method, model: PreTrainedModel) -> int:
    """Return the number of weights that the method holds besides a model on the meta device."""
    try:
        extra = method.extra(model)
    except UserError:
        raise
    except Exception:  # A method may read the weights of the model, which are not there yet.
        extra = None
    own = 0 if extra is None else sum(parameter.numel() for parameter in extra.parameters())
    return own + method.frozen_models * num_weights(model)


def require_memory(weights: int, bytes_per_weight: int, holder: str = "the model") -> None:
    """Raise `UserError` if this machine's memory does not hold so many weights; `holder` says whose they are."""
    needed, there = weights * bytes_per_weight, memory()
    if needed > there:
        raise UserError(
            f"{holder} has {weights / 1e6:,.0f} million weights, {needed / 2**30:,.0f} GiB, and this machine a memory of "
            f"{there / 2**30:,.0f} GiB; make the model smaller (model.layers, model.width, model.positions)"
        )


def prepare(model: PreTrainedModel, cfg: ModelConfig) -> None:
    """Turn on gradient checkpointing and put adapters in, as configured. Raise `UserError` if the model has none."""
    if cfg.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            kind = model.config.model_type
            raise UserError(f"model.gradient_checkpointing=true: transformers has none for {kind}; set it to false")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers is going to rename it
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    if cfg.lora.rank:
        add_adapters(model, cfg.lora)


def _own_config(cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase, positions: int = 0) -> Any:
    return own_config(cfg, num_ids(tokenizer), tokenizer.eos_token_id, positions)


def _pretrained(name: str, key: str, dropout: float | None, dtype: torch.dtype) -> PreTrainedModel:
    config = pretrained_config(name, key, dropout)
    try:
        given = source(name)
        if "gguf_file" in given and hasattr(quantization_config, "GgufConfig"):
            # With a kernel for quantised blocks, transformers would keep the blocks, and blocks cannot be trained.
            given["quantization_config"] = quantization_config.GgufConfig(dequantize=True)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(**given, config=config, dtype=dtype)
    except Exception as error:
        raise not_loaded(key, name, error) from None
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if "gguf_file" in given and quantizer is not None:
        quantizer.remove_quantization_config(model)  # the weights are plain now, and are saved as plain ones
    return model


def _folder(name: str) -> Path:
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"model.init_from={folder}: no such folder; give a run, Hugging Face or reference folder")
    return folder


def _from_folder(
    cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype
) -> PreTrainedModel:
    """Return the model of `model.init_from`: a run folder, a Hugging Face folder, or one of the reference implementation."""
    _folder(str(folder))
    check_same_words(folder, tokenizer)
    where = f"model.init_from={folder}"
    if (folder / "state_dict.bin").is_file():
        model = build(_own_config(cfg, tokenizer), f"model.type={cfg.type}", initialised=False)
        load_weights(
            model,
            named_weights(read_checkpoint(folder / "state_dict.bin"), REFERENCE_PREFIX, folder),
            where + _base_model(folder),
        )
        return model
    if (folder / "config.json").is_file():
        return _pretrained(str(folder), "model.init_from", cfg.dropout, dtype)
    checkpoints = [folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    path = next((path for path in checkpoints if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{folder}: neither state_dict.bin nor checkpoints/best.ckpt nor checkpoints/last.ckpt is there"
        )
    state = read_checkpoint(path)
    if any(name.startswith((EXTRA, TOKENS)) for name in kept_weights(state)):
        log.warning(
            "%s: the inputs and modules that its method trained besides the model stay behind; new ones begin at random",
            where,
        )
    model = restored(folder, state, path, tokenizer, cfg.dropout)
    merge_adapters(model)
    if not cfg.pretrained:
        _require_shape(cfg, model, where)
    cast_weights(model, dtype)
    return model


def restored(
    folder: Path,
    state: Mapping[str, Any],
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    dropout: float | None = None,
) -> PreTrainedModel:
    """Return the model of a run at a checkpoint, in the precision it was saved in, with its adapters.

    Args:
        folder: the run folder.
        state: the checkpoint, read from `path`.
        tokenizer: the tokenizer of the run.
        dropout: see `ModelConfig.dropout`.

    Raises:
        UserError: the folder cannot be read or does not fit the checkpoint, or the model that
            the adapters belong to cannot be loaded or has changed.
    """
    weights = named_weights(kept_weights(state), PREFIX, path)
    try:
        if "config" in state["stepwise"]:
            settings, trainer = (dict(state["stepwise"]["config"][part]) for part in ("model", "trainer"))
            cfg = ModelConfig(**{**settings, "lora": LoRAConfig(**settings.get("lora", {}))})
        else:  # an older version, without adapters, kept no config in the checkpoint
            cfg = ModelConfig()
    except (KeyError, TypeError):
        raise UserError(f"{path}: was written by {other_version(path, 'a7bb055')}") from None
    if not cfg.lora.rank:
        try:
            config = AutoConfig.from_pretrained(folder / "model")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / 'model'}: cannot be read ({first_line(error)})") from None
        dtype = next(iter(weights.values())).dtype
        model = build(adjusted(config, dropout), str(folder / "model"), dtype, initialised=False)
        load_weights(model, weights, str(path))
        return model
    cfg = located_model(cfg, folder)
    dtype = torch.bfloat16 if trainer["precision"] == "bf16-true" else torch.float32
    cfg = dataclasses.replace(cfg, dropout=cfg.dropout if dropout is None else dropout)
    model = build_model(cfg, tokenizer, dtype=dtype)
    if frozen_digest(model) != (state["stepwise"]["config"].get("derived") or {}).get("frozen"):
        raise UserError(
            f"{path}: holds adapters of a model that has changed since: {cfg.init_from or cfg.name}; put the old one back"
        )
    load_adapters(model, weights, str(path))
    return model


def _require_shape(cfg: ModelConfig, model: PreTrainedModel, where: str) -> None:
    """Raise `UserError` if a run's model has another type or size than this configuration."""
    theirs = model.config
    pairs = {
        "type": theirs.model_type, "layers": theirs.num_hidden_layers, "heads": theirs.num_attention_heads,
        "width": theirs.hidden_size,
    }  # fmt: skip
    differ = [
        f"model.{key} is {value} there, {getattr(cfg, key)} here"
        for key, value in pairs.items()
        if value != getattr(cfg, key)
    ]
    if differ:
        raise UserError(
            f"{where}: the weights do not fit the model ({'; '.join(differ)}); choose the model of that run"
        )


def check_same_words(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` if the folder has a tokenizer with another vocabulary than ours."""
    for place in (folder, folder / "model"):
        if (place / "tokenizer_config.json").is_file():
            theirs = load_tokenizer("model.init_from", str(place))
            if theirs.get_vocab() != tokenizer.get_vocab():
                raise UserError(
                    f"model.init_from={folder}: was trained with another vocabulary ({len(theirs)} tokens, ours has "
                    f"{len(tokenizer)}); set model.tokenizer={place}"
                )


def _base_model(folder: Path) -> str:
    """Return the base model of a reference checkpoint, for messages; empty if its folder does not name one."""
    try:
        return f" (made from base model {json.loads((folder / 'config.json').read_text())['base_model']}; see model=)"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def positions_of(cfg: ModelConfig) -> int | None:
    """Return the longest text, in tokens, that the model takes, without building it; None if there is no bound."""
    if not cfg.pretrained:
        return None
    with torch.device("meta"):
        model = build(pretrained_config(cfg.name, "model.name", None), f"model.name={cfg.name}")
    return None if position_table(model) is not None else num_positions(model)
