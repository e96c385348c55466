"""Cross entropy of each token of the answer, teacher-forced, in nats: which digits a model has not learned at all.

    python experiments/inside/digit_loss.py mult3x3=<run> mult3x3_no_cot=<run>

It reads the test problems with the best checkpoint, and prints a row for each run. A digit that is guessed costs ln 10 = 2.303.
"""

import sys
from collections import defaultdict

import torch
from torch.nn.functional import cross_entropy

from stepwise_pl.data.batch import Part
from stepwise_pl.inside.subject import Subject
from stepwise_pl.models.trained_run import load_run


def losses(folder: str) -> list[float]:
    """The mean cross entropy of each token of the answer, the separator first."""
    run = load_run(folder, "best")
    test = run.config.task.splits((str(run.tokenizer.eos_token),))["test"]
    subject = Subject.of(run, list(test.slice(0, len(test))))
    found: dict[int, list[float]] = defaultdict(list)
    with torch.no_grad():
        for _, view in subject.batches(200):
            logits = run.model(view.tokens.clamp(min=0), position_ids=view.position).logits[:, :-1]
            tokens = view.tokens.clamp(min=0)[:, 1:]
            loss = cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
            is_answer = view.part == Part.ANSWER
            number = is_answer.cumsum(1) - 1
            for row, column in is_answer.nonzero().tolist():
                found[int(number[row, column])].append(float(loss[row, column - 1]))
    return [sum(values) / len(values) for _, values in sorted(found.items())]


if __name__ == "__main__":
    for given in sys.argv[1:]:
        arm, _, folder = given.partition("=")
        print(arm, " ".join(f"{loss:.3f}" for loss in losses(folder)))
