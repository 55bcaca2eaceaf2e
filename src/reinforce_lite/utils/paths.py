"""Paths as a person writes them, and names that are either a path or a name on the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import Any

_BEGINNINGS = ("./", "../", "/", "~")
_ENDINGS = (".csv", ".json", ".jsonl", ".parquet", ".py", ".toml", ".txt")
"""Of a path, whether or not something is there; no name on the hub has them."""


def expand_home(name: str) -> Path:
    """The path with a leading `~` or `~user` replaced; unchanged where there is no such user."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):  # ValueError for a NUL in a user's name
        return Path(name)


def local_or_hub_name(name: str) -> str:
    """The name with its `~` expanded.

    Raises FileNotFoundError where nothing is at what can only be a path.
    """
    path = expand_home(name)
    if exists(path):
        return str(path)
    if is_path(name):
        raise FileNotFoundError("there is no such file or folder")
    return name


def is_path(name: str) -> bool:
    """Whether a name is no name on the hub: something is there, or nothing else is spelled so."""
    is_spelled_so = name.startswith(_BEGINNINGS) or name.endswith(_ENDINGS) or name.count("/") > 1
    return is_spelled_so or os.path.lexists(name)  # a link that leads nowhere too


def without_folders(name: str) -> str:
    """A name as it may be published: of a path only its last part, whether or not something is there.

    Web addresses stay, and so do sentences without the beginning or the ending of a path.

    >>> without_folders("/home/ann/data.jsonl"), without_folders("openai/gsm8k"), without_folders("72")
    ('data.jsonl', 'openai/gsm8k', '72')
    """
    if re.match(r"https?://", name):
        return name
    is_spelled_so = name.startswith(_BEGINNINGS) or name.endswith(_ENDINGS)
    has_folders = name.count("/") > 1 and len(name.split()) == 1
    is_there = os.sep in name and exists(name)
    return expand_home(name).resolve().name if is_spelled_so or has_folders or is_there else name


def without_folders_in(value: Any) -> Any:
    """The same for every text in a JSON value."""
    if isinstance(value, dict):
        return {key: without_folders_in(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders_in(inner) for inner in value]
    return without_folders(value) if isinstance(value, str) else value


# Nothing can exist at a path that is too long or holds a NUL. For a path that is too long pathlib's functions
# raise OSError; those of os.path return False for both.


def exists(path: str | Path) -> bool:
    """Whether anything is there."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: str | Path) -> bool:
    """Whether a file is there."""
    return os.path.isfile(path)  # noqa: PTH113


def is_dir(path: str | Path) -> bool:
    """Whether a folder is there."""
    return os.path.isdir(path)  # noqa: PTH112
