"""Texts become tokens: tokenizers, `CoTBatch` with its parts, the stream of training examples, the data module."""
