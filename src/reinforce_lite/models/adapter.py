"""Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

The model's own weights are frozen, and each adapted linear layer adds a product of two small matrices to its
output:

    y = W x + (alpha / r) B A x        A (r, inputs) random, B (outputs, r) zero before the first step

Base and adapter products are never merged while a policy is trained. A module computes its own in a forward
hook, so every family that transformers knows can be adapted; our forward pass (`llama.py`) computes the same
with fused projections. Folders have PEFT's format (https://huggingface.co/docs/peft).

Omitted on purpose: dropout, bias and norm weights, embeddings, and one rank for each layer.

Shapes: r rank of the adapter, N tokens.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from reinforce_lite.config import AdapterConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.utils.paths import expand_home, is_file
from reinforce_lite.utils.seeding import derive_seed
from reinforce_lite.utils.tensors import hash_tensors

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
LOADED_KEY = "reinforce_lite_base"
"""Key in a folder's config: the base model's name if only this program knows it (the embedded model)."""
_PREFIX = "base_model.model."
"""PEFT's names of weights begin with this."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The two matrices of one linear layer, in float32."""

    a: nn.Parameter
    """(r, inputs)."""
    b: nn.Parameter
    """(outputs, r)."""
    scale: float
    """alpha / r."""

    def __call__(self, x: Tensor) -> Tensor:
        """(..., inputs) to the (..., outputs) that are added to the layer's own."""
        return F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)) * self.scale


class Adapter:
    """The low-rank matrices of a model, by the names of its linear layers."""

    def __init__(self, model: Any, config: AdapterConfig, seed: int) -> None:
        """Freeze the model and adapt its linear layers. Raises UsageError for targets that it does not have.

        A is drawn as PEFT draws it, uniformly within 1 / sqrt(inputs).
        """
        self.model, self.config = model, config
        self.layers: dict[str, LowRank] = {}
        self.by_module: dict[nn.Module, LowRank] = {}
        self.version = 0
        """Counts the changes of the matrices; see `Policy.version`."""
        self._hooks: list[RemovableHandle] = []
        generator = torch.Generator().manual_seed(derive_seed(seed, "adapter"))
        model.requires_grad_(False)
        modules = find_targets(model, config.targets)
        for name, module in modules.items():
            inputs, outputs = linear_size(module)
            a = (2 * torch.rand(config.rank, inputs, generator=generator) - 1) / math.sqrt(inputs)
            matrices = (a, torch.zeros(outputs, config.rank))
            a, b = (nn.Parameter(matrix.to(model.device)) for matrix in matrices)
            layer = LowRank(a, b, config.alpha / config.rank)
            self.layers[name] = self.by_module[module] = layer
            self._hooks.append(module.register_forward_hook(partial(_add_product, layer)))
        self.is_transposed = {type(m) is Conv1D for m in modules.values()} == {True}

    def remove(self) -> None:
        """Leave the modules as they were, but frozen."""
        for hook in self._hooks:
            hook.remove()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names, as PEFT saves them, and matrices."""
        for name, layer in self.layers.items():
            yield f"{_PREFIX}{name}.lora_A.weight", layer.a
            yield f"{_PREFIX}{name}.lora_B.weight", layer.b

    def base_hash(self) -> dict[str, str]:
        """The base model's dtype, and a hash of the first numbers of each weight, 8-bit ones included."""
        buffers = ((name, b) for name, b in self.model.named_buffers() if b.dtype == torch.int8)
        sha256 = hash_tensors(chain(self.model.named_parameters(), buffers))
        return {"dtype": str(self.model.dtype), "sha256": sha256}

    def merged_weights(self) -> dict[str, Tensor]:
        """The model's `state_dict` with W + (alpha / r) B A in place of W, in the dtype of W, on the CPU."""
        weights: dict[str, Tensor] = self.model.state_dict()
        for name in self.layers:
            weights[f"{name}.weight"] = self._merged(name).cpu()
        return weights

    @torch.no_grad()
    def merge(self) -> None:
        """Add the products to the model's weights, and set B to zero: for the end of a run.

        Not for a model in 8 bits, whose weights can't be changed.
        """
        for name, layer in self.layers.items():
            self.model.get_parameter(f"{name}.weight").copy_(self._merged(name))
            layer.b.zero_()
        self.version += 1

    @torch.no_grad()
    def _merged(self, name: str) -> Tensor:
        weight, layer = self.model.get_submodule(name).weight, self.layers[name]
        product = (layer.b @ layer.a) * layer.scale  # (outputs, inputs)
        merged: Tensor = weight.float() + (product.t() if self.is_transposed else product)
        return merged.to(weight.dtype)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Give B other values for a while: with zeros, no check would notice a wrong product."""
        saved = {name: layer.b.detach().clone() for name, layer in self.layers.items()}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in self.layers.values():
                noise = torch.randn(layer.b.shape, generator=generator).to(layer.b.device)
                layer.b.add_(noise, alpha=0.02 / layer.scale)
        self.version += 1
        try:
            yield
        finally:
            with torch.no_grad():
                for name, layer in self.layers.items():
                    layer.b.copy_(saved[name])
            self.version += 1

    def save(self, folder: Path, base: str, loaded: str = "") -> None:
        """Write a PEFT folder of the adapter over the model named `base`.

        `loaded` is the name to load it by here, where that is another: PEFT ignores it.
        """
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted(self.layers),
            "fan_in_fan_out": self.is_transposed,
            "bias": "none",
            "inference_mode": True,
        } | ({LOADED_KEY: loaded} if loaded not in ("", base) else {})
        (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        weights = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take the matrices of a PEFT folder. Raises UsageError where they are those of another model."""
        file = folder / WEIGHTS_FILE
        if not file.is_file():
            remedy = "save the adapter again with PEFT, as safetensors"
            raise UsageError(f"{folder} has no {WEIGHTS_FILE}", remedy)
        try:
            weights, own = load_file(file), dict(self.named_parameters())
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{file} can't be read: {error}", "copy the adapter again") from error
        shapes = {name: tuple(t.shape) for name, t in weights.items()}
        if shapes != {name: tuple(p.shape) for name, p in own.items()}:
            different = sorted(set(shapes.items()) ^ {(name, tuple(p.shape)) for name, p in own.items()})
            raise UsageError(
                f"{folder}: the adapter's matrices do not fit the model, the first is {different[0][0]}",
                "set base_model_name_or_path in its adapter_config.json to the model that it was trained on",
            )
        for name, parameter in own.items():
            parameter.copy_(weights[name])
        self.version += 1


def _add_product(layer: LowRank, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + layer(inputs[0])


def linear_size(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = module.weight.shape  # type: ignore[misc]
    return inputs, outputs


def find_targets(model: Any, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The linear layers to adapt, by name: those named T or ending in .T for a target T; all but the head.

    Raises UsageError for a target that is no linear layer of the model.
    """
    head = model.get_output_embeddings()
    linears = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head
    }
    check_targets(linears, targets)
    return {name: m for name, m in linears.items() if is_target(name, targets)}


def check_targets(linears: Iterable[str], targets: Sequence[str]) -> None:
    """Raises UsageError for a target that none of these linear layers is."""
    names = list(linears)
    for target in targets:
        if not any(is_target(name, [target]) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise UsageError(
                f"the model has no linear layer {target!r}", f"adapter.targets can be {', '.join(known)}"
            )


def is_target(name: str, targets: Sequence[str]) -> bool:
    """Whether a linear layer is among the targets; every one is where there are none."""
    return not targets or any(name == target or name.endswith(f".{target}") for target in targets)


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """What a PEFT folder says of its adapter."""

    folder: Path
    base: str
    """The name of the model that it adapts."""
    config: AdapterConfig


def resolve_adapter(name: str, config: AdapterConfig) -> tuple[str, AdapterConfig, Path | None]:
    """The base model that a model's name leads to, its adapter, and the folder to load that from.

    Where the name is a PEFT folder, the adapter is the folder's. Raises UsageError where the config asks for
    another one.
    """
    saved = read_adapter_folder(name)
    if saved is None:
        return name, config, None
    is_same = (config.rank, config.alpha) == (saved.config.rank, saved.config.alpha) and not config.targets
    if config.rank and not is_same:
        raise UsageError(
            f"{name} is an adapter of rank {saved.config.rank} and alpha {saved.config.alpha:g}, "
            f"but [adapter] asks for rank {config.rank}, alpha {config.alpha:g} and "
            f"{', '.join(config.targets) or 'its targets'}",
            "remove [adapter]: training continues with the folder's adapter",
        )
    return saved.base, saved.config, saved.folder


def read_adapter_folder(name: str) -> SavedAdapter | None:
    """What a model's name leads to where it is a PEFT folder; None for any other model.

    Raises UsageError for a kind of adapter that this program does not know.
    """
    folder = expand_home(name)
    if not is_file(folder / CONFIG_FILE):
        return None
    try:
        saved: Mapping[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        targets = saved["target_modules"]
        unknown = [key for key, plain in _PLAIN.items() if saved.get(key, plain) not in (plain, None)]
        unknown += ["peft_type"] if saved["peft_type"] != "LORA" else []
        unknown += ["target_modules"] if not isinstance(targets, list) else []
        if unknown:
            raise UsageError(
                f"{folder} is not a plain LoRA adapter: its {unknown[0]} is {saved[unknown[0]]!r}",
                "merge it into its base model with PEFT, and give that folder",
            )
        config = AdapterConfig(rank=saved["r"], alpha=saved["lora_alpha"], targets=tuple(sorted(targets)))
        base = saved.get(LOADED_KEY) or saved["base_model_name_or_path"]
        if not isinstance(base, str) or is_file(expand_home(base) / CONFIG_FILE):
            raise ValueError(f"its base is {base!r}, which is no model")
        return SavedAdapter(folder, base, config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder / CONFIG_FILE} can't be read: {error}", "copy the adapter again"
        ) from error


_PLAIN: Mapping[str, object] = {
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "trainable_token_indices": None,
}
"""Settings of PEFT of which only one value is supported."""
