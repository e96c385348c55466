"""The seam for methods: the schedule says which stage it is, the method says what a stage means.

A method is one file here and one in `conf/method/`. The file holds a class with
`@register("method")` above `@dataclass`, derived from `Method`, with `kind: str = "<name>"`
and a `view`; `stepwise.py` is the shortest. The YAML is one line, `defaults: [_<kind>]`.
The registry finds every file here, so nothing else has to change. `tests/methods/test_methods.py` tests
every registered method: it trains, resumes, validates as it evaluates, and exports or refuses.

A method file does not import torch at its top. The verbs live on the `Learner` that a method
is handed. A method that builds modules imports torch inside `extra`, `prompt_states` or `loss`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from stepwise_pl.common.errors import UserError, one_of
from stepwise_pl.common.text import counted
from stepwise_pl.schedules.spread import Stage

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stepwise_pl.data.batch import CoTBatch
    from stepwise_pl.data.limits import Limits
    from stepwise_pl.models.learner import Learner, Scored
    from stepwise_pl.tasks import Task


# The id of an input that is no word: the hidden state at the place before it, after the last norm (`Method.thought`).
LATENT = -1


def own(row: int) -> int:
    """Return the id of an input that is no word: a vector that the method learns, number `row` of `Method.num_tokens`."""
    return -2 - row


class Losses(NamedTuple):
    """The terms that a method minimises on a batch.

    Attributes:
        scored: the cross entropy of what `view` writes, summed over its targets. The training step divides it by the
            targets of the whole optimizer step, and counts them on the view. None: nothing that is written is trained on.
        more: further terms by name, weighted, summed over examples; 0-d tensors. The training step divides them by
            the examples of the optimizer step, and logs them as `train/<name>`. At one stage the names are the same for every batch.
    """

    scored: "Scored | None"
    more: Mapping[str, "Tensor"] = {}


@dataclass
class Method:
    """The meaning of a stage: what is read, written and minimised. Only `view` has no default.

    Raises:
        UserError: a value is out of range.
    """

    # The paper of the method, for the card of an exported model: authors, title and number. The card cites the paper of Stepwise
    # Internalization anyway.
    paper: ClassVar[str] = ""
    # Whether the model answers without the modules that are trained besides it.
    exports: ClassVar[bool] = True
    # Frozen models of the size of the trained one that training holds besides; the check of memory counts them, and `extra`.
    frozen_models: ClassVar[int] = 0
    # Whether some of what it trains gets no gradient at some stage, or ever.
    trains_in_parts: ClassVar[bool] = False
    # Whether a loss reads CoT that is gone from the view, so that the model needs positions for all of it.
    reads_cot: ClassVar[bool] = False
    # Whether explicit CoT and No CoT are schedules of this method.
    has_baselines: ClassVar[bool] = False
    # The names of all stages, by which tables and checkpoints tell them apart; empty if a stage is a number of removed units.
    stage_names: ClassVar[tuple[str, ...]] = ()

    kind: str = ""
    # The unit of removal: `token`, as in the paper, or `step`, a whole reasoning step.
    unit: str = "token"
    # Units leave from this side of the CoT. The paper removes them from the left (section 3).
    side: str = "left"
    # Tokens behind the gap keep the positions they had with the whole CoT in place.
    keep_position: bool = False

    def __post_init__(self) -> None:
        one_of("method.unit", self.unit, ("token", "step"))
        one_of("method.side", self.side, ("left", "right"))

    def last_stage(self, limits: "Limits") -> int:
        """Return the last stage. By default it is m_max, the units in the longest CoT of the training set."""
        return limits.max_removed

    def removed(self, stage: int, limits: "Limits") -> int:
        """Return the CoT units that are gone at a stage, for logs and plots. By default it is the stage itself."""
        return stage

    def hurried(self) -> "Method":
        """Return the method for a smoke test (`debug=true`), which has no other runs to build on. Default: itself."""
        return self

    def located(self, found: Callable[[str], str]) -> "Method":
        """Return the method for a run that is resumed elsewhere: `found` gives the place of a file or folder. Default: itself."""
        return self

    def quantities(self) -> tuple[str, ...]:
        """Return the quantities of the task that it trains on (`Task.values`). A batch holds them. By default there are none."""
        return ()

    def extra(self, model: "PreTrainedModel") -> "nn.Module | None":
        """Return a module to train besides the model; built once, before training. By default there is none."""
        return None

    def num_tokens(self, limits: "Limits") -> int:
        """Return how many input vectors of its own the method learns (`own`). By default there are none."""
        return 0

    def added(self, stage: int, limits: "Limits") -> int:
        """Return the most inputs that a view of a stage adds to an example (`CoTBatch.insert`). By default there are none."""
        return 0

    def can_export(self, limits: "Limits") -> bool:
        """Whether the model alone answers, so that `export` can write it: without learned inputs or thoughts."""
        return self.exports and not self.added(self.last_stage(limits), limits)

    def thought(self, learner: "Learner", hidden: "Tensor") -> "Tensor":
        """Return the input at a place with the id `LATENT`; by default it is the hidden state itself.

        Args:
            hidden: the hidden state at the place before, after the last norm, [batch, width].

        Returns:
            [batch, width].
        """
        return hidden

    def view(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> "CoTBatch":
        """Return what is read and written at a stage. It depends on the arguments alone; a method draws no random numbers here.

        Args:
            batch: the batch with the whole CoT in place, on the host.
            stage: `stage.each` is the stage of each example; it is None in evaluation.
        """
        raise NotImplementedError

    def require_counts(self, limits: "Limits") -> None:
        """Raise `UserError` unless `num_tokens` and `added` return whole numbers from 0 on."""
        for verb, found in (("num_tokens", self.num_tokens(limits)), ("added", self.added(0, limits))):
            if not (isinstance(found, Integral) and found >= 0):
                raise self.mistake(verb, f"returned {found!r}, must return a whole number from 0 on")

    def require_type(self, verb: str, found: object, wanted: type, hint: str) -> None:
        """Raise `UserError` unless a verb of this method returned what it must; `hint` says how to make that."""
        if not isinstance(found, wanted):
            raise self.mistake(verb, f"returned {type(found).__name__}, must return {wanted.__name__}: {hint}")

    def mistake(self, verb: str, what: str) -> UserError:
        """An error that names the class of this method and its verb."""
        return UserError(f"method={self.kind}: {type(self).__module__}.{type(self).__qualname__}.{verb} {what}")

    def prompt_states(self, learner: "Learner", view: "CoTBatch") -> "Tensor | None":
        """Return the states that the model's blocks read at the last token of each prompt, in the place of the model's own.

        `Learner.score` and `Learner.generate` call it first. By default there are none: the model reads the prompt alone.

        Returns:
            [blocks, batch, width] on the model's device, or None.
        """
        return None

    def is_judged_at(self, stage: int) -> bool:
        """Whether accuracy at a stage says something about the method, so that the guard looks at it. By default it does."""
        return True

    def stage_name(self, stage: int) -> str:
        """Return the name of a stage; empty if stages have none."""
        return self.stage_names[stage] if self.stage_names else ""

    def place(self, stage: int, removed_tokens: int) -> str:
        """Return where a run stands, for messages: `with 3 tokens removed`, or `in stage 1 (emulate)`."""
        if self.stage_names:
            return f"in stage {stage} ({self.stage_names[stage]})"
        return f"with {counted(removed_tokens, 'token')} removed"

    def check(self, task: "Task") -> None:
        """Raise `UserError` if something that the method needs for a task is missing. It is called before any data is read."""

    def prepare(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", longest: int) -> dict[str, Any]:
        """Load what training needs besides model and data, before training; return facts of it, which a resumed run compares.

        Args:
            longest: tokens of the longest example with its whole CoT.

        Raises:
            UserError: something is missing, or does not fit the model.
        """
        return {}

    def loss(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> Losses:
        """Return the terms to minimise. By default it is the cross entropy of what the view writes."""
        return Losses(learner.score(self.view(learner, batch, stage)))
