"""The forward pass of Llama-like models, over the weights that transformers loaded.

Engine and updater use the same pass, so that they can't drift apart; they differ only in what a token attends
to, which they pass as `attend`. It is faster than transformers' modules for three reasons:

- the tokens of all sequences lie in one flat (N, H) tensor, without padding;
- q, k and v are one matrix product, and so are gate and up (`projection.py`);
- the backward pass keeps only what is expensive to recompute: norms and activations are recomputed from their
  inputs, which halves what autograd would keep.

It supports the families in `llama_families.py`, whose differences it reads there; other models run through
transformers' own modules.

Shapes: N tokens, H hidden size, Q query heads, K key-value heads, D head size, I inner size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from reinforce_lite.models.adapter import Adapter
from reinforce_lite.models.distributed import report_alive
from reinforce_lite.models.elementwise import (
    rms_norm,
    rms_norm_and_inverse,
    rms_norm_backward,
    rotate,
    swiglu,
    swiglu_backward,
)
from reinforce_lite.models.int8 import Int8Linear
from reinforce_lite.models.llama_families import FAMILIES, Activation, Family, NormNames
from reinforce_lite.models.projection import Linear, Projection

Attend = Callable[[int, Tensor], Tensor]
"""(layer, (N, (Q + 2K) x D) rotated queries, rotated keys, and values) to (N, Q x D)."""
Rotary = Mapping[str | None, tuple[Tensor, ...]]
"""cos and sin, both (N, rotated part of D), by kind (`Family.rotary`)."""


def supports_model(model: nn.Module, max_length: int = 0) -> bool:
    """Whether `Llama` computes the same as the model's own code for sequences of up to `max_length` tokens,
    by default as many as the model's context has.

    It does not for models that bring their own code, adapters or quantized weights, nor beyond a sliding
    window, nor for LongRoPE (Phi-3) beyond the original context, where it depends on the batch's longest
    sequence.
    """
    if not type(model).__module__.startswith("transformers.models."):
        return False
    c: Any = model.config
    family = FAMILIES.get(c.model_type)
    activation = getattr(c, "hidden_act", None) or getattr(c, "hidden_activation", None)
    if family is None or activation != family.activation.name or getattr(c, "mlp_bias", False):
        return False
    if getattr(c, "use_bidirectional_attention", False):
        return False
    context, window = c.max_position_embeddings, sliding_window(c)
    longest = min(max_length or context, context)
    if window is not None and longest > window:
        return False
    rope: Any = getattr(c, "rope_parameters", None) or {}
    for kind in [rope] if "rope_type" in rope else rope.values():  # Gemma has one for each type of layer
        is_long = kind["rope_type"] == "longrope" and longest > kind["original_max_position_embeddings"]
        if kind["rope_type"] == "dynamic" or is_long:
            return False
    linears = [m for m in model.modules() if hasattr(m, "in_features") or type(m).__name__.endswith("Linear")]
    return all(
        type(m) is Int8Linear or (type(m) is nn.Linear and type(m.weight) is nn.Parameter) for m in linears
    )


def sliding_window(config: Any) -> int | None:
    """How many tokens, itself included, a token of some layers attends to; None for all before it."""
    window: int | None = getattr(config, "sliding_window", None)
    return window if getattr(config, "use_sliding_window", True) else None


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm of a layer."""

    module: Any
    eps: float
    family: Family

    @property
    def gain(self) -> Tensor:
        """(H,): what the normed input is multiplied by, in the dtype of that product."""
        weight: Tensor = self.module.weight
        if not self.family.float32_gains:
            return weight
        return weight.to(torch.promote_types(weight.dtype, torch.float32)) + self.family.gain_offset

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of the last dimension, by the module itself where nothing is faster."""
        normed: Tensor = rms_norm(x, self.gain, self.eps) if x.is_cuda else self.module(x)
        return normed


class Layer:
    """The weights of one transformer layer, in the order of their use."""

    def __init__(self, layer: Any, family: Family, eps: float) -> None:
        def norms(names: NormNames, module: Any = layer) -> list[Norm | None]:
            return [Norm(m, eps, family) if (m := getattr(module, n, None)) else None for n in names]

        attn, mlp = layer.self_attn, layer.mlp
        fused = hasattr(attn, "qkv_proj")  # Phi-3's projections are fused as loaded
        self.attention_norm, self.mlp_norm = norms(family.input_norms)
        self.qkv = Projection([attn.qkv_proj] if fused else [attn.q_proj, attn.k_proj, attn.v_proj])
        self.q_norm, self.k_norm = norms(("q_norm", "k_norm"), attn)
        """Of each head (Qwen3, Gemma 3) or of all heads together (OLMo 2), if any."""
        self.out = Projection([attn.o_proj])
        self.attention_out_norm, self.mlp_out_norm = norms(family.output_norms)
        self.gate_up = Projection([mlp.gate_up_proj] if fused else [mlp.gate_proj, mlp.up_proj])
        self.down = Projection([mlp.down_proj])

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All four."""
        return self.qkv, self.out, self.gate_up, self.down


class Llama:
    """A causal language model without its head: token ids to final hidden states."""

    def __init__(self, model: Any) -> None:
        """Fuse the model's projections in place: their parameters move into new storage."""
        c = model.config
        self.model = model
        self.body = model.base_model
        self.query_heads: int = c.num_attention_heads
        self.kv_heads: int = c.num_key_value_heads
        self.head_size: int = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.key_start = self.query_heads * self.head_size
        """The column of a (N, (Q + 2K) x D) tensor at which keys and values start."""
        family = FAMILIES[c.model_type]
        self.activation = family.activation
        self.rotary_kinds = family.rotary(c)
        """Of each layer, see `Family.rotary`."""
        self.embedding_multiplier = family.embedding_multiplier(c)
        self.residual_multiplier = family.residual_multiplier(c)
        self.layers = [Layer(layer, family, c.rms_norm_eps) for layer in self.body.layers]
        self.norm = Norm(self.body.norm, c.rms_norm_eps, family)
        self.scale: float = self.body.layers[0].self_attn.scaling
        self.device = self.layers[0].qkv.weight.device

    def check_fused(self) -> None:
        """Raise RuntimeError if a parameter has left the fused storage (`model.to(...)`)."""
        if not all(p.is_fused() for layer in self.layers for p in layer.projections):
            raise RuntimeError("the model's weights were moved after they had been fused")

    def adapt(self, adapter: Adapter) -> None:
        """Compute the adapter's products too."""
        for layer in self.layers:
            for projection in layer.projections:
                projection.adapt(adapter)

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Attend,
        linear: Linear = F.linear,
        checkpointing: bool = False,
    ) -> Tensor:
        """(N,) token ids at (N,) positions of their sequences to (N, H) final hidden states.

        With `checkpointing` only each layer's input is kept, and its activations are recomputed in the
        backward pass.
        """
        x = self.embed(ids)  # (N, H)
        rotary = self.cos_and_sin(x, positions)
        run_layer: Callable[..., Tensor] = self._layer
        if checkpointing:
            run_layer = partial(checkpoint, self._layer, use_reentrant=False, preserve_rng_state=False)
        for i in range(len(self.layers)):
            x = run_layer(i, x, rotary, attend, linear)
            report_alive()
        return self.norm(x)

    def embed(self, ids: Tensor) -> Tensor:
        """(N,) token ids to what enters the first layer, (N, H)."""
        x: Tensor = self.body.embed_tokens(ids)
        return x if self.embedding_multiplier == 1 else x * self.embedding_multiplier

    def cos_and_sin(self, x: Tensor, positions: Tensor) -> Rotary:
        """cos and sin of (N,) positions, in the dtype of x.

        Without transformers' decorator, by which LongRoPE reads the longest position on the host to choose
        its factors, which a CUDA graph can't: `supports_model` accepts only lengths with the short ones.
        """
        kinds = set(self.rotary_kinds) - {None}
        module = self.body.rotary_emb
        find_cos_and_sin = partial(unwrap(type(module).forward), module)
        found = {kind: find_cos_and_sin(x, positions[None], *filter(None, [kind])) for kind in kinds}
        return {kind: tuple(t[0].to(x.dtype) for t in cos_sin) for kind, cos_sin in found.items()}

    def _layer(self, i: int, x: Tensor, rotary: Rotary, attend: Attend, linear: Linear) -> Tensor:
        layer = self.layers[i]
        qkv = _norm_linear(x, layer.attention_norm, layer.qkv, linear)
        if layer.q_norm and layer.k_norm:
            qkv = self._norm_heads(qkv, layer.q_norm, layer.k_norm)
        if (kind := self.rotary_kinds[i]) is not None:
            heads, cos_sin = self.query_heads + self.kv_heads, rotary[kind]
            qkv = _Rotate.apply(qkv, *cos_sin, heads, self.head_size)  # type: ignore[no-untyped-call]
        x = self._add(x, partial(_project, attend(i, qkv), layer.out, linear), layer.attention_out_norm)
        gate_up = _norm_linear(x, layer.mlp_norm, layer.gate_up, linear)
        down = partial(_swiglu_down, gate_up, self.activation, layer.down, linear)
        return self._add(x, down, layer.mlp_out_norm)

    def _norm_heads(self, qkv: Tensor, q_norm: Norm, k_norm: Norm) -> Tensor:
        kv = self.kv_heads * self.head_size
        q, k, v = torch.split(qkv, [self.key_start, kv, kv], dim=1)
        q, k = (
            norm(t.reshape(len(t), -1, len(norm.module.weight))).flatten(1)
            for t, norm in ((q, q_norm), (k, k_norm))
        )
        return torch.cat([q, k, v], dim=1)

    def _add(self, x: Tensor, project: Callable[..., Tensor], norm: Norm | None) -> Tensor:
        """x plus the output of half a layer. On a card, when no gradient is needed, the last product adds it
        in place.
        """
        if x.is_cuda and not torch.is_grad_enabled() and norm is None and self.residual_multiplier == 1:
            return project(onto=x)
        out = project()
        return torch.add(x, _norm(out, norm) if norm else out, alpha=self.residual_multiplier)


def _norm(x: Tensor, norm: Norm) -> Tensor:
    """RMSNorm of (N, H)."""
    if x.is_cuda or not torch.is_grad_enabled():
        return rms_norm(x, norm.gain, norm.eps)
    normed: Tensor = _Norm.apply(x, norm.gain, norm.eps)  # type: ignore[no-untyped-call]
    return normed


def _norm_linear(x: Tensor, norm: Norm | None, projection: Projection, linear: Linear) -> Tensor:
    """RMSNorm of (N, H), where there is one, then a fused projection."""
    if norm is None:
        return _project(x, projection, linear)
    if not torch.is_grad_enabled():  # `apply` would take a tenth of the time of a decoding step
        return projection(rms_norm(x, norm.gain, norm.eps), linear)
    projected: Tensor = _NormLinear.apply(  # type: ignore[no-untyped-call]
        x, norm.gain, norm.eps, projection, linear, *projection.trained
    )
    return projected


def _project(x: Tensor, projection: Projection, linear: Linear, onto: Tensor | None = None) -> Tensor:
    """(N, inputs) to (N, outputs); without gradient, added to `onto` if that is given."""
    if not torch.is_grad_enabled():
        return projection(x, linear, onto)
    projected: Tensor = _Project.apply(x, projection, linear, *projection.trained)  # type: ignore[no-untyped-call]
    return projected


def _swiglu_down(
    gate_up: Tensor,
    activation: Activation,
    projection: Projection,
    linear: Linear,
    onto: Tensor | None = None,
) -> Tensor:
    """(N, 2I) gate and up to (N, H); without gradient, added to `onto` if that is given."""
    if not torch.is_grad_enabled():
        return projection(swiglu(gate_up, activation), linear, onto)
    projected: Tensor = _SwigluDown.apply(  # type: ignore[no-untyped-call]
        gate_up, activation, projection, linear, *projection.trained
    )
    return projected


class _Norm(Function):
    """RMSNorm(x); keeps x and one number per token. The gradient is that of `_NormLinear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        normed, inverse = rms_norm_and_inverse(x, gain, eps)
        ctx.save_for_backward(x, gain, inverse)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, gain, inverse = ctx.saved_tensors
        unit = x * inverse
        d = grad.to(unit.dtype, copy=True)
        return *_rms_norm_backward(d, unit, inverse, gain, x.dtype, ctx.needs_input_grad[1]), None


class _NormLinear(Function):
    """y W^T + b with y = RMSNorm(x) (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467).

    With r = 1 / sqrt(mean(x^2) + eps), u = r x, gain g and d the gradient with respect to y:

        y = g u        d_g = sum over tokens of d u        d_x = r (g d - u mean(g d u))

    Keeps x and r, one number per token. The parameters of the projection are arguments only so that
    autograd gives them their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, eps: float, projection: Projection, linear: Linear, *params: Tensor
    ) -> Tensor:
        normed, inverse = rms_norm_and_inverse(x, gain, eps)
        ctx.save_for_backward(x, gain, inverse)
        ctx.projection, ctx.eps = projection, eps
        return projection(normed, linear)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gain, inverse = ctx.saved_tensors
        projection = ctx.projection
        if x.is_cuda:
            d_params = projection.parameter_gradients(grad, rms_norm_and_inverse(x, gain, ctx.eps)[0])
            if not ctx.needs_input_grad[0]:
                return None, None, None, None, None, *d_params
            d = projection.input_gradient(grad)
            d_x, d_gain = rms_norm_backward(d, x, inverse, gain, ctx.needs_input_grad[1])
            return d_x, d_gain, None, None, None, *d_params
        unit = x * inverse  # (N, H), in at least float32
        d_params = projection.parameter_gradients(grad, (unit.to(gain.dtype) * gain).to(x.dtype))
        if not ctx.needs_input_grad[0]:  # the first layer over a frozen embedding
            return None, None, None, None, None, *d_params
        d = projection.input_gradient(grad).to(unit.dtype)  # (N, H)
        d_x, d_gain = _rms_norm_backward(d, unit, inverse, gain, x.dtype, ctx.needs_input_grad[1])
        return d_x, d_gain, None, None, None, *d_params


def _rms_norm_backward(
    d: Tensor, unit: Tensor, inverse: Tensor, gain: Tensor, dtype: torch.dtype, trains_gain: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of an RMSNorm's input, in its dtype, and of its gain. Overwrites `d`."""
    d_unit = d * unit
    d_gain = d_unit.sum(0).to(gain.dtype) if trains_gain else None
    negative_mean = (d_unit @ gain.to(unit.dtype)).div_(-unit.shape[1])[:, None]  # (N, 1)
    return d.mul_(gain).addcmul_(unit, negative_mean).mul_(inverse).to(dtype), d_gain


class _Project(Function):
    """x W^T + b, and the adapter's product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: Projection, linear: Linear, *params: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.projection = projection
        return projection(x, linear)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        d_params = ctx.projection.parameter_gradients(grad, x)
        d_x = ctx.projection.input_gradient(grad) if ctx.needs_input_grad[0] else None
        return d_x, None, None, *d_params


class _SwigluDown(Function):
    """(silu(gate) * up) W^T, SwiGLU and the down projection, or with another activation a relative of it
    (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    Keeps only the (N, 2I) gate and up, and recomputes their product in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gate_up: Tensor,
        activation: Activation,
        projection: Projection,
        linear: Linear,
        *params: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation, ctx.projection = activation, projection
        return projection(swiglu(gate_up, activation), linear)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (gate_up,) = ctx.saved_tensors
        d_inner = ctx.projection.input_gradient(grad)  # (N, I)
        d_gate_up, inner = swiglu_backward(d_inner, gate_up, ctx.activation)
        return d_gate_up, None, None, None, *ctx.projection.parameter_gradients(grad, inner)


class _Rotate(Function):
    """Rotary position embedding of queries and keys (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    In place on a CPU, and nothing but cos and sin is kept: the gradient is rotated by the opposite angle.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, head_size: int) -> Tensor:
        ctx.rotary, ctx.heads, ctx.head_size = (cos, sin), heads, head_size
        rotated = rotate(qkv, cos, sin, heads, head_size)
        if rotated is qkv:
            ctx.mark_dirty(qkv)
        return rotated

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos, sin = ctx.rotary
        grad = grad if grad.is_cuda else grad.clone()
        return rotate(grad, cos, -sin, ctx.heads, ctx.head_size), None, None, None, None
