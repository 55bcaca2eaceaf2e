"""Ways to take answers through the policy, with gradient, so that nothing passes through it twice.

    states = passes.states(branches, prefix)     # the (K, H) states that predict the answers' tokens

There are three, which give the same numbers, and `of` picks the fastest that a model allows:

- TreePasses   several prompts and their completions at once, as one tree (`tree.py`);
- SharedPasses through transformers' modules, a prompt once for its completions;
- WholePasses  plain whole sequences: the reference, and the way of models that keep no plain cache.

With activation checkpointing a pass keeps each layer's input alone, and makes the rest again on the way
back. transformers' modules then drop the cache that shares a prompt, so there only whole sequences are exact.

Padding is never counted and never attended to. What all prompts of a step begin with is a `Prefix`,
computed once for them all.

Shapes: R completions of one prompt, S tokens of the prefix, P of a prompt, T of the longest
completion, K of all completions, H hidden size, D head size.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from reinforce_lite.errors import UsageError
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import Branch, Ids, PrefixTree


class SharedPrefix:
    """The beginning that a step's prompts share, computed once; gradients come back to it once.

    Its keys and values are cut off from the graph that made them. What is made from them leaves its
    gradient with the cut ends, added up in float32, and `backward` sends the sum through the prefix.
    """

    def __init__(self, length: int, made: Sequence[Tensor]) -> None:
        """`made` are the keys and values of its `length` tokens, layer after layer, in any shape."""
        self.length = length
        self.made = made
        self.ends = [t.detach().requires_grad_() for t in made]
        self.sums = [torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in made]
        for end, total in zip(self.ends, self.sums, strict=True):
            hook = partial(_collect, total)
            end.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def backward(self) -> None:
        """Send what has been gathered through the prefix. Once, and last."""
        sums = [total.to(made.dtype) for total, made in zip(self.sums, self.made, strict=True)]
        torch.autograd.backward(list(self.made), sums)


def _collect(total: Tensor, end: Tensor) -> None:
    assert end.grad is not None
    total.add_(end.grad)
    end.grad = None


class ForwardPass(Protocol):
    """A way through the policy."""

    def prefix(self, ids: Ids) -> SharedPrefix | None:
        """The beginning that all branches to come share; None where it can't be shared."""
        ...

    def states(self, branches: Sequence[Branch], prefix: SharedPrefix | None) -> Tensor:
        """(K, H): for every token of every completion the state that predicts it.

        A branch's prompt is whole: it begins with the prefix, if there is one.
        """
        ...

    def tokens(self, branch: Branch) -> int:
        """How many tokens, padding included, a branch takes through the policy."""
        ...


def build_forward_pass(model: Any, llama: Llama | None, checkpointing: bool = False) -> ForwardPass:
    """The fastest way that is exact for this model, with or without activation checkpointing."""
    if llama is not None:
        return TreeForward(llama, checkpointing)
    if can_share_prompt(model) and not checkpointing:
        return SharedPromptForward(model)
    return FullSequenceForward(model, checkpointing)


def can_share_prompt(model: Any) -> bool:
    """Whether every layer keeps plain keys and values of all tokens (no window, no recurrent state)."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(model.config, "sliding_window", None)


def common_prefix_length(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all rows begin with, leaving each at least one of its own."""
    first, last = min(rows), max(rows)  # what these two share, all between them share
    shortest = min(map(len, rows)) - 1
    return next((i for i in range(shortest) if first[i] != last[i]), shortest)


class TreeForward:
    """All branches at once, through our own forward pass."""

    def __init__(self, llama: Llama, checkpointing: bool = False) -> None:
        self.llama = llama
        self.checkpointing = checkpointing

    def prefix(self, ids: Ids) -> SharedPrefix | None:
        """See `Passes`."""
        tree = PrefixTree([Branch(ids)], 0, self.llama.device)
        made: list[Tensor] = []
        self.llama(
            tree.ids, tree.places, PrefixAttention(self.llama, tree, keep=lambda _, kv: made.append(kv))
        )
        return SharedPrefix(len(ids), made)

    def states(self, branches: Sequence[Branch], prefix: SharedPrefix | None) -> Tensor:
        """See `Passes`."""
        start = prefix.length if prefix else 0
        tree = PrefixTree(
            [Branch(b.prompt[start:], b.completions) for b in branches], start, self.llama.device
        )
        attention = PrefixAttention(self.llama, tree, prefix.ends if prefix else ())
        states = self.llama(tree.ids, tree.places, attention, checkpointing=self.checkpointing)
        return states[tree.predicts]

    def tokens(self, branch: Branch) -> int:
        """See `Passes`: an upper bound, since attention alone pads."""
        return len(branch.prompt) + len(branch.completions) * max(map(len, branch.completions))


class SharedPromptForward:
    """Branch after branch through transformers' modules; a prompt's cache serves all its completions."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefix(self, ids: Ids) -> SharedPrefix | None:
        """See `Passes`."""
        cache = DynamicCache(config=self.model.config)
        self.model.base_model(_row(ids, self.model), past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == len(ids), "the prefix's keys and values were not kept"
        return SharedPrefix(len(ids), [t for layer in cache.layers for t in (layer.keys, layer.values)])

    def states(self, branches: Sequence[Branch], prefix: SharedPrefix | None) -> Tensor:
        """See `Passes`."""
        return torch.cat([self._states(b, prefix) for b in branches])

    def tokens(self, branch: Branch) -> int:
        """See `Passes`."""
        return len(branch.prompt) + len(branch.completions) * max(map(len, branch.completions))

    def _states(self, branch: Branch, prefix: SharedPrefix | None) -> Tensor:
        tokens, valid = _pad_right(branch.completions, self.model)  # (R, T) both
        n, p = len(tokens), len(branch.prompt)
        cache = DynamicCache(config=self.model.config)
        for layer in range(len(prefix.ends) // 2 if prefix else 0):
            cache.update(prefix.ends[2 * layer], prefix.ends[2 * layer + 1], layer)  # type: ignore[union-attr]
        own = _row(branch.prompt[cache.get_seq_length() :], self.model)  # (1, P - S)
        states: Tensor = self.model.base_model(own, past_key_values=cache, use_cache=True).last_hidden_state
        first = states[:, -1:].expand(n, -1, -1)  # (R, 1, H)
        if tokens.shape[1] == 1:
            return first[valid]
        # With activation checkpointing transformers drops the cache with no more than a log line; the
        # completions would then be trained without their prompt.
        assert cache.get_seq_length() == p, "the prompt's keys and values were not kept"
        cache.batch_repeat_interleave(n)
        seen = torch.ones(n, p, dtype=torch.bool, device=tokens.device)
        places = torch.arange(p, p + tokens.shape[1] - 1, device=tokens.device).expand(n, -1)
        rest = self.model.base_model(
            tokens[:, :-1],
            attention_mask=torch.cat([seen, valid[:, :-1]], dim=1).long(),
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # (R, T-1, H)
        return torch.cat([first, rest], dim=1)[valid]


class FullSequenceForward:
    """Every answer with its whole prompt, through transformers' modules."""

    def __init__(self, model: Any, checkpointing: bool = False) -> None:
        """Raises UsageError when checkpointing is asked of a model whose layers are not known."""
        self.model = model
        if checkpointing:
            layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
            if not layers:
                raise UsageError(
                    f"the layers of {model.config.model_type} models can't be made again on the way back",
                    "leave update.activation_checkpointing away",
                )
            # transformers' own switch works in training mode alone, where dropout wakes up.
            for layer in layers:
                layer.forward = partial(
                    checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
                )

    def prefix(self, ids: Ids) -> SharedPrefix | None:
        """See `Passes`: never."""
        return None

    def states(self, branches: Sequence[Branch], prefix: SharedPrefix | None = None) -> Tensor:
        """See `Passes`."""
        return torch.cat([self._states(b) for b in branches])

    def tokens(self, branch: Branch) -> int:
        """See `Passes`."""
        return len(branch.completions) * (len(branch.prompt) + max(map(len, branch.completions)))

    def _states(self, branch: Branch) -> Tensor:
        tokens, valid = _pad_right(branch.completions, self.model)
        ids = _row(branch.prompt, self.model).expand(len(tokens), -1)  # (R, P)
        mask = torch.cat([torch.ones_like(ids), valid.long()], dim=1)
        out = self.model.base_model(torch.cat([ids, tokens], dim=1), attention_mask=mask, use_cache=False)
        states: Tensor = out.last_hidden_state
        return states[:, ids.shape[1] - 1 : -1][valid]


def _row(ids: Ids, model: Any) -> Tensor:
    return torch.tensor([list(ids)], device=next(model.parameters()).device)


def _pad_right(rows: Sequence[Ids], model: Any) -> tuple[Tensor, Tensor]:
    """Tokens and whether each is one, both (rows, longest); what stands in the padding is never read."""
    device = next(model.parameters()).device
    longest = max(map(len, rows))
    tokens = torch.tensor([[*r] + [0] * (longest - len(r)) for r in rows], device=device)
    lengths = torch.tensor([len(r) for r in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]
