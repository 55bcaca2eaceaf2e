"""Paths as a person writes them, and names that are either a path or a name on the Hugging Face hub."""

import os
from pathlib import Path


def expand_home(name: str) -> Path:
    """The path with a leading `~` or `~user` replaced; unchanged where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def local_or_hub_name(name: str) -> str:
    """The name with its `~` expanded.

    Raises FileNotFoundError where nothing is at what can only be a path.
    """
    path = expand_home(name)
    if path.exists():
        return str(path)
    is_path = name.startswith(("./", "../", "/", "~")) or name.endswith((".py", ".jsonl"))
    if is_path or name.count("/") > 1:
        raise FileNotFoundError("there is no such file or folder")
    return name


def without_folders(name: str) -> str:
    """A name as it may be published: of a path on this machine only its last part.

    >>> without_folders("/home/ann/data.jsonl"), without_folders("openai/gsm8k"), without_folders("72")
    ('data.jsonl', 'openai/gsm8k', '72')
    """
    is_path = name.startswith(("./", "../", "/", "~")) or (os.sep in name and os.path.exists(name))  # noqa: PTH110 -- Path.exists raises for names that are too long
    return expand_home(name).resolve().name if is_path else name
