"""A graphics card that is not there: tensors say `cuda:0`, and the CPU does the arithmetic.

    with FakeCuda() as card:
        policy = load_policy(folder, device="cuda")
        ...
    card.waits     # how often the host waited for the card, by the line of the program that made it wait

A tensor is on the card if its storage is marked. What Python asks of a tensor's device is answered by the mark,
and a mode of torch sees every operation, those of a backward pass included: it marks the results, and raises
where a card would, for operands on two devices. Calls of `torch.cuda` that are not replaced raise too.

Left out: a card's memory, streams, speed and rounding.
"""

# mypy: allow-untyped-calls

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

import reinforce_lite

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MEMORY = 80 * 10**9
"""Bytes that the card says it has."""
SOURCES = str(Path(reinforce_lite.__file__).parent)
NEW = ("arange", "as_tensor", "empty", "full", "ones", "randint", "tensor", "zeros")
"""Functions of torch that take a device. The first tensors of a program come from them or from `Tensor.to`."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"copy_", "_foreach_copy_"}
REPEATS = {torch.ops.aten.repeat_interleave.Tensor, torch.ops.aten.repeat_interleave.self_Tensor}
READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}
"""Operations whose result, or its size, the host must know."""


def is_on_card(tensor: Any) -> bool:
    """Whether a tensor, or what a tensor subclass is made of, lies on the card."""
    if is_traceable_wrapper_subclass(tensor):
        return is_on_card(getattr(tensor, tensor.__tensor_flatten__()[0][0]))
    return getattr(tensor.untyped_storage(), "is_on_card", False)


def put_on_card(tensor: Tensor) -> Tensor:
    """Mark a tensor that lies in storage of its own."""
    tensor.untyped_storage().is_on_card = True  # type: ignore[attr-defined]
    return tensor


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class FakeCuda(TorchDispatchMode):
    """A context in which `cuda` is an available device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = Counter[str]()

    def __enter__(self) -> "FakeCuda":
        self.patches = ExitStack()
        for replacement in (*self._replace_tensor_methods(), *_replace_cuda()):
            self.patches.enter_context(replacement)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patches.close()

    def wait(self) -> None:
        """Count that the host waits."""
        frame = sys._getframe()
        while frame.f_back and not frame.f_code.co_filename.startswith(SOURCES):
            frame = frame.f_back
        name = Path(frame.f_code.co_filename).name
        self.waits[f"{name}:{frame.f_lineno} {frame.f_code.co_name}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check an operation's operands, run it, and put its results where they are."""
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        if any(map(is_traceable_wrapper_subclass, tensors)):
            return NotImplemented  # the subclass calls the operations that it is made of
        on_cpu = [t for t in tensors if not is_on_card(t)]
        if len(on_cpu) == len(tensors):
            return func(*args, **kwargs)
        self._check(func, on_cpu, args, kwargs)
        results = func(*args, **kwargs)
        addresses = {t.untyped_storage()._cdata for t in on_cpu}
        for result in tensors_in(results):
            if result.untyped_storage()._cdata not in addresses:
                put_on_card(result)
        return results

    def _check(self, func: Any, on_cpu: list[Tensor], args: Any, kwargs: Any) -> None:
        """Raise for operands that are not on the card, and count an operation for which the host waits."""
        name = func.overloadpacket.__name__
        indices = tensors_in(args[1]) if name in INDEXING else []
        allowed = {id(t) for t in indices}
        strangers = [tuple(t.shape) for t in on_cpu if t.dim() and id(t) not in allowed]
        if strangers and name not in COPIES:
            raise RuntimeError(f"{name}: operands on cuda:0 and, of the shapes {strangers}, on the CPU")
        if (
            name in READS
            or (name in COPIES and on_cpu)
            or (func in REPEATS and kwargs.get("output_size") is None)
            or any(t.dtype == torch.bool or not is_on_card(t) for t in indices)
        ):
            self.wait()

    def _replace_tensor_methods(self) -> Iterator[Any]:
        """Patches of what depends on a device without being an operation of torch's dispatcher."""
        device, tolist, numpy = Tensor.device, Tensor.tolist, Tensor.numpy

        def count_tolist(tensor: Tensor) -> Any:
            if is_on_card(tensor):
                self.wait()
            return tolist(tensor)

        def refuse_numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if is_on_card(tensor):
                raise TypeError("can't convert a cuda:0 tensor to numpy")
            return numpy(tensor, *args, **kwargs)

        yield patch.multiple(
            Tensor,
            device=property(lambda t: CUDA if is_on_card(t) else device.__get__(t)),
            is_cuda=property(is_on_card),
            to=self._replace_to(Tensor.to),
            cpu=lambda tensor: tensor.to(CPU),
            tolist=count_tolist,
            numpy=refuse_numpy,
        )
        for name in NEW:
            yield patch.object(torch, name, self._replace_new(getattr(torch, name)))

    def _replace_to(self, to: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def move(tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
            if args and isinstance(args[0], Tensor):
                args = (args[0].device, args[0].dtype)
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
            dtype = dtype or tensor.dtype
            source = is_on_card(tensor)
            target = source if device is None else device.type == "cuda"
            if source == target:
                return to(tensor, dtype, copy=copy)
            if not non_blocking:
                self.wait()
            with no_dispatch():
                moved = to(tensor, dtype, copy=True)
            return put_on_card(moved) if target else moved

        return move

    def _replace_new(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def create(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if device is None or torch.device(device).type != "cuda":
                return function(*args, device=device, **kwargs)
            if function.__name__ in {"tensor", "as_tensor"}:
                self.wait()  # Python's numbers are copied to the card
            with no_dispatch():
                return put_on_card(function(*args, device=CPU, **kwargs))

        return create


def _replace_cuda() -> Iterator[Any]:
    """Patches of what the program asks about the card."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a call of torch.cuda that the fake card does not have")

    properties = SimpleNamespace(name="fake card", total_memory=MEMORY)
    yield patch.multiple(
        torch.cuda,
        _lazy_init=refuse,
        is_available=lambda: True,
        is_bf16_supported=lambda including_emulation=True: True,
        get_device_properties=lambda device=None: properties,
        max_memory_allocated=lambda device=None: MEMORY // 2,
        get_rng_state=lambda device=None: torch.get_rng_state(),
        set_rng_state=lambda state, device=None: None,
    )
    yield patch.multiple(torch.accelerator, is_available=lambda: True, empty_cache=lambda: None)
    # Subclasses of torchao state the device of the tensors that they are made of.
    make_subclass = partial(_on_cpu, Tensor._make_wrapper_subclass)
    yield patch.object(Tensor, "_make_wrapper_subclass", make_subclass)


def _on_cpu(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return function(*args, **kwargs | {"device": CPU})
