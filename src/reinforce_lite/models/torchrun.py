"""What torchrun tells each of the processes that it starts, in environment variables.

Schedulers set WORLD_SIZE too, so what is there is checked. It imports no torch: each command asks here first.
"""

import os

from reinforce_lite.errors import UsageError


def world_size() -> int:
    """How many processes train together; 1 without torchrun. Raises UsageError for what is no such number."""
    return _number("WORLD_SIZE", least=1) if "WORLD_SIZE" in os.environ else 1


def check_environment() -> None:
    """Raises UsageError where what several processes need to meet is missing or no number."""
    size = world_size()
    if _number("RANK", least=0) >= size:
        raise _error("RANK", f"must be smaller than WORLD_SIZE, {size}")
    _number("MASTER_PORT", least=0)
    if not os.environ.get("MASTER_ADDR"):
        raise _error("MASTER_ADDR", "must be the address of the main machine")
    _number("LOCAL_RANK", least=0)
    _number("LOCAL_WORLD_SIZE", least=1)


def _number(name: str, least: int) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal() or not text.isascii() or int(text) < least:
        raise _error(name, f"must be a number from {least} up")
    return int(text)


def _error(name: str, rule: str) -> UsageError:
    found = f"is {os.environ[name]!r:.60}" if name in os.environ else "is not set"
    return UsageError(
        f"the environment variable {name} {found}, but {rule}",
        "start several processes with torchrun, which sets it; for one process: unset WORLD_SIZE",
    )
