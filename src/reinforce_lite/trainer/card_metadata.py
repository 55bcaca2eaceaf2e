"""The front matter of a model card, which the Hugging Face hub reads.

It is built by huggingface_hub's own classes. What the base's card says is carried over if that card is on the
disk: nothing is fetched, and no license is guessed.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from reinforce_lite.config import Config, TaskConfig
from reinforce_lite.models.embedded import EMBEDDED_NAME
from reinforce_lite.runlog.records import Record
from reinforce_lite.utils.paths import expand_home, is_dir, is_path, without_folders

logger = logging.getLogger(__name__)

Library = Literal["transformers", "peft"]
"""Whose folder is explained: model/ and best/, or adapter/."""

_ENGLISH = ("wordmath", "gsm8k")
"""Tasks that are known to be in this language."""


def hub_name(name: str) -> str:
    """The name of a model on the Hugging Face hub; the embedded one is that model in 4 bits."""
    return "HuggingFaceTB/SmolLM2-135M-Instruct" if name == EMBEDDED_NAME else name


def is_local(name: str) -> bool:
    """Whether a base is a folder on this machine."""
    return name != EMBEDDED_NAME and is_dir(expand_home(name))


def base_data(name: str) -> ModelCardData:
    """What is known of the base: its front matter in a local folder or in the hub's cache, or nothing."""
    if name == EMBEDDED_NAME:
        return ModelCardData(base_model=hub_name(name), license="apache-2.0", language="en")
    data: CardData = ModelCardData()
    try:
        folder = expand_home(name)
        file = str(folder / "README.md") if is_local(name) else try_to_load_from_cache(name, "README.md")
        text = Path(file).read_text(encoding="utf-8") if isinstance(file, str) else ""
        if text.startswith("---"):
            data = ModelCard(text, ignore_metadata_errors=True).data
    except Exception:  # no such file, or front matter that only its author understands
        logger.debug("the card of %s is not read", name)
    assert isinstance(data, ModelCardData)
    if is_local(name):
        data.base_model = _hub_names(data.base_model)
        data.license_link = data.license_link and without_folders(str(data.license_link))
        data.model_name = data.model_name and without_folders(str(data.model_name))
    else:
        data.base_model = name
    return data


def _hub_names(base_model: Any) -> Any:
    """Those of a card's base models that are named as on the hub: another may be a folder of this machine."""
    names = base_model if isinstance(base_model, list) else [base_model]
    hub_names = [n for n in map(str, names) if re.fullmatch(r"[\w.-]+/[\w.-]+", n) and not is_path(n)]
    return hub_names if len(hub_names) > 1 else next(iter(hub_names), None)


def metadata(
    config: Config, base: ModelCardData, base_name: str, evals: Sequence[Record], library: Library
) -> ModelCardData:
    """The front matter; `evals` are those of the saved model."""
    dataset, task = _dataset(config.task), config.task.name
    results = [
        EvalResult(
            task_type="text-generation",
            metric_type="accuracy",
            metric_name=f"{kind} accuracy",
            metric_value=round(record[kind], 4),
            dataset_split=record["split"],
            **dataset,
        )
        for record in evals
        for kind in ("strict", "lenient")
        if record[kind] is not None
    ]
    model_name = f"{base_name.rpartition('/')[2]} trained on {dataset['dataset_name']}"
    return ModelCardData(
        base_model=base.base_model,
        license=base.license,
        license_name=base.license_name,
        license_link=base.license_link,
        language=base.language or ("en" if task in _ENGLISH else None),
        library_name=library,
        pipeline_tag="text-generation",
        tags=["reinforce-lite", "reinforcement-learning", *(["lora"] if library == "peft" else [])],
        datasets=[dataset["dataset_type"]] if _is_on_hub(config.task) else None,
        model_name=model_name if results else None,
        eval_results=results or None,
    )


def _is_on_hub(task: TaskConfig) -> bool:
    names = (task.path, task.path.partition(":")[0])  # a folder's own name may have a colon
    return task.name == "gsm8k" or (task.name == "hub" and not any(map(is_path, names)))


def _dataset(task: TaskConfig) -> dict[str, Any]:
    """The data set, as the arguments of EvalResult."""
    if task.name == "gsm8k":
        return {"dataset_type": "openai/gsm8k", "dataset_name": "GSM8K", "dataset_config": "main"}
    if _is_on_hub(task):
        name, _, config = task.path.partition(":")
        return {"dataset_type": name, "dataset_name": name, "dataset_config": config or None}
    identifier = re.sub(r"[^\w.-]+", "-", without_folders(task.name))  # the hub refuses other characters
    return {"dataset_type": identifier, "dataset_name": describe_data(task)}


def describe_data(task: TaskConfig) -> str:
    """Where the problems came from, in a few words."""
    level = f", level {task.level}" if task.name == "wordmath" else ""
    path = f" ({without_folders(task.path)})" if task.path else ""
    return without_folders(task.name) + level + path
