"""The names of runs and of arms, for every script of this folder.

A run is called `methods_cpu_<task>_<arm>`, as its recipe in conf/experiment.
"""

from collections.abc import Iterable

from stepwise_pl.common.errors import UserError

START = "methods_cpu_"
# How a task is called in a sentence.
TASKS = {
    "modular_sum": "the sum of 8 digits modulo 5", "parity": "the parity of 12 bits", "prosqa": "ProsQA",
    "mult3x3": "the product of 3 digits by 3",
}  # fmt: skip
# The order of the tables. The place of an arm decides its colour, so a new arm stands at the end.
ARMS = (
    "no_cot", "explicit_cot", "stepwise", "auxiliary", "icot_kd", "coconut", "coconut_unmixed", "coconut_unscaled", "sim_cot",
    "pause_as_thought", "mix", "mix_untold", "pause", "codi",
)  # fmt: skip
# The schedule that waits for accuracy before a token leaves.
WAITS = "adaptive"


def task_and_arm(run: str) -> tuple[str, str]:
    """`("modular_sum", "coconut")` for `methods_cpu_modular_sum_coconut`.

    Raises:
        UserError: it is no run of this experiment.
    """
    for task in TASKS:
        if run.startswith(start := f"{START}{task}_"):
            return task, run.removeprefix(start)
    raise UserError(
        f"{run}: a run is called {START}<task>_<arm>, with a task of {', '.join(TASKS)}; give <name>=<run folder>"
    )


def in_order(arms: Iterable[str]) -> list[str]:
    """Each arm once, in the order of the tables; an arm that `ARMS` lacks comes last."""
    return sorted(dict.fromkeys(arms), key=lambda arm: (ARMS.index(arm) if arm in ARMS else len(ARMS), arm))
