"""Mask secrets of the environment in everything that is shown or written.

A variable is a secret if its name says so (HF_TOKEN, WANDB_API_KEY, DB_PASSWORD ...), its value has at least
eight characters, and the value is not the path of something on this machine. Each occurrence of the value
becomes the variable's name in brackets: `[HF_TOKEN]`. Only what leaves the program is masked, never what a
model reads or learns from. Not found: a secret that is spelled otherwise (in base64, or by its tokens).
"""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MIN_LENGTH = 8
_NAMES = re.compile("TOKEN|KEY|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def mask(text: str) -> str:
    """The text with each secret replaced by `[NAME]`.

    >>> os.environ["SOME_API_KEY"] = "sk-very-secret"
    >>> mask("refused: sk-very-secret")
    'refused: [SOME_API_KEY]'
    """
    masked: str = mask_all(text)
    return masked


def mask_all(value: Any) -> Any:
    """The same for every text in a JSON value; its keys are left as they are."""
    secrets, pattern = _secrets(tuple((n, v) for n, v in os.environ.items() if _NAMES.search(n)))

    def walk(part: Any) -> Any:
        if isinstance(part, str):
            return pattern.sub(lambda match: f"[{secrets[match[0]]}]", part)
        if isinstance(part, Mapping):
            return {key: walk(item) for key, item in part.items()}
        return [walk(item) for item in part] if isinstance(part, list | tuple) else part

    return walk(value) if secrets else value


@lru_cache(maxsize=1)
def _secrets(variables: tuple[tuple[str, str], ...]) -> tuple[dict[str, str], re.Pattern[str]]:
    """The name of each secret, by its value; and a pattern that finds them, the longest first."""
    secrets = {
        part: name
        for name, value in variables
        if not os.path.exists(value.strip())  # noqa: PTH110 -- Path.exists raises for names that are too long
        for part in (
            value.strip(),
            *map(str.strip, value.splitlines()),
        )  # one line of a key may be shown alone
        if len(part) >= MIN_LENGTH
    }
    return secrets, re.compile("|".join(map(re.escape, sorted(secrets, key=len, reverse=True))))
