"""Spell a saved model folder so that transformers 4 reads it as transformers 5 does.

transformers 5 renamed keys that transformers 4, and programs with readers of their own, look for. Where one
is missing they take its default without a word: 10000 for Llama's `rope_theta`, whatever the model has. So
the former keys are added with the same values, where transformers 5 then still reads the same.

Omitted on purpose: families that transformers 4 does not have.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""Classes that need nothing but tokenizer.json, by their names in transformers 5, with those in 4."""


def add_keys(folder: Path, config_class: Any, keys: Mapping[str, Any]) -> None:
    """Add the keys of transformers 4 to a saved folder's config.json and tokenizer_config.json, and `keys` to
    the first.

    The rotary keys are left out where `config_class`, that of the model, would read another embedding then.
    """
    plain = {**_read(folder / "config.json"), **keys}
    plain |= {"torch_dtype": plain["dtype"]} if "dtype" in plain else {}
    _write(folder / "config.json", plain | _former_rope(plain))
    if not _reads(folder, config_class, plain):
        _write(folder / "config.json", plain)
    add_tokenizer_keys(folder)


def add_tokenizer_keys(folder: Path) -> None:
    """Add the keys of transformers 4 to tokenizer_config.json alone: all that an adapter's folder has."""
    if (file := folder / "tokenizer_config.json").exists():  # one with code of its own may have another
        _write(file, _former_tokenizer(_read(file)))


def _former_rope(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    former: dict[str, Any] = {}
    if "sliding_attention" in rope:  # one for each kind of layer: Gemma 3
        former["rope_local_base_freq"] = rope["sliding_attention"].get("rope_theta")
        rope = rope.get("full_attention") or {}
    moved = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    kind = rope.get("rope_type", "default")
    if kind == "longrope":  # Phi-3 refuses any other key
        former["rope_scaling"] = {"type": kind} | {key: rope[key] for key in ("short_factor", "long_factor")}
    elif kind != "default":
        former["rope_scaling"] = {key: value for key, value in rope.items() if key not in moved}
    return former | moved


def _reads(folder: Path, config_class: Any, plain: dict[str, Any]) -> bool:
    """Whether transformers 5 reads the rotary embedding of config.json as before."""
    try:
        rope = config_class.from_pretrained(folder).to_dict().get("rope_parameters") or {}
    except Exception:  # what its class raises: huggingface_hub has errors of its own for a value
        return False
    return all(rope.get(key) == value for key, value in (plain.get("rope_parameters") or {}).items())


def _former_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    name = config.get("tokenizer_class")
    former = config | ({"tokenizer_class": TOKENIZER_CLASSES[name]} if name in TOKENIZER_CLASSES else {})
    if isinstance(tokens := former.get("extra_special_tokens"), list):
        del former["extra_special_tokens"]
        former["additional_special_tokens"] = tokens
    return former


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _write(file: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(f"{text}\n", encoding="utf-8")
