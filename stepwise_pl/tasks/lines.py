"""Your own data in files of the format `prompt||cot #### answer`."""

from dataclasses import dataclass
from pathlib import Path

from stepwise_pl.errors import UserError
from stepwise_pl.registry import register
from stepwise_pl.tasks.base import SPLITS, Example, ExampleList, Examples, Task

SHOWN = 5  # malformed lines quoted in an error; the rest are counted


@register("task")
@dataclass
class LineFiles(Task):
    """Examples from three text files, one `prompt||cot #### answer` a line, UTF-8; blank lines are no examples.

    Raises:
        UserError: a path is not set or not a file, or a line does not parse; every bad
            line is counted and the first few are named with the reason.
    """

    kind: str = "lines"
    train: str | None = None
    validation: str | None = None
    test: str | None = None

    def load(self) -> dict[str, Examples]:
        return {split: read_lines(getattr(self, split), f"task.{split}") for split in SPLITS}

    def symbols(self) -> tuple[str, ...]:
        """The words of the training file, so that the small tokenizer fits any file of few distinct words."""
        train = read_lines(self.train, "task.train")
        return tuple(sorted({word for example in train for text in example for word in text.split()}))


def parse_line(line: str) -> Example:
    """Split one line into its parts. Raises `ValueError` with the reason if it cannot be."""
    prompt, bar, rest = line.partition("||")
    if not bar:
        raise ValueError("no '||' between prompt and CoT")
    if "||" in rest:
        raise ValueError("'||' occurs more than once")
    cot, mark, answer = rest.partition("####")
    if not mark:
        raise ValueError("no '####' before the answer")
    if "####" in answer:
        raise ValueError("'####' occurs more than once")
    example = Example(prompt.strip(), cot.strip(), answer.strip())
    if not example.prompt:
        raise ValueError("the prompt is empty")
    if not example.answer:
        raise ValueError("the answer is empty")
    return example


def read_lines(path: str | None, key: str) -> ExampleList:
    """Read a whole file; `key` is the config key to name in errors."""
    if path is None:
        raise UserError(f"{key} is not set: give a file of lines 'prompt||cot #### answer'")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{key}={path}: {error.strerror or error}; give a readable file") from None
    examples, bad = ExampleList(), []
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            examples.append(parse_line(raw.decode("utf-8")))
        except UnicodeDecodeError as error:
            bad.append(f"line {number}: invalid UTF-8 at byte {error.start + 1}")
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f" (and {len(bad) - SHOWN} more)" if len(bad) > SHOWN else ""
        raise UserError(f"{key}={path}: {len(bad)} malformed lines: {'; '.join(bad[:SHOWN])}{more}")
    if not examples:
        raise UserError(f"{key}={path}: no example in this file")
    return examples
