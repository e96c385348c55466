"""Going on from the last checkpoint of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.keys import CHANGEABLE, flat
from stepwise_pl.models.checkpoint import read_checkpoint
from stepwise_pl.models.trained_run import log
from stepwise_pl.runs.provenance import other_version
from stepwise_pl.runs.records import StagesFile
from stepwise_pl.training.loggers import MetricsFile


def require_own(state: Mapping[str, Any], path: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError` unless training can go on from a checkpoint: whole, and of a run with this configuration and data.

    Args:
        config: in plain containers, with what follows from it under `derived`.
    """
    parts = {"global_step", "epoch", "state_dict", "optimizer_states", "loops", "callbacks", "stepwise"}
    groups = [group for one in state.get("optimizer_states", ()) for group in one["param_groups"]]
    # Without `full_lr` the optimizer is one of before commit 5a29c99, and so are the states of the callbacks.
    is_known = all("full_lr" in group for group in groups)
    if not parts <= state.keys() or not {"config", "rollbacks", "schedule"} <= state["stepwise"].keys() or not is_known:
        whole = "optimizer_states" in state and "stepwise" in state
        why = (
            f"it was written by {other_version(path, '5a29c99')}"
            if whole
            else "best.ckpt and removed-<k>.ckpt hold weights only"
        )
        raise UserError(
            f"{path}: is not a checkpoint that this version of stepwise_pl can go on from ({why}); start another run, from "
            "its weights with model.init_from=<run folder>"
        )
    both = (state["stepwise"]["config"], config)
    old, new = (flat({key: value for key, value in one.items() if key != "derived"}) for one in both)
    # Other keys that the checkpoint does not know came with a later version, whose defaults keep what was.
    known = old.keys() | {key for key in new if key.startswith("model.config.")}
    differ = [
        f"{key} is {old.get(key)} there, {new.get(key)} in config.yaml"
        for key in sorted(known)
        if old.get(key) != new.get(key) and not key.startswith(CHANGEABLE)
    ]
    trained, now = ((one.get("derived") or {}).get("data") for one in both)
    frozen = [(one.get("derived") or {}).get("frozen") for one in both]
    if frozen[0] != frozen[1]:
        differ.append(f"the weights that LoRA leaves as they are have changed (digest {frozen[0]}, now {frozen[1]})")
    if differ or trained != now:
        what = "; ".join(differ) or f"it was trained on other data (digest {trained}, now {now}; has a file changed?)"
        raise UserError(f"{path}: is of another run: {what}. Put back what it was made with, or use another run_dir")


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
