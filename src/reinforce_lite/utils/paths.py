"""Paths as a person writes them, and names that are either a path or a name on the Hugging Face hub."""

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
