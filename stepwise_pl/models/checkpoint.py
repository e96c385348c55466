"""Weights in checkpoints: reads a file, and loads a model from it."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.config.upgrade import upgraded_state

# The names of the causal LM's weights begin so, in a checkpoint of `StepwiseModule` and of the reference implementation.
PREFIX = "model."
REFERENCE_PREFIX = "base_model."


def named_weights(weights: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    """Return the weights with names that begin with `prefix`, and cut it off. Raise `UserError` if there are none."""
    found = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if not found:
        raise UserError(f"{path}: holds no weights whose names begin with {prefix}")
    return found


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file to the CPU: tensors and plain containers only, never code.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    try:
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip() is not None:  # torch does not check
            raise UserError(f"{path}: damaged: its checksum is wrong")
        # The file is mapped into memory. Unused parts, for example the optimizer's moments, are not read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:
        reason = first_line(error)[:120]
        raise UserError(f"{path}: damaged, or not a checkpoint of weights only ({reason})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: is not a checkpoint")
    if isinstance(state.get("stepwise"), dict):
        state["stepwise"] = upgraded_state(state["stepwise"], path)
    return state


def kept_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint that a user gets: their average if the run keeps one (`optimizer.average`), else as they are."""
    weights: dict[str, Tensor] = state.get("state_dict", {})
    average = state.get("stepwise", {}).get("average")
    if not average:
        return weights
    # A tied output head stands in the checkpoint under a name of its own, and shares its storage.
    means = {weights[name].data_ptr(): mean for name, mean in average.items()}
    return {name: means.get(weight.data_ptr(), weight).to(weight.dtype) for name, weight in weights.items()}


def load_weights(model: PreTrainedModel, weights: dict[str, Tensor], where: str) -> None:
    """Put `weights` into `model`; they must fit exactly.

    Old GPT-2 checkpoints hold causal masks, which are no weights, and may leave out a tied
    output layer. Both are allowed.

    Raises:
        UserError: names or shapes differ; `where` names the source of the weights.
    """
    own = model.state_dict()
    weights = {key: value for key, value in weights.items() if not key.endswith((".attn.bias", ".attn.masked_bias"))}
    tied = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set()
    missing, extra = own.keys() - weights.keys() - tied, weights.keys() - own.keys()
    shapes = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    if missing or extra or shapes:
        name = sorted(missing or extra or shapes)[0]
        raise UserError(
            f"{where}: the weights do not fit the model ({len(missing)} missing, {len(extra)} unknown, {len(shapes)} of "
            f"another shape; {name} for one); choose the model they were trained with"
        )
    model.load_state_dict(weights, strict=False)
