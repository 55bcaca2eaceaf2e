"""How this program is started, so that every command it prints can be typed as printed."""

import os
import shutil
import sys
from functools import cache
from pathlib import Path

NAME = "reinforce-lite"


@cache
def command_name() -> str:
    """`reinforce-lite` where a shell would find this installation, else the path or module that starts it.

    After `make train` in a clone that is `.venv/bin/reinforce-lite`.
    """
    script = Path(sys.executable).with_name(NAME)
    on_path = shutil.which(NAME)
    if on_path and Path(on_path).resolve() == script.resolve():
        return NAME
    if script.is_file() and os.access(script, os.X_OK):
        return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)
    return f"{sys.executable} -m reinforce_lite"


def command_line(*arguments: str) -> str:
    """A command of this program, as it can be typed here.

    >>> command_line("report", "RUN").endswith(" report RUN")
    True
    """
    return " ".join((command_name(), *arguments))
