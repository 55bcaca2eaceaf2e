"""Several processes that take every step of a run together, started by torchrun.

    torchrun --nproc-per-node 2 -m -- reinforce_lite train quickstart

Each process holds the whole model. It samples and scores its share of the questions (`map_shares`), computes
the gradient of its share of the completions, and the gradients are summed over all (`sum_tensors`). Then each
takes the same optimizer step from the same numbers or, with `update.shard_optimizer`, the step of its own
part of the weights, which it gives to the others (`share_parts`). With `update.shard_weights` the gradient is
summed part by part too, inside the passes (models/sharded.py). The main process, rank 0, alone writes
files.

All processes must decide alike. What only one of them knows (its clock, a file, a signal, an exception) is
told to all by `exchange`: where the work of one fails, all raise. A process that dies, freezes or is stuck
ends the run on all (models/peers.py). Without torchrun there is one process, and everything here is a plain
call.
"""

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any, TypeVar
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from reinforce_lite.errors import LostProcessError, ReinforceLiteError, UsageError
from reinforce_lite.models.device import pick_device
from reinforce_lite.models.peers import Processes
from reinforce_lite.models.shares import equal_parts, part_length, split_by_key
from reinforce_lite.models.torchrun import check_environment, world_size
from reinforce_lite.utils.memory import is_out_of_memory, limit_fragmentation
from reinforce_lite.utils.text import one_line_error

Value = TypeVar("Value")

COLLECTIVE_TIMEOUT = timedelta(seconds=60)
"""The limit of one transfer. It starts when all processes have arrived, so it waits for no one's work."""
CPU_PASS_TIMEOUT = timedelta(minutes=10)
"""The same inside of a pass on a CPU, where the others may compute for long."""
JOIN_SECONDS = 600.0
"""For all processes to start: the first import of torch from a network's disk takes minutes."""
PIECE_ELEMENTS = 2**26
"""Elements that are summed in one transfer."""

_processes: Processes | None = None


def join(device: str = "auto") -> None:
    """Meet the other processes that torchrun started; does nothing where there are none.

    Each process of a machine takes a GPU of its own, where there are GPUs. Raises UsageError for too few, for
    a device of another kind, and where another program than torchrun has set WORLD_SIZE alone.
    """
    global _processes
    if world_size() == 1 or _processes:
        return
    check_environment()
    limit_fragmentation()  # before CUDA is initialized
    kind = pick_device(device).type
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"several processes can't train on {kind}", "set --model.device cpu, or start one")
    if kind == "cuda":
        _take_gpu()
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # so that a transfer that fails raises
    store, rank, size = next(iter(rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS))))
    _await_joining(store, size)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    except RuntimeError as error:
        raise LostProcessError(
            f"the processes can't connect: {one_line_error(error)}", "see that no firewall is between them"
        ) from error
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])  # which vLLM overwrites on a CPU
    _processes = Processes(PrefixStore("reinforce-lite", store), rank, size, local_size)
    _processes.start_heartbeat()


def _take_gpu() -> None:
    """Use the GPU of this process's number on its machine. Raises UsageError for too few GPUs."""
    processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if processes > gpus:
        raise UsageError(
            f"there are {processes} processes, but {gpus} GPUs on this machine",
            f"start at most {gpus}: torchrun --nproc-per-node {gpus}",
        )
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _await_joining(store: Any, size: int) -> None:
    """Wait for all processes to start."""
    end = time.monotonic() + JOIN_SECONDS
    store.add("reinforce-lite/joined", 1)
    while (joined := store.add("reinforce-lite/joined", 0)) < size:
        if time.monotonic() > end:
            raise LostProcessError(
                f"{joined} of {size} processes have started after {JOIN_SECONDS:.0f} seconds",
                "start torchrun on all machines with the same options",
            )
        time.sleep(0.1)


def leave() -> None:
    """Part from the other processes; all call it when the run has ended well."""
    global _processes
    if _processes:
        _processes.left = True
        _processes = None
        dist.destroy_process_group()


def size() -> int:
    """The number of processes."""
    return _processes.size if _processes else 1


def local_size() -> int:
    """The number of processes on this machine, which share its memory."""
    return _processes.local_size if _processes else 1


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return not _processes or _processes.rank == 0


def is_failing() -> bool:
    """Whether all processes are raising the same error, which the main process shows."""
    return _processes is not None and _processes.failing


def raise_signals_in(interruptible: Callable[[], AbstractContextManager[None]]) -> None:
    """Let signals be raised in a process's own work, by this context, and nowhere else."""
    if _processes:
        _processes.interruptible = interruptible


def watched(name: str, expected: float = 0.0) -> AbstractContextManager[None]:
    """Watch a block of this process's own work: without `report_alive` in time, the process is ended
    (models/watch.py).
    """
    return _processes.watch.over(name, expected) if _processes else nullcontext()


def report_alive() -> None:
    """Tell the watch that this process makes progress. Raises LostProcessError where another is lost."""
    if _processes:
        _processes.watch.advance()
        if _processes.gone and not _processes.lost:
            raise _processes.lose(_processes.gone)


def report_alive_with(module: torch.nn.Module) -> None:
    """Report each time that this module is called: for passes that are not our own."""
    if _processes:
        module.register_forward_pre_hook(lambda *_: report_alive())


def exchange(work: Callable[[], Value]) -> list[Value]:
    """What the work of each process returned, by rank, on all of them.

    If the work of any process raises, all raise the exception of the lowest such rank. For a bug the others
    raise LostProcessError, and the process that failed prints its traceback. If a process is lost, all others
    raise LostProcessError.
    """
    return _exchange(work, _processes.interruptible) if _processes else [work()]


def fail_together(work: Callable[[], None]) -> None:
    """Work in which the processes exchange. What one raises outside of an exchange reaches the others too.

    After an error the others stay until the main process has ended its work, for example saved a checkpoint:
    torchrun ends all processes when the first one leaves. A stuck process waits in the same way.
    """
    if not _processes:
        work()
        return
    _processes.failing = False
    _processes.endings += 1
    try:
        _exchange(work, nullcontext)
    except BaseException:
        with contextlib.suppress(LostProcessError):  # the main process is gone: it has ended
            _processes.end_together()
        raise


def agree(decide: Callable[[], Value]) -> Value:
    """What `decide` returned on the main process, which alone calls it. Where it raises, all do."""
    return exchange(lambda: decide() if is_main() else None)[0]  # type: ignore[return-value]


def check_same(what: Mapping[str, Hashable]) -> None:
    """Refuse processes that do not have the same of each of these, by name. Raises UsageError."""
    everywhere = exchange(lambda: what)
    for name in what:
        if len({one[name] for one in everywhere}) > 1:
            raise UsageError(
                f"the processes do not have the same {name}",
                "give all machines the same files and the same environment",
            )


def check_equal(what: str, value: Hashable) -> None:
    """Raises LostProcessError where the processes have computed different values."""
    if len(set(exchange(lambda: value))) > 1:
        raise LostProcessError(
            f"the {what} differ between the processes",
            "one of them computes or receives wrong numbers: find the faulty card or machine, then --resume",
        )


def map_shares(keys: Sequence[Hashable], work: Callable[[Sequence[int]], Sequence[Value]]) -> list[Value]:
    """Split the positions of `keys` over the processes; `work` turns some positions into their results.

    Returns the results in the order of the positions. Positions with equal keys go to one process. Raises
    LostProcessError where the processes do not have the same keys.
    """
    if not _processes:
        return list(work(range(len(keys))))
    shares, rank = split_by_key(keys, size()), _processes.rank
    told = exchange(lambda: (crc32(repr(list(keys)).encode()), work(shares[rank])))
    if len({digest for digest, _ in told}) > 1:
        raise LostProcessError("the processes ask different questions", "please report it; then --resume")
    results = [result for _, result in told]
    by_position = dict(zip(chain(*shares), chain(*results), strict=True))
    return [by_position[position] for position in range(len(keys))]


def own_part(costs: Sequence[int]) -> slice:
    """This process's part of a list that is cut into parts of about equal cost."""
    return equal_parts(costs, size())[_processes.rank if _processes else 0]


def own_range(shape: torch.Size, by_rows: bool = False) -> slice:
    """This process's part of a tensor of this shape, as a range of its flat elements.

    Parts are equally long, but for those at the end, which are shorter or empty. `by_rows` they are whole
    rows, as FSDP2 cuts tensors.
    """
    assert _processes
    length = part_length(shape, size(), by_rows)
    start = min(shape.numel(), _processes.rank * length)
    return slice(start, min(shape.numel(), start + length))


def share_parts(tensors: Iterable[Tensor], by_rows: bool = False) -> None:
    """Give each process the others' parts (`own_range`) of these contiguous tensors."""
    for tensor in tensors if _processes else ():
        flat = tensor.detach().view(-1)
        part = _padded(flat[own_range(tensor.shape, by_rows)], part_length(tensor.shape, size(), by_rows))
        parts = part.new_empty(size(), len(part))
        _transfer(dist.all_gather, list(parts.view(torch.uint8)), part.view(torch.uint8))
        flat.copy_(parts.view(-1)[: len(flat)])


def collect_parts(part: Tensor, shape: torch.Size, by_rows: bool = False) -> Tensor | None:
    """The tensor of this shape of which each process has a part: on the main one's CPU, None elsewhere."""
    assert _processes
    padded = _padded(part, part_length(shape, size(), by_rows)).view(torch.uint8)
    parts = [torch.empty_like(padded) for _ in range(_processes.size)] if is_main() else None
    _transfer(dist.gather, padded, parts)
    return torch.cat(parts).view(part.dtype)[: shape.numel()].cpu().view(shape) if parts else None


def _padded(part: Tensor, length: int) -> Tensor:
    padded = part.new_zeros(length)
    padded[: len(part)] = part
    return padded


def can_transfer(failure: BaseException | None = None) -> bool:
    """Whether all processes are here, so that they can transfer tensors; all call it.

    False if a process is lost, or has left after an error that it does not handle. `failure` is what this
    process is handling. The others may not know of it yet: they are told, and raise it.
    """
    if not _processes or _processes.lost:
        return not _processes
    if not _processes.failing and failure is None:
        exchange(lambda: None)
        return True
    if not _processes.failing:
        assert failure
        with contextlib.suppress(BaseException):  # the same, or that of another process
            exchange(partial(_raise, failure))
    processes = _processes
    processes.roll_calls += 1
    here, left = f"here/{processes.roll_calls}", f"left/{processes.endings}"
    try:
        processes.check_heartbeats(patient=False)
        processes.count(here, 1)
        processes.await_until(
            lambda: processes.count(here) == processes.size or processes.count(left) > 0, patient=False
        )
        return processes.count(here) == processes.size
    except LostProcessError:
        return False


def _raise(error: BaseException) -> None:
    raise error


def sum_tensors(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, the same to the bit on all; sums are in float32.

    Call it right after an exchange, so that all processes are there.
    """
    for tensor in tensors if _processes else ():
        flat = tensor.view(-1)
        for piece in torch.split(flat, PIECE_ELEMENTS):
            wide = piece.float()  # the piece itself, in float32
            _transfer(dist.all_reduce, wide)
            if wide is not piece:
                piece.copy_(wide)


def broadcast_tensors(
    tensors: Mapping[str, Tensor] | None, keep: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """What each process keeps of the main one's tensors, which are on its CPU, by name.

    Those that the others give are ignored.
    """
    if not _processes:
        return {name: keep(name, tensor) for name, tensor in (tensors or {}).items()}
    given = dict(tensors or {}) if is_main() else {}
    shapes = agree(lambda: {name: (t.shape, t.dtype) for name, t in given.items()})
    received = {}
    for name, (shape, dtype) in shapes.items():
        tensor = given[name] if is_main() else torch.empty(shape, dtype=dtype)
        _transfer(dist.broadcast, tensor, src=0)
        received[name] = keep(name, tensor)
    return received


def _exchange(
    work: Callable[[], Value], interruptible: Callable[[], AbstractContextManager[None]]
) -> list[Value]:
    assert _processes
    result, error = b"", None
    try:
        with interruptible():
            result = pickle.dumps(work())
    except BaseException as raised:
        if _processes.lost or _processes.failing:
            raise  # an exchange inside the work failed, so all processes raise
        error = raised
    error = _await_others(interruptible, error)
    outcomes: list[Any] = [None] * _processes.size
    _transfer(dist.all_gather_object, outcomes, (result, _sendable(error)))
    failed = [(rank, raised) for rank, (_, raised) in enumerate(outcomes) if raised is not None]
    if not failed:
        return [pickle.loads(value) for value, _ in outcomes]  # noqa: S301 -- of this program's own processes
    _processes.failing = True
    rank, shared = failed[0]
    if rank == _processes.rank and error is not None:
        shared = error  # with its traceback
    raise shared


def _await_others(
    interruptible: Callable[[], AbstractContextManager[None]], error: BaseException | None
) -> BaseException | None:
    """Wait until all processes have arrived here; returns the error, or the first signal while waiting.

    Raises LostProcessError if one of the others is lost.
    """
    assert _processes
    processes = _processes
    processes.rounds += 1
    arrived = f"arrived/{processes.rounds}"
    processes.count(arrived, 1)

    def all_are_here() -> bool:
        return processes.count(arrived) == processes.size

    if error is None:
        try:
            with interruptible():
                processes.await_until(all_are_here)
            return None
        except LostProcessError:
            raise
        except BaseException as raised:
            error = raised
    processes.await_until(all_are_here, patient=False)
    return error


def _transfer(collective: Callable[..., Any], *tensors: Any, **options: Any) -> None:
    """Run a collective. Raises LostProcessError if it fails, as when a process dies within it."""
    assert _processes
    try:
        collective(*tensors, **options)
    except RuntimeError as error:  # gloo: "Connection closed by peer"; nccl: DistBackendError
        raise _processes.lose_transfer(error) from error


def group_for_passes(device: torch.device) -> dist.ProcessGroup:
    """A group of all processes, for weights that are sharded from now on; all call it.

    Its transfers are inside of a pass, and wait for what the others compute there.
    """
    assert _processes
    timeout = COLLECTIVE_TIMEOUT if device.type == "cuda" else CPU_PASS_TIMEOUT
    _processes.is_sharded = True
    group = dist.new_group(timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


@contextlib.contextmanager
def transferring() -> Iterator[None]:
    """A block of a pass in which FSDP2 transfers. Raises LostProcessError where a transfer fails.

    An error of this process's own can't be exchanged, since the others wait in a transfer. It is written to
    the store; the others read it when their transfer fails, which happens once this process has exited.
    """
    try:
        yield
    except Exception as error:
        assert _processes
        if _processes.lost:
            raise
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            _processes.lose(f"process {_processes.rank} failed: {one_line_error(error)}")
            raise
        raise _processes.lose_transfer(error) from error


def _sendable(error: BaseException | None) -> BaseException | None:
    """An error of the user's or a signal as it is, any other without its tensors and traceback."""
    if error is None or isinstance(error, ReinforceLiteError) or not isinstance(error, Exception):
        return error
    if is_out_of_memory(error):
        return MemoryError(one_line_error(error))
    assert _processes
    return LostProcessError(
        f"process {_processes.rank} failed: {one_line_error(error)}", "its traceback is printed above"
    )
