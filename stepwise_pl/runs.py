"""Going on with a run, and loading a trained one, from its folder (`run_folder.py` says what lies where)."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.causality import require_causal
from stepwise_pl.config import Config
from stepwise_pl.datamodule import Limits
from stepwise_pl.errors import UserError
from stepwise_pl.loggers import MetricsFile
from stepwise_pl.models import named, read_checkpoint, require_own, restored
from stepwise_pl.provenance import other_version
from stepwise_pl.records import StagesFile
from stepwise_pl.run_folder import located, saved_config
from stepwise_pl.tokenizing import load_tokenizer

log = logging.getLogger(__name__)


def resume(run_dir: Path, plain: dict[str, Any]) -> int:
    """Check that the run's last checkpoint can be gone on from, and drop the metrics of what comes after it.

    Args:
        plain: the configuration to go on with, and under `derived` what follows from it.

    Returns:
        The optimizer steps done.

    Raises:
        UserError: the checkpoint is damaged, or is of a run with another configuration or other data.
    """
    last = run_dir / "checkpoints" / "last.ckpt"
    try:
        state = read_checkpoint(last)
    except UserError as error:
        best = last.with_name("best.ckpt").is_file()
        from_best = f", from its best weights with model.init_from={run_dir}" if best else ""
        raise UserError(f"{error}; start another run with another run_dir{from_best}") from None
    require_own(state, last, plain)
    step, attempt = int(state["global_step"]), len(state["stepwise"]["rollbacks"])
    log.info("resuming at step %d", step)
    if not (run_dir / "metrics.csv").is_file():
        log.warning(
            "metrics.csv is not there any more: it begins at step %d, and the summary says nothing of what was before",
            step,
        )
    MetricsFile(run_dir / "metrics.csv").resume_from(step, attempt)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        StagesFile(run_dir / "stages.jsonl").resume_from(step, attempt)
    return step


@dataclass
class TrainedRun:
    """A run loaded from its folder, weights in place."""

    path: Path
    config: Config
    checkpoint: Path
    step: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    removed: int  # units of the schedule

    @property
    def internalized(self) -> bool:
        """Whether the checkpoint was trained without any CoT token left."""
        return self.removed >= self.limits.max_removed


def load_run(folder: str, checkpoint: str) -> TrainedRun:
    """Load a run with the weights of `best`, `last` or a checkpoint file; `best` falls back to `last`.

    Raises:
        UserError: the folder or the checkpoint cannot be read.
    """
    path = Path(folder)
    config = located(saved_config(path), path)
    names = ("best", "last") if checkpoint == "best" else (checkpoint,)
    candidates = [*(path / "checkpoints" / f"{name}.ckpt" for name in names), Path(checkpoint)]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        there = sorted(file.stem for file in (path / "checkpoints").glob("*.ckpt"))
        raise UserError(
            f"checkpoint={checkpoint}: no such checkpoint; give best, last or a file (there: {', '.join(there)})"
        )
    state = read_checkpoint(file)
    if "stepwise" not in state:
        raise UserError(f"{file}: is not a checkpoint of stepwise_pl")
    tokenizer = load_tokenizer("run", str(path / "model"))
    model = restored(path, state, file, tokenizer).eval()  # type: ignore[no-untyped-call]
    stepwise = state["stepwise"]
    try:
        limits, removed = Limits(**stepwise["limits"]), int(stepwise["removed"])
    except (KeyError, TypeError):
        raise UserError(f"{file}: was written by {other_version(file, 'a7bb055')}") from None
    longest = limits.max_cot + limits.longest_answer
    require_causal(model, f"run={path}: {named(config.model)}", longest, config.schedule.keep_position)
    return TrainedRun(path, config, file, int(state["global_step"]), model, tokenizer, limits, removed)
