"""Stepwise Internalization: train a language model to reason without writing its reasoning down.

The six nouns: a Task (where examples come from), a CoTBatch (tokens, and which part each
belongs to), a Schedule (which stage s(t) training is at), a Method (what a stage means),
a Learner (the causal LM with its method), the StepwiseModule (what Lightning trains).

For notebooks and scripts: `load_run`, `train_run` and `load_sweep` (docs/python.md). They are
loaded when they are first used, so that `import stepwise_pl` is quick.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwise_pl.interface import Run, Sweep, load_run, load_sweep, train_run

__version__ = "0.1.0"

__all__ = ["Run", "Sweep", "__version__", "load_run", "load_sweep", "train_run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'stepwise_pl' has no attribute {name!r}")
    from stepwise_pl import interface

    return getattr(interface, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
