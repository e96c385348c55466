"""One evaluation of a split. Validation, testing and `stepwise_pl.evaluate` share it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from stepwise_pl.data.batch import CoTBatch, Part, continuation
from stepwise_pl.data.encoding import EncodedExamples
from stepwise_pl.evaluation.answers import Decoded, answers
from stepwise_pl.evaluation.metrics import DigitAccuracy, EvaluationMetrics
from stepwise_pl.evaluation.verifier import Bounds, Verifier, cot_tokens
from stepwise_pl.models.learner import Learner
from stepwise_pl.runs.records import Sample, StageRecord
from stepwise_pl.schedules.spread import Stage

SAMPLES = 4  # samples of right answers, and of wrong ones, in the record of a validation


class Validation:
    """An evaluation: every batch is verified, teacher-forced. Examples that are not proved right are decoded at the end.

    Args:
        learner: the model and its method.
        tokenizer: its tokenizer.
        metrics: cleared first, because an earlier evaluation may have been interrupted.
        batch_size: examples decoded at a time.
        keeps_answers: whether every answer is kept.

    Attributes:
        answers: by `draw`, every answer so far; None: they are not kept.
    """

    def __init__(
        self, learner: Learner, tokenizer: PreTrainedTokenizerBase, metrics: EvaluationMetrics, batch_size: int, *,
        keeps_answers: bool = False,
    ) -> None:  # fmt: skip
        self.learner, self.metrics = learner, metrics
        self.verifier = Verifier(learner, tokenizer, batch_size)
        self.answers: dict[int, Decoded] | None = {} if keeps_answers else None
        metrics.reset()

    def add(self, batch: CoTBatch, stage: Stage) -> None:
        """Verify a batch, given with the whole CoT in place, at a stage."""
        view = self.learner.method.view(self.learner, batch, stage)
        for part, scored, proved in self.verifier.verify_parts(view):
            self.metrics.update(scored)
            self.metrics.update_answers([True] * len(proved))
            self._keep(part, proved)
            del scored  # the next part may need the memory of these logits

    def _keep(self, view: CoTBatch, proved: list[int]) -> None:
        """Keep the answers of the rows of a view that were proved right."""
        if self.answers is not None:
            all_targets = continuation(view)
            targets = [all_targets[row] for row in proved]
            written = cot_tokens(targets, self.learner.eos)
            texts = answers(targets, self.verifier.tokenizer)
            for row, text, count in zip(proved, texts, written, strict=True):
                self.answers[int(view.draw[row])] = Decoded(text, text, True, count, count)

    def decode(self, bounds: Bounds) -> Iterator[tuple[int, Decoded]]:
        """Decode the examples that were not proved right. Yield the `draw` and the answer of each."""
        for draw, decoded in self.verifier.decode(bounds.whole, bounds.asked):
            self.metrics.update_answers([decoded.right], [decoded.right_any_length])
            if self.answers is not None:
                self.answers[draw] = decoded
            yield draw, decoded

    def record(
        self, where: Mapping[str, Any], metrics: Mapping[str, Any], digits: DigitAccuracy, examples: EncodedExamples,
        everywhere: Callable[[list[Any]], list[Any]],
    ) -> StageRecord:  # fmt: skip
        """Return the line of stages.jsonl for a validation that is over. It is the same on every process.

        Args:
            where: step, attempt, removed tokens, and the name of the stage if it has one.
            metrics: the logged metrics, under `val/`.
            digits: computes the accuracy of each token; cleared first.
            examples, everywhere: see `samples`.
        """
        digits.reset()
        digits.update(self.verifier.digit_counts)
        # Rounded as in metrics.csv.
        accuracy, any_length = (
            float(f"{float(metrics[f'val/{key}']):.7g}") for key in ("answer_accuracy", "answer_accuracy_any_length")
        )
        named: StageRecord = {"stage": where["stage"]} if "stage" in where else {}  # type: ignore[typeddict-item]
        return {
            "step": where["step"],
            "attempt": where["attempt"],
            "removed_tokens": where["removed_tokens"],
            **named,
            "examples": round(float(metrics["val/examples"])),
            "accuracy": accuracy,
            "accuracy_any_length": any_length,
            "digits": digits.compute().reshape(-1).tolist(),  # torchmetrics turns a tensor of one into a number
            "samples": self.samples(examples, SAMPLES, everywhere),
        }

    def samples(
        self, examples: EncodedExamples, count: int, everywhere: Callable[[list[Any]], list[Any]]
    ) -> list[Sample]:
        """Return the first `count` right and the first `count` wrong examples, in the order of the data. Called after `decode`.

        Args:
            examples: the split; a `draw` is an index in it.
            everywhere: gathers a list from all processes.
        """
        verifier = self.verifier
        outcomes: list[tuple[int, bool, str | None, bool]] = [
            *((draw, True, None, False) for draw in sorted(verifier.right)[:count]),
            *(
                (draw, False, verifier.wrong[draw], draw in verifier.too_long)
                for draw in sorted(verifier.wrong)[:count]
            ),
        ]
        outcomes = sorted(everywhere(outcomes))
        out: list[Sample] = []
        for wanted in (True, False):
            for draw, right, prediction, too_long in [outcome for outcome in outcomes if outcome[1] is wanted][:count]:
                batch = examples.collate(np.array([draw]))
                (target,) = answers(continuation(batch), verifier.tokenizer)
                prompt = str(
                    verifier.tokenizer.decode(batch.tokens[0, : int(batch.length_of(Part.PROMPT)) - 1])
                ).strip()
                sample: Sample = {
                    "prompt": prompt,
                    "target": target or "",
                    "prediction": target if right else prediction,
                    "right": right,
                }
                if too_long:
                    sample["too_long"] = True
                out.append(sample)
        return out
