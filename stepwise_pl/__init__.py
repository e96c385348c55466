"""Stepwise Internalization: train a language model to reason without writing its reasoning down.

The six nouns: a Task (where examples come from), a CoTBatch (tokens, and which part each
belongs to), a Schedule (which stage s(t) training is at), a Method (what a stage means),
a Learner (the causal LM with its method), the StepwiseModule (what Lightning trains).
"""

__version__ = "0.1.0"
