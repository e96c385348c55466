"""`python -m stepwise_pl.export run=<folder>`: a standard Hugging Face folder."""

from pathlib import Path

from stepwise_pl import cli
from stepwise_pl.config import ExportConfig
from stepwise_pl.errors import UserError

README = """\
# {name}

Trained with stepwise_pl by Stepwise Internalization (arXiv 2405.14838): {removed} of {max_cot} tokens of the
chain of thought are removed{and_so}

```python
from transformers import pipeline

generate = pipeline("text-generation", model=".")
prompt = {prompt!r}
print(generate({call}, return_full_text=False)[0]["generated_text"])
```

Put your own problem in place of {example!r}. {reading}
"""


def export(config: ExportConfig) -> Path:
    """Write model, tokenizer, generation settings and a README with the prompt format; return the folder.

    A model that answers without CoT is given both separators, `{{prompt}} <eos><eos>`, and
    generates the answer and the end token, where generation stops by itself. A model that
    still writes CoT generates two end tokens, so it is not stopped at the first.

    Raises:
        UserError: the run cannot be read, or was trained with keep_position, which no
            plain Hugging Face folder can express.
    """
    from stepwise_pl import runs
    from stepwise_pl.tokenizing import export_prompt

    run = runs.load_run(config.run, config.checkpoint)
    if run.config.schedule.keep_position:
        raise UserError(
            f"run={config.run}: trained with schedule.keep_position=true; generation must then jump over the gap, which a "
            "plain Hugging Face folder cannot express. Use stepwise_pl.evaluate, or train with keep_position=false"
        )
    out = Path(config.out) if config.out else run.path / "export"
    internalized = run.removed_tokens >= run.data.max_cot
    eos = run.tokenizer.eos_token_id
    settings = run.model.generation_config
    settings.do_sample = False
    settings.max_new_tokens = run.data.max_new_tokens(run.removed_tokens)
    settings.eos_token_id = eos if internalized else None
    settings.pad_token_id = eos
    out.mkdir(parents=True, exist_ok=True)
    run.model.save_pretrained(out)
    run.tokenizer.save_pretrained(out)
    example = run.config.task.load()["test"].slice(0, 1)[0].prompt
    readme = README.format(
        name=out.name,
        removed=run.removed_tokens,
        max_cot=run.data.max_cot,
        and_so=": it answers directly." if internalized else ".",
        prompt=export_prompt(example, run.tokenizer.eos_token, internalized),
        call="prompt",
        example=example,
        reading="The answer is what follows `####`"
        + (
            "."
            if internalized
            else f", up to the second {run.tokenizer.eos_token}; whatever is generated after that is to be cut off."
        ),
    )
    (out / "README.md").write_text(readme, encoding="utf-8")
    cli.say(f"written to {out}; {out / 'README.md'} shows how to prompt it")
    return out


if __name__ == "__main__":
    cli.entry_point("export", export)
