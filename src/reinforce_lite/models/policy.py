"""A model name to weights and tokenizer, and back to a model folder.

A name is the embedded `smollm2-135m`, a local folder, or a Hugging Face hub name. Weights in
pickle files and models that bring their own code are refused unless a person allows them.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.models import embedded, llama
from reinforce_lite.models.llama import Llama


@dataclass(slots=True)
class Policy:
    """The one network: it samples, it is trained, it is saved."""

    model: Any
    """A transformers causal language model, in evaluation mode (no dropout), in the compute dtype."""
    tokenizer: Any
    end_ids: frozenset[int]
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
        if self._llama is None and llama.supports(self.model):
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


def load(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    finer: bool = True,
) -> Policy:
    """Load a model for training or for answering; `finer` keeps what rounding to the dtype would lose.

    Raises UsageError when there is no such model, it is not a causal language model, or its
    weights or code would run code of their author's; ReinforceLiteError when the embedded model
    can't be fetched.
    """
    place = pick_device(device)
    folder = str(embedded.folder()) if name == embedded.NAME else name
    if Path(folder).is_dir() and not trust_remote_code:
        _refuse_pickles(Path(folder))
    with quiet(), told(name):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=None if trust_remote_code else True,
            trust_remote_code=trust_remote_code,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    compute = pick_dtype(dtype, place)
    model = model.eval()
    if not finer:
        _round(model, compute, False)  # before it is moved: a card need not hold what is thrown away
    model = model.to(place)
    # Where the padding token is the end token, as often, its embedding would get no gradient.
    model.get_input_embeddings().padding_idx = None
    weights = _round(model, compute, finer)
    return Policy(model, tokenizer, _end_ids(model, tokenizer), name, weights)


def _round(model: Any, compute: torch.dtype, finer: bool) -> dict[str, torch.Tensor] | None:
    """Bring the parameters to the compute dtype; returns the float32 ones if wanted where rounding lost bits.

    Parameters only: in bfloat16 the rotary embedding's frequencies, which are a buffer, would put
    every token somewhere else than transformers does.
    """
    finer = finer and compute == torch.bfloat16 and model.dtype != torch.bfloat16
    weights = {n: p.detach().float() for n, p in model.named_parameters()} if finer else None
    for param in model.parameters():
        param.data = param.data.to(compute)
    return weights


def pick_device(wish: str) -> torch.device:
    """The device wished for; auto is the first there is of cuda, xpu, mps, cpu."""
    there = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wish == "auto":
        wish = next(kind for kind, available in there.items() if available)
    if not there[wish]:
        raise UsageError(f"there is no {wish} device here", "model.device = auto takes what there is")
    return torch.device(wish)


def pick_dtype(wish: str, device: torch.device) -> torch.dtype:
    """The dtype wished for; auto is bfloat16 where the device computes it faster, else float32.

    Processors without units for it emulate it. Intel's have AMX for it; where that is hidden (in some
    virtual machines) AVX-512 does it at half the rate of float32 (docs/performance.md).
    """
    if wish != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[wish]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        can = torch.cpu.get_capabilities()
        avx512 = can.get("avx512_bf16", False) and "intel" not in str(can.get("cpu_name", "")).lower()
        fast = bool(avx512 or can.get("amx_bf16", False) or can.get("arm_bf16", False))
    else:
        fast = True
    return torch.bfloat16 if fast else torch.float32


def save(policy: Policy, folder: Path, card: str) -> None:
    """Write a Hugging Face folder: safetensors, tokenizer, chat template, generation config, card.

    Written beside and renamed into place, so that `folder` is whole or not there. Raises
    ReinforceLiteError when it can't be written.
    """
    beside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with quiet():
            policy.model.save_pretrained(beside)
            policy.tokenizer.save_pretrained(beside)
        (beside / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise ReinforceLiteError(
            f"the model can't be written to {folder}: {getattr(error, 'strerror', None) or error}",
            "make room, then go on with --resume",
        ) from error
    shutil.rmtree(old, ignore_errors=True)


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


@contextmanager
def told(name: str) -> Iterator[None]:
    """Say what transformers raises about a model in one line."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            first = "it brings its own Python code"
            remedy = "read that code, then allow it with --model.trust-remote-code"
        elif isinstance(error, SafetensorError):
            remedy = "its weights are damaged: fetch or copy the model again"
        elif "safetensors" in str(error):
            remedy = "only safetensors weights are opened; pickled ones need --model.trust-remote-code"
        else:
            remedy = "give a folder, a Hugging Face hub name that can be reached, or smollm2-135m"
        raise UsageError(f"can't load the model {name!r}: {first}", remedy) from error
    except MemoryError as error:
        raise ReinforceLiteError(f"the model {name!r} does not fit into memory") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the user's screen."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        transformers.logging.enable_progress_bar()
