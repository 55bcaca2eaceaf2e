"""What a run holds, by part, in bytes: counted from a model's shape and a recipe, without a tensor.

It counts the tensors that the code makes, at the worst that the recipe allows: every prompt of
prompt.max_tokens, every answer of rollout.max_new_tokens, and every answer learned from. What is kept
from step to step and the cache are exact; what is kept in each layer is exact for the families of
`llama.py` and an estimate for others; temporaries are those of the code that each names.

Left out on purpose: what an allocator on a card loses between blocks.

Letters: N tokens of a micro-batch, H hidden size, I inner size, Q query heads, K heads of keys and values,
D head size, V vocabulary, G answers to a question. GB is 10^9 bytes.
"""

from dataclasses import dataclass

import torch

from reinforce_lite.config import Config
from reinforce_lite.engines import native
from reinforce_lite.engines.hf import MAX_NUM_SEQS
from reinforce_lite.engines.native import prompt_slots, sequences_that_fit
from reinforce_lite.engines.packed_linear import can_pack
from reinforce_lite.errors import UsageError
from reinforce_lite.learner import optimizers
from reinforce_lite.learner.objective import build_objective
from reinforce_lite.learner.optimizers import optimizer_state_bytes
from reinforce_lite.models import attention
from reinforce_lite.models.logprobs import tokens_per_chunk
from reinforce_lite.planner.model_shape import ModelShape
from reinforce_lite.types import Sampling

GB = 10**9
CONTEXT = GB // 2
"""About what CUDA and its libraries take of a card for themselves; it varies with card and driver."""
PROCESS = 2 * GB // 5
"""About what Python, torch and transformers take of a machine's memory before there is a tensor."""
KEPT, KEPT_ROLLOUT = GB // 2, GB // 3
"""About what glibc keeps beside tensors in an update and in a rollout: blocks for reuse
(memory.keep_small) and the holes between them (docs/memory.md)."""
MODULES_KEEP = 9500 / 5760
"""What autograd keeps through transformers' modules, in parts of what our own pass keeps (docs/log.md)."""
TEMPLATE = 64
"""Tokens that a chat template adds before a question, generously."""

ROLLOUT, LOGITS, BACK = "rollout", "update, at the logits", "update, going back through the layers"
STEP = "update, moving the weights"
MOMENTS = (ROLLOUT, LOGITS, BACK, STEP)
"""A run's memory is at its largest in one of these."""


@dataclass(frozen=True, slots=True)
class ParameterScheme:
    """Bytes a parameter; all but the gradients are there from the first step to the last."""

    weights: float
    gradients: float
    state: float
    """The optimizer's."""
    master_weights: float
    """Finer weights, which the optimizer moves."""
    why: str

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.state + self.master_weights


EIGHT = 2 * (1 + 4 / optimizers.BLOCK)
"""Two moments of 8 bits, and a float32 scale for each block of them."""
SCHEMES = {
    ("float32", "32-bit"): ParameterScheme(4, 4, 8, 0, "float32 weights, gradients and Adam"),
    ("float32", "8-bit"): ParameterScheme(4, 4, EIGHT, 0, "float32 weights and gradients, 8-bit Adam"),
    ("bfloat16", "32-bit"): ParameterScheme(
        2, 4, 8, 4, "bfloat16 weights; float32 masters, gradients and Adam behind them"
    ),
    ("bfloat16", "16-bit"): ParameterScheme(2, 2, 4, 0, "bfloat16 weights, gradients and Adam"),
    ("bfloat16", "8-bit"): ParameterScheme(
        2, 2, EIGHT, 0, "bfloat16 weights, stochastically rounded, and gradients; 8-bit Adam"
    ),
}
"""What this program keeps, by model.dtype and update.optimizer_state."""
OTHERS = {
    "article": ParameterScheme(2, 2, 8, 0, "one network: bfloat16 weights and gradients, float32 Adam"),
    "GRPO": ParameterScheme(
        4, 2, 8, 0, "the article's, and a frozen reference model in bfloat16 for the KL term"
    ),
    "PPO": ParameterScheme(
        4, 4, 16, 0, "the article's twice: a critic of the same size is trained beside it"
    ),
}
"""What other ways to train the same model keep, whatever else they hold."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a run is to happen."""

    kind: str
    """cuda, xpu, mps or cpu."""
    dtype: torch.dtype
    """That products are computed in."""
    memory: int | None
    """Bytes; None where there is no limit to plan for."""

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """For example Part("KV cache", 1_509_949_440, (ROLLOUT,), "80 answers in flight …")."""

    name: str
    bytes: int
    moments: tuple[str, ...]
    """When it is held."""
    why: str


def parameter_scheme(config: Config, place: Target) -> ParameterScheme:
    """What is kept of each parameter. Raises UsageError for a state that the dtype does not have."""
    found = SCHEMES.get((place.dtype_name, config.update.optimizer_state))
    if found is None:
        raise UsageError(
            f"update.optimizer_state {config.update.optimizer_state} is for bfloat16; "
            f"this run computes in {place.dtype_name}",
            "choose --update.optimizer-state 32-bit or 8-bit, or --model.dtype bfloat16",
        )
    return found


def memory_parts(config: Config, shape: ModelShape, place: Target) -> tuple[MemoryPart, ...]:
    """Everything that a run holds at one of MOMENTS."""
    return (
        *_kept(config, shape, place),
        *_rollout(config, shape, place),
        *_update(config, shape, place),
    )


def _kept(config: Config, shape: ModelShape, place: Target) -> list[MemoryPart]:
    n, kept, dtype = shape.parameters, parameter_scheme(config, place), place.dtype_name
    state = config.update.optimizer_state
    moments, keep_float32 = optimizer_state_bytes(state, shape.sizes, place.dtype.itemsize)
    fine = "float32" if kept.gradients == 4 else dtype
    found = [
        _always("weights", kept.weights * n, f"{dtype}, {kept.weights:g} bytes a parameter"),
        MemoryPart(
            "gradients",
            round(kept.gradients * n),
            (LOGITS, BACK, STEP),
            f"{fine}, {kept.gradients:g} bytes a parameter; freed when the weights have moved",
        ),
        _always(
            "optimizer state",
            moments,
            f"AdamW's two moments of {state.removesuffix('-bit')} bits, {kept.state:.4g} bytes a parameter, "
            "and a count for each tensor",
        ),
        _always(
            "master copy",
            keep_float32,
            MASTERS[state] if keep_float32 else "none: the weights themselves are moved",
        ),
    ]
    if place.kind == "cuda":
        found.append(_always("CUDA itself", CONTEXT, "about; it varies with card and driver"))
    if place.kind == "cpu":
        found.append(_always("Python and libraries", PROCESS, "about; before there is a tensor"))
        why = "about; blocks that are free, and holes between them"
        found.append(MemoryPart("kept for reuse", KEPT, (LOGITS, BACK, STEP), why))
        found.append(MemoryPart("kept in the rollout", KEPT_ROLLOUT, (ROLLOUT,), why))
    return found


MASTERS = {
    "32-bit": "float32 weights, 4 bytes a parameter: small updates would be lost in bfloat16's rounding",
    "8-bit": "gains and biases in float32",
}


def _rollout(config: Config, shape: ModelShape, place: Target) -> list[MemoryPart]:
    rows, cache = max((_cache(*c, shape, place, config) for c in _calls(config)), key=lambda c: c[1])
    item = place.dtype.itemsize
    # sampling.draw: the logits, in float32 too, less their peak, and that exponentiated
    number = item + 8 + (4 if item < 4 else 0) + (17 if config.rollout.top_p == 1 else 0)
    found = [
        MemoryPart(
            "KV cache",
            cache,
            (ROLLOUT,),
            f"{rows} answers in flight, {kv_bytes(shape, place.dtype):,} bytes a token; freed after",
        ),
        MemoryPart(
            "drawing tokens", rows * shape.vocab * number, (ROLLOUT,), "logits of the answers in flight"
        ),
    ]
    if _native(config, shape) and place.kind == "cpu" and can_pack(torch.empty(0, dtype=place.dtype)):
        laid_out = shape.parameters * item
        found.append(
            MemoryPart("decoder's weights", laid_out, (ROLLOUT,), "laid out once more for its products")
        )
    return found


def kv_bytes(shape: ModelShape, dtype: torch.dtype) -> int:
    """Keys and values of one token, in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * dtype.itemsize


def _calls(config: Config) -> list[tuple[int, Sampling]]:
    """The engine's two kinds of calls, as (questions, how each is answered): a step's and an evaluation's."""
    r, e = config.rollout, config.eval
    return [
        (r.prompts_per_step, Sampling(r.group_size, r.max_new_tokens)),
        (max(e.n, e.validation_n), Sampling(1, e.max_new_tokens or r.max_new_tokens)),
    ]


def _native(config: Config, shape: ModelShape) -> bool:
    return shape.passes == "tree" and config.rollout.engine == "native"


def _cache(
    questions: int, sampling: Sampling, shape: ModelShape, place: Target, config: Config
) -> tuple[int, int]:
    """Answers in flight, and the bytes of their keys and values, as the engine allocates them."""
    token, prompt = kv_bytes(shape, place.dtype), config.prompt.max_tokens
    if not _native(config, shape):
        limit = min(config.rollout.max_num_seqs, MAX_NUM_SEQS)
        rows = min(questions, max(1, limit // sampling.samples)) * sampling.samples
        return rows, token * rows * (prompt + sampling.max_new_tokens)
    budget = native.cache_budget(place.memory if place.kind == "cuda" else None)
    rows = min(config.rollout.max_num_seqs, sequences_that_fit(budget, token, sampling, prompt))
    rows = min(rows, questions * sampling.samples)
    held = prompt_slots(questions, sampling.samples, rows)
    return rows, token * (held * prompt + rows * sampling.max_new_tokens)


def _update(config: Config, shape: ModelShape, place: Target) -> list[MemoryPart]:
    batch, prefix = _tokens(config, shape)
    chunk = tokens_per_chunk(place.kind, shape.vocab) * shape.vocab
    item = place.dtype.itemsize
    what, temporary = max(_temporaries(batch + prefix, chunk, shape, place), key=lambda found: found[1])
    again = config.update.activation_checkpointing
    token = kept_per_token(shape, item, again)
    # a prefix is not checkpointed, and the gradients of its keys and values are added up in float32
    whole = kept_per_token(shape, item) + 4 * 2 * shape.layers * shape.kv_heads * shape.head_size
    found = [
        MemoryPart(
            "activations",
            batch * token + prefix * whole,
            (LOGITS, BACK),
            f"{batch:,} tokens at most with gradient, {token:,} bytes each"
            + (f", and {prefix:,} that prompts share, {whole:,} bytes each" if prefix else ""),
        ),
        # policy.py: the logits, in float32 at the temperature, and logsumexp's exponentials of these
        MemoryPart("logit chunks", chunk * (item + 8), (LOGITS,), f"{chunk // shape.vocab:,} tokens at once"),
        MemoryPart("largest temporary", temporary, (BACK,), what),
    ]
    if config.update.optimizer_state == "8-bit":
        size = min(optimizers.PIECE, shape.largest)
        found.append(
            MemoryPart(
                "optimizer's arithmetic", size * optimizers.PER_NUMBER, (STEP,), f"{size:,} numbers at once"
            )
        )
    return found


def kept_per_token(shape: ModelShape, item: int, checkpointing: bool = False) -> int:
    """Bytes that the backward pass finds, `item` of them a number (see `llama.py`, `tree.py`).

    A layer keeps the input of either half (2H), q, k and v ((Q + 2K) D), what attention gave (Q D), gate and
    up (2I), and in float32 the scale of either norm and attention's normalisers (2 + Q). Behind the layers
    are the last norm's input in float32 and normed (H), and the last states and their gradient (2H). With
    checkpointing it keeps its input (H), and one layer at a time is made again.
    """
    h, q, k, d = shape.hidden, shape.query_heads, shape.kv_heads, shape.head_size
    layer = item * (2 * h + (q + 2 * k) * d + q * d + 2 * shape.inner) + 4 * (2 + q)
    if shape.normed_heads:
        layer += (q + k) * d * (4 + item)  # through transformers' norm: in float32, and normed
    if shape.passes != "tree":
        layer = round(layer * MODULES_KEEP)
    layers = shape.layers * h * item + layer if checkpointing else shape.layers * layer
    return layers + h * (4 + 3 * item)


def _temporaries(tokens: int, chunk: int, shape: ModelShape, place: Target) -> list[tuple[str, int]]:
    """What the backward pass holds for a moment, as (what, bytes) at the three places where that is much."""
    item, h, i = place.dtype.itemsize, shape.hidden, shape.inner
    inner = tokens * (4 * i + 2 * h) * item + 2 * i * h * item
    heads = tokens * shape.query_heads * shape.head_size  # numbers of one tensor with all query heads
    if place.kind == "cpu":  # the fused kernel: five go in, three come out, float32 beside bfloat16
        attended = heads * (8 * 4 + (8 * item if item < 4 else 0))
    else:  # written out: as many, and up to four tensors of scores in float32
        attended = heads * (6 * item + 8) + 16 * attention.MAX_SCORES
    return [
        ("one layer's feed-forward part going back: its inner gradients and its weights'", inner),
        ("one layer's attention going back", attended),
        ("the gradient of the largest tensor, and a chunk of logits'", (shape.largest + chunk) * item),
    ]


def one_answer(config: Config) -> int:
    """Tokens of one longest answer with its prompt: no micro-batch is cut smaller."""
    return config.prompt.max_tokens + config.rollout.max_new_tokens


def step_tokens(config: Config, shape: ModelShape) -> int:
    """The most that a whole step takes through the policy with gradient."""
    r, prompt = config.rollout, config.prompt.max_tokens
    parts = build_objective(**config.objective.model_dump())
    answers = r.group_size if parts.gradient_samples == "all" else 1
    prompts = 1 if _shares(config, shape) else answers
    return r.prompts_per_step * (prompts * prompt + answers * r.max_new_tokens)


def _shares(config: Config, shape: ModelShape) -> bool:
    """Whether a prompt passes once for its answers (passes.of)."""
    return shape.passes == "tree" or (shape.passes == "shared" and not config.update.activation_checkpointing)


def _tokens(config: Config, shape: ModelShape) -> tuple[int, int]:
    """The most that is kept at once: a micro-batch, and what a step's prompts begin with.

    The latter stays for the whole update (passes.Prefix). A token has at least one byte of the text that
    the recipe puts before every question.
    """
    p, whole = config.prompt, step_tokens(config, shape)
    batch = min(max(config.update.micro_batch_tokens, one_answer(config)), whole)
    if not _shares(config, shape) or config.rollout.prompts_per_step == 1:
        return batch, 0
    text = p.system + "".join(e.question + p.instruction + e.answer for e in p.examples)
    beginning = min(p.max_tokens, len(text.encode()) + TEMPLATE)
    return batch, min(beginning, whole - batch)


def _always(name: str, size: float, why: str) -> MemoryPart:
    return MemoryPart(name, round(size), MOMENTS, why)


def in_gb(size: float) -> str:
    """A size as it is shown."""
    return f"{size / GB:.2f}" if size >= 0.005 * GB or size == 0 else "<0.01"
