"""Configurations that earlier versions wrote, brought up to date. Free of torch."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from stepwise_pl.common.errors import UserError

ANY = object()


class Retired(NamedTuple):
    """A key that is gone.

    Attributes:
        neutral: the value with which it changed nothing, and is dropped; `ANY`: every value is dropped, because only training
            reads the key, and a checkpoint that needs it says so when it is resumed.
        until: the last commit that knew it.
    """

    neutral: Any
    until: str


# Every key and value that some version wrote into a config.yaml and this one does not know. Keys that came later need no
# line here: their defaults keep what was.
RETIRED = {
    "schedule.lookahead": Retired(0, "5940397"),
    # The adaptive schedule followed the token accuracy of training.
    **{f"schedule.{key}": Retired(ANY, "462c60e") for key in ("gate", "memory", "min_stay", "evidence")},
}
RENAMED = {
    ("task.kind", "lines"): "file",
}
# Keys that stand in another group now; `kind` of that group is what every version before did.
MOVED = {f"schedule.{key}": f"method.{key}" for key in ("unit", "side", "keep_position")}
REMOVED = {("trainer.precision", "16-mixed"): "d241d4b"}


def upgraded(plain: Mapping[str, Any], where: object) -> dict[str, Any]:
    """A copy of a configuration in plain containers, brought up to this version: its retired, renamed and moved keys, its length.

    A key that no version knew stays, for the reader to refuse.

    Args:
        where: the file that holds it, for the message.

    Raises:
        UserError: it says something that only an earlier version can do; the message names that version.
    """
    out = copy.deepcopy(dict(plain))
    group, name = _place(out, "schedule.min_stay")
    if name in group and group.get("kind") == "adaptive":  # it looked at every step after so many
        group["check_every"] = group[name]
    for key, (neutral, until) in RETIRED.items():
        group, name = _place(out, key)
        if name in group and group.pop(name) != neutral and neutral is not ANY:
            raise _only(where, f"{key}={_place(dict(plain), key)[0][name]}", until)
    for (key, old), new in RENAMED.items():
        group, name = _place(out, key)
        if group.get(name) == old:
            group[name] = new
    if isinstance(out.get("schedule"), dict) and "method" not in out:  # before there were methods
        out["method"] = {"kind": "stepwise"}
        for key, now in MOVED.items():
            group, name = _place(out, key)
            if name in group:
                new_group, new_name = _place(out, now)
                new_group[new_name] = group.pop(name)
    _give_duration(out, where)
    for (key, old), until in REMOVED.items():
        group, name = _place(out, key)
        if group.get(name) == old:
            raise _only(where, f"{key}={old}", until)
    return out


def _give_duration(plain: dict[str, Any], where: object) -> None:
    """Replace `trainer.max_steps`, `trainer.max_epochs` and `optimizer.decay_steps` by `trainer.duration` and `optimizer.decay`.

    The fall of the learning rate begins at the step at which it began. It ended at max_steps, even if the run ended
    before, by max_epochs; it ends with the run now.

    Raises:
        UserError: one of these is no whole number, or the length of the fall is not known.
    """
    trainer, optimizer, data = (_place(plain, f"{group}.")[0] for group in ("trainer", "optimizer", "data"))
    epochs, steps = trainer.pop("max_epochs", None), trainer.pop("max_steps", None)
    fall = optimizer.pop("decay_steps", None)
    if epochs is None and steps is None:
        return
    epochs, steps = 200 if epochs is None else epochs, -1 if steps is None else steps
    former = {"trainer.max_epochs": epochs, "trainer.max_steps": steps, "optimizer.decay_steps": fall or 0}
    for key, value in former.items():
        if not isinstance(value, int):
            raise UserError(f"{where}: {key}={value}: must be a whole number")
    # T is not known before a run has read its data, unless `data.epoch_size` says it.
    asked = (data.get("epoch_size") or 0) // (data.get("batch_size") or 1)
    derived = plain.get("derived")
    in_epochs = epochs * ((derived.get("steps_per_epoch") if isinstance(derived, dict) else 0) or asked)
    ends_by_epochs = steps == -1 or 0 < in_epochs < steps
    trainer["duration"] = f"{epochs}epochs" if ends_by_epochs else f"{steps}steps"
    if fall is None:
        return
    length = in_epochs if ends_by_epochs else steps
    if fall and not length:
        raise UserError(
            f"{where}: optimizer.decay_steps={fall}: the length of the run is not known; set optimizer.decay"
        )
    after_the_end = steps - length if ends_by_epochs and steps > 0 else 0
    optimizer["decay"] = max(0, fall - after_the_end) / length if fall else 0.0


def retired(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The values of retired keys that `upgraded` drops whatever they are. Runs that differ in them are not alike."""
    found = {key: _place(dict(plain), key) for key, gone in RETIRED.items() if gone.neutral is ANY}
    return {key: group[name] for key, (group, name) in found.items() if name in group}


def upgraded_state(state: Mapping[str, Any], where: object) -> dict[str, Any]:
    """This project's part of a checkpoint, brought up to this version: configuration, lengths and what is removed.

    Raises:
        UserError: the configuration says something that only an earlier version can do.
    """
    out = dict(state)
    if isinstance(out.get("config"), dict):
        out["config"] = upgraded(out["config"], where)
    if "removed_tokens" in out:  # before whole reasoning steps could be removed
        out["removed"] = out.pop("removed_tokens")
    limits = out.get("limits")
    if isinstance(limits, dict) and {"max_cot", "longest_cot"} <= limits.keys():
        most = limits["max_cot"]
        train_left, left = ([longest - k for k in range(most)] + [0] for longest in (most, limits["longest_cot"]))
        out["limits"] = {"train_left": train_left, "left": left, "longest_answer": limits["longest_answer"]}
    return out


def _place(plain: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The group that a dotted key belongs to, and its name there; an empty group where there is none."""
    group, _, name = key.rpartition(".")
    found = plain.get(group)
    return (found if isinstance(found, dict) else {}), name


def _only(where: object, what: str, until: str) -> UserError:
    return UserError(f"{where}: {what} is gone since; the last version that reads it is commit {until} of stepwise_pl")
