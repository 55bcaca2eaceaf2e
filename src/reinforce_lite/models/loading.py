"""What transformers prints and raises while it opens a model, kept off the screen or told in one line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from safetensors import SafetensorError

from reinforce_lite.errors import ReinforceLiteError, UsageError


@contextmanager
def explain_load_errors(name: str) -> Iterator[None]:
    """Say what transformers raises about a model in one line."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            first = "it brings its own Python code"
            remedy = "read that code, then allow it with --model.trust-remote-code"
        elif isinstance(error, SafetensorError):
            remedy = "its weights are damaged: fetch or copy the model again"
        elif "safetensors" in str(error):
            remedy = "only safetensors weights are opened; pickled ones need --model.trust-remote-code"
        else:
            remedy = "give a folder, a Hugging Face hub name that can be reached, or smollm2-135m"
        raise UsageError(f"can't load the model {name!r}: {first}", remedy) from error
    except MemoryError as error:
        raise ReinforceLiteError(f"the model {name!r} does not fit into memory") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the user's screen."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        transformers.logging.enable_progress_bar()
