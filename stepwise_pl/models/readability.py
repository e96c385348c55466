"""The check, before training, that a model can read the inputs that a method adds to the views of its stages."""

from collections.abc import Mapping

import numpy as np
import torch
from transformers import PreTrainedModel

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import EncodedExamples
from stepwise_pl.data.limits import Limits
from stepwise_pl.methods import Method
from stepwise_pl.methods.base import LATENT, own
from stepwise_pl.models.causality import restored_afterwards
from stepwise_pl.models.decoding import rounding
from stepwise_pl.models.forward import accepted_by
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.own import table_of
from stepwise_pl.models.reading import require_no_checkpointing, require_window
from stepwise_pl.schedules.spread import Stage

STAGES = 40  # that are looked at


def require_readable(
    method: Method,
    model: PreTrainedModel,
    eos: int,
    encoded: Mapping[str, EncodedExamples],
    limits: Limits,
    sharded: bool,
) -> None:
    """Raise `UserError` if views hold inputs that are no words, and the method does not declare them or the model cannot read them.

    Args:
        encoded: all splits.
        sharded: whether each process will hold a part of every weight.
    """
    learner, whole = Learner(model, eos, method), _unequal(encoded["train"])
    last = method.last_stage(limits)
    stages = np.unique(np.linspace(0, last, STAGES).round().astype(int)).tolist()
    views = [method.view(learner, whole, Stage(stage, last)) for stage in stages]
    # Smoothing goes beyond the last stage.
    spread = [np.full(len(whole), stage) for stage in [*stages, last + 1]]
    spread_views = [method.view(learner, whole, Stage(min(int(each[0]), last), last, each)) for each in spread]
    for stage, view in zip([*stages, *stages, last], [*views, *spread_views], strict=True):
        method.require_type("view", view, CoTBatch, "batch.remove(stage.units)")
        _require_declared(method, view, stage, limits)
    views = [view for view in views if bool((view.tokens < 0).any())]
    if not views:
        return
    kind = model.config.model_type
    if "inputs_embeds" not in accepted_by(type(model).forward):
        raise UserError(f"method={method.kind}: a {kind} reads words only; choose another model.type")
    if sharded:
        raise UserError(
            f"trainer.strategy=fsdp2: the views of method={method.kind} hold inputs that are no words, which FSDP2 cannot serve "
            "here; choose trainer.strategy=ddp"
        )
    thinking = [view for view in views if bool((view.tokens == LATENT).any())]
    if not thinking:
        return
    if type(method).prompt_states is not Method.prompt_states:
        raise method.mistake("prompt_states", "and a view with LATENT do not go together")
    require_no_checkpointing(model)
    require_window(model, _most_columns(method, encoded, limits))
    # Neighbours have unequal numbers of thoughts, as with smoothing and stage mixing.
    mixed = CoTBatch.stack([(thinking[0], thinking[-1])[row % 2].row(row) for row in range(len(whole))])
    with restored_afterwards(model), torch.inference_mode():
        extra, tokens = None, table_of(model, method.num_tokens(limits))
        if type(method).thought is not Method.thought:
            extra = method.extra(model)
            learner = Learner(model, eos, method, extra, tokens)
            width = model.config.get_text_config().hidden_size
            learner.inputs.thought(torch.zeros(len(whole), width, dtype=model.dtype))
        _require_cache(Learner(model, eos, method, extra, tokens), mixed)


def _unequal(examples: EncodedExamples) -> CoTBatch:
    """Return the examples with the most and the fewest units, and with the longest and the shortest prompt."""
    found = [order(of) for of in (examples.units, examples.prompt_length) for order in (np.argmax, np.argmin)]
    return examples.collate(np.array(found))


def _most_columns(method: Method, encoded: Mapping[str, EncodedExamples], limits: Limits) -> int:
    """Return the most columns in which a batch stands: all of the longest prompt, thoughts, CoT and answer."""
    prompt = max(int(split.prompt_length.max()) for split in encoded.values())
    added = max(method.added(stage, limits) for stage in range(method.last_stage(limits) + 1))
    return prompt + added + limits.max_new_tokens(0)


def _require_declared(method: Method, view: CoTBatch, stage: int, limits: Limits) -> None:
    tokens, is_thought = view.tokens, view.part == Part.THOUGHT
    most, learned, declared = int(is_thought.sum(1).max()), method.num_tokens(limits), method.added(stage, limits)
    if most > declared:
        raise method.mistake("view", f"adds {most} inputs to an example at stage {stage}, and added returns {declared}")
    if bool((tokens < own(learned - 1)).any()):
        lowest = own(0) - int(tokens.min())
        raise method.mistake("view", f"holds own({lowest}), and num_tokens returns {learned}")
    if bool(((tokens < 0) & ~is_thought).any()):
        raise method.mistake("view", "holds a negative id outside of Part.THOUGHT; put it in with batch.insert(inputs)")
    is_latent = (tokens == LATENT).long()
    begins = is_latent[:, 0] + (is_latent.diff(dim=1) == 1).sum(1)
    if int(begins.max()) > 1:
        raise method.mistake(
            "view", "holds LATENT in several places of an example; all of them must stand side by side"
        )


def _require_cache(learner: Learner, view: CoTBatch) -> None:
    """Raise `UserError` unless thoughts that are read with a cache give the predictions of one pass without."""
    model, problem = learner.model, ""
    try:
        found = learner.score(view)
        expected = learner.score(view, thoughts=found.thoughts).logits.float()
        distance = (found.logits.float() - expected).square().mean().sqrt() / expected.std().clamp(min=1e-9)
        if not float(distance) <= rounding(model):
            problem = "it changes the answers"
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may raise any error on a cache that is not of its kind
        problem = first_line(error)
    if problem:
        raise UserError(
            f"a {model.config.model_type} cannot read thoughts with a KV cache ({problem}); choose another model.type"
        )
