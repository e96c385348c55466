"""Writes a trained model as a folder that transformers reads, with a card (`card`) that shows its prompt."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from stepwise_pl.common.disk import in_one_go, read_json, write_json
from stepwise_pl.common.errors import UserError
from stepwise_pl.models.older_transformers import make_readable
from stepwise_pl.runs.folder import EXPORT_FACTS, run_name
from stepwise_pl.tasks import Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stepwise_pl.models.trained_run import TrainedRun

log = logging.getLogger(__name__)


def example_of(task: Task) -> Example | None:
    """Return a problem of the test split; None if its file cannot be read any more."""
    try:
        return task.load()["test"].slice(0, 1)[0]
    except UserError as error:
        log.warning("the README shows no prompt of the data, which cannot be read (%s)", error)
        return None


def write_model(run_dir: Path, checkpoint: str, out: Path, license: str | None = None) -> Path:
    """Write model, tokenizer, generation settings, the facts of the run, its curve and its card (`card`) to `out`; return it.

    Args:
        license: of the model, for the card; None: the card names none.

    Raises:
        UserError: the run cannot be read; or its answers need more than a plain Hugging Face
            folder can express (keep_position, or a method with `exports = False`).
    """
    from transformers import GenerationConfig

    from stepwise_pl.models import trained_run as runs
    from stepwise_pl.models.card import CARD, FIGURE, card
    from stepwise_pl.models.card_facts import facts_for_card
    from stepwise_pl.models.exported import facts_of
    from stepwise_pl.models.lora import merge_adapters

    run = runs.load_run(str(run_dir), checkpoint)
    require_plain(run)
    # Fresh settings: those of a pretrained model may ask for penalties or a least length. The run was scored without.
    settings = run.model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=run.tokenizer.bos_token_id
    )
    settings.do_sample = False
    settings.max_new_tokens = run.limits.max_new_tokens(run.removed)
    settings.eos_token_id = run.tokenizer.eos_token_id if run.internalized else None
    settings.pad_token_id = run.tokenizer.eos_token_id
    example = example_of(run.config.task)
    merge_adapters(run.model)
    settings.use_cache = _generates_with_cache(run.model)
    with in_one_go(out) as folder:
        run.model.save_pretrained(folder)
        run.tokenizer.save_pretrained(folder)
        make_readable(folder)
        _require_same_tokens(folder, run.tokenizer)
        # Published types are known to be read back, and may be large.
        if not run.config.model.pretrained:
            require_same_weights(folder, run.model)
        has_figure = (run_dir / FIGURE).is_file()
        if has_figure:
            shutil.copyfile(run_dir / FIGURE, folder / FIGURE)
        text = card(facts_for_card(run, run_name(run_dir), example, has_figure, license))
        (folder / CARD).write_text(text, encoding="utf-8")
        write_json(folder / EXPORT_FACTS, facts_of(run))
    return out


def require_plain(run: "TrainedRun") -> None:
    """Raise `UserError` if the answers of a run need more than a plain Hugging Face folder can express."""
    if not run.config.method.can_export(run.limits):
        told = " method.tell_stage=true" if getattr(run.config.method, "tell_stage", False) else ""
        raise UserError(
            f"run={run.path}: a model trained with method={run.config.method.kind}{told} does not answer alone; use stepwise_pl.evaluate"
        )
    if run.config.method.keep_position:
        raise UserError(
            f"run={run.path}: trained with method.keep_position=true; generation must then jump over the gap, which a "
            "plain Hugging Face folder cannot express. Use stepwise_pl.evaluate, or train with keep_position=false"
        )


def _generates_with_cache(model: "PreTrainedModel") -> bool:
    """Whether the model's own `generate` gives the tokens of our decoding with its cache. Some types do not.

    Raises:
        UserError: it gives other tokens without a cache as well, for example because it counts positions otherwise (roberta).
    """
    import torch

    from stepwise_pl.models.forward import full_pass

    words, most = model.config.get_text_config().vocab_size, 6
    alike = {True: True, False: True}
    for length in (3, 8):
        prompt = expected = torch.arange(length)[None] * 7 % words
        with torch.inference_mode():
            for _ in range(most):
                expected = torch.cat([expected, full_pass(model, expected, None, 1)[:, -1].argmax(-1)[:, None]], dim=1)
        for use_cache in alike:
            asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": most, "eos_token_id": None}
            try:
                written = model.generate(prompt, use_cache=use_cache, do_sample=False, **asked)  # type: ignore[operator]
            except Exception:  # a type may raise any error here
                alike[use_cache] = False
            else:
                alike[use_cache] &= torch.equal(written, expected)
    if not any(alike.values()):
        raise UserError(
            f"model.type={model.config.model_type}: transformers' own generate gives other answers than the model "
            "was scored on; nothing is exported, stepwise_pl.evaluate reads the run"
        )
    return alike[True]


def require_same_weights(folder: Path, model: "PreTrainedModel") -> None:
    """Raise `UserError` if transformers reads other weights from the folder than were written.

    The code of a type may reset some weights while it loads: youtu sets those of the end token to zero.
    """
    import torch
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).state_dict()
    written = model.state_dict()
    changed = [name for name in written if name not in read or not torch.equal(written[name], read[name])]
    if changed:
        raise UserError(
            f"model.type={model.config.model_type}: transformers does not read back the weights that it wrote "
            f"({changed[0]}), and the model would answer wrongly; nothing is exported, stepwise_pl.evaluate reads the run"
        )


def _require_same_tokens(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `UserError` if transformers reads another tokenizer from the folder than was written.

    Beside a qwen2 it makes a Qwen2Tokenizer of any tokenizer, and that splits numbers into digits.
    """
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(folder)
    text = str(tokenizer.decode(list(range(min(len(tokenizer), 5000))), skip_special_tokens=True))
    if read(text)["input_ids"] != tokenizer(text)["input_ids"]:
        kind = read_json(folder / "config.json")["model_type"]
        raise UserError(
            f"model.type={kind}: transformers reads any tokenizer beside such a model as {type(read).__name__}, which makes "
            "other tokens than the run's own, and the model would answer wrongly; train with a tokenizer of that kind "
            "(model.tokenizer=<folder>), or with another model.type"
        )
