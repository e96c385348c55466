"""ICoT-KD (arXiv 2311.01460): a teacher's hidden states along its CoT are distilled into those of a model that writes none."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.registry import register
from stepwise_pl.common.settings import setting
from stepwise_pl.common.text import percent
from stepwise_pl.methods.base import Losses, Method
from stepwise_pl.schedules.spread import ALL, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stepwise_pl.data.batch import CoTBatch
    from stepwise_pl.data.limits import Limits
    from stepwise_pl.models.learner import Learner
    from stepwise_pl.tasks import Task

log = logging.getLogger(__name__)

READ, EMULATE, COUPLE = range(3)  # the stages
RANDOM = "random"
# The temperature of the mixture's softmax.
TEMPERATURE = 0.05


@register("method")
@dataclass
class ICoTKD(Method):
    """Distillation of a CoT into the vertical states at the end of the prompt. Its stages are phases, not removed tokens.

    The teacher is a run of `schedule=explicit_cot`. p1 and p2 are the columns of the two separators. The teacher gives one
    state for each block: the input of block l at column p1 + l · (p2 - p1) / (L - 1), a diagonal through the CoT, normalised.

    0. Read: the model answers without CoT. Before every block an MLP of the teacher's state takes the place of the model's
       own state at p1. The loss is the cross entropy of the answer.
    1. Emulate: a second model reads the prompt and predicts the teacher's states, block by block. The loss is half of the
       squared distance.
    2. Couple: the model answers with the emulator's states. The loss is the cross entropy of the answer.

    Every stage is validated as the model would be used: with the emulator, and without any CoT. So accuracy is low up to
    the last stage. Different from the authors' code: the view has both separators; the diagonal is that of each example
    and not that of the first in a batch; `last_column` is the last column; the model's dropout is on while it trains.

    Raises:
        UserError: a value is out of range.
    """

    # The model alone does not answer: it needs the emulator.
    paper: ClassVar[str] = (
        "Deng and others, *Implicit Chain of Thought Reasoning via Knowledge Distillation*, arXiv 2311.01460"
    )
    exports: ClassVar[bool] = False
    frozen_models: ClassVar[int] = 1  # the teacher
    trains_in_parts: ClassVar[bool] = True
    stage_names: ClassVar[tuple[str, ...]] = ("read", "emulate", "couple")

    kind: str = "icot_kd"
    # The run folder of the teacher: a run of schedule=explicit_cot, of the same task and the same size of model; `random`: a
    # teacher with the model's own first weights, which knows nothing (a control, and for smoke tests).
    # A resumed run may name its new place: the digest of the weights stays the same.
    teacher: str | None = setting(None, path=True, changeable=True)
    # The checkpoint of the teacher: `best`, `last` or a file.
    teacher_checkpoint: str = setting("best", path=True, changeable=True)
    # The teacher's states: `diagonal`; `first_column` or `last_column`, all at one separator; `top_row` or
    # `bottom_row`, those of one block along the diagonal.
    states: str = "diagonal"
    # Components of the emulator's mixture, for CoTs that can be written in several ways; at least 1.
    mixture: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("method.states", self.states, ("diagonal", "first_column", "last_column", "top_row", "bottom_row"))
        require(self.mixture >= 1, "method.mixture", self.mixture, "must be at least 1")
        self._teacher: PreTrainedModel | None = None

    def hurried(self) -> "ICoTKD":
        return replace(self, teacher=RANDOM)

    def located(self, found: Callable[[str], str]) -> "ICoTKD":
        if self.teacher in (None, RANDOM):
            return self
        checkpoint = self.teacher_checkpoint
        return replace(
            self,
            teacher=found(self.teacher),
            teacher_checkpoint=checkpoint if checkpoint in ("best", "last") else found(checkpoint),
        )

    def check(self, task: "Task") -> None:
        if self.teacher is None:
            raise UserError(
                "method.teacher is not set: give the folder of a run of schedule=explicit_cot of the same task and model"
            )
        if self.teacher == RANDOM:
            return
        from stepwise_pl.runs.saved_config import differences_of_task

        where, first = f"method.teacher={self.teacher}", "train the teacher first, with schedule=explicit_cot"
        if not Path(self.teacher).is_dir():
            raise UserError(f"{where}: no such folder; {first}, or name its new place")
        if not (Path(self.teacher) / "config.yaml").is_file():
            raise UserError(f"{where}: no config.yaml there, so it is no run; {first}")
        if differ := differences_of_task(Path(self.teacher), task):
            raise UserError(f"{where}: has learned another task ({'; '.join(differ)}); {first} and with this task")

    def last_stage(self, limits: "Limits") -> int:
        return COUPLE

    def removed(self, stage: int, limits: "Limits") -> int:
        return limits.max_removed

    def is_judged_at(self, stage: int) -> bool:
        return stage == COUPLE

    def view(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> "CoTBatch":
        return batch.remove(ALL, self.side, self.keep_position)

    def extra(self, model: "PreTrainedModel") -> "nn.Module":
        """Return the MLPs of the model, and the emulator. Raise `UserError` for a model with adapters, or of one block."""
        from torch import nn

        from stepwise_pl.models.blocks import blocks
        from stepwise_pl.models.lora import has_adapters

        if has_adapters(model):
            raise UserError("method=icot_kd: the emulator is a copy of the whole model; set model.lora.rank=0")
        width, layers = model.config.get_text_config().hidden_size, len(blocks(model))
        require(layers >= 2, "model.layers", layers,
                "must be at least 2 for method=icot_kd: before its first block a teacher knows nothing of its CoT")  # fmt: skip
        return nn.ModuleDict({
            "mind": nn.ModuleList(_mlp(width, width) for _ in range(layers)),
            "emulator": nn.ModuleDict({
                "model": copy.deepcopy(model),
                "guess": nn.ModuleList(_mlp(2 * width, width) for _ in range(layers)),
                "mixture": nn.Embedding(self.mixture, width),
                "recurrence": nn.LSTMCell(width, width),
                "key": nn.Linear(width, width),
                "query": nn.Linear(width, width),
                "out": nn.Linear(2 * width, width),
            }),
        })  # fmt: skip

    def prepare(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", longest: int) -> dict[str, Any]:
        """Load the teacher. Return the digest of its weights, and the tokens read in its training; checkpoints hold these, not the teacher."""
        from stepwise_pl.models.architecture import check_positions
        from stepwise_pl.models.blocks import blocks
        from stepwise_pl.models.trained_run import load_run
        from stepwise_pl.runs.stages import selected

        assert self.teacher is not None
        if self.teacher == RANDOM:
            self._teacher = copy.deepcopy(model).eval().requires_grad_(False)  # type: ignore[no-untyped-call]
            check_positions(self._teacher, longest)
            return {"teacher": RANDOM}
        where = f"method.teacher={self.teacher}"
        try:
            run = load_run(self.teacher, self.teacher_checkpoint)
        except UserError as error:
            raise UserError(f"{where} with method.teacher_checkpoint={self.teacher_checkpoint}: {error}") from None
        if run.removed:
            raise UserError(
                f"{where}: no longer writes its whole CoT ({run.removed_tokens} tokens are gone); a teacher is a run of "
                "schedule=explicit_cot"
            )
        if run.config.method.added(run.stage, run.limits):
            raise UserError(
                f"{where}: reads inputs that are no words (method={run.config.method.kind}); a teacher is a run of "
                "method=stepwise schedule=explicit_cot"
            )
        if run.tokenizer.get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{where}: has another vocabulary; it must be a run of the same task and tokenizer")
        sizes = [(len(blocks(each)), each.config.get_text_config().hidden_size) for each in (run.model, model)]
        if sizes[0] != sizes[1]:
            layers, width = sizes[0]
            raise UserError(
                f"{where}: has {layers} layers of width {width}, the model {sizes[1][0]} of width {sizes[1][1]}"
            )
        check_positions(run.model, longest)
        self._teacher = run.model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
        measured = Path(self.teacher) / "metrics.csv"
        if self.teacher_checkpoint == "best" and measured.is_file() and (found := selected(measured)) is not None:
            # A student cannot read more in a teacher than the teacher knows.
            log.info("teacher: %s, %s right on validation", run.checkpoint, percent(found.accuracy))
        digest = sha256()
        for name, weight in sorted(run.model.state_dict().items()):
            digest.update(name.encode() + weight.contiguous().float().numpy().tobytes())
        return {"teacher": digest.hexdigest()[:16], "teacher_tokens_read": run.tokens_read}

    def teacher_states(self, learner: "Learner", batch: "CoTBatch") -> "Tensor":
        """Return the teacher's normalised states of a batch with its whole CoT, [blocks, batch, width]."""
        import torch
        import torch.nn.functional as F

        from stepwise_pl.data.batch import Part
        from stepwise_pl.models.blocks import blocks, kept_states
        from stepwise_pl.models.forward import Targets, model_inputs

        assert self._teacher is not None
        teacher = self._teacher.to(learner.model.device)  # type: ignore[arg-type]
        first = batch.length_of(Part.PROMPT) - 1  # p1, [batch]
        second = first + batch.length_of(Part.COT) + 1  # p2, [batch]
        layers = len(blocks(teacher))
        read = Targets.of(batch).to(teacher.device)
        with torch.no_grad(), kept_states(teacher, range(layers)) as found:
            teacher.base_model(**model_inputs(teacher, read.tokens, read.position))
        learner.count(batch)
        states = []
        for layer in range(layers):
            along = first + (second - first) * layer / max(1, layers - 1)
            column = {"first_column": first, "last_column": second}.get(self.states, along.round().long())
            block = {"top_row": layers - 1, "bottom_row": 0}.get(self.states, layer)
            state = found[block][torch.arange(len(batch)), column.to(teacher.device)]
            states.append(F.layer_norm(state.float(), state.shape[-1:]))
        return torch.stack(states)

    def emulated_states(self, learner: "Learner", view: "CoTBatch") -> "Tensor":
        """Return the emulator's prediction of the teacher's states, from the prompts of a view alone; [blocks, batch, width]."""
        import torch

        from stepwise_pl.data.batch import Part
        from stepwise_pl.models.blocks import changed_states
        from stepwise_pl.models.forward import model_inputs

        assert learner.extra is not None
        emulator = learner.extra["emulator"]  # type: ignore[index]
        model = emulator["model"]
        prompt = view.length_of(Part.PROMPT).to(model.device)
        width = int(prompt.max())
        tokens = view.tokens[:, :width].to(model.device)  # shorter prompts go on; no earlier token sees that
        row, column = torch.arange(len(prompt), device=model.device), prompt - 1
        guesses: list[Tensor] = []
        keys: list[Tensor] = []
        memory: tuple[Tensor, Tensor] | None = None
        context = torch.zeros((), device=model.device)

        def change(layer: int, state: "Tensor") -> "Tensor":
            nonlocal memory, context
            own = state[row, column]  # [batch, width]
            guess = emulator["guess"][layer](torch.cat([own, self._component(own, emulator["mixture"].weight)], dim=-1))
            guesses.append(guess)
            memory = emulator["recurrence"](guess + context, memory)
            output = memory[0]
            if keys:
                earlier = torch.stack(keys, dim=1)  # [batch, layers before, width]
                share = torch.einsum("blw,bw->bl", earlier, emulator["query"](output)).softmax(-1)
                context = torch.einsum("bl,blw->bw", share, earlier)
            else:
                context = torch.zeros_like(output)
            keys.append(emulator["key"](output))
            following = emulator["out"](torch.cat([output, context], dim=-1))
            return state.index_put((row, column), following.to(state.dtype))

        with changed_states(model, change):
            model.base_model(**model_inputs(model, tokens, None))
        return torch.stack(guesses)

    def _component(self, state: "Tensor", weight: "Tensor") -> "Tensor":
        """Return the mixture's embedding for a state; both [batch, width]. One component is a constant vector."""
        if len(weight) == 1:
            return weight.expand(len(state), -1)
        return (state @ weight.T / TEMPERATURE).softmax(-1) @ weight

    def _minded(self, learner: "Learner", states: "Tensor") -> "Tensor":
        """Return what the model reads of states: each through the MLP of its block; both [blocks, batch, width]."""
        import torch

        assert learner.extra is not None
        mlps = learner.extra["mind"]  # type: ignore[index]
        return torch.stack([mlp(state.to(mlp[0].weight.dtype)) for mlp, state in zip(mlps, states, strict=True)])

    def prompt_states(self, learner: "Learner", view: "CoTBatch") -> "Tensor":
        return self._minded(learner, self.emulated_states(learner, view))

    def loss(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> Losses:
        view = self.view(learner, batch, stage)
        if stage.now == COUPLE:
            self._count_prompts(learner, view)
            return Losses(learner.score(view))
        states = self.teacher_states(learner, batch)
        if stage.now == READ:
            return Losses(learner.score(view, self._minded(learner, states)))
        self._count_prompts(learner, view)
        distance = (self.emulated_states(learner, view).float() - states).square().sum()
        return Losses(None, {"emulation": distance / 2})

    def _count_prompts(self, learner: "Learner", view: "CoTBatch") -> None:
        from stepwise_pl.data.batch import Part

        learner.tokens_read += int(view.length_of(Part.PROMPT).sum())


def _mlp(width_in: int, width: int) -> "nn.Module":
    from torch import nn

    return nn.Sequential(nn.Linear(width_in, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
