"""A reply: the answer of a model to one question, as `ask`, the Python interface and the page of `demo` give it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """The answer of a model to one question.

    Attributes:
        question: the question as it was typed.
        prompt: the prompt that the model read.
        answer: the answer as people write it; None if the model finished none.
        right: whether it is right; None if the task cannot tell.
        wanted: the right answer as people write it; None if the task does not know it.
        cot: the CoT that the model wrote, as it wrote it; empty if none.
        cot_tokens: tokens of that CoT.
        unfinished: the text in the place of an answer, if none was finished; else empty.
        milliseconds: from the prompt to the last token, on a model that has answered before.
        checkpoint: the name of the checkpoint, or of the exported folder.
        removed_tokens: CoT tokens gone at the stage at which it was asked.
        max_cot_tokens: tokens in the longest CoT of the training set; None if that is not known.
        stage: the name of the stage; empty if stages have none.
        step: optimizer steps of the checkpoint; None if that is not known.
    """

    question: str
    prompt: str
    answer: str | None
    right: bool | None
    wanted: str | None
    cot: str
    cot_tokens: int
    unfinished: str
    milliseconds: float
    checkpoint: str
    removed_tokens: int
    max_cot_tokens: int | None = None
    stage: str = ""
    step: int | None = None

    @property
    def verdict(self) -> str:
        """`right`, `wrong`, `no answer`, or `not checked`."""
        if self.answer is None:
            return "no answer"
        return {None: "not checked", True: "right", False: "wrong"}[self.right]

    def __str__(self) -> str:
        return f"{self.answer} ({self.verdict})" if self.answer is not None else self.verdict


# The kinds of moments: a thought, a token of the CoT or of the answer, the mark before the answer, or an end token.
MOMENTS = ("thought", "cot", "mark", "answer", "end")


@dataclass(frozen=True)
class Moment:
    """A thought or a token, and when it came.

    Attributes:
        kind: one of `MOMENTS`.
        text: the token as text; the number of a thought, from 1; for an end token, the name of what has ended.
        milliseconds: from the prompt to the end of the pass that gave it.
        passes: forward passes so far, this one included.
    """

    kind: str
    text: str
    milliseconds: float
    passes: int


@dataclass(frozen=True)
class Watched:
    """A reply, and how it came about.

    Attributes:
        reply: the reply.
        moments: thoughts and tokens in the order in which they came.
        prompt_tokens: tokens of the prompt.
        inputs: inputs behind the prompt that are no words; the thoughts are some of them.
    """

    reply: Reply
    moments: tuple[Moment, ...]
    prompt_tokens: int
    inputs: int

    @property
    def passes(self) -> int:
        """Forward passes of the whole reply."""
        return len(self.moments)

    @property
    def thoughts(self) -> int:
        """Thoughts of the whole reply, a pass each."""
        return sum(moment.kind == "thought" for moment in self.moments)
