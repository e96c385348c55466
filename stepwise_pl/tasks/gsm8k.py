"""GSM8K, grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168)."""

import re
from dataclasses import dataclass
from typing import Any

from stepwise_pl.common.errors import one_of
from stepwise_pl.common.registry import register
from stepwise_pl.common.settings import setting
from stepwise_pl.tasks import gsm8k_ood
from stepwise_pl.tasks.base import Example, Examples, Splits, parse_line
from stepwise_pl.tasks.file_task import FileTask
from stepwise_pl.tasks.files import with_steps
from stepwise_pl.tasks.formats import Form, without_stops
from stepwise_pl.tasks.reading import Record, field_text
from stepwise_pl.tasks.thousands import without_thousands_separators
from stepwise_pl.tasks.variants import prompts_of

EQUATION = re.compile(r"<<.*?>>")
_BRACKETS = re.compile(r"<<|>>")


@register("task")
@dataclass
class GSM8K(FileTask):
    """GSM8K from the Hub, from copies of the original JSONL files, or from line files such as the augmented set.

    Example line, with `cot="equations"`:
    `Janet's ducks lay 16 eggs per day. [...] every day at the farmers' market?||<<16-3-4=9>> <<9*2=18>> #### 18`

    The original answers are converted. In a line file prompt and CoT are taken as they are, and `cot` only tells how
    a reasoning step begins. Answers lose their thousands separators in both, as in the reference. The original set
    has no validation split: `validation_size` problems of train are held out.

    Raises:
        UserError: as `FileTask`; `cot` is neither `equations` nor `natural_language`; or no problem of train has
            an equation, though `cot` is `equations`.
    """

    kind: str = "gsm8k"
    train: Any = setting("hub:openai/gsm8k:main:train", path=True)
    test: Any = setting("hub:openai/gsm8k:main:test", path=True)
    # `equations`: the `<<...>>` annotations, as in the paper; `natural_language`: the sentences without them.
    cot: str = "equations"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("task.cot", self.cot, ("equations", "natural_language"))
        if self.cot == "equations":
            self.cot_advice = " (task.cot=natural_language takes the sentences in place of <<equations>>)"

    # 95 of the 7,473 problems of the original training set have no equation.
    odd_share = 0.05

    def step_mark(self) -> str | None:
        return "<<" if self.cot == "equations" else None

    def obstacles(self, reserved: tuple[str, ...] = ()) -> list[str]:
        problems, train = super().obstacles(reserved), self._found(reserved)["train"]
        if train and self.cot == "equations" and not any(example.cot for example in train):
            problems.append(
                f"task.train={train.source}: none of its {len(train)} problems has an equation <<...>>, and all would train "
                "as No CoT; take the sentences with task.cot=natural_language"
            )
        return problems

    def ood(self, splits: Splits, size: int) -> dict[str, Examples]:
        """Return the parts that `gsm8k_ood.suite` describes."""
        return gsm8k_ood.suite(splits["test"], prompts_of(splits["train"]), self.cot == "equations", size)

    def forms(self) -> dict[str, Form]:
        """Return the forms of every task, and sentences without full stops. The order of sentences is a part of suite=ood."""
        return {**super().forms(), "no_stops": without_stops}

    def columns(self) -> dict[str, str]:
        return {"question": "", "answer": ""}

    def example(self, record: Record) -> Example:
        if isinstance(record, str):
            example = parse_line(record)
            if self.cot == "equations":
                _check_equations(example.cot)
            example = example._replace(answer=without_thousands_separators(example.answer))
            return with_steps(example, self.step_mark())
        assert not isinstance(record, ValueError)
        solution, mark, answer = field_text(record, "answer").partition("####")
        if not mark:
            raise ValueError("no '####' before the answer")
        if "####" in answer:
            raise ValueError("'####' occurs more than once")
        _check_equations(solution)
        if self.cot == "equations":
            steps = EQUATION.findall(solution)
        else:
            steps = [line for text in EQUATION.sub("", solution).split("\n") if (line := " ".join(text.split()))]
        answer = without_thousands_separators(answer.strip())
        return Example.of_steps(field_text(record, "question").strip(), steps, answer)


def _check_equations(text: str) -> None:
    """Raise `ValueError` with the reason unless each `<<` has its `>>` on the same line."""
    opened: int | None = None
    for bracket in _BRACKETS.finditer(text):
        if bracket[0] == ">>":
            if opened is None:
                raise ValueError(f"'>>' has no '<<' before it: {text[max(0, bracket.start() - 30) : bracket.end()]!r}")
            if len((equation := text[opened : bracket.end()]).splitlines()) > 1:
                raise ValueError(f"an equation goes over several lines: {equation[:60]!r}")
            opened = None
        elif opened is not None:
            raise ValueError(f"'<<' is not closed before the next: {text[opened : bracket.end()][:60]!r}")
        else:
            opened = bracket.start()
    if opened is not None:
        raise ValueError(f"'<<' is not closed: {text[opened:][:60]!r}")
