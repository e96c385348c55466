"""The blocks of a model, compiled for training: few shapes, and on a GPU recorded CUDA graphs in the place of single kernels."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import ceil
from typing import Any

import torch
import torch._dynamo
import torch._functorch.config
from torch import Tensor
from transformers import PreTrainedModel

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.models.blocks import repeats_blocks
from stepwise_pl.models.forward import PLAIN_HEADS, Seen, Targets, model_inputs, unmasked

log = logging.getLogger(__name__)

SHRINK = 5 / 6  # each width is this part of the one before: padding is at most a sixth of a batch
LEAST = 8  # columns


def why_not(model: PreTrainedModel, sharded: bool) -> str:
    """Return why the blocks of a model are not compiled; empty if they can be."""
    if sharded:
        return "trainer.strategy=fsdp2 holds its weights in parts"
    if model.config.model_type not in PLAIN_HEADS:
        return f"the logits of a {model.config.model_type} are not the output embedding of its last hidden state alone"
    if repeats_blocks(model):
        return "model.gradient_checkpointing=true runs its blocks twice"
    return ""


def compile_blocks(
    asked: str, model: PreTrainedModel, longest: int, device: str, *, shares: int = 1, sharded: bool = False
) -> "CompiledBlocks | None":
    """Return what `trainer.compile` asks for; None: nothing is compiled.

    Args:
        asked: `true`, `false` or `auto`.
        longest: tokens of the longest example that training reads.
        device: `cpu`, `gpu` or `mps`.
        shares: the micro-batches of an optimizer step, on all processes together.
        sharded: whether each process holds a part of every weight.

    Raises:
        UserError: `asked` is `true`, and the model cannot be compiled.
    """
    if asked == "false" or (asked == "auto" and device != "gpu"):
        return None
    if problem := why_not(model, sharded):
        if asked == "true":
            raise UserError(f"trainer.compile=true: {problem}; set it to auto or false")
        log.info("the model is not compiled: %s", problem)
        return None
    return CompiledBlocks(model, longest, graphs=device == "gpu" and shares == 1, must=asked == "true")


def widths(longest: int) -> list[int]:
    """Return the widths that batches are padded to, in falling order; the first is `longest`, in columns."""
    found = [longest]
    while found[-1] > LEAST:
        found.append(max(LEAST, ceil(found[-1] * SHRINK) - 1))
    return found


class CompiledBlocks:
    """Computes the logits at targets by compiled blocks; the output head, which reads targets alone, is not compiled.

    A batch is padded on the right to one of a few `widths`, so that the number of compilations is bounded. No token attends to
    its right, so that padding changes nothing.

    Args:
        model: one that `why_not` has no objection to.
        longest: tokens of the longest example that training reads.
        graphs: record CUDA graphs (torch's `mode="reduce-overhead"`). The gradients of a step lie in the memory of its graph
            until the next step begins, so that a step must be one micro-batch of one process.
        must: raise an error if the blocks cannot be compiled, and do not go on without.

    Attributes:
        compilations: how many graphs were compiled so far, one for each width and kind of input.
        failed: whether compilation failed, so that blocks run as they are.
    """

    def __init__(self, model: PreTrainedModel, longest: int, *, graphs: bool = False, must: bool = True) -> None:
        self.model, self.graphs, self.must = model, graphs, must
        self.widths = widths(longest - 1)  # nothing is predicted after the last token
        self.compilations, self.failed = 0, False
        # A width may be read as ids and as vectors, with and without positions. torch counts the graphs of all models of the
        # process together, for instance those of a sweep, so that each model adds its own to the limit.
        config, most = torch._dynamo.config, 4 * len(self.widths)
        config.recompile_limit += most
        config.accumulated_recompile_limit += most
        self._blocks = torch.compile(model.base_model, backend=self._compile, dynamic=False, fullgraph=True)

    def begin_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Give back the memory of the last step's CUDA graphs. Its gradients lie there."""
        if self.graphs:
            optimizer.zero_grad(set_to_none=True)
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def widened(self, view: CoTBatch) -> CoTBatch:
        """Return a view padded on the right so that its columns but the last are one of the widths."""
        width = view.tokens.shape[1] - 1
        return view.padded(min((each for each in self.widths if each >= width), default=width) + 1)

    def logits(self, targets: Targets) -> Tensor:
        """Return the logits that predict each target, [targets, vocabulary].

        Raises:
            UserError: the blocks cannot be compiled, and they must be.
        """
        read = model_inputs(self.model, targets.tokens, targets.position)
        with unmasked(self.model, read):
            hidden = self._hidden(read)
        return Seen(hidden).logits_at(self.model, targets.index)

    def _hidden(self, read: dict[str, Any]) -> Tensor:
        """Return the last hidden states, after the last norm, [batch, columns, width]."""
        if not self.failed:
            try:
                found: Tensor = self._blocks(**read).last_hidden_state
                return found
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers raise errors of any kind
                cause = getattr(error, "inner_exception", error)
                reason = f"{type(cause).__name__}: {first_line(cause)}"
                if self.must:
                    raise UserError(
                        f"trainer.compile=true: the {self.model.config.model_type} could not be compiled ({reason}); "
                        "trainer.compile=false runs it as it is"
                    ) from error
                log.warning("the %s runs as it is: compiling it failed (%s)", self.model.config.model_type, reason)
                self.failed = True
        hidden: Tensor = self.model.base_model(**read).last_hidden_state
        return hidden

    def _compile(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        """Compile as `torch.compile` does, and count it."""
        self.compilations += 1
        inductor: Callable[..., Any] = torch._dynamo.lookup_backend("inductor")
        with _backward_at_once():
            compiled: Callable[..., Any] = inductor(graph, inputs, config_patches={"triton.cudagraphs": self.graphs})
        return compiled


def _backward_at_once() -> AbstractContextManager[None]:
    """Inside of this context torch compiles the backward pass together with the forward pass.

    Otherwise it would do so in the first backward pass, and an error would come too late for the blocks to run as they are.
    """
    config: Any = torch._functorch.config
    if not hasattr(config, "force_non_lazy_backward_lowering"):  # an older torch knows no such key
        return nullcontext()
    patch: AbstractContextManager[None] = config.patch(force_non_lazy_backward_lowering=True)
    return patch
