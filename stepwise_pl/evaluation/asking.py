"""A model that one can ask: it answers one problem at a time, typed by a person."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.encoding import encode
from stepwise_pl.data.layout import MARK, normalize_answer, unfinished_answer, written_answer
from stepwise_pl.evaluation.verifier import Bounds, cot_tokens
from stepwise_pl.methods import Stepwise
from stepwise_pl.models.architecture import num_positions
from stepwise_pl.models.devices import wait_for
from stepwise_pl.models.exported import load_export
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.runs.replies import Moment, Reply, Watched
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.tasks import Example, ExampleList, Task
from stepwise_pl.tasks.questions import printed

# A vocabulary of at most this many words is listed if the tokenizer does not know one.
FEW_WORDS = 40


@dataclass
class Speaker:
    """A model at a stage, and the task whose problems it answers.

    Attributes:
        most: the most tokens that it may write.
        checkpoint, removed_tokens, max_cot_tokens, stage_name, step: see `Reply`.
    """

    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    task: Task
    stage: Stage
    most: int
    checkpoint: str
    removed_tokens: int
    max_cot_tokens: int | None = None
    stage_name: str = ""
    step: int | None = None

    def __post_init__(self) -> None:
        self._longest_read = 0  # tokens of the longest text that it has answered

    @classmethod
    def of_run(cls, run: TrainedRun, stage: int) -> "Speaker":
        """Return the model of a run, asked at a stage (`levels.stage_of`)."""
        method, limits = run.config.method, run.limits
        removed = method.removed(stage, limits)
        return cls(
            run.learner, run.tokenizer, run.config.task, Stage(stage, method.last_stage(limits)),
            Bounds.of(limits, removed).whole, run.checkpoint.name, limits.removed_tokens(removed), limits.max_cot,
            method.stage_name(stage), run.step,
        )  # fmt: skip

    @classmethod
    def of_export(cls, folder: Path) -> "Speaker":
        """Return the model of an exported folder. Raise `UserError` if it cannot be read."""
        found = load_export(folder)
        learner = Learner(found.model, int(found.tokenizer.eos_token_id), Stepwise())
        about = found.about
        return cls(
            learner, found.tokenizer, found.task, Stage(0, 0), found.most, folder.name, int(about.get("removed_tokens", 0)),
            about.get("max_cot_tokens"), str(about.get("stage", "")), about.get("step"),
        )  # fmt: skip

    def ask(self, question: str) -> Reply:
        """Answer a question. Raise `UserError` as `watch` does."""
        return self.watch(question).reply

    def watch(self, question: str) -> Watched:
        """Answer a question, and say when each thought and each token came.

        Raises:
            UserError: the task cannot read the question, the tokenizer does not know a word of it, or it is too long.
        """
        prompt = self.task.prompt_of(question)
        problem = self.task.solved([prompt])[0]
        view = self.view(question, prompt, problem)
        if view.tokens.shape[1] > self._longest_read:
            # A text longer than all before is decoded twice, with and without a cache (`decoding.generate`).
            self.learner.generate(view, self.most)
            self._longest_read = view.tokens.shape[1]
        times: list[float] = []
        begun = self._now()
        (tokens,) = self.learner.generate(view, self.most, on_pass=lambda: times.append(self._now()))
        milliseconds = [1000 * (ended - begun) for ended in times]
        reply = self._reply(question, prompt, problem, tokens, milliseconds[-1])
        length = int(view.length_of(Part.PROMPT)[0])
        return Watched(reply, self._moments(tokens, milliseconds), length, int(view.num_given[0]) - length)

    def _now(self) -> float:
        """The time, s, at which all work so far is done."""
        wait_for(self.learner.model.device)
        return time.perf_counter()

    def _moments(self, tokens: list[int], milliseconds: list[float]) -> tuple[Moment, ...]:
        """Return what each pass gave: the last ones a token each, those before a thought each."""
        thoughts = len(milliseconds) - len(tokens)
        given = [("thought", str(number)) for number in range(1, thoughts + 1)]
        ends = 0
        for token in tokens:
            text = str(self.tokenizer.decode([token])).strip()
            if token == self.learner.eos:
                given.append(("end", "end" if ends else "end of CoT"))
                ends += 1
            elif ends:
                given.append(("mark" if text == MARK else "answer", text))
            else:
                given.append(("cot", text))
        return tuple(
            Moment(kind, text, after, passes)
            for passes, ((kind, text), after) in enumerate(zip(given, milliseconds, strict=True), start=1)
        )

    def _reply(
        self, question: str, prompt: str, problem: Example | None, tokens: list[int], milliseconds: float
    ) -> Reply:
        """Return what the tokens say; `problem` as in `view`."""
        answer = written_answer(tokens, self.tokenizer)
        wanted = None if problem is None else normalize_answer(problem.answer)
        (count,) = cot_tokens([tokens], self.learner.eos)
        return Reply(
            question=question,
            prompt=prompt,
            answer=None if answer is None else self.task.readable(answer),
            right=None if wanted is None else answer == wanted,
            wanted=None if wanted is None else self.task.readable(wanted),
            cot=str(self.tokenizer.decode(tokens[:count])).strip(),
            cot_tokens=count,
            unfinished=unfinished_answer(tokens, self.tokenizer),
            milliseconds=milliseconds,
            checkpoint=self.checkpoint,
            removed_tokens=self.removed_tokens,
            max_cot_tokens=self.max_cot_tokens,
            stage=self.stage_name,
            step=self.step,
        )

    def view(self, question: str, prompt: str, problem: Example | None) -> CoTBatch:
        """Return the problem as the model reads it; `problem` has its CoT and answer, None if the task does not know them."""
        if problem is None and self.learner.method.keep_position:
            raise UserError(
                f"{printed(question)}: unlike the problems of this run; with method.keep_position=true the model must know how long "
                "the CoT would have been, which the task says of its own problems alone"
            )
        # The model reads the prompt alone. The prompt stands for an answer that is not known: its words are known then.
        example = problem or Example(prompt, "", prompt)
        method = self.learner.method
        # The CoT of a problem of the task has its steps.
        by_step = method.unit == "step"
        try:
            encoded = encode(ExampleList([example]), self.tokenizer, "question", by_step)
        except UserError as error:
            raise self.refused(str(error)) from None
        view = method.view(self.learner, encoded.collate(np.array([0])), self.stage)
        positions, length = num_positions(self.learner.model), int(view.num_given[0])
        if positions is not None and length >= positions:
            raise UserError(f"the question has {length} tokens, and the model reads {positions - 1} at most")
        return view

    def refused(self, why: str) -> UserError:
        """Return the error for a question that the tokenizer refuses."""
        why = why.removeprefix("question example 1: ").partition("; for free text")[0]
        special = {str(self.tokenizer.eos_token), str(self.tokenizer.unk_token), "####"}
        words = sorted(set(self.tokenizer.get_vocab()) - special)
        known = f"; its words are {' '.join(words)}" if len(words) <= FEW_WORDS else ""
        return UserError(f"the question: {why}{known}")
