"""GSM8K, grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168)."""

import re
from dataclasses import dataclass

from stepwise_pl.errors import one_of
from stepwise_pl.registry import register
from stepwise_pl.tasks.base import Example, parse_line
from stepwise_pl.tasks.files import FileTask, with_steps
from stepwise_pl.tasks.reading import Record, field_text

EQUATION = re.compile(r"<<.*?>>")


@register("task")
@dataclass
class GSM8K(FileTask):
    """GSM8K from the Hub, from copies of the original JSONL files, or from line files such as the augmented set.

    Example line, with `cot="equations"`:
    `Janet's ducks lay 16 eggs per day. [...] every day at the farmers' market?||<<16-3-4=9>> <<9*2=18>> #### 18`

    The original answers are converted; a line file is taken as it is, and `cot` then only
    says where its reasoning steps begin. The original set has no validation split:
    `validation_size` problems of train are held out.

    Raises:
        UserError: as `FileTask`; or `cot` is neither `equations` nor `natural_language`.
    """

    kind: str = "gsm8k"
    train: str | None = "hub:openai/gsm8k:main:train"
    test: str | None = "hub:openai/gsm8k:main:test"
    # `equations`: the `<<...>>` annotations, as in the paper; `natural_language`: the sentences without them.
    cot: str = "equations"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("task.cot", self.cot, ("equations", "natural_language"))

    def columns(self) -> tuple[str, ...]:
        return ("question", "answer")

    def example(self, record: Record) -> Example:
        if isinstance(record, str):
            return with_steps(parse_line(record), "<<" if self.cot == "equations" else None)
        assert not isinstance(record, ValueError)
        solution, mark, answer = field_text(record, "answer").partition("####")
        if not mark:
            raise ValueError("no '####' before the answer")
        if "####" in answer:
            raise ValueError("'####' occurs more than once")
        if self.cot == "equations":
            steps = EQUATION.findall(solution)
        else:
            steps = [line for text in EQUATION.sub("", solution).split("\n") if (line := " ".join(text.split()))]
        return Example.of_steps(field_text(record, "question").strip(), steps, answer.strip())
