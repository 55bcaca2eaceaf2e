"""A tiny random model, a byte tokenizer and a toy task: every stage runs in milliseconds, offline."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.device import DEVICE
from reinforce_lite.types import Problem, Reward

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
END = 2
"""The id of <|im_end|>: the end of a turn, and the padding."""


def make_tokenizer(chat_template: str | None = CHATML) -> Any:
    """One token per byte, after three control tokens with the ids 0, 1 and 2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    control_tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: i for i, token in enumerate([*control_tokens, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = chat_template
    return fast


def make_model(seed: int = 0, **changes: Any) -> Any:
    """Two layers of hidden size 16 with grouped-query attention and tied embeddings, as in SmolLM2.

    A wide initialization spreads the log-probabilities, so that tests of them can fail.
    """
    sizes: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "initializer_range": 0.4,
        "bos_token_id": 1,
        "eos_token_id": END,
        "pad_token_id": END,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval().to(DEVICE)


class ToyTask:
    """Twelve problems per split; the reward, 0 or 1, depends on the completion's characters alone."""

    def problems(self, split: str) -> list[Problem]:
        return [Problem(f"{split}-{i}", f"{split} question {i}?", str(i)) for i in range(12)]

    def reward(self, problem: Problem, completion: str) -> Reward:
        return Reward(float(sum(map(ord, completion)) % 3 == 0))
