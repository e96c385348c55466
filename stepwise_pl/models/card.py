"""The card of an exported model: its README.md, with a header that the Hub reads (the Hub's model card format, version 1)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stepwise_pl
from stepwise_pl.common.text import counted, percent, percents
from stepwise_pl.data.layout import export_prompt
from stepwise_pl.models.card_facts import Facts, base_model_of, header, is_generated
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.runs.provenance import sessions
from stepwise_pl.runs.recipe import command_again
from stepwise_pl.runs.suites import FEWEST

CARD, FIGURE = "README.md", "accuracy.png"
# Tokens of the example that are shown.
MOST_TOKENS = 200

# Tokens are split and decoded as in an evaluation: with special tokens, because an answer may hold some. The model gets
# the two inputs of training only, because some tokenizers make more.
CODE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "."  # this folder, or the name of the model on the Hub
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
prompt = tokenizer({prompt!r}, return_tensors="pt")
tokens = model.generate(input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"])
text = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=False)
"""

# The prompt ends with both separators. The answer follows; generation stops at its end token.
INTERNALIZED = (
    CODE
    + """\
print(text.split({eos!r})[0].partition("####")[2].strip())"""
)

# The CoT ends with an end token too, so generation does not stop at one. The text after the second one is cut off.
WRITES_COT = (
    CODE
    + """\
cot, answer, *_ = [*text.split({eos!r}), ""]
print(cot.strip())
print(answer.partition("####")[2].strip())"""
)

PAPER = """\
@article{deng2024explicit,
  title = {From Explicit CoT to Implicit CoT: Learning to Internalize CoT Step by Step},
  author = {Deng, Yuntian and Choi, Yejin and Shieber, Stuart},
  journal = {arXiv preprint arXiv:2405.14838},
  year = {2024}
}"""


def card(facts: Facts) -> str:
    """Return the text of README.md."""
    parts = [
        f"---\n{header(facts)}\n---",
        f"# {' '.join(facts.name.split())}",
        _summary(facts),
        "## Result",
        *_result(facts),
        "## How to ask it",
        *_usage(facts),
        "## How it was trained",
        *_training(facts),
        "## Limits",
        *_limits(facts),
        "## Citation",
        *_citation(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _removed(facts: Facts) -> str:
    return f"{facts.run.removed_tokens} of {facts.run.limits.max_cot} tokens of the chain of thought are removed"


def _summary(facts: Facts) -> str:
    run = facts.run
    how = "without writing a chain of thought" if run.internalized else "after the chain of thought that is left"
    by = "" if run.config.method.kind == "stepwise" else f" with the method `{run.config.method.kind}`"
    # Such a run has not internalized anything: it never had a chain of thought, or has it still.
    taught = {
        "no_cot": "as a baseline of Stepwise Internalization (arXiv 2405.14838), without a chain of thought from the first step",
        "explicit_cot": "as a baseline of Stepwise Internalization (arXiv 2405.14838), with the whole chain of thought to the end",
    }.get(facts.baseline or "", f"by Stepwise Internalization (arXiv 2405.14838){by}: {_removed(facts)}")
    return (
        f"A {run.model.config.model_type} of {facts.parameters:,} parameters that answers problems of the task "
        f"`{run.config.task.kind}` {how}. Trained with stepwise_pl {taught}."
    )


def _result(facts: Facts) -> list[str]:
    found = facts.accuracy
    if found is None:
        text = "Not evaluated: the run folder has no result of this checkpoint on the test split."
    else:
        text = (
            f"Test accuracy: **{percent(found.accuracy)}** ({found.right} of n={found.n}; 95% Wilson interval "
            f"{percents(found.interval)}). An answer is right if all of it equals the target; decoding is greedy."
        )
    parts = [text]
    if facts.elsewhere:
        rows = [
            f"| {part} | {s.n} | {percent(s.accuracy)} | {percents(s.interval)} |"
            if s.n >= FEWEST
            else f"| {part} | {s.n} | too few | |"
            for part, s in facts.elsewhere.items()
        ]
        parts += ["Problems unlike the training set (`evaluate suite=ood`), the test split first:"]
        parts += ["\n".join(["| part | n | accuracy | 95% Wilson interval |", "|---|---|---|---|", *rows])]
    if facts.has_figure:
        parts += [
            f"![Answer accuracy on validation problems against removed CoT tokens]({FIGURE})\n\n"
            "The curve is of the whole training run, on validation problems."
        ]
    return parts


def _usage(facts: Facts) -> list[str]:
    run, example = facts.run, facts.example
    eos, problem = str(run.tokenizer.eos_token), example.prompt if example else "your prompt"
    prompt = export_prompt(problem, eos, run.internalized)
    code = (INTERNALIZED if run.internalized else WRITES_COT).format(prompt=prompt, eos=eos)
    ids: Sequence[int] = run.tokenizer(prompt)["input_ids"]
    shown = [
        *map(str, run.tokenizer.convert_ids_to_tokens(list(ids[:MOST_TOKENS]))),
        *["..."] * (len(ids) > MOST_TOKENS),
    ]
    lines = [f"text    {prompt!r}", f"tokens  {json.dumps(shown, ensure_ascii=False)}"]
    if example:
        problem_read, answer_read = map(run.config.task.readable, (example.prompt, example.answer))
        means = (
            f"  ({problem_read} is {answer_read})"
            if (problem_read, answer_read) != (example.prompt, example.answer)
            else ""
        )
        lines.append(f"answer  {example.answer!r}{means}")
    return [
        f"Give it a problem in this form, with your own in place of {_inline(problem)}:",
        _fenced("\n".join(lines), "text"),
        _fenced(code, "python"),
    ]


def _fenced(text: str, language: str) -> str:
    """Return a block of code. Its fence is longer than any run of backticks within."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _inline(text: str) -> str:
    """Return code within a line: one line, between more backticks than any run of them within."""
    line = " ".join(text.split())
    marks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{marks} {line} {marks}" if "`" in line else f"`{line}`"


def _training(facts: Facts) -> list[str]:
    run, config = facts.run, facts.run.config
    starts = sessions(run.path / "environment.json")
    again = command_again(run.path, config.seed)
    packages = (starts[-1].get("packages") if starts else None) or {}
    versions = [f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages]
    read = f"{run.tokens_read:,} tokens read" if run.tokens_read else "tokens not counted"
    removed = f", stage {run.stage_name}" if run.stage_name else ""
    rows = [
        ("weights at the start", _start(facts)),
        ("checkpoint", f"`{run.checkpoint.name}`, step {run.step:,}, {read}{removed}"),
        ("seed", str(config.seed)),
        ("method, schedule", f"`{config.method.kind}`, `{config.schedule.kind}`"),
        ("task", f"`{config.task.kind}`: {_settings(run)}"),
        ("software", ", ".join([f"stepwise_pl {stepwise_pl.__version__} ({_commit(starts)})", *versions])),
    ]
    table = "\n".join(["| | |", "|---|---|", *[f"| {name} | {_cell(text)} |" for name, text in rows]])
    if again is None:
        return ["The run folder does not say by which command it was trained.", table]
    names_files = "plugins=" in again or not is_generated(run)
    note = " (files are named without their folders)" if names_files else ""
    times = f" It was stopped and resumed {counted(len(starts) - 1, 'time')}." if len(starts) > 1 else ""
    changed = sorted({key for start in starts[1:] for key in start.get("changed") or ()})
    on_the_way = f" Settings were changed on the way: {', '.join(f'`{key}`' for key in changed)}." if changed else ""
    begins = "began the run" if changed else "trains it again"
    return [f"This command {begins}{note}.{times}{on_the_way}", _fenced(again, "sh"), table]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _start(facts: Facts) -> str:
    run = facts.run
    if run.config.model.init_from is not None:
        return "those of another run or model, `model.init_from`"
    if (base := base_model_of(run)) is not None:
        return f"`{base}`"
    return f"a local copy, `{Path(run.config.model.name).name}`" if run.config.model.pretrained else "random"


def _commit(starts: list[dict[str, Any]]) -> str:
    state = (starts[-1].get("git") if starts else None) or {}
    if "commit" not in state:
        return "commit not known"
    return f"commit {str(state['commit'])[:12]}{', with changes' if state.get('dirty') else ''}"


def _settings(run: TrainedRun) -> str:
    """Return the settings of the task, without its files."""
    from stepwise_pl.models.exported import task_settings

    shown = {key: value for key, value in task_settings(run).items() if key != "kind" and value is not None}
    return ", ".join(f"{key}={value}" for key, value in shown.items()) or "no settings"


def _limits(facts: Facts) -> list[str]:
    kind = facts.run.config.task.kind
    elsewhere = (
        "The table above says how it answers problems unlike these."
        if facts.elsewhere
        else "It was not evaluated on problems unlike these."
    )
    return [
        f"- It was trained on problems of `{kind}` with the settings above and on nothing else: numbers of other lengths, other "
        f"wordings and other tasks are outside of what it has learned. {elsewhere}\n"
        "- It reads a problem in the form above only, token by token; any other text gets an answer without meaning.\n"
        f"- It writes at most {facts.run.model.generation_config.max_new_tokens} tokens, as many as the longest target has."
    ]


def _citation(facts: Facts) -> list[str]:
    paper = facts.run.config.method.paper
    return [_fenced(PAPER, "bibtex"), *([f"The method `{facts.run.config.method.kind}`: {paper}."] if paper else [])]
