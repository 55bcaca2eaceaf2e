"""Context managers around transformers while it loads a model: no output, and errors in one line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any
from unittest.mock import patch

import torch
import transformers
from safetensors import SafetensorError

from reinforce_lite.errors import DoesNotFitError, ReinforceLiteError, UsageError
from reinforce_lite.utils.memory import is_out_of_memory
from reinforce_lite.utils.text import one_line_error


@contextmanager
def explain_load_errors(name: str, runs_its_code: bool = False) -> Iterator[None]:
    """Turn what transformers raises about a model into one line of cause and one of remedy.

    A model's files can hold anything, and most values of a config.json are used unchecked: 0 heads, for
    example, lead to a division by zero. So any exception is turned into these lines; one of no known cause
    keeps its type. Where the model's own code may run, such an exception is raised as it is: its author needs
    the traceback.
    """
    try:
        yield
    except ReinforceLiteError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            remedy = "choose a smaller model, or --model.dtype bfloat16"
            raise DoesNotFitError(f"the model {name!r} does not fit into memory", remedy) from error
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            cause = "it brings its own Python code"
            remedy = "read that code, then allow it with --trust-remote-code of train, eval or ask"
        elif isinstance(error, UnpicklingError):
            cause = "its pickled weights hold more than tensors, and opening them could run any code"
            remedy = "convert them to safetensors where you trust their author"
        elif isinstance(error, SafetensorError):
            remedy = "its weights are damaged: download or copy the model again"
        elif "safetensors" in str(error):
            remedy = "only safetensors weights are loaded; pickled ones need --allow-pickles"
        elif not isinstance(error, OSError | ValueError | ImportError | KeyError):
            if runs_its_code:
                raise
            cause = one_line_error(error)
            remedy = "see that the values in its config.json are right, or download or copy the model again"
        else:
            remedy = "give a model folder, the name of a reachable Hugging Face model, or smollm2-135m"
        raise UsageError(f"can't load the model {name!r}: {cause}", remedy) from error


@contextmanager
def no_pickles(name: str) -> Iterator[None]:
    """Raise UsageError where transformers opens a pickle: a config or a safetensors index may name one."""

    def refuse(*_: Any, **__: Any) -> None:
        raise pickles_refused(name)

    with patch.object(torch, "load", refuse):
        yield


def pickles_refused(name: object) -> UsageError:
    """The error for weights that need a permission."""
    return UsageError(
        f"{name} has pickled weights, which can run any code when they are opened",
        "convert them to safetensors, or allow them with --allow-pickles of train, eval or ask",
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
