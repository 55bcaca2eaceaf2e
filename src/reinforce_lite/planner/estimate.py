"""The memory of a run by part, in bytes, computed from the model's shape and the recipe without a tensor.

The estimate counts the tensors that the code allocates in the largest step the recipe allows: every prompt
has prompt.max_tokens tokens, every completion rollout.max_new_tokens, and every completion is trained on.
Weights, gradients, optimizer state and the KV cache are exact, the cache on a CUDA device up to the rounding
of prompt lengths and 20 bytes a token (engines/native.py). Activations are exact for the families of
models/llama.py and estimated for others. Temporaries follow the code named at each formula.

`host_bytes` is what a run on a GPU needs of the machine's own memory; the rest is about the device.

Symbols: H hidden size, I intermediate size, Q query heads, K key-value heads, D head size. GB is 10^9 bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from operator import itemgetter

import torch

from reinforce_lite.config import Config
from reinforce_lite.engines import cache_size, hf, vllm
from reinforce_lite.engines.packed_linear import can_pack
from reinforce_lite.learner import optimizers
from reinforce_lite.learner.presets import build_objective
from reinforce_lite.models import attention, varlen
from reinforce_lite.models.logprobs import tokens_per_chunk
from reinforce_lite.models.policy import MODEL_FILE_BYTES
from reinforce_lite.planner.model_shape import ModelShape
from reinforce_lite.planner.schemes import Target, parameter_scheme, shard_count, shards_weights
from reinforce_lite.types import Sampling
from reinforce_lite.utils.memory import CUDA_CONTEXT

GB = 10**9
TEMPLATE_TOKENS = 64
"""Upper bound on the tokens that a chat template adds before a question."""
SORT_BYTES = {"cuda": 64, "cpu": 34}
"""Bytes per logit while all sequences take the sampler's last resort, a sort of the whole vocabulary in
float64: 8 to sort and 16 sorted. On a GPU 40 more in the kernel, counted in torch's Sort.cu and not yet
measured; elsewhere what the cumulative sums take afterwards is more."""

ROLLOUT, LOGITS, BACKWARD, OPTIMIZER_STEP = "rollout", "logits", "backward pass", "optimizer step"
PHASES = (ROLLOUT, LOGITS, BACKWARD, OPTIMIZER_STEP)
"""The phases of a training step, one of which sets the peak. LOGITS: the forward pass is done and a chunk of
logits exists. BACKWARD: the backward pass is inside the layers."""
UPDATE = (LOGITS, BACKWARD, OPTIMIZER_STEP)


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """For example MemoryPart("KV cache", 1_509_949_440, "80 sequences, …", (ROLLOUT,))."""

    name: str
    bytes: int
    description: str
    phases: tuple[str, ...] = PHASES
    """The phases in which it is held."""


_FREE_BLOCKS = "approximate; free blocks, and gaps between blocks"
OVERHEAD = {
    "cuda": [
        MemoryPart("CUDA context", CUDA_CONTEXT, "approximate; varies with GPU and driver"),
        MemoryPart("allocator", 7 * GB // 10, _FREE_BLOCKS),
    ],
    "cpu": [
        MemoryPart("Python and libraries", 2 * GB // 5, "approximate; before the first tensor"),
        MemoryPart("allocator, update", GB // 2, _FREE_BLOCKS, UPDATE),
        MemoryPart("allocator, rollout", GB // 3, _FREE_BLOCKS, (ROLLOUT,)),
    ],
}
"""About what the process holds in addition to live tensors, by device type; not known for others. A GPU's
allocator is torch's, a CPU's glibc's (utils/memory.limit_fragmentation, docs/memory.md)."""
TRANSFORMERS_GAPS = 0.36
"""The gaps that glibc leaves between activations of transformers' modules, as a share of these: temporaries
and kept tensors alternate there (docs/log.md)."""
MASTER_WEIGHTS = {
    "32-bit": "float32, 4 bytes per parameter: 16-bit rounding would lose small updates",
    "8-bit": "norm weights and biases in float32",
}
"""Descriptions by update.optimizer_state, where there are any."""


def _in_parts(sizes: Sequence[int], shards: int) -> list[int]:
    """The largest part of tensors with these numbers of elements (models/distributed.own_range).

    With whole rows it is up to a row larger.
    """
    return [ceil(size / shards) for size in sizes]


def memory_parts(config: Config, shape: ModelShape, target: Target) -> tuple[MemoryPart, ...]:
    """Everything that a run holds in any of PHASES."""
    return (
        *_training_state(config, shape, target),
        *OVERHEAD.get(target.device_type, ()),
        *_rollout(config, shape, target),
        *(_sharded_update if shards_weights(config, target) else _update)(config, shape, target),
    )


def _training_state(config: Config, shape: ModelShape, target: Target) -> Iterator[MemoryPart]:
    scheme, state, dtype = parameter_scheme(config, target), config.update.optimizer_state, target.dtype_name
    if config.model.base_weights == "int8":
        yield from _int8_weights(shape, target)
    else:
        text = f"{dtype}, {scheme.weights:g} bytes per parameter"
        yield MemoryPart("weights", round(scheme.weights * shape.parameters), text)
    if config.adapter.rank:
        sizes = shape.adapter_sizes(config.adapter)
        parts = _in_parts(sizes, shard_count(config, target))
        moments, _ = optimizers.optimizer_state_bytes(state, parts, itemsize=4)
        text = f"{sum(sizes):,} parameters of rank {config.adapter.rank}, float32, with gradients and moments"
        yield MemoryPart("adapter", 8 * sum(sizes) + moments, text)
        return
    gradient_dtype = dtype if state != "32-bit" else "float32"
    text = f"{gradient_dtype}, {scheme.gradients:g} bytes per parameter; freed after the optimizer step"
    yield MemoryPart("gradients", round(scheme.gradients * shape.parameters), text, UPDATE)
    shards = shard_count(config, target)
    parts = _in_parts(shape.tensor_sizes, shards)
    moments, master_weights = optimizers.optimizer_state_bytes(state, parts, target.dtype.itemsize)
    if shards_weights(config, target):
        master_weights = 4 * sum(parts)
    text = (
        f"AdamW's two moments in {state.removesuffix('-bit')} bits, {scheme.optimizer_state:.4g} bytes "
        "per parameter, and a step count per tensor"
    )
    if shards > 1:
        text += f"; this process's part, one of {shards}"
    if config.update.offload_optimizer:
        passing = optimizers.OFFLOADED_BLOCKS * 2 * (optimizers.BLOCK + 4)
        text = f"{in_gb(moments)} GB in the machine's own memory, and on the GPU what passes through"
        yield MemoryPart("optimizer state", passing, text, (OPTIMIZER_STEP,))
    else:
        yield MemoryPart("optimizer state", moments, text)
    text = MASTER_WEIGHTS[state] if master_weights else "none: the weights themselves are updated"
    if shards > 1 and master_weights:
        text = f"float32, the part of this process, one of {shards}"
    yield MemoryPart("master weights", master_weights, text)


def _int8_weights(shape: ModelShape, target: Target) -> Iterator[MemoryPart]:
    """models/int8.py: a byte per number of a linear layer but the head, and a scale per row."""
    numbers = sum(inputs * outputs for inputs, outputs in shape.linears.values())
    rows = sum(outputs for _, outputs in shape.linears.values())
    others = target.dtype.itemsize * (shape.parameters - numbers + rows)
    text = f"{numbers:,} in 8 bits; scales, embedding, head and norms in {target.dtype_name}"
    yield MemoryPart("weights", numbers + others, text)
    largest = 2 * shape.intermediate_size * shape.hidden_size
    text = f"gate and up of one layer, dequantized: {largest:,} numbers"
    yield MemoryPart("weights of one product", largest * target.dtype.itemsize, text, (ROLLOUT, BACKWARD))


def _rollout(config: Config, shape: ModelShape, target: Target) -> Iterator[MemoryPart]:
    rollout, evaluation, itemsize = config.rollout, config.eval, target.dtype.itemsize
    if rollout.engine == "vllm":
        yield from _vllm(config, shape, target)
        return
    greedy = Sampling(1, evaluation.max_new_tokens or rollout.max_new_tokens, temperature=0)
    drawn = Sampling(rollout.group_size, rollout.max_new_tokens, top_p=rollout.top_p)
    calls = [(rollout.prompts_per_step, drawn), (max(evaluation.n, evaluation.validation_n), greedy)]
    caches = [_cache(*call, shape, target, config) for call in calls]
    sequences, cache_bytes = max(caches, key=itemgetter(1))
    token_bytes = kv_bytes(shape, target.dtype)
    text = f"{sequences:,} sequences, {token_bytes:,} bytes per token"
    kept = caches[0][1]  # what the update finds: that of the rollout
    if not _keeps_cache(kept, config, shape, target):
        yield MemoryPart("KV cache", cache_bytes, f"{text}; freed after the rollout", (ROLLOUT,))
    elif kept == cache_bytes:
        yield MemoryPart("KV cache", cache_bytes, f"{text}; so small that it is kept")
    else:
        yield MemoryPart("KV cache", cache_bytes, f"{text}; freed after the evaluation", (ROLLOUT,))
        text = f"{caches[0][0]:,} sequences, {token_bytes:,} bytes per token; so small that it is kept"
        yield MemoryPart("KV cache, update", kept, text, UPDATE)
    text = "the logits from which the next tokens are sampled; at most, where all are sorted"
    samples = [n * _logit_bytes(how, target) for (n, _), (_, how) in zip(caches, calls, strict=True)]
    yield MemoryPart("sampling", max(samples) * shape.vocab_size, text, (ROLLOUT,))
    packs = target.device_type == "cpu" and can_pack(torch.empty(0, dtype=target.dtype))
    if _uses_native_engine(config, shape) and packs and config.model.base_weights != "int8":
        text = "a copy of the weights, laid out for decoding"
        yield MemoryPart("packed weights", shape.parameters * itemsize, text, (ROLLOUT,))


def _vllm(config: Config, shape: ModelShape, target: Target) -> Iterator[MemoryPart]:
    """engines/vllm.py: on a GPU, vLLM sleeps during the update."""
    rollout, itemsize, on_card = config.rollout, target.dtype.itemsize, target.device_type == "cuda"
    phases = (ROLLOUT,) if on_card else PHASES
    packed_head = 0 if on_card else shape.vocab_size * shape.hidden_size * itemsize
    text = "vLLM's own copy" + ("; freed after the rollout" if on_card else ", with a packed head")
    yield MemoryPart("weights in vLLM", shape.parameters * itemsize + packed_head, text, phases)
    length, token_bytes = max(config.max_sequence_tokens, vllm.MIN_LENGTH), kv_bytes(shape, target.dtype)
    gpu_memory = target.size if on_card else None
    cache = vllm.kv_cache_bytes(rollout.max_num_seqs, length, token_bytes, gpu_memory)
    yield MemoryPart("KV cache", cache, f"{cache // token_bytes:,} tokens of {token_bytes:,} bytes", phases)
    text = "approximate; libraries, and on a GPU graphs and activations"
    yield MemoryPart("vLLM", vllm.OWN_BYTES["cuda" if on_card else "cpu"], text)
    evaluated = max(config.eval.n, config.eval.validation_n)
    asked = max(rollout.prompts_per_step * rollout.group_size, evaluated)
    logits = (
        min(rollout.max_num_seqs, asked)
        * shape.vocab_size
        * _logit_bytes(Sampling(1, 1, top_p=rollout.top_p), target)
    )
    yield MemoryPart("sampling", logits, "at most; as the native engine's, not yet measured", (ROLLOUT,))


def _logit_bytes(sampling: Sampling, target: Target) -> int:
    """Bytes per logit in engines/sampler.py.

    The logits, a float32 copy of them, the same less their peak, and that exponentiated; then what the draw
    takes.
    """
    itemsize = target.dtype.itemsize
    held = itemsize + 8 + (4 if itemsize < 4 else 0)
    if sampling.temperature == 0:
        return held
    return held + (17 if sampling.top_p == 1 else SORT_BYTES.get(target.device_type, SORT_BYTES["cpu"]))


def kv_bytes(shape: ModelShape, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values, in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * dtype.itemsize


def _uses_native_engine(config: Config, shape: ModelShape) -> bool:
    return shape.forward_pass == "tree" and config.rollout.engine == "native"


def _cache(
    prompts: int, sampling: Sampling, shape: ModelShape, target: Target, config: Config
) -> tuple[int, int]:
    """Sequences decoded concurrently, and the bytes of their KV cache."""
    token_bytes, prompt_tokens = kv_bytes(shape, target.dtype), config.prompt.max_tokens
    max_num_seqs = config.rollout.max_num_seqs
    if _uses_native_engine(config, shape):
        gpu_memory = target.size if target.device_type == "cuda" else None
        sequences, slots = cache_size.cache_size(
            prompts, sampling, max_num_seqs, prompt_tokens, token_bytes, gpu_memory
        )
    else:  # every sequence has a copy of its prompt
        sequences = slots = hf.batch_size(prompts, sampling.samples, max_num_seqs)
    return sequences, token_bytes * (slots * prompt_tokens + sequences * sampling.max_new_tokens)


def _keeps_cache(cache_bytes: int, config: Config, shape: ModelShape, target: Target) -> bool:
    """Whether a cache of this size stays on the GPU while the policy is trained (engines/native.py)."""
    is_static = target.device_type == "cuda" and _uses_native_engine(config, shape)
    return is_static and cache_bytes <= cache_size.KEPT_SHARE * cache_size.cache_bytes(target.size)


def _update(config: Config, shape: ModelShape, target: Target) -> Iterator[MemoryPart]:
    micro_batch, prefix = _update_tokens(config, shape)
    itemsize = target.dtype.itemsize
    per_token = activation_bytes_per_token(shape, itemsize, config.update.activation_checkpointing)
    # The prefix is not checkpointed, and the gradients of its keys and values are summed in float32.
    per_prefix_token = activation_bytes_per_token(shape, itemsize) + kv_bytes(shape, torch.float32)
    text = f"up to {micro_batch:,} tokens of {per_token:,} bytes"
    if prefix:
        text += f", and {prefix:,} of a prefix that prompts share, {per_prefix_token:,} bytes"
    saved = micro_batch * per_token + prefix * per_prefix_token
    yield MemoryPart("activations", saved, text, (LOGITS, BACKWARD))
    if target.device_type == "cpu" and shape.forward_pass != "tree":
        text = "approximate; between the activations of transformers' modules"
        yield MemoryPart("allocator, activations", round(TRANSFORMERS_GAPS * saved), text, (LOGITS, BACKWARD))
    chunk_tokens = tokens_per_chunk(target.device_type, shape.vocab_size)
    chunk = chunk_tokens * shape.vocab_size
    # models/logprobs.py: the logits, a float32 copy at the temperature, and logsumexp's exponentials
    yield MemoryPart("logit chunk", chunk * (itemsize + 8), f"{chunk_tokens:,} tokens at a time", (LOGITS,))
    trains_weights = not config.adapter.rank
    text, size = _largest_temporary(micro_batch + prefix, chunk, shape, target, trains_weights)
    yield MemoryPart("largest temporary", size, text, (BACKWARD,))
    if config.update.optimizer_state == "8-bit":
        piece = min(optimizers.PIECE, shape.largest_tensor)
        workspace = piece * optimizers.WORKSPACE_BYTES_PER_ELEMENT
        text = f"{piece:,} parameters at a time"
        yield MemoryPart("optimizer workspace", workspace, text, (OPTIMIZER_STEP,))


def _sharded_update(config: Config, shape: ModelShape, target: Target) -> Iterator[MemoryPart]:
    """models/sharded.py: transformers' modules, and what is gathered around them.

    Approximate. The weights outside of the layers stay gathered for a whole pass, those of a layer while it
    and its neighbour compute. From the first chunk of logits on, the head's whole gradient is held. At the
    end of the pass the whole gradient of all weights outside of the layers is held, with a float32 copy to be
    summed; the activations have been freed by then.
    """
    parts = list(_update(config, replace(shape, forward_pass="full_sequence"), target))  # noqa: S106
    yield from parts
    itemsize, head = target.dtype.itemsize, shape.vocab_size * shape.hidden_size
    layer, outside = shape.layer_parameters // shape.layers, shape.parameters - shape.layer_parameters
    text = f"{outside:,} outside of the layers, and two layers of {layer:,}"
    yield MemoryPart("gathered weights", itemsize * (outside + 2 * layer), text, (LOGITS, BACKWARD))
    text = f"{head:,}, and what a chunk of logits adds"
    yield MemoryPart("gradient of the head", 2 * itemsize * head, text, (LOGITS,))
    activations = next(part.bytes for part in parts if part.name == "activations")
    summed = max(0, 4 * outside - activations)
    text = f"of the {outside:,} outside of the layers and of a layer, before it is sharded"
    whole = itemsize * outside + (itemsize + 4) * layer + summed
    yield MemoryPart("gathered gradient", whole, text, (BACKWARD,))


def activation_bytes_per_token(shape: ModelShape, itemsize: int, checkpointing: bool = False) -> int:
    """Bytes that are saved for the backward pass, per token (models/llama.py, models/prefix_attention.py).

    A layer saves the input of its two halves (2H), q, k and v ((Q + 2K) D), the output of attention (Q D),
    gate and up (2I), and in float32 the scales of its two norms and attention's normalisers (2 + Q). A norm
    of an output saves its input (H) and scale too. The norm of queries and keys is transformers': it saves
    scales, and in float32 its input, with the values where that is no copy, and what its gain multiplies.
    After the layers come the last norm's input in float32 and what its gain multiplies (H each), and the
    final states and their gradient (2H). With checkpointing a layer saves its input (H), and one layer at a
    time is recomputed.

    A layer of transformers' modules also saves the activation of gate and its product with up (2I), and for
    each norm its input in float32 and what its gain multiplies (H each).
    """
    h, q, k, d = shape.hidden_size, shape.query_heads, shape.kv_heads, shape.head_size
    layer = itemsize * (2 * h + (q + 2 * k) * d + q * d + 2 * shape.intermediate_size) + 4 * (2 + q)
    normed = 4 if shape.float32_gains else itemsize
    if shape.forward_pass == "tree":
        layer += shape.output_norms * (h * itemsize + 4)
    else:
        layer += itemsize * 2 * shape.intermediate_size + shape.norms * h * (4 + normed)
    if shape.qk_norm:
        layer += 4 * (q + k) + 4 * (q + (2 * k if itemsize == 4 else k)) * d + normed * (q + k) * d
    layers = shape.layers * h * itemsize + layer if checkpointing else shape.layers * layer
    return layers + h * (4 + normed + 2 * itemsize)


def _largest_temporary(
    tokens: int, chunk: int, shape: ModelShape, target: Target, trains_weights: bool
) -> tuple[str, int]:
    """The short-lived tensors of the backward pass where they are largest, as (description, bytes)."""
    itemsize, h, i = target.dtype.itemsize, shape.hidden_size, shape.intermediate_size
    heads = tokens * shape.query_heads * shape.head_size  # size of one tensor with all query heads
    if target.device_type == "cpu":
        # the fused kernel: five inputs, three outputs; float32 copies too for bfloat16
        attended = heads * (8 * 4 + (8 * itemsize if itemsize < 4 else 0))
    else:  # the same tensors, and up to four tensors of float32 scores
        # in bfloat16 FlashAttention holds none; float16 may have to do without it
        is_written_out = target.device_type == "cuda" and target.dtype != torch.bfloat16
        scores = varlen.MAX_SCORES if is_written_out else attention.MAX_SCORES
        attended = heads * (6 * itemsize + (28 if itemsize < 4 else 8)) + 16 * scores
    weights, largest = (2 * i * h, shape.largest_tensor) if trains_weights else (0, 0)
    feed_forward = (tokens * (4 * i + 2 * h) + weights) * itemsize
    temporaries = {
        "backward through one layer's feed-forward part, with the gradients of trained weights": feed_forward,
        "backward through one layer's attention": attended,
        "gradient of the largest trained tensor, and of a chunk of logits": (largest + chunk) * itemsize,
    }
    return max(temporaries.items(), key=itemgetter(1))


def host_bytes(config: Config, shape: ModelShape, target: Target) -> int:
    """The most bytes of the GPU's tensors that are in the machine's own memory at one time; 0 without a GPU.

    That is when a model is saved: a file of it (models/policy.save_policy), or all of it where an adapter is
    merged; and offloaded moments. Weights are loaded from mapped files, and checkpoints pass in small pieces,
    except for sharded state, of which the main process collects all.
    """
    if target.device_type == "cpu":
        return 0
    model = shape.parameters * target.dtype.itemsize
    if config.adapter.rank:  # and a copy, where vLLM's base sleeps
        return 2 * model if config.rollout.engine == "vllm" else model
    if shard_count(config, target) > 1:
        state = config.update.optimizer_state
        return model + optimizers.saved_state_bytes(state, shape.tensor_sizes, target.dtype.itemsize)
    moments = optimizers.pinned_bytes(shape.tensor_sizes) if config.update.offload_optimizer else 0
    return min(model, MODEL_FILE_BYTES) + moments


def max_step_tokens(config: Config, shape: ModelShape) -> int:
    """The most tokens that a whole step passes through the policy with gradient."""
    rollout, warm_start = config.rollout, config.train.warm_start > 0
    objective = build_objective(**config.objective.model_dump())
    completions = rollout.group_size if warm_start or objective.gradient_samples == "all" else 1
    prompts = 1 if _shares_prompts(config, shape) else completions
    tokens = prompts * config.prompt.max_tokens + completions * rollout.max_new_tokens
    return most_groups(config) * tokens


def most_groups(config: Config) -> int:
    """The most groups that a step learns from; in a warm start all that it asks may be right."""
    return config.rollout.prompts_per_step * (config.rollout.refill if config.train.warm_start else 1)


def _shares_prompts(config: Config, shape: ModelShape) -> bool:
    """Whether a prompt is computed once for its group (models/forward.build_forward_pass)."""
    return shape.forward_pass == "tree" or (
        shape.forward_pass == "shared_prompt" and not config.update.activation_checkpointing
    )


def _update_tokens(config: Config, shape: ModelShape) -> tuple[int, int]:
    """The most tokens whose activations exist together: of a micro-batch, and of the step's shared prefix.

    The prefix lives through the whole update (models/forward.SharedPrefix). A token has at least one byte, so
    its length is bounded by the bytes of the text that the recipe puts before every question.
    """
    prompt, step = config.prompt, max_step_tokens(config, shape)
    longest = prompt.max_tokens + config.rollout.max_new_tokens  # a prompt with its completion is not split
    micro_batch = min(max(config.update.micro_batch_tokens, longest), step)
    if not _shares_prompts(config, shape) or most_groups(config) == 1:
        return micro_batch, 0
    text = prompt.system + "".join(e.question + prompt.instruction + e.answer for e in prompt.examples)
    prefix = min(prompt.max_tokens, len(text.encode()) + TEMPLATE_TOKENS)
    return micro_batch, min(prefix, step - micro_batch)


def in_gb(size: float) -> str:
    """A number of bytes as GB with two digits."""
    return f"{size / GB:.2f}" if size >= 0.005 * GB or size == 0 else "<0.01"
