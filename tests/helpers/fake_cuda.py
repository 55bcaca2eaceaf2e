"""A graphics card that is not there: tensors say `cuda:0`, and the CPU does the arithmetic.

    with FakeCuda() as card:
        policy = load_policy(folder, device="cuda")
        ...
    card.waits     # how often the host waited for the card, by the line of the program that made it wait
    card.launches  # how many operations were launched on it, by name
    card.fails_at = card.allocations + 9    # memory runs out at the ninth tensor from here

A tensor is on the card if its storage is marked. What Python asks of a tensor's device is answered by the mark,
and a mode of torch sees every operation, those of a backward pass included: it marks the results, and raises
where a card would, for operands on two devices. Calls of `torch.cuda` that are not replaced raise too.

A compiled function runs as it is, and counts as one launch. Triton's kernels are not used. Flash attention is computed in float32.

Left out: streams, speed and rounding, and how much memory tensors take.
"""

# mypy: allow-untyped-calls

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

import reinforce_lite
from reinforce_lite.engines import decode_kernel
from reinforce_lite.models import elementwise

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MEMORY = 80 * 10**9
"""Bytes that the card says it has."""
SOURCES = str(Path(reinforce_lite.__file__).parent)
NEW = ("arange", "as_tensor", "empty", "full", "ones", "randint", "tensor", "zeros")
"""Functions of torch that take a device. The first tensors of a program come from them or from `Tensor.to`."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"copy_", "_foreach_copy_"}
REPEATS = {torch.ops.aten.repeat_interleave.Tensor, torch.ops.aten.repeat_interleave.self_Tensor}
NO_LAUNCH = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "_unsafe_view",
}
"""Operations that, in addition to views, leave the card alone."""
TO_LIST, DEVICE_CAPABILITY = Tensor.tolist, (9, 0)
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


def launches(func: Any) -> bool:
    """Whether an operation launches anything: it computes, or writes to memory."""
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    return not views and func.overloadpacket.__name__ not in NO_LAUNCH


class FakeCuda(TorchDispatchMode):
    """A context in which `cuda` is an available device."""

    def __init__(self, free: int = MEMORY) -> None:
        """`free` is what other programs leave of the card's memory."""
        super().__init__()
        self.free = free
        self.waits = Counter[str]()
        self.launches = Counter[str]()
        self.compiled = 0
        """How many compiled functions are running, one inside another."""
        self.allocations, self.fails_at = 0, 0

    def __enter__(self) -> "FakeCuda":
        _device_constructors()  # which `with torch.device(...)` remembers from its first use: the unpatched ones
        self.patches = ExitStack()
        for replacement in (*self._replace_tensor_methods(), *self._replace_cuda()):
            self.patches.enter_context(replacement)
        self.patches.enter_context(patch.object(elementwise, "compile_for_card", self._compile))
        self.patches.enter_context(patch.object(decode_kernel, "supports", lambda *_: False))
        for stand_in in (_fused_rms_norm, _fused_rms_norm_backward):
            name = stand_in.__name__
            self.patches.enter_context(patch.object(torch.ops.aten, name, self._compile(stand_in)))
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

    def put(self, tensor: Tensor) -> Tensor:
        """Mark a tensor as on the card; if its storage is new, memory may run out."""
        if not is_on_card(tensor):
            self.allocations += 1
            if self.allocations == self.fails_at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return put_on_card(tensor)

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
        if not self.compiled and launches(func):
            self.launches[func.overloadpacket.__name__] += 1
        results = STAND_INS.get(func, func)(*args, **kwargs)
        addresses = {t.untyped_storage()._cdata for t in on_cpu}
        for result in tensors_in(results):
            if result.untyped_storage()._cdata not in addresses:
                self.put(result)
        return results

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """In place of `compile_for_card`: `function` as it is, as one launch."""

        def call(*args: Any) -> Any:
            self.launches[function.__name__] += 1
            self.compiled += 1
            try:
                return function(*args)
            finally:
                self.compiled -= 1

        call.is_compiled = True  # type: ignore[attr-defined]
        return call

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
            pin_memory=lambda tensor: tensor,
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
            return self.put(moved) if target else moved

        return move

    def _replace_new(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def create(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Tensor:
            if device is None or torch.device(device).type != "cuda":
                return function(*args, device=device, **kwargs)
            if function.__name__ in {"tensor", "as_tensor"}:
                self.wait()  # Python's numbers are copied to the card
            with no_dispatch():
                return self.put(function(*args, device=CPU, **kwargs))

        return create

    def _replace_cuda(self) -> Iterator[Any]:
        """Patches of what the program asks about the card."""

        def refuse(*_: Any) -> None:
            raise AssertionError("a call of torch.cuda that the fake card does not have")

        properties = SimpleNamespace(name="fake card", total_memory=MEMORY)
        yield patch.multiple(
            torch.cuda,
            _lazy_init=refuse,
            is_available=lambda: True,
            is_current_stream_capturing=lambda: False,
            synchronize=lambda device=None: self.wait(),
            is_bf16_supported=lambda including_emulation=True: True,
            get_device_capability=lambda device=None: DEVICE_CAPABILITY,
            get_device_properties=lambda device=None: properties,
            mem_get_info=lambda device=None: (self.free, MEMORY),
            memory_reserved=lambda device=None: 0,
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


def _segments(
    query_starts: Tensor, key_starts: Tensor, used_keys: Tensor | None = None
) -> Iterator[tuple[slice, slice]]:
    """The flat indices of each segment's queries and keys."""
    q, k = TO_LIST(query_starts), TO_LIST(key_starts)
    counts = [b - a for a, b in pairwise(k)] if used_keys is None else TO_LIST(used_keys)
    for (start, stop), key_start, count in zip(pairwise(q), k, counts, strict=False):
        yield slice(start, stop), slice(key_start, key_start + count)


def _scores(q: Tensor, keys: Tensor, scale: float, causal: bool) -> Tensor:
    """(Q, n, s) of (n, Q, D) queries and (s, K, D) keys, in float32; as flash attention, `causal` ends flush."""
    repeated = keys.float().repeat_interleave(q.shape[1] // keys.shape[1], 1)
    scores = torch.einsum("nhd,shd->hns", q.float(), repeated) * scale
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + len(keys) - len(q))
    return scores.masked_fill(later, -torch.inf) if causal else scores


def _flash_forward(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    *rest: Any,
    scale: float,
    seqused_k: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """A segment without keys gets the output 0 and the log-sum-exp +inf, as on a card."""
    longest_query, longest_key, _, causal, _ = rest
    assert q.dtype in {torch.float16, torch.bfloat16}
    out = torch.zeros_like(q)
    lse = torch.full((q.shape[1], len(q)), torch.inf)  # (Q, N)
    for queries, used in _segments(query_starts, key_starts, seqused_k):
        n, s = queries.stop - queries.start, used.stop - used.start
        assert n <= longest_query
        assert s <= longest_key
        assert used.stop <= len(keys)
        if n and s:
            scores = _scores(q[queries], keys[used], scale, causal)
            lse[:, queries] = scores.logsumexp(-1)
            repeated = values[used].float().repeat_interleave(q.shape[1] // keys.shape[1], 1)
            out[queries] = torch.einsum("hns,shd->nhd", scores.softmax(-1), repeated).to(q.dtype)
    return out, lse, torch.empty(2), torch.empty(0), torch.empty(0)


def _flash_backward(  # noqa: PLR0913, PLR0917 the operation's own
    grad: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    lse: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    *rest: Any,
    scale: float,
) -> tuple[Tensor, ...]:
    assert lse.is_contiguous()
    causal, group = rest[3], q.shape[1] // keys.shape[1]
    d_q, d_keys, d_values = (torch.zeros(x.shape) for x in (q, keys, values))
    for queries, used in _segments(query_starts, key_starts):
        n, s = queries.stop - queries.start, used.stop - used.start
        if not n or not s:
            continue
        p = (_scores(q[queries], keys[used], scale, causal) - lse[:, queries, None]).exp()
        g = grad[queries].float()
        repeated_keys, repeated_values = (x[used].float().repeat_interleave(group, 1) for x in (keys, values))
        delta = (g * out[queries].float()).sum(-1).t()[..., None]  # (Q, n, 1)
        d = p * (torch.einsum("nhd,shd->hns", g, repeated_values) - delta) * scale
        d_q[queries] = torch.einsum("hns,shd->nhd", d, repeated_keys)
        by_group = (s, keys.shape[1], group, -1)
        d_keys[used] = torch.einsum("hns,nhd->shd", d, q[queries].float()).view(by_group).sum(2)
        d_values[used] = torch.einsum("hns,nhd->shd", p, g).view(by_group).sum(2)
    return d_q.to(q.dtype), d_keys.to(q.dtype), d_values.to(q.dtype)


def _fused_rms_norm(x: Tensor, shape: Any, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = (precise.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (precise * inverse * gain).to(x.dtype), inverse


def _fused_rms_norm_backward(
    grad: Tensor, x: Tensor, shape: Any, inverse: Tensor, gain: Tensor, output_mask: list[bool]
) -> tuple[Tensor | None, ...]:
    d, unit = grad.to(inverse.dtype), x * inverse
    d_unit = d * gain
    d_x = inverse * (d_unit - unit * (d_unit * unit).mean(-1, keepdim=True))
    gradients = (d_x.to(x.dtype), (d * unit).sum(0).to(gain.dtype))
    return tuple(g if wanted else None for g, wanted in zip(gradients, output_mask, strict=True))


STAND_INS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._flash_attention_forward.default: _flash_forward,
    torch.ops.aten._flash_attention_backward.default: _flash_backward,
}
"""What computes the operations that the CPU lacks."""
