"""Resume a run from its last checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.keys import flat, may_change
from stepwise_pl.models.checkpoint import read_checkpoint
from stepwise_pl.models.trained_run import log
from stepwise_pl.runs.provenance import changed_text, other_version
from stepwise_pl.runs.records import StagesFile
from stepwise_pl.training.loggers import MetricsFile


def require_own(state: Mapping[str, Any], path: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError` unless training can go on from the checkpoint.

    The checkpoint must be whole, and of a run with this configuration and this data.

    Args:
        config: the run's configuration in plain containers; `derived` holds what follows from it.
    """
    parts = {"global_step", "epoch", "state_dict", "optimizer_states", "loops", "callbacks", "stepwise"}
    groups = [group for optimizer in state.get("optimizer_states", ()) for group in optimizer["param_groups"]]
    # Without `full_lr` the checkpoint is older than commit 5a29c99. The states of its callbacks cannot be read either.
    is_known = all("full_lr" in group for group in groups)
    if not parts <= state.keys() or not {"config", "rollbacks", "schedule"} <= state["stepwise"].keys() or not is_known:
        whole = "optimizer_states" in state and "stepwise" in state
        why = (
            f"it was written by {other_version(path, '5a29c99')}"
            if whole
            else "best.ckpt, removed-<k>.ckpt and stage-<k>.ckpt hold weights only"
        )
        raise UserError(
            f"{path}: is not a checkpoint that this version of stepwise_pl can go on from ({why}); start another run, from "
            "its weights with model.init_from=<run folder>"
        )
    both = (state["stepwise"]["config"], config)
    old, new = (flat({key: value for key, value in plain.items() if key != "derived"}) for plain in both)
    # Other keys that the checkpoint lacks came with a later version. Their defaults keep the old behaviour.
    known = old.keys() | {key for key in new if key.startswith("model.config.")}
    differ = [
        f"{key} is {old.get(key)} there, {new.get(key)} in config.yaml"
        for key in sorted(known)
        if old.get(key) != new.get(key) and not may_change(key)
    ]
    trained, now = ((plain.get("derived") or {}).get("data") for plain in both)
    frozen = [(plain.get("derived") or {}).get("frozen") for plain in both]
    if frozen[0] != frozen[1]:
        differ.append(f"the weights that LoRA leaves as they are have changed (digest {frozen[0]}, now {frozen[1]})")
    loaded = [(plain.get("derived") or {}).get("loaded") for plain in both]
    if loaded[0] != loaded[1]:
        differ.append(f"a run that the method builds on has changed ({loaded[0]}, now {loaded[1]})")
    if differ or trained != now:
        differences = (
            "; ".join(differ) or f"it was trained on other data (digest {trained}, now {now}; has a file changed?)"
        )
        raise UserError(
            f"{path}: is of another run: {differences}. Restore its configuration and data, or use another run_dir"
        )


def resume(run_dir: Path, plain: dict[str, Any], changes: Mapping[str, tuple[Any, Any]]) -> int:
    """Check that the run can resume from its last checkpoint; drop the metrics that were written after it.

    Args:
        plain: the configuration to go on with; `derived` holds what follows from it.
        changes: the keys that the resumed run changes, with the value before and the new one; they are logged.

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
    before, now = (
        (config.get("derived") or {}).get("plugins") or {} for config in (state["stepwise"]["config"], plain)
    )
    for name in sorted(name for name in before.keys() & now.keys() if before[name] != now[name]):
        log.warning("plugins=%s: has been edited since the run was saved; the run goes on with what it is now", name)
    with_changes = f" with {changed_text(changes)}" if changes else ""
    log.info("resuming at step %d%s", step, with_changes)
    if not (run_dir / "metrics.csv").is_file():
        log.warning(
            "metrics.csv is missing: the new one begins at step %d, and the summary lacks everything before it",
            step,
        )
    MetricsFile(run_dir / "metrics.csv").resume_from(step, attempt)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        StagesFile(run_dir / "stages.jsonl").resume_from(step, attempt)
    return step
