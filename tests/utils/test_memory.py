"""Running out of memory, and what the machine has and a process held."""

import ctypes
import errno
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.utils import memory
from reinforce_lite.utils.memory import installed_bytes, is_out_of_memory, peak_bytes, retry_on_oom


def numpy_error() -> Exception:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**58)
    return caught.value


ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


@pytest.mark.case(13)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        numpy_error(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        SafetensorError("I/O error: Cannot allocate memory (os error 12)"),
        RuntimeError(ALLOCATOR),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("unable to mmap 540 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("mkl_malloc: failed to allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
        RuntimeError("HIP error: out of memory"),
        RuntimeError("hipErrorOutOfMemory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("cudaErrorMemoryAllocation"),
        RuntimeError("Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
        RuntimeError("level_zero backend failed with error: 38 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)"),
        RuntimeError("Native API returns: -2 (ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)"),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:60],
)
def test_out_of_memory_is_recognised_by_what_libraries_say(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
        RuntimeError("could not create a primitive descriptor for the matmul primitive. Run workload with"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("unsupported operation: the written-to tensor refers to a single memory location"),
        RuntimeError("Unable to use channels-last memory format"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        DoesNotFitError("does not fit into memory"),
    ],
    ids=str,
)
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


LIMITED = """
import resource, torch
from pathlib import Path
from reinforce_lite.utils.memory import installed_bytes, retry_on_oom

MIB, sizes = 2**20, [1024, 512, 256, 128]
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = held + 400 * MIB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
retry_on_oom(lambda: torch.empty(sizes[0] * MIB, dtype=torch.uint8), lambda: sizes.pop(0))
print(sizes[0], installed_bytes() <= limit)
"""


@pytest.mark.case(13)
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is the address space's, which Linux keeps")
def test_a_limited_address_space_is_retried_until_it_fits() -> None:
    """The real allocator, the real error: of 400 MiB left, 1 GiB and 512 MiB are refused."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["256", "True"]


def test_retry_on_oom_shrinks_until_the_job_fits() -> None:
    sizes = [8]

    def job() -> int:
        if sizes[-1] > 2:
            raise MemoryError
        return sizes[-1]

    assert retry_on_oom(job, lambda: sizes.append(sizes[-1] // 2)) == 2
    assert sizes == [8, 4, 2]


def test_retry_on_oom_frees_the_tensors_of_the_failed_job_before_it_shrinks() -> None:
    references: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def job() -> str:
        if alive:
            return "done"
        tensor = torch.zeros(1)
        references.append(weakref.ref(tensor))
        raise MemoryError

    def shrink() -> None:
        gc.collect()
        alive.append(references[0]() is not None)

    assert retry_on_oom(job, shrink) == "done"
    assert alive == [False]


def test_retry_on_oom_lets_other_errors_through() -> None:
    def job() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    def shrink() -> None:
        pytest.fail("nothing ran out of memory")

    with pytest.raises(RuntimeError, match="shapes"):
        retry_on_oom(job, shrink)


def test_retry_on_oom_ends_where_shrink_does() -> None:
    def job() -> None:
        raise MemoryError

    def shrink() -> None:
        raise DoesNotFitError("a single sequence does not fit")

    with pytest.raises(DoesNotFitError):
        retry_on_oom(job, shrink)


@pytest.mark.parametrize(("limit", "expected"), [("1000000\n", 10**6), ("max\n", 4096 * 10**6)])
def test_installed_bytes_respects_a_container_limit(
    limit: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10**6}
    monkeypatch.setattr(os, "sysconf", machine.__getitem__)
    monkeypatch.setattr(Path, "read_text", lambda path: limit)
    assert installed_bytes() == expected


def test_installed_bytes_without_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}.__getitem__)
    monkeypatch.setattr(Path, "read_text", missing)
    assert installed_bytes() == 40_960


def test_peak_bytes_of_the_cpu_grow_with_a_large_tensor() -> None:
    before = peak_bytes(torch.device("cpu"))
    tensor = torch.ones(before // 8 + 2**22, dtype=torch.float64)  # larger than all that was held before
    assert peak_bytes(torch.device("cpu")) >= max(before, tensor.nbytes)
    assert before > 10**7  # torch alone is more: the unit is bytes


def test_limit_fragmentation_keeps_a_capacity_that_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", no_glibc)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    memory.limit_fragmentation()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "mine"}, {"PYTORCH_ALLOC_CONF": "mine"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "mine"}, {"PYTORCH_CUDA_ALLOC_CONF": "mine"}),
    ],
)
def test_limit_fragmentation_configures_a_cards_allocator_unless_the_user_did(
    before: dict[str, str], after: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(before))
    memory.limit_fragmentation()
    assert {k: v for k, v in os.environ.items() if k.startswith("PYTORCH")} == after


ALLOCATOR_SETTINGS = """
import torch
from reinforce_lite.utils.memory import limit_fragmentation

limit_fragmentation()
assert not torch.cuda.is_initialized()
torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
"""


def test_torch_knows_the_allocators_setting() -> None:
    """Under this name in every version: an unknown one would be an error where CUDA starts."""
    subprocess.run([sys.executable, "-c", ALLOCATOR_SETTINGS], capture_output=True, check=True)


def test_memory_is_left_alone_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", no_glibc)
    memory.release_cached_memory()
    memory.limit_fragmentation()


def no_glibc(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")
