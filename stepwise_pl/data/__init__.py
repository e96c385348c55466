"""Data: tokenizers, encoded splits, `CoTBatch` with its parts, the stream of training examples, the data module."""
