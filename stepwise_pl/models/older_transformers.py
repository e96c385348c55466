"""Makes folders that transformers 5 writes readable for transformers 4: the same facts under its older names."""

import json
from pathlib import Path
from typing import Any

# The names of the base of rotary positions in transformers 4 besides `rope_theta`, by model type. The first table is for
# all layers, or those with full attention; the second for layers with a sliding window.
BASES = {
    "gpt_neox": "rotary_emb_base", "gpt_neox_japanese": "rotary_emb_base", "modernbert-decoder": "global_rope_theta",
}  # fmt: skip
LOCAL_BASES = {
    "gemma3": "rope_local_base_freq", "gemma3_text": "rope_local_base_freq", "gemma3n": "rope_local_base_freq",
    "gemma3n_text": "rope_local_base_freq", "modernbert-decoder": "local_rope_theta",
}  # fmt: skip
ROTATED_SHARES = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}
# Keys of a scaled rotary embedding that transformers 4 looks for outside `rope_scaling`.
BESIDE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def make_readable(folder: Path) -> None:
    """Add the names of transformers 4 to a folder's `config.json` and `tokenizer_config.json`.

    transformers 4 reads the base of rotary positions from `rope_theta`. If that is missing, it
    takes the type's default without a warning, and the model answers otherwise. It does not
    know the tokenizer classes of transformers 5.
    """
    _change(folder / "config.json", _older_config)
    _change(folder / "tokenizer_config.json", _older_tokenizer)


def _change(path: Path, older: Any) -> None:
    if path.is_file():
        changed = older(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _older_config(config: dict[str, Any]) -> dict[str, Any]:
    config = {
        key: _older_config(value) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in config.items()
    }
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    # transformers 4 wrote both names of GPT-2's positions. The converter of llama.cpp still reads the other one.
    if config.get("model_type") == "gpt2" and "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not rope:
        return config
    kind = config.get("model_type", "")
    # There is one set of parameters for all layers, or one for each kind of layer.
    by_layer = {name: one for name, one in rope.items() if isinstance(one, dict)}
    full = by_layer.get("full_attention") or next(iter(by_layer.values()), None) or rope
    local = by_layer.get("sliding_attention", full)
    more: dict[str, Any] = {key: full[key] for key in BESIDE if full.get(key) is not None}
    if (base := full.get("rope_theta")) is not None:
        more |= {BASES[kind]: base} if kind in BASES else {}
    if kind in LOCAL_BASES and local.get("rope_theta") is not None:
        more[LOCAL_BASES[kind]] = local["rope_theta"]
    if kind in ROTATED_SHARES and full.get("partial_rotary_factor") is not None:
        more[ROTATED_SHARES[kind]] = full["partial_rotary_factor"]
    name = full.get("rope_type", "default")
    if name != "default":
        scaled = {
            key: value for key, value in full.items() if key not in ("rope_theta", "partial_rotary_factor", "rope_type")
        }
        if name == "longrope":  # transformers 4 allows exactly three keys here
            more["rope_scaling"] = {"type": name, **{key: scaled[key] for key in ("short_factor", "long_factor")}}
        else:
            more["rope_scaling"] = {"rope_type": name, **scaled}
    return {**config, **{key: value for key, value in more.items() if config.get(key) is None or key in BESIDE}}


def _older_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    # transformers 5 writes a list. transformers 4 expects a table of named tokens under this key.
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config
