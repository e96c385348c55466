"""Variants of test problems: the same problem in another form, or with other numbers, each beside the problem that it was made of."""

from collections.abc import Callable, Sequence

from stepwise_pl.tasks.base import Example, ExampleList, Examples, Splits, Task, chunks


class Variants(ExampleList):
    """A part of a suite whose problems were made of test problems.

    Attributes:
        origins: the index in the test split of the problem that each was made of.
        left_out: a line that counts the test problems without a variant, with the reason; empty if every one has a variant.
    """

    def __init__(self) -> None:
        super().__init__()
        self.origins: list[int] = []
        self.left_out = ""

    def add(self, origin: int, variant: Example) -> None:
        """Add the variant of the test problem `origin`."""
        self.append(variant)
        self.origins.append(origin)


def reformatted(task: Task, splits: Splits, size: int) -> dict[str, Examples]:
    """Return test problems with their prompts written in other forms (`Task.forms`), for `evaluate suite=format`.

    CoT and answer stay. A form that changes no prompt has no part. A prompt that is one of training's own files is left out.

    Args:
        splits: the splits of the task.
        size: the test problems to take, from the start.
    """
    test, train = splits["test"], splits["train"]
    # Generated tasks write every prompt in their one form, so only files can hold another.
    trained = prompts_of(train) if isinstance(train, ExampleList) else set()
    originals = test.slice(0, min(size, len(test)))
    found: dict[str, Examples] = {}
    for name, form in task.forms().items():
        if part := _in_form(originals, form, trained):
            found[name] = part
    return found


def _in_form(originals: Sequence[Example], form: Callable[[str], str], trained: set[str]) -> Variants:
    part = Variants()
    known = 0
    for index, example in enumerate(originals):
        prompt = form(example.prompt)
        if prompt in trained:
            known += prompt != example.prompt
        elif prompt != example.prompt:
            part.add(index, example._replace(prompt=prompt))
    if known:
        part.left_out = f"{known} left out, because they were trained on in this form"
    return part


def prompts_of(examples: Examples) -> set[str]:
    """Return the prompts of a split."""
    return {example.prompt for chunk in chunks(examples) for example in chunk}
