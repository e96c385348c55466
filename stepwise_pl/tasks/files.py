"""Your own examples, with the prompt, CoT and answer that a line or a row names."""

from dataclasses import dataclass

from stepwise_pl.common.registry import register
from stepwise_pl.tasks.base import Example, parse_line
from stepwise_pl.tasks.file_task import FileTask
from stepwise_pl.tasks.reading import Record, field_steps, field_text


@register("task")
@dataclass
class Files(FileTask):
    """Your own examples: lines `prompt||cot #### answer` in a .txt file, or a table with a column for each part.

    In a JSONL file the CoT is one text, or a list of reasoning steps:
    `{"question": "2 * 3 + 4", "steps": ["2 * 3 = 6", "6 + 4 = 10"], "answer": "10"}`
    """

    kind: str = "file"
    # Column of a table, or field of a JSON object, that holds the prompt.
    prompt_field: str = "question"
    # Column or field of the CoT.
    cot_field: str = "steps"
    # Column or field of the answer.
    answer_field: str = "answer"
    # The text that begins a reasoning step if the CoT is one text (`<<` for equations; `\\n` for lines).
    step_start: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cot_advice = f" (is task.cot_field={self.cot_field} right?)"

    def columns(self) -> dict[str, str]:
        return {getattr(self, key): f"task.{key}" for key in ("prompt_field", "cot_field", "answer_field")}

    def step_mark(self) -> str | None:
        return self.step_start

    def example(self, record: Record) -> Example:
        if isinstance(record, str):
            return with_steps(parse_line(record), self.step_start)
        assert not isinstance(record, ValueError)
        prompt = field_text(record, self.prompt_field, "task.prompt_field").strip()
        answer = field_text(record, self.answer_field, "task.answer_field").strip()
        cot = field_steps(record, self.cot_field, "task.cot_field")
        if isinstance(cot, list):
            return Example.of_steps(prompt, cot, answer)
        return with_steps(Example(prompt, cot.strip(), answer), self.step_start)


def with_steps(example: Example, start: str | None) -> Example:
    """Return the example with reasoning steps: one begins with the CoT, and one at every `start` in the CoT.

    A CoT without `start` gets no steps. A command line cannot hold a line break: `\\n` stands for one (and `\\t` for
    a tab), unless the CoT holds that very text. Several line breaks in a row begin one step.
    """
    if start and start not in example.cot:
        start = start.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t")
    if not start or start not in example.cot:
        return example
    found, at = [0], example.cot.find(start)
    while at >= 0:
        blank = start.isspace() and found[-1] and not example.cot[found[-1] : at].strip()
        if at and not blank:
            found.append(at)
        at = example.cot.find(start, at + len(start))
    return example._replace(steps=tuple(found))
