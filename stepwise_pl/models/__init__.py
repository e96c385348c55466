"""The causal LM: built, loaded, checked for causality, read and decoded, written for others."""
