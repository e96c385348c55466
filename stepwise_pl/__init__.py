"""Stepwise Internalization: train a language model to reason without writing its reasoning down.

The four nouns: a Task (where examples come from), a CoTBatch (tokens, and which part each
belongs to), a Schedule (how many CoT tokens are gone now), the StepwiseModule (what
Lightning trains). The four verbs: collate, remove, generate, score.
"""

__version__ = "0.1.0"
