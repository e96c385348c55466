"""Writes problems as a task of lm-evaluation-harness, so that the tool scores an exported model."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepwise_pl.common.disk import in_one_go
from stepwise_pl.common.errors import UserError
from stepwise_pl.data.layout import MARK, export_prompt
from stepwise_pl.evaluation.problems import Problems
from stepwise_pl.models.export import require_plain
from stepwise_pl.models.trained_run import TrainedRun

PROBLEMS = "problems.jsonl"
# The harness strips what the group holds.
ANSWER = rf"{MARK}([\s\S]*)"

# The harness resolves a path in a task file against the working directory. A function is found beside the task file.
LOADER = f'''\
"""Reads the problems that lie beside this file."""

import json
from pathlib import Path

import datasets


def load(**_):
    with Path(__file__).with_name("{PROBLEMS}").open(encoding="utf-8") as lines:
        return {{"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}}
'''


# JSON values are YAML values.
TASK = """\
# Written by stepwise_pl from {source}. Score an exported model on it:
#   lm_eval --model hf --model_args pretrained=<exported folder>{model_args} --include_path <this folder> --tasks {name}
task: {quoted}
custom_dataset: !function problems.load
test_split: test
output_type: generate_until
# The prompt ends with both end tokens: no CoT stands between them.
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 0
generation_kwargs:
  until: [{eos}]
  max_gen_toks: {most}
  do_sample: false
filter_list:
  - name: answer
    filter:
      - function: regex
        regex_pattern: '{answer}'
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def write_task(run: TrainedRun, problems: Problems, name: str, out: Path) -> str:
    """Write a task file, the problems and the function that reads them to a new folder.

    Returns:
        What `--model_args` needs besides the folder; empty for most tokenizers.

    Raises:
        UserError: the harness cannot score the model, or an answer is lost by decoding.
    """
    require_answers_alone(run)
    lines = [json.dumps(document, ensure_ascii=False) for document in documents(run, problems)]
    model_args = _model_args(run)
    task = TASK.format(
        source=f"{problems.title}, {len(lines)} problems",
        model_args=model_args,
        name=name,
        quoted=json.dumps(name),  # as it stands, `1.5` or `no` would be no text in YAML
        eos=json.dumps(str(run.tokenizer.eos_token), ensure_ascii=False),
        most=run.limits.max_new_tokens(run.removed),
        answer=ANSWER,
    )
    with in_one_go(out) as folder:
        (folder / PROBLEMS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (folder / "problems.py").write_text(LOADER, encoding="utf-8")
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
    return model_args


def _model_args(run: TrainedRun) -> str:
    """Return what makes the harness put the tokens before a prompt that the tokenizer puts there in training."""
    with_special = run.tokenizer("#")["input_ids"]
    return ",add_bos_token=True" if with_special != run.tokenizer("#", add_special_tokens=False)["input_ids"] else ""


def require_answers_alone(run: TrainedRun) -> None:
    """Raise `UserError` if the harness cannot ask the exported model of a run."""
    require_plain(run)
    if not run.internalized:
        raise UserError(
            f"run={run.path}: {run.checkpoint.name} writes CoT, {run.removed_tokens} of {run.limits.max_cot} tokens are gone; "
            "lm-evaluation-harness stops at the first end token, which stands before the answer. Choose a checkpoint without "
            "CoT, or use stepwise_pl.evaluate"
        )


def documents(run: TrainedRun, problems: Problems) -> Iterator[dict[str, Any]]:
    """Yield the prompt of each problem as an exported model reads it, and the answer as decoding gives it.

    Raises:
        UserError: an answer is lost by decoding.
    """
    eos = str(run.tokenizer.eos_token)
    for place, example in zip(problems.places, problems.examples, strict=True):
        target = run.tokenizer(f" {MARK} {example.answer} {eos}", add_special_tokens=False)["input_ids"]
        # The harness decodes in this way, too.
        found = re.search(ANSWER, str(run.tokenizer.decode(target, skip_special_tokens=True)))
        if not found or not found[1].strip():
            raise UserError(
                f"{problems.title} {place + 1}: the answer {example.answer!r} is lost when its tokens are decoded"
            )
        yield {"prompt": export_prompt(example.prompt, eos, True), "answer": found[1].strip()}
