"""Running out of memory, and what the machine has and a process held."""

import ctypes
import gc
import os
import weakref
from pathlib import Path

import pytest
import torch

from reinforce_lite.errors import DoesNotFitError
from reinforce_lite.utils import memory
from reinforce_lite.utils.memory import installed_bytes, is_out_of_memory, peak_bytes, retry_on_oom


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_is_out_of_memory_by_type_and_message(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


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


def test_memory_is_left_alone_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", no_glibc)
    memory.release_cached_memory()
    memory.limit_fragmentation()


def no_glibc(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")
