"""Forward passes of the policy over prompts and completions, with gradient, that compute shared tokens once.

    states = forward.states(branches, prefix)    # the (L, H) states that predict the completions' tokens

There are three with the same results, and `build_forward_pass` picks the fastest that a model allows:

- TreeForward          our own forward pass, over several prompts and all their completions as one tree;
- SharedPromptForward  transformers' modules, each prompt once for all its completions;
- FullSequenceForward  transformers' modules, each completion with its whole prompt: the reference, and for
                       models without a plain key-value cache.

With activation checkpointing a pass keeps only each layer's input and recomputes the activations in the
backward pass. transformers' modules then drop the cache that shares a prompt, so that only full sequences
are exact.

Padding is never counted and never attended to. The prefix that all prompts of a step share is a
`SharedPrefix`, computed once for all of them.

Shapes: R completions of one prompt, S tokens of the prefix, P of a prompt, T of the longest completion,
L of all completions, H hidden size.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from reinforce_lite.errors import UsageError
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.prefix_attention import PrefixAttention
from reinforce_lite.models.prefix_tree import Branch, Ids, PrefixTree


class SharedPrefix:
    """The prefix that a step's prompts share: one forward pass and one backward pass for all micro-batches.

    Its keys and values are detached from the graph that computed them. The backward passes of micro-batches
    end at these leaves, whose gradients are summed in float32; `backward` sends the sums through the prefix.
    """

    def __init__(self, length: int, outputs: Sequence[Tensor]) -> None:
        """`outputs` are the keys and values of its `length` tokens, layer after layer, in any shape."""
        self.length = length
        self.outputs = outputs
        self.leaves = [t.detach().requires_grad_() for t in outputs]
        dtype = torch.promote_types(outputs[0].dtype, torch.float32)
        self.gradient_sums = [torch.zeros_like(t, dtype=dtype) for t in outputs]
        for leaf, total in zip(self.leaves, self.gradient_sums, strict=True):
            hook = partial(_move_gradient, total)
            leaf.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def backward(self) -> None:
        """Send the summed gradients through the prefix: once, after the last micro-batch."""
        pairs = zip(self.outputs, self.gradient_sums, strict=True)
        sums = {out: total.to(out.dtype) for out, total in pairs if out.requires_grad}  # not below an adapter
        torch.autograd.backward(list(sums), list(sums.values()))


def _move_gradient(total: Tensor, leaf: Tensor) -> None:
    assert leaf.grad is not None
    total.add_(leaf.grad)
    leaf.grad = None


class ForwardPass:
    """Computes the hidden states that predict completions."""

    can_share_prefix = True
    """Whether there is a `prefix`, and `states` accepts one."""

    def prefix(self, ids: Ids) -> SharedPrefix:
        """The prefix that all later branches share."""
        raise NotImplementedError

    def states(self, branches: Sequence[Branch], prefix: SharedPrefix | None) -> Tensor:
        """(L, H): the state that predicts each token of each completion.

        A branch's prompt is complete: it starts with the prefix, if there is one.
        """
        return torch.cat([self.branch_states(branch, prefix) for branch in branches])

    def branch_states(self, branch: Branch, prefix: SharedPrefix | None) -> Tensor:
        """`states` of a single branch, for a pass that computes one after the other."""
        raise NotImplementedError

    def release(self) -> None:
        """Free what passes without a backward pass leave; by default they leave nothing."""

    def tokens(self, branch: Branch) -> int:
        """How many tokens, padding included, a branch takes through the policy; an upper bound.

        By default for a pass that computes a prompt once for all its completions.
        """
        return len(branch.prompt) + len(branch.completions) * max(map(len, branch.completions))


def build_forward_pass(model: Any, llama: Llama | None, checkpointing: bool = False) -> ForwardPass:
    """The fastest forward pass that is exact for this model, with or without activation checkpointing.

    The model may have had another one before, whose checkpointing is undone.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            vars(layer).pop("forward", None)  # what FullSequenceForward puts over the class's own
    if llama is not None:
        return TreeForward(llama, checkpointing)
    if can_share_prompt(model) and not checkpointing:
        return SharedPromptForward(model)
    return FullSequenceForward(model, checkpointing)


def can_share_prompt(model: Any) -> bool:
    """Whether every layer keeps plain keys and values of all tokens (no window, no recurrent state)."""
    layer_types = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return layer_types == {"full_attention"} and not getattr(model.config, "sliding_window", None)


def common_prefix_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """The length of the prefix that all sequences share, less where one would have no token after it."""
    first, last = min(sequences), max(sequences)  # in sorted order, what these share all others share
    longest = min(map(len, sequences)) - 1
    return next((i for i in range(longest) if first[i] != last[i]), longest)


def prefix_keys_and_values(llama: Llama, ids: Ids) -> list[Tensor]:
    """Each layer's (S, 2K x D) keys and values of a prefix; K key-value heads of size D."""
    tree = PrefixTree([Branch(ids)], 0, llama.device)
    outputs: list[Tensor] = []
    attention = PrefixAttention(llama, tree, keep=lambda _, kv: outputs.append(kv))
    llama(tree.ids, tree.positions, attention)
    return outputs


class TreeForward(ForwardPass):
    """All branches concurrently, through our own forward pass."""

    def __init__(self, llama: Llama, checkpointing: bool = False) -> None:
        self.llama = llama
        self.checkpointing = checkpointing

    def prefix(self, ids: Ids) -> SharedPrefix:
        """See `ForwardPass`."""
        return SharedPrefix(len(ids), prefix_keys_and_values(self.llama, ids))

    def states(self, branches: Sequence[Branch], prefix: SharedPrefix | None) -> Tensor:
        """See `ForwardPass`. Completions are padded in attention alone."""
        start = prefix.length if prefix else 0
        suffixes = [Branch(b.prompt[start:], b.completions) for b in branches]
        tree = PrefixTree(suffixes, start, self.llama.device)
        attention = PrefixAttention(self.llama, tree, prefix.leaves if prefix else ())
        states = self.llama(tree.ids, tree.positions, attention, checkpointing=self.checkpointing)
        return states[tree.predictors]


class SharedPromptForward(ForwardPass):
    """Branch after branch through transformers' modules; a prompt's cache serves all its completions."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefix(self, ids: Ids) -> SharedPrefix:
        """See `ForwardPass`."""
        cache = DynamicCache(config=self.model.config)
        tokens = torch.tensor([ids], device=self.model.device)
        self.model.base_model(tokens, past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == len(ids), "the prefix's keys and values were not kept"
        return SharedPrefix(len(ids), [t for layer in cache.layers for t in (layer.keys, layer.values)])

    def branch_states(self, branch: Branch, prefix: SharedPrefix | None) -> Tensor:
        """See `ForwardPass`."""
        tokens, valid = _pad_right(branch.completions, self.model)  # (R, T) both
        n, p = len(tokens), len(branch.prompt)
        cache = DynamicCache(config=self.model.config)
        leaves = prefix.leaves if prefix else []
        for layer in range(len(leaves) // 2):
            cache.update(leaves[2 * layer], leaves[2 * layer + 1], layer)
        prompt = torch.tensor([branch.prompt[cache.get_seq_length() :]], device=tokens.device)  # (1, P - S)
        out = self.model.base_model(prompt, past_key_values=cache, use_cache=True)
        first: Tensor = out.last_hidden_state[:, -1:].expand(n, -1, -1)  # (R, 1, H)
        if tokens.shape[1] == 1:
            return first[valid]
        # With activation checkpointing, transformers drops the cache with only a log line, and the
        # completions would be trained without their prompt.
        assert cache.get_seq_length() == p, "the prompt's keys and values were not kept"
        cache.batch_repeat_interleave(n)
        prompt_mask = torch.ones(n, p, dtype=torch.bool, device=tokens.device)
        positions = torch.arange(p, p + tokens.shape[1] - 1, device=tokens.device).expand(n, -1)
        rest = self.model.base_model(
            tokens[:, :-1],
            attention_mask=torch.cat([prompt_mask, valid[:, :-1]], dim=1).long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # (R, T-1, H)
        return torch.cat([first, rest], dim=1)[valid]


class FullSequenceForward(ForwardPass):
    """Each completion with its whole prompt, through transformers' modules."""

    can_share_prefix = False

    def __init__(self, model: Any, checkpointing: bool = False) -> None:
        """Raises UsageError if transformers does not support checkpointing for the model."""
        self.model = model
        self.body = model.base_model  # another call of it where the model is sharded
        if checkpointing:
            layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
            if not layers:
                raise UsageError(
                    f"activation checkpointing is not available for {model.config.model_type} models",
                    "remove update.activation_checkpointing",
                )
            # transformers' own switch works in training mode only, which would activate dropout.
            for layer in layers:
                layer.forward = partial(
                    checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
                )

    def tokens(self, branch: Branch) -> int:
        """See `ForwardPass`."""
        return len(branch.completions) * (len(branch.prompt) + max(map(len, branch.completions)))

    def branch_states(self, branch: Branch, prefix: SharedPrefix | None) -> Tensor:
        """See `ForwardPass`."""
        tokens, valid = _pad_right(branch.completions, self.model)
        ids = torch.tensor([branch.prompt], device=tokens.device).expand(len(tokens), -1)  # (R, P)
        mask = torch.cat([torch.ones_like(ids), valid.long()], dim=1)
        out = self.body(torch.cat([ids, tokens], dim=1), attention_mask=mask, use_cache=False)
        states: Tensor = out.last_hidden_state
        return states[:, ids.shape[1] - 1 : -1][valid]


def _pad_right(sequences: Sequence[Ids], model: Any) -> tuple[Tensor, Tensor]:
    """Token ids and whether each is a token, both (sequences, longest); padding is 0."""
    tokens = pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True).to(model.device)
    lengths = torch.tensor([len(ids) for ids in sequences], device=tokens.device)
    return tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
