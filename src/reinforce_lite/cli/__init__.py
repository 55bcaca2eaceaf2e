"""The command line."""

from reinforce_lite.cli.app import main

__all__ = ["main"]
