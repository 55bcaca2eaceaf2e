"""The policy: loads a model's weights and tokenizer by name, and saves them as a model folder.

A name is the embedded `smollm2-135m`, a local folder, or a Hugging Face hub name. Pickled weights
and models that bring their own code are refused unless the user permits the one or the other.
"""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.tokenization_utils_base import LARGE_INTEGER

from reinforce_lite.config import AdapterConfig
from reinforce_lite.errors import UsageError, explain_file_errors
from reinforce_lite.models.adapter import Adapter
from reinforce_lite.models.device import pick_device, pick_dtype
from reinforce_lite.models.embedded import EMBEDDED_NAME, embedded_folder
from reinforce_lite.models.families import language_model
from reinforce_lite.models.int8 import Int8Linear, quantize_linears, quantized_scales
from reinforce_lite.models.llama import Llama, supports_model
from reinforce_lite.models.loading import (
    explain_load_errors,
    no_pickles,
    pickles_refused,
    quiet_transformers,
)
from reinforce_lite.models.older_readers import add_keys
from reinforce_lite.models.tokenizer import check_embedding, decode_exactly, end_of_turn
from reinforce_lite.types import NO_PERMISSIONS, Permissions
from reinforce_lite.utils.atomic import replace_folder
from reinforce_lite.utils.paths import is_dir, local_or_hub_name
from reinforce_lite.utils.tensors import not_finite
from reinforce_lite.utils.text import one_line_error

logger = logging.getLogger(__name__)

MODEL_FILE_BYTES = 5 * 10**9
"""The size from which a saved model is split into several files, each of which safetensors copies from a GPU
as a whole."""


@dataclass(slots=True)
class Policy:
    """The one network: the engine samples from it, the updater trains it, and it is saved."""

    model: Any
    """A transformers causal language model, in evaluation mode (no dropout), in the compute dtype."""
    tokenizer: Any
    eos_token_ids: frozenset[int]
    """Any of these ends a completion."""
    name: str
    """The name it was loaded by."""
    master_weights: dict[str, torch.Tensor] | None = None
    """The loaded weights in float32, by parameter name, where the compute dtype rounds them; else None."""
    llama: Llama | None = None
    """Our own forward pass over the model's weights; None: only transformers' modules are exact."""
    adapter: Adapter | None = None
    """What is trained in place of the model's weights."""
    version: int = 0
    """Counts the changes of the model's own weights, for an engine that has a copy of them; an adapter counts
    its own."""
    is_shared: bool = False
    """Whether other runs will train adapters over the same weights, which therefore stay as they are."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters: what the forward pass computes in."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def context(self) -> int | None:
        """The most tokens of a sequence; None where the model's config has no limit."""
        limit: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return limit

    @property
    def is_int8(self) -> bool:
        """Whether the linear layers are held in 8 bits."""
        return bool(quantized_scales(self.model))

    @property
    def saved_bytes(self) -> int:
        """The size of the weights that `save_policy` writes."""
        quantized = [m.quantized for m in self.model.modules() if isinstance(m, Int8Linear)]
        numbers: int = sum(t.numel() for t in (*self.model.parameters(), *quantized))
        return self.dtype.itemsize * numbers

    def trained_parameters(self) -> dict[str, torch.Tensor]:
        """What an update changes, by name: the adapter, or all weights of the model."""
        return dict((self.adapter or self.model).named_parameters())

    def add_adapter(self, config: AdapterConfig, seed: int, saved: Path | None = None) -> None:
        """Train an adapter from now on: that of the PEFT folder `saved`, or one that changes nothing yet.

        It replaces an earlier one. Raises UsageError for targets that the model does not have, and for a
        folder of another model's.
        """
        if self.adapter:
            self.adapter.remove()
        self.adapter = Adapter(self.model, config, seed)
        if saved:
            self.adapter.load(saved)
        if self.llama:
            self.llama.adapt(self.adapter)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a completion's tokens, exactly as it continues the prompt's."""
        return decode_exactly(self.tokenizer, token_ids)


def load_policy(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    permissions: Permissions = NO_PERMISSIONS,
    keep_float32: bool = True,
    max_length: int = 0,
    int8: bool = False,
) -> Policy:
    """Load a model for training or for sampling.

    Where `supports_model` accepts it, its weights are fused for our forward pass: from then on they may
    change in place, but must not be moved (`model.to(...)`).

    Args:
        keep_float32: keep master weights if the dtype has 16 bits and the model's files have another one.
        max_length: the most tokens that a sequence will have; see `supports_model`.
        int8: hold the linear layers in 8 bits (`int8.py`). They can't be trained then: add an adapter.

    Raises:
        UsageError: there is no such model, it can't be trained (`families.py`), weights are missing from its
            files or not finite, its tokenizer has tokens that it lacks, or loading it needs a permission that
            was not given.
        DoesNotFitError: memory ran out.
        ReinforceLiteError: the embedded model can't be fetched.
    """
    target = pick_device(device)
    model, tokenizer = _open(name, permissions)
    eos_token_ids = _eos_token_ids(model, tokenizer)
    check_embedding(tokenizer, model.get_input_embeddings().weight.shape[0], eos_token_ids)
    compute, master_weights = pick_dtype(dtype, target), None
    if keep_float32 and compute.itemsize == 2 and model.dtype != compute:
        model = model.to(target)
        master_weights = {n: p.detach().float() for n, p in model.named_parameters()}
    # Buffers keep their dtype: rotary frequencies in bfloat16 would shift every token's position. On a CPU
    # weights of this dtype still lie in the mapped file, which would stay in memory with those fused below.
    for param in model.parameters():
        param.data = param.data.to(compute, copy=target.type == "cpu")
    if int8:
        quantize_linears(model)  # before they are on a card that may be too small for all of them
    model = model.to(target).eval()
    _refuse_not_finite({**dict(model.named_parameters()), **quantized_scales(model)}, name)
    # The padding token is often the end token too, and torch gives a padding row no gradient.
    model.get_input_embeddings().padding_idx = None
    llama = Llama(model) if supports_model(model, max_length) else None
    return Policy(model, tokenizer, eos_token_ids, name, master_weights, llama)


def _open(name: str, permissions: Permissions) -> tuple[Any, Any]:
    """The causal language model and its tokenizer, as transformers reads them. Raises as `load_policy`."""
    with explain_load_errors(name):
        folder = str(embedded_folder()) if name == EMBEDDED_NAME else local_or_hub_name(name)
    if is_dir(folder) and not permissions.allow_pickles:
        _refuse_pickles(Path(folder))
    opening = nullcontext() if permissions.allow_pickles else no_pickles(name)
    with quiet_transformers(), explain_load_errors(name, permissions.trust_remote_code), opening:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=None if permissions.allow_pickles else True,
            trust_remote_code=permissions.trust_remote_code,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=permissions.trust_remote_code)
    _refuse_missing_weights(info["missing_keys"], name)
    model = language_model(model, name)
    _mend_generation_config(model, name)
    _forget_source(model, tokenizer)
    return model, tokenizer


def _forget_source(model: Any, tokenizer: Any) -> None:
    """Drop what only describes the files that were loaded, so that a saved model does not repeat it.

    A tokenizer without a limit of its own gets the model's: programs that truncate read it.
    """
    vars(model.config).pop("_model_name_or_path", None)  # of a GGUF file
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    if tokenizer.model_max_length > LARGE_INTEGER:
        limit = getattr(model.config, "max_position_embeddings", None)
        tokenizer.model_max_length = limit or tokenizer.model_max_length


def save_policy(
    policy: Policy,
    folder: Path,
    texts: Mapping[str, str],
    miniature: bool = False,
    dtype: torch.dtype | None = None,
    config_keys: Mapping[str, Any] | None = None,
) -> None:
    """Write a Hugging Face folder: safetensors, tokenizer, chat template, generation config, and `texts` by
    the names of their files.

    An adapter is merged into the weights. `folder` is replaced completely or not at all. With `miniature`
    each weight is reduced to one number, under the name that it has in memory: the folder holds a few
    kilobytes and the tokenizer. A merged adapter is saved in `dtype`; other weights are saved in their own,
    which `dtype` must be. `config_keys` are added to config.json. Raises FileError when it can't be written.
    """
    assert policy.adapter or dtype in (None, policy.dtype), "convert the model itself"
    options: dict[str, Any] = {}
    keys = dict(config_keys or {}) | ({"dtype": str(dtype).removeprefix("torch.")} if dtype else {})
    if miniature:
        options = {"state_dict": _tiny_weights(policy.model), "save_original_format": False}
    elif policy.adapter:
        merged = policy.adapter.merged_weights()
        converted = {w.data_ptr(): w.to(dtype or w.dtype) for w in merged.values()}  # one for tied weights
        options = {"state_dict": {name: converted[w.data_ptr()] for name, w in merged.items()}}
    with explain_file_errors("write", folder), replace_folder(folder) as temporary, quiet_transformers():
        policy.model.save_pretrained(temporary, max_shard_size=MODEL_FILE_BYTES, **options)
        policy.tokenizer.save_pretrained(temporary)
        add_keys(temporary, type(policy.model.config), keys)
        write_texts(temporary, texts)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write each text, in UTF-8, under its file's name."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _tiny_weights(model: Any) -> dict[str, torch.Tensor]:
    """A number for each weight, with the names, dtypes and shared storage of the real ones.

    Weights in the same memory share a number, and separate parts of one storage get separate numbers of one
    storage: safetensors refuses the former and accepts the latter. Weights that overlap in part are treated
    as separate parts.
    """
    weights = model.state_dict()
    storages = {name: w.untyped_storage().data_ptr() for name, w in weights.items()}
    parts: dict[int, dict[tuple[int, torch.Size], int]] = {}
    for name, w in weights.items():
        slots = parts.setdefault(storages[name], {})
        slots.setdefault((w.data_ptr(), w.shape), len(slots))
    tiny = {storages[n]: torch.zeros(len(parts[storages[n]]), dtype=w.dtype) for n, w in weights.items()}
    slot = {name: parts[storages[name]][w.data_ptr(), w.shape] for name, w in weights.items()}
    return {name: tiny[storages[name]][slot[name] : slot[name] + 1] for name in weights}


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every end-of-sequence id that the model's generation config or its tokenizer names, and the token
    with which the chat template ends a response.

    All are in the generation config from then on, so that the saved model ends there in other programs too.
    """
    ids = model.generation_config.eos_token_id if model.generation_config else None
    named = {*(ids if isinstance(ids, list) else [ids])} - {None}
    eos = named | {tokenizer.eos_token_id} - {None}
    end = end_of_turn(tokenizer)
    if end is not None and end not in eos:
        logger.warning(
            "the chat template ends a response with %s, which the model's config does not name as an end: "
            "completions end there too",
            tokenizer.convert_ids_to_tokens(end),
        )
        eos.add(end)
    if model.generation_config and eos != named:
        model.generation_config.eos_token_id = sorted(eos)
    if not eos:
        raise UsageError(
            "the model names no end-of-sequence token, so no completion could end",
            "set eos_token_id in its generation_config.json",
        )
    return frozenset(eos)


def _refuse_pickles(folder: Path) -> None:
    if not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")) + list(folder.glob("*.pt*")):
        raise pickles_refused(folder)


def _refuse_not_finite(weights: Mapping[str, torch.Tensor], name: str) -> None:
    bad = not_finite(weights)
    if bad:
        others = f" and {len(bad) - 1} others" if len(bad) > 1 else ""
        dtype = str(weights[bad[0]].dtype).removeprefix("torch.")
        raise UsageError(
            f"the weights of {name} hold NaN or infinity in {dtype}: {bad[0]}{others}",
            "download or copy the model again, or choose another; if it is too large for the dtype, "
            "--model.dtype float32 helps",
        )


def _mend_generation_config(model: Any, name: str) -> None:
    """Repair a generation config that transformers loads but refuses to save.

    Many models on the hub set a temperature or top-p without `do_sample`, and so without effect.
    """
    if model.generation_config is None or not (flags := _invalid_flags(model.generation_config)):
        return
    model.generation_config.do_sample, mended = True, "do_sample is set to true"
    if _invalid_flags(model.generation_config):
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        kept = {key: getattr(model.generation_config, key) for key in ids}
        model.generation_config, mended = GenerationConfig(**kept), "only its token ids are kept"
    logger.warning(
        "the generation config of %s is not valid (%s), so transformers would not save it: %s",
        *(name, flags, mended),
    )


def _invalid_flags(config: GenerationConfig) -> str:
    """Why transformers refuses to save a generation config, in a few words; empty if it does not."""
    try:
        with quiet_transformers():
            config.validate(strict=True)
    except ValueError as error:
        return ", ".join(re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)) or one_line_error(error)
    return ""


def _refuse_missing_weights(missing: Collection[str], name: str) -> None:
    """transformers would go on with random numbers in their place."""
    if missing:
        raise UsageError(
            f"the files of {name} lack {len(missing)} of the model's weights, e.g. {min(missing)}",
            "download or copy the model again; if it is an adapter, give the merged model",
        )
