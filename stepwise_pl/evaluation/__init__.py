"""Evaluation: answers are verified, decoded and counted."""
