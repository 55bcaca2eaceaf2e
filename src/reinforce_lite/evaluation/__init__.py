"""Accuracy with its statistics, why completions fail, reflection words."""
