"""Reads a folder that `export` has written: model, tokenizer, and the facts of its run that a prompt needs."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.config.plain import config_from, to_plain
from stepwise_pl.data.tokenizers import load_tokenizer
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.runs.folder import EXPORT_FACTS, export_facts, run_name
from stepwise_pl.tasks import Task

log = logging.getLogger("stepwise_pl")

# Tokens that a model may write if its folder does not say.
MOST = 256


class Exported(NamedTuple):
    """An exported model.

    Attributes:
        task: the task of its run; a plain `Task` if the folder does not say.
        most: the most tokens that it may write.
        about: the facts of its run (`facts_of`); empty if the folder does not say.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    most: int
    about: Mapping[str, Any]


@dataclass
class _OfTask:
    task: Task = field(default_factory=Task)


def task_settings(run: TrainedRun) -> dict[str, Any]:
    """Return the settings of a run's task that hold no paths."""
    paths = {one.name for one in fields(run.config.task) if one.metadata.get("path")}
    return {key: value for key, value in to_plain(run.config.task).items() if key not in paths}


def facts_of(run: TrainedRun) -> dict[str, Any]:
    """Return the facts of a run that its exported model goes with, for `EXPORT_FACTS`. They hold no paths."""
    return {
        "run": run_name(run.path),
        "seed": run.config.seed,
        "task": task_settings(run),
        "method": run.config.method.kind,
        "checkpoint": run.checkpoint.name,
        "step": run.step,
        "removed_tokens": run.removed_tokens,
        "max_cot_tokens": run.limits.max_cot,
        **({"stage": run.stage_name} if run.stage_name else {}),
    }


def load_export(folder: Path) -> Exported:
    """Load an exported folder.

    Raises:
        UserError: model or tokenizer cannot be read.
    """
    tokenizer = load_tokenizer("run", str(folder))
    if tokenizer.eos_token_id is None:
        raise UserError(f"run={folder}: its tokenizer has no end token, so it is no model of stepwise_pl")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()  # type: ignore[no-untyped-call]
        settings = folder / "generation_config.json"
        most = int(GenerationConfig.from_pretrained(folder).max_new_tokens or MOST) if settings.is_file() else MOST
    # A file that is damaged or cut off raises errors of many types.
    except Exception as error:
        raise UserError(f"run={folder}: holds no model that transformers reads ({first_line(error)})") from None
    about = export_facts(folder)
    return Exported(model, tokenizer, _task_of(about, folder), most, about)


def _task_of(about: Mapping[str, Any], folder: Path) -> Task:
    """Return the task of an export; a plain one, and a warning, if it is not known."""
    if "task" not in about:
        log.warning(
            "%s: has no %s that names the task; the question is given to the model as it stands, and not checked",
            folder,
            EXPORT_FACTS,
        )
        return Task()
    try:
        return config_from({"task": about["task"]}, _OfTask).task
    except (UserError, KeyError) as error:
        log.warning(
            "%s: its task is not known here (%s); the question is given to the model as it stands", folder, error
        )
        return Task()
