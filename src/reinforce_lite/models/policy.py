"""A model name to weights and tokenizer, and back to a model folder.

A name is the embedded `smollm2-135m`, a local folder, or a Hugging Face hub name. Weights in
pickle files and models that bring their own code are refused unless a person allows them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.models.device import pick_device, pick_dtype
from reinforce_lite.models.embedded import EMBEDDED_NAME, embedded_folder
from reinforce_lite.models.llama import Llama, supports_model
from reinforce_lite.models.loading import explain_load_errors, quiet_transformers
from reinforce_lite.utils.atomic import replace_folder


@dataclass(slots=True)
class Policy:
    """The one network: it samples, it is trained, it is saved."""

    model: Any
    """A transformers causal language model, in evaluation mode (no dropout), in the compute dtype."""
    tokenizer: Any
    eos_token_ids: frozenset[int]
    """Any of these ends a completion."""
    name: str
    """What the user called it."""
    weights: dict[str, torch.Tensor] | None
    """The float32 weights it came with where they are finer than the compute dtype, else None."""
    fast: bool = True
    """False has it go through transformers' own modules alone."""
    _llama: Llama | None = field(default=None, init=False, repr=False)

    @property
    def llama(self) -> Llama | None:
        """Our own forward pass over the model's weights; None where it can't take the place of the modules.

        It is made when first asked for; from then on the weights must not be moved elsewhere.
        """
        if not self.fast:
            return None
        if self._llama is None and supports_model(self.model):
            self._llama = Llama(self.model)
        if self._llama:
            self._llama.check()
        return self._llama

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids as the text they stand for, to the character."""
        return str(self.tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))


def load_policy(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    keep_float32: bool = True,
) -> Policy:
    """Load a model for training or for answering; `finer` keeps what rounding to the dtype would lose.

    Raises UsageError when there is no such model, it is not a causal language model, or its
    weights or code would run code of their author's; ReinforceLiteError when the embedded model
    can't be fetched.
    """
    place = pick_device(device)
    folder = str(embedded_folder()) if name == EMBEDDED_NAME else name
    if Path(folder).is_dir() and not trust_remote_code:
        _refuse_pickles(Path(folder))
    with quiet_transformers(), explain_load_errors(name):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=None if trust_remote_code else True,
            trust_remote_code=trust_remote_code,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    compute = pick_dtype(dtype, place)
    model = model.eval()
    if not keep_float32:
        _round(model, compute, False)  # before it is moved: a card need not hold what is thrown away
    model = model.to(place)
    # Where the padding token is the end token, as often, its embedding would get no gradient.
    model.get_input_embeddings().padding_idx = None
    weights = _round(model, compute, keep_float32)
    return Policy(model, tokenizer, _end_ids(model, tokenizer), name, weights)


def _round(model: Any, compute: torch.dtype, keep_float32: bool) -> dict[str, torch.Tensor] | None:
    """Bring the parameters to the compute dtype; returns the float32 ones if wanted where rounding lost bits.

    Parameters only: in bfloat16 the rotary embedding's frequencies, which are a buffer, would put
    every token somewhere else than transformers does.
    """
    keep_float32 = keep_float32 and compute == torch.bfloat16 and model.dtype != torch.bfloat16
    weights = {n: p.detach().float() for n, p in model.named_parameters()} if keep_float32 else None
    for param in model.parameters():
        param.data = param.data.to(compute)
    return weights


def save_policy(policy: Policy, folder: Path, card: str) -> None:
    """Write a Hugging Face folder: safetensors, tokenizer, chat template, generation config, card.

    `folder` is replaced completely or not at all. Raises ReinforceLiteError when it can't be written.
    """
    try:
        with replace_folder(folder) as temporary, quiet_transformers():
            policy.model.save_pretrained(temporary)
            policy.tokenizer.save_pretrained(temporary)
            (temporary / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ReinforceLiteError(
            f"the model can't be written to {folder}: {getattr(error, 'strerror', None) or error}",
            "make room, then go on with --resume",
        ) from error


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that the model's generation config or its tokenizer calls an end."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    ends = set(ids if isinstance(ids, list) else [ids]) | {tokenizer.eos_token_id}
    if ends == {None}:
        raise UsageError("the model's tokenizer has no end token, so no answer could ever end")
    return frozenset(i for i in ends if i is not None)


def _refuse_pickles(folder: Path) -> None:
    if not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")) + list(folder.glob("*.pt*")):
        raise UsageError(
            f"{folder} holds only pickled weights, which can run any code when they are opened",
            "convert them to safetensors, or allow them with --model.trust-remote-code",
        )
