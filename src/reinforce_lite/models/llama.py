"""The arithmetic of Llama-like models, on the weights that transformers loaded.

One forward pass serves both sides of the loop. Sampler and trainer differ only in what a token
attends to, which they hand in as `attend`; so they can't drift apart. What it saves over the modules:

- tokens of any number of sequences stand one after another, (N, H), without padding;
- q, k and v are one product, and so are gate and up: the fused buffer owns the storage, and the
  modules' parameters are views of its rows, so an optimizer step or a save sees one memory;
- for the backward pass only what is costly to make again is kept: norms and activations are recomputed
  from their inputs, half of what autograd would keep.

It knows the families named in FAMILIES; any other model goes through transformers' own modules.

Shapes: N tokens, H hidden size, Q query heads, K heads of keys and values, D head size, I inner size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3"})

Attend = Callable[[int, Tensor], Tensor]
"""(layer, (N, (Q + 2K) x D) rotated queries and keys, and values) to (N, Q x D)."""
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`F.linear`, or what gives the same product sooner."""


def supports_model(model: nn.Module) -> bool:
    """Whether this pass computes what the model's own code computes.

    Models that bring their own code, adapters, quantized products and attention windows do not.
    """
    if not type(model).__module__.startswith("transformers.models."):
        return False
    c: Any = model.config
    windows = set(getattr(c, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    window = getattr(c, "sliding_window", None) if getattr(c, "use_sliding_window", True) else None
    if c.model_type not in FAMILIES or windows or (window and window < c.max_position_embeddings):
        return False
    if _rope(model).get("rope_type") == "dynamic" or c.hidden_act != "silu" or getattr(c, "mlp_bias", False):
        return False
    products = [
        m for m in model.modules() if hasattr(m, "in_features") or type(m).__name__.endswith("Linear")
    ]
    return all(type(m) is nn.Linear and type(m.weight) is nn.Parameter for m in products)


def max_exact_length(model: nn.Module) -> float:
    """How many tokens a sequence may have: beyond them Phi-3's rotary embedding depends on the others in
    the batch, and then only transformers' own modules do what they do."""
    rope = _rope(model)
    longer = rope.get("rope_type") == "longrope"
    return rope["original_max_position_embeddings"] if longer else math.inf


def _rope(model: Any) -> dict[str, Any]:
    return getattr(model.config, "rope_parameters", None) or {}


@dataclass(frozen=True, slots=True)
class Projection:
    """One product that stands for several linear modules."""

    weight: Tensor
    """(sum of the modules' rows, H): the storage that the modules' weights are views of."""
    bias: Tensor | None
    modules: tuple[nn.Linear, ...]

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The modules' own."""
        return tuple(m.weight for m in self.modules)

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """The modules' own; empty where they have none."""
        return tuple(m.bias for m in self.modules if m.bias is not None)

    def intact(self) -> bool:
        """Whether the modules' parameters still lie in the fused storage."""
        pairs = [(self.weight, self.weights)] + ([] if self.bias is None else [(self.bias, self.biases)])
        return all(
            part.data_ptr() == rows.data_ptr()
            for whole, parts in pairs
            for part, rows in zip(parts, torch.split(whole, [len(p) for p in parts]), strict=True)
        )


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer, in the order in which they are used."""

    attention_norm: Any
    qkv: Projection
    q_norm: Any
    """Qwen3 only, else None; so `k_norm`."""
    k_norm: Any
    out: nn.Linear
    mlp_norm: Any
    gate_up: Projection
    down: nn.Linear


class Llama:
    """The body of a causal language model: token ids to final hidden states."""

    def __init__(self, model: Any) -> None:
        """Fuses the model's products in place: its parameters move into new storage."""
        c = model.config
        self.model = model
        self.body = model.base_model
        self.query_heads: int = c.num_attention_heads
        self.kv_heads: int = c.num_key_value_heads
        self.head_size: int = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.layers = [_layer(layer) for layer in self.body.layers]
        self.scale: float = self.body.layers[0].self_attn.scaling

    @property
    def device(self) -> torch.device:
        device: torch.device = self.layers[0].qkv.weight.device
        return device

    def check(self) -> None:
        """Raises RuntimeError when someone moved a parameter out of the fused storage (`model.to(...)`)."""
        if not all(p.intact() for layer in self.layers for p in (layer.qkv, layer.gate_up)):
            raise RuntimeError("the model's weights were moved after they had been fused")

    @property
    def key_start(self) -> int:
        """Where keys and values begin in a row of q, k and v."""
        return self.query_heads * self.head_size

    def __call__(
        self,
        ids: Tensor,
        places: Tensor,
        attend: Attend,
        linear: Linear = F.linear,
        checkpointing: bool = False,
    ) -> Tensor:
        """(N,) tokens at their (N,) places in their sequences to (N, H) final hidden states.

        With `checkpointing` the backward pass finds each layer's input alone and makes the rest again.
        """
        x = self.body.embed_tokens(ids)  # (N, H)
        turn = tuple(
            t[0] for t in self.body.rotary_emb(x, places[None])
        )  # cos and sin, (N, rotated part of D)
        for i in range(len(self.layers)):
            if checkpointing:
                x = checkpoint(
                    self._layer, i, x, turn, attend, linear, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = self._layer(i, x, turn, attend, linear)
        states: Tensor = self.body.norm(x)
        return states

    def _layer(self, i: int, x: Tensor, turn: tuple[Tensor, ...], attend: Attend, linear: Linear) -> Tensor:
        layer = self.layers[i]
        qkv = _norm_linear(x, layer.attention_norm, layer.qkv, linear)
        if layer.q_norm is not None:
            qkv = self._normed_heads(qkv, layer)
        attended = attend(i, self._rotated(qkv, *turn))
        x = x + linear(attended, layer.out.weight, layer.out.bias)
        gate_up = _norm_linear(x, layer.mlp_norm, layer.gate_up, linear)
        return x + _swiglu_down(gate_up, layer.down.weight, linear)

    def _rotated(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = self.query_heads + self.kv_heads
        rotated: Tensor = _Rotate.apply(qkv, cos, sin, heads, self.head_size)  # type: ignore[no-untyped-call]
        return rotated

    def _normed_heads(self, qkv: Tensor, layer: Layer) -> Tensor:
        heads = qkv.view(len(qkv), -1, self.head_size)
        q, k, v = torch.split(heads, [self.query_heads, self.kv_heads, self.kv_heads], dim=1)
        return torch.cat([layer.q_norm(q), layer.k_norm(k), v], dim=1).flatten(1)


def _layer(layer: Any) -> Layer:
    attn, mlp = layer.self_attn, layer.mlp
    fused = hasattr(attn, "qkv_proj")  # Phi-3 comes so
    return Layer(
        layer.input_layernorm,
        _project([attn.qkv_proj] if fused else [attn.q_proj, attn.k_proj, attn.v_proj]),
        getattr(attn, "q_norm", None),
        getattr(attn, "k_norm", None),
        attn.o_proj,
        layer.post_attention_layernorm,
        _project([mlp.gate_up_proj] if fused else [mlp.gate_proj, mlp.up_proj]),
        mlp.down_proj,
    )


def _project(modules: Sequence[nn.Linear]) -> Projection:
    biases = [m.bias for m in modules if m.bias is not None]
    return Projection(_fuse([m.weight for m in modules]), _fuse(biases) if biases else None, tuple(modules))


@torch.no_grad()
def _fuse(parts: Sequence[Tensor]) -> Tensor:
    """Move the parts' rows into one tensor, of which each part is a view from now on."""
    if len(parts) == 1:
        return parts[0].detach()
    whole = torch.cat([p.detach() for p in parts])
    for part, rows in zip(parts, torch.split(whole, [len(p) for p in parts]), strict=True):
        part.data = rows
    return whole


def _norm_linear(x: Tensor, norm: Any, projection: Projection, linear: Linear) -> Tensor:
    """(N, H) through a norm and a fused projection."""
    if not torch.is_grad_enabled():  # a decoding step is so short that `apply` would be a tenth of it
        inverse = _inverse_rms(x, norm.variance_epsilon)
        return linear(_normed(x, inverse, norm.weight), projection.weight, projection.bias)
    parts = (*projection.weights, *projection.biases)
    made: Tensor = _NormLinear.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.variance_epsilon, projection, linear, *parts
    )
    return made


def _swiglu_down(gate_up: Tensor, weight: Tensor, linear: Linear) -> Tensor:
    """(N, 2I) gate and up to (N, H)."""
    if not torch.is_grad_enabled():
        return linear(_swiglu(gate_up), weight, None)
    made: Tensor = _SwigluDown.apply(gate_up, weight, linear)  # type: ignore[no-untyped-call]
    return made


class _NormLinear(Function):
    """RMSNorm(x) W^T + b (Zhang and Sennrich 2019); keeps x and one number a token.

    The parts of the projection are named as inputs only to be given their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, eps: float, projection: Projection, linear: Linear, *parts: Tensor
    ) -> Tensor:
        inverse = _inverse_rms(x, eps)
        ctx.save_for_backward(x, gain, inverse)
        ctx.projection = projection
        return linear(_normed(x, inverse, gain), projection.weight, projection.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gain, inverse = ctx.saved_tensors
        p = ctx.projection
        rows = [len(w) for w in p.weights]
        unit = x * inverse  # (N, H), in at least float32
        weight = grad.t() @ (unit.to(x.dtype) * gain)  # (rows, H)
        d = (grad @ p.weight).to(unit.dtype)  # (N, H) with respect to the norm's output
        both = d * unit
        d_gain = both.sum(0).to(gain.dtype)
        along = (both @ gain.to(unit.dtype)).div_(-x.shape[1])[:, None]  # (N, 1)
        d_x = d.mul_(gain).addcmul_(unit, along).mul_(inverse).to(x.dtype)
        biases = torch.split(grad.sum(0), rows) if p.biases else ()
        return d_x, d_gain, None, None, None, *torch.split(weight, rows), *biases


def _normed(x: Tensor, inverse: Tensor, gain: Tensor) -> Tensor:
    """RMSNorm(x), rounded where transformers rounds."""
    return (x * inverse).to(x.dtype).mul_(gain)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(N, 1): 1 / sqrt(mean(x^2) + eps) of (N, H), in at least float32."""
    norm: Tensor = torch.linalg.vector_norm(
        x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _SwigluDown(Function):
    """(silu(gate) * up) W^T of (N, 2I) gate and up (Shazeer 2020); keeps gate and up alone."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor, linear: Linear) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        return linear(_swiglu(gate_up), weight, None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate_up, weight = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        inner = F.silu(gate)  # (N, I)
        d = grad @ weight
        both = torch.empty_like(gate_up)
        d_gate, d_up = both.chunk(2, dim=-1)
        torch.mul(d, inner, out=d_up)
        d_weight = grad.t() @ inner.mul_(up)
        torch.ops.aten.silu_backward(d.mul_(up), gate, grad_input=d_gate)
        return both, d_weight, None


def _swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of (N, 2I) gate and up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class _Rotate(Function):
    """Rotary embedding (Su et al. 2021) of the queries and keys, in place: it is linear, nothing is kept."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, head_size: int) -> Tensor:
        ctx.turn, ctx.heads, ctx.head_size = (cos, sin), heads, head_size
        ctx.mark_dirty(qkv)
        return _turn(qkv, cos, sin, heads, head_size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos, sin = ctx.turn
        return _turn(grad.clone(), cos, -sin, ctx.heads, ctx.head_size), None, None, None, None


def _turn(rows: Tensor, cos: Tensor, sin: Tensor, heads: int, head_size: int) -> Tensor:
    """Turn the first `heads` heads of (N, heads x D) rows by the (N, up to D) angles, in place.

    The two halves of cos and sin are alike, so that turning back is turning by the opposite angle.
    """
    half = cos.shape[-1] // 2
    view = rows.view(len(rows), -1, head_size)[:, :heads]
    a, b = view[..., :half], view[..., half : 2 * half]
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    turned = a * cos - b * sin
    b.mul_(cos).addcmul_(a, sin)
    a.copy_(turned)
    return rows
