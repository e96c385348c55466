"""The architecture of a causal LM: its configuration, a model with random or no weights, and its positions."""

import math
import os
import re
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stepwise_pl.common.errors import UserError, first_line, require
from stepwise_pl.common.hub import not_loaded, source
from stepwise_pl.config.model import MOST_LAYERS, ModelConfig, no_such_type

# The names of one size in the configurations of transformers. A model with an encoder and a decoder gets it in both.
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers", "encoder_layers",
          "num_decoder_layers", "num_encoder_layers")  # fmt: skip
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads",
         "encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads")  # fmt: skip
WIDTH = ("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim")
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "model_max_length",
             "max_target_positions")  # fmt: skip
EXPERTS = re.compile(r"^(num|n)_.*experts$|^num_experts")  # experts are bounded like layers: each one is built
# Sizes that must divide, or be equal to, the number of heads; and names of the width of a head.
GROUPS = re.compile(r"key_value_heads|kv_heads|kv_n_heads|query_groups")
HEAD_DIM = ("head_dim", "attention_head_dim", "attention_head_size", "d_head", "d_kv", "dim_head", "kv_channels")
# Names of the heads of state-space layers, of their width, and of the tokens that such layers read at a time. The last
# changes speed and memory only.
STATE_HEADS, STATE_DIM = (
    ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"),
    ("mamba_d_head", "mamba_head_dim", "mamba_headdim"),
)
STATE_GROUPS = ("n_groups", "mamba_n_groups", "mamba_ngroups")
CHUNK = ("chunk_size", "mamba_chunk_size")
OF_WIDTH = re.compile(
    r"(intermediate|hidden|feed_forward|embedding|ffn_hidden)_size$|ffn_dim$|^(dff|dim_ff|d_inner|n_inner|lru_width)$"
)


def own_config(cfg: ModelConfig, vocabulary: int, eos: int, positions: int = 0) -> Any:
    """Return the transformers configuration that `cfg` describes by type and size.

    Args:
        cfg: type, sizes and further keys.
        vocabulary: token ids that the model embeds.
        eos: id of the end token.
        positions: the fewest positions; `cfg.positions` may ask for more.

    Raises:
        UserError: there is no such type or key, or a value does not fit.
    """
    # This check comes first, because the error of transformers imports and lists every model that it knows.
    if cfg.type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise no_such_type(cfg.type)
    config = _sized(cfg, max(cfg.positions, positions), vocabulary, eos)
    known = config.to_dict()
    for key, value in cfg.config.items():
        if key not in known:
            raise UserError(
                f"model.config.{key}: a {cfg.type} config has no such key; it has: {', '.join(sorted(known))}"
            )
        if (key in LAYERS or EXPERTS.search(key)) and isinstance(value, int):
            require(value <= MOST_LAYERS, f"model.config.{key}", value, f"must be at most {MOST_LAYERS}")
        try:
            setattr(config, key, value)
        except Exception as error:
            raise UserError(
                f"model.config.{key}={value}: does not fit a {cfg.type} config ({first_line(error)})"
            ) from None
    return adjusted(config, cfg.dropout)


def _sized(cfg: ModelConfig, positions: int, vocabulary: int, eos: int) -> Any:
    """Return a configuration of the type with the sizes asked for, and with other sizes that fit them.

    A type's defaults are the sizes of one published model, with billions of weights. Sizes
    that do not follow from layers, heads and width keep their proportion in that model: the
    feed-forward layers to the width, the key-value heads to the heads.
    """
    kind: Any = CONFIG_MAPPING[cfg.type]
    try:
        published = kind()
        parts = {name: part for name, part in vars(published).items() if isinstance(part, PreTrainedConfig)}
        if models := {name: part.model_type for name, part in parts.items() if part.model_type in CONFIG_MAPPING}:
            text = next(
                (name for name in (f"{cfg.type}_text", *models.values()) if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
                None,
            )
            raise UserError(
                f"model.type={cfg.type}: is several models in one ({', '.join(models)}), which can only be loaded, not "
                f"made from scratch; {f'its part for text is model.type={text}' if text else 'choose another type'}"
            )
        sizes: dict[str, Any] = {**_sizes(published.to_dict(), cfg, positions, vocabulary)}
        tokens: dict[str, Any] = {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}
        try:
            return kind(**sizes, **tokens)
        except Exception:
            # Some configurations list a kind for every layer, and do not adapt the list to the number of layers.
            lists = _layer_lists(published.to_dict(), first_of(published.to_dict(), LAYERS), cfg.layers)
            if not lists:
                raise
            return kind(**sizes, **tokens, **lists)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model.type={cfg.type}: cannot be given a size as others are ({reason})") from None


def _sizes(published: dict[str, Any], cfg: ModelConfig, positions: int, vocabulary: int) -> dict[str, int]:
    """Return the sizes to build a configuration with, by their names in the published one."""
    heads, width, layers = (first_of(published, names) for names in (HEADS, WIDTH, LAYERS))
    state_heads, state_dim = (
        next((name for name in names if published.get(name)), None) for names in (STATE_HEADS, STATE_DIM)
    )
    sizes: dict[str, int] = {}
    for key, value in published.items():
        # None leaves the size to the model, but some models fail without it.
        if value is None and (GROUPS.search(key) or key in HEAD_DIM):
            sizes[key] = cfg.heads if GROUPS.search(key) else cfg.width // cfg.heads
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if key.startswith("vocab_size"):
            sizes[key] = vocabulary
        elif key in LAYERS:
            sizes[key] = cfg.layers
        elif key in HEADS:
            sizes[key] = cfg.heads
        elif key in WIDTH:
            sizes[key] = cfg.width
        elif key in POSITIONS:
            sizes[key] = positions
        elif GROUPS.search(key):
            sizes[key] = value * cfg.heads // heads if value * cfg.heads % heads == 0 else cfg.heads
        # The heads of latent attention have sizes of their own.
        elif key in HEAD_DIM and value != published.get("qk_rope_head_dim"):
            sizes[key] = max(1, value * heads // width) * cfg.width // cfg.heads
        elif OF_WIDTH.search(key):
            # A multiple of 8, because some kernels need 16 bytes in bf16.
            sizes[key] = cfg.width if value == width else -(-value * cfg.width // width // 8) * 8
        elif key in STATE_HEADS and state_dim:
            sizes[key] = cfg.heads
        elif key in STATE_DIM and state_heads:
            sizes[key] = max(1, value * published[state_heads] // width) * cfg.width // cfg.heads
        elif key in STATE_GROUPS:
            sizes[key] = math.gcd(value, cfg.heads)
        elif key in CHUNK:
            sizes[key] = min(value, 64)
        elif key == "rotary_dim":
            sizes[key] = min(value, cfg.width // cfg.heads)
        elif key.endswith("shared_layers"):
            sizes[key] = value * cfg.layers // layers
    return sizes


def first_of(published: dict[str, Any], names: tuple[str, ...]) -> int:
    """Return the size that a configuration has under one of the names, 1 if it has none."""
    return next((published[name] for name in names if isinstance(published.get(name), int)), 1)


def _layer_lists(published: dict[str, Any], layers: int, wanted: int) -> dict[str, Any]:
    """Return the lists with an entry for every layer, repeated or cut to `wanted` entries."""
    lists = {
        key: (value * -(-wanted // layers))[:wanted]
        for key, value in published.items()
        if isinstance(value, list) and len(value) == layers > 0
    }
    if (
        "attention_layers" in lists and "attention_types" in published
    ):  # gpt_neo expands attention_types to attention_layers
        lists["attention_types"] = [[lists["attention_layers"], 1]]
    return lists


def pretrained_config(name: str, key: str, dropout: float | None) -> Any:
    """Return the configuration of a pretrained model; `key` is the config key that gives its name.

    Raises:
        UserError: the configuration cannot be loaded.
    """
    try:
        return adjusted(AutoConfig.from_pretrained(**source(name)), dropout)
    except Exception as error:
        raise not_loaded(key, name, error) from None


def build(config: Any, what: str, dtype: torch.dtype = torch.float32, initialised: bool = True) -> PreTrainedModel:
    """Return a model of this configuration.

    Args:
        what: the setting that asks for the model, for messages.
        initialised: whether to draw the weights from torch's generator. Otherwise their memory is not set.

    Raises:
        UserError: no causal LM has this configuration.
    """
    try:
        if initialised:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        else:
            with no_init_weights():
                model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise UserError(f"{what}: no causal LM can be built of these settings ({first_line(error)})") from None
    return model


def num_weights(model: PreTrainedModel) -> int:
    """Return the number of weights of a model; it may be on the meta device."""
    return sum(parameter.numel() for parameter in model.parameters())


def memory(free: bool = False) -> int:
    """Return the bytes of memory that this machine has, or has free; 4 GiB if the system gives no number."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES" if free else "SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30


def adjusted(config: Any, dropout: float | None) -> Any:
    """Return the configuration with one rate for all its dropouts (None: its own), and with a faster GELU."""
    # One kernel of torch replaces the eight of GPT-2's GELU: the same function up to rounding (tested).
    if getattr(config, "activation_function", None) == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"
    if dropout is not None:
        for key in config.to_dict():
            if key.endswith(("pdrop", "dropout")) and isinstance(getattr(config, key), int | float):
                setattr(config, key, dropout)
    return config


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring all weights but those of adapters to `dtype`, in place.

    `model.to(dtype)` would round the buffers too. The frequencies of rotary positions are off
    by up to 0.2% in bf16, and the angle at position 1,000 is then wrong. Adapters stay in
    float32, because training steps are too small for bf16.
    """
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.to(dtype)


def num_positions(model: PreTrainedModel) -> int | None:
    """Return the most tokens that the model takes, by its configuration; None if there is no bound."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None  # xlnet writes -1 for any number


def position_table(model: PreTrainedModel) -> nn.Embedding | None:
    """Return the table of learned absolute positions, if rows can be added to it; None otherwise.

    Rotary models have no table. Some models have causal masks of the same size as their table (gpt_neo), or rows with
    another meaning in it (opt). Their tables cannot grow.
    """
    positions = num_positions(model)
    tables = [
        module
        for module in model.modules()
        if type(module) is nn.Embedding and module is not model.get_input_embeddings()
    ]
    masks = any(positions in buffer.shape for buffer in model.buffers())
    return tables[0] if len(tables) == 1 and tables[0].num_embeddings == positions and not masks else None


def grow_positions(model: PreTrainedModel, positions: int) -> bool:
    """Give a model with learned absolute positions at least `positions` of them. Return whether it got new ones.

    The n new rows are copies of the last n old ones, in the same order (repeated, if there are
    fewer old ones). So new rows have the size of trained rows, and relate to their neighbours
    as trained rows do; a token finds its neighbours by that relation. Random rows would have
    neither property, and copies of one row could not be distinguished.
    """
    table = position_table(model)
    if table is None or positions <= table.num_embeddings:
        return False
    old, new = table.num_embeddings, positions - table.num_embeddings
    again = min(old, new)
    with torch.no_grad():
        rows = table.weight[old - again + torch.arange(new) % again]
        table.weight = nn.Parameter(torch.cat([table.weight, rows]))
    table.num_embeddings = model.config.max_position_embeddings = positions
    return True


def check_positions(model: PreTrainedModel, longest: int) -> None:
    """Raise `UserError` if an example of `longest` tokens exceeds the model's positions."""
    positions = num_positions(model)
    if positions is not None and longest > positions:
        raise UserError(
            f"the longest example has {longest} tokens, the model {positions} positions, and it was not trained beyond them: "
            "choose a smaller task, schedule.remove_start_from=k, or a model from scratch"
        )
