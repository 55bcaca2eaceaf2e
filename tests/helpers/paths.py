"""Where things are in the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = str(Path(__file__).with_name("tiny.toml"))
"""A recipe for the tiny model: ten steps of five questions with four completions each."""
