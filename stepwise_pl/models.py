"""Building the causal LM, and the weights it starts from."""

import json
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stepwise_pl.config import CHANGEABLE, ModelConfig, flat, no_such_type
from stepwise_pl.errors import UserError, first_line

PREFIX = "model."  # of the causal LM's weights in a checkpoint of `StepwiseModule`
REFERENCE_PREFIX = "base_model."  # of the same in a checkpoint of the reference implementation


def build_model(cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model in float32: pretrained, with random weights from torch's generator, or from `cfg.init_from`.

    Raises:
        UserError: the model or its weights cannot be loaded, or do not fit together.
    """
    random = partial(_random, vocabulary=len(tokenizer), eos=tokenizer.eos_token_id)
    if cfg.init_from is None:
        model = _pretrained(cfg.name, "model.name", cfg.dropout) if cfg.pretrained else random(cfg)
    else:
        folder = Path(cfg.init_from)
        if not folder.is_dir():
            raise UserError(f"model.init_from={folder}: no such folder; give a run, Hugging Face or reference folder")
        check_same_words(folder, tokenizer)
        if (folder / "config.json").is_file() and not (folder / "state_dict.bin").is_file():
            model = _pretrained(str(folder), "model.init_from", cfg.dropout)
        else:
            model = random(cfg)
            load_weights(model, read_weights(folder), f"model.init_from={folder}{_base_model(folder)}")
    rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    if len(tokenizer) > rows:
        raise UserError(
            f"model.tokenizer={cfg.tokenizer}: has {len(tokenizer)} tokens, the model embeds only {rows}; "
            "use the model's own tokenizer"
        )
    return model


def check_architecture(cfg: ModelConfig) -> None:
    """Raise `UserError` if no model with random weights can be built; takes neither memory nor random numbers."""
    if not cfg.pretrained:
        with torch.device("meta"):
            _random(cfg, vocabulary=2, eos=0)


def check_same_words(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` if the folder brings a tokenizer whose ids mean something else than ours."""
    for place in (folder, folder / "model"):
        if (place / "tokenizer_config.json").is_file():
            theirs = AutoTokenizer.from_pretrained(place)
            if theirs.get_vocab() != tokenizer.get_vocab():
                raise UserError(
                    f"model.init_from={folder}: was trained with another vocabulary ({len(theirs)} tokens, ours has "
                    f"{len(tokenizer)}); set model.tokenizer={place}"
                )


def _pretrained(name: str, key: str, dropout: float | None) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(name)
        _one_kernel(config)
        if dropout is not None:
            _set_dropout(config, dropout)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32)
    except Exception as error:
        raise _not_loaded(key, name, error) from None
    return model


def _not_loaded(key: str, name: str, error: Exception) -> UserError:
    return UserError(
        f"{key}={name}: cannot be loaded ({first_line(error)}); without network give a local folder, or random "
        "weights with model.pretrained=false and a local model.tokenizer (a folder, or symbols)"
    )


def _random(cfg: ModelConfig, vocabulary: int, eos: int) -> PreTrainedModel:
    # Asked here, because transformers' own refusal lists every model it knows, and imports them all for it.
    if cfg.type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise no_such_type(cfg.type)
    config = AutoConfig.for_model(
        cfg.type,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        hidden_size=cfg.width,
        max_position_embeddings=cfg.positions,
        vocab_size=vocabulary,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    known = config.to_dict()
    for key, value in cfg.config.items():
        if key not in known:
            raise UserError(
                f"model.config.{key}: a {cfg.type} config has no such key; it has: {', '.join(sorted(known))}"
            )
        try:
            setattr(config, key, value)
        except Exception as error:
            raise UserError(
                f"model.config.{key}={value}: does not fit a {cfg.type} config ({first_line(error)})"
            ) from None
    _one_kernel(config)
    if cfg.dropout is not None:
        _set_dropout(config, cfg.dropout)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise UserError(
            f"model.type={cfg.type}: no causal LM can be built of these settings ({first_line(error)})"
        ) from None
    return model


def _one_kernel(config: Any) -> None:
    """GPT-2's GELU as one kernel of torch instead of eight: the same function, up to rounding (tested)."""
    if getattr(config, "activation_function", None) == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"


def _set_dropout(config: Any, rate: float) -> None:
    for key in config.to_dict():
        if key.endswith(("pdrop", "dropout")) and isinstance(getattr(config, key), int | float):
            setattr(config, key, rate)


def _base_model(folder: Path) -> str:
    """What a reference checkpoint says of its base model, for messages."""
    try:
        return f" (made from base model {json.loads((folder / 'config.json').read_text())['base_model']}; see model=)"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def positions_of(cfg: ModelConfig) -> int:
    """The longest text in tokens that the model takes, without building it."""
    if not cfg.pretrained:
        return cfg.positions
    try:
        return int(getattr(AutoConfig.from_pretrained(cfg.name), "max_position_embeddings", cfg.positions))
    except Exception as error:
        raise _not_loaded("model.name", cfg.name, error) from None


def check_positions(model: PreTrainedModel, longest: int) -> None:
    """Raise `UserError` if an example of `longest` tokens exceeds the model's positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and longest > positions:
        raise UserError(
            f"the longest example has {longest} tokens, the model {positions} positions: choose a smaller task, "
            f"schedule.remove_start_from=k, or a model from scratch with model.positions={longest}"
        )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The causal LM's weights from a run folder or a reference checkpoint folder, without running code from it.

    Raises:
        UserError: there is no checkpoint, or it holds anything but tensors and plain containers.
    """
    reference = folder / "state_dict.bin"
    checkpoints = [folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    path = next((path for path in (reference, *checkpoints) if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{folder}: neither state_dict.bin nor checkpoints/best.ckpt nor checkpoints/last.ckpt is there"
        )
    state = read_checkpoint(path)
    prefix = REFERENCE_PREFIX if path == reference else PREFIX
    weights = state if path == reference else state.get("state_dict", {})
    found = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if not found:
        raise UserError(f"{path}: holds no weights whose names begin with {prefix}")
    return found


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file on the CPU; only tensors and plain containers, never code.

    Raises:
        UserError: it is missing, damaged or of another kind.
    """
    try:
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip() is not None:  # torch does not look
            raise UserError(f"{path}: damaged: its checksum is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:
        reason = first_line(error)[:120]
        raise UserError(f"{path}: damaged, or not a checkpoint of weights only ({reason})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: is not a checkpoint")
    return state


def require_own(state: Mapping[str, Any], path: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError` unless training can go on from a checkpoint: whole, and of a run with this configuration and data.

    Args:
        config: in plain containers, with what follows from it under `derived`.
    """
    parts = {"global_step", "epoch", "state_dict", "optimizer_states", "loops", "callbacks", "stepwise"}
    if not parts <= state.keys() or not {"config", "rollbacks", "schedule"} <= state["stepwise"].keys():
        raise UserError(
            f"{path}: is not a checkpoint that this version of stepwise_pl can go on from (best.ckpt and removed-<k>.ckpt "
            "hold weights only); start another run, from its weights with model.init_from=<run folder>"
        )
    both = (state["stepwise"]["config"], config)
    old, new = (flat({key: value for key, value in one.items() if key != "derived"}) for one in both)
    differ = [
        f"{key} is {old.get(key)} there, {new.get(key)} in config.yaml"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(CHANGEABLE)
    ]
    trained, now = ((one.get("derived") or {}).get("data") for one in both)
    if differ or trained != now:
        what = "; ".join(differ) or f"it was trained on other data (digest {trained}, now {now}; has a file changed?)"
        raise UserError(f"{path}: is of another run: {what}. Put back what it was made with, or use another run_dir")


def load_weights(model: PreTrainedModel, weights: dict[str, Tensor], where: str) -> None:
    """Put `weights` into `model`; they must fit exactly.

    Old GPT-2 checkpoints carry their causal masks as buffers, which are no weights, and
    may leave out a tied output layer.

    Raises:
        UserError: names or shapes differ; `where` says of what.
    """
    own = model.state_dict()
    weights = {key: value for key, value in weights.items() if not key.endswith((".attn.bias", ".attn.masked_bias"))}
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing, extra = own.keys() - weights.keys() - tied, weights.keys() - own.keys()
    shapes = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    if missing or extra or shapes:
        name = sorted(missing or extra or shapes)[0]
        raise UserError(
            f"{where}: the weights do not fit the model ({len(missing)} missing, {len(extra)} unknown, {len(shapes)} of "
            f"another shape; {name} for one); choose the model they were trained with"
        )
    model.load_state_dict(weights, strict=False)
