"""The model card: the README.md of model/, best/ and adapter/."""

from collections.abc import Sequence

from reinforce_lite.config import Config
from reinforce_lite.models.adapter import resolve_adapter
from reinforce_lite.models.embedded import EMBEDDED_NAME
from reinforce_lite.runlog.records import Record
from reinforce_lite.utils.text import percent

_CARD = """---
library_name: transformers
base_model: {base}
tags: [reinforce-lite, reinforcement-learning]
---

# {base}, trained with Reinforce-Lite

- **Base model:** {base}
- **Trained:** {trained}
- **Data:** {data}
- **Objective:** {objective}, {samples} completions for each of {prompts} questions per step
- **Steps:** {steps}, seed {seed}
- **Command:** `{command}`

{table}

Strict is the verdict that training pays for; lenient, on number tasks, asks for no format. A gain
in strict alone is format learning. Completions are greedy; intervals are 95% (Wilson).
"""


def model_card(config: Config, evals: Sequence[Record], step: int, command: str) -> str:
    """The README.md of the model of this step, with the evaluations at step 0 and at this step."""
    base, adapter, _ = resolve_adapter(config.model.name, config.adapter)
    parts = config.objective.model_dump(exclude_none=True)
    return _CARD.format(
        base=hub_name(base),
        trained=f"a low-rank adapter, rank {adapter.rank}, alpha {adapter.alpha:g}"
        if adapter.rank
        else "all weights",
        data=_data(config),
        objective=", ".join(f"{v}" if k == "preset" else f"{k} {v}" for k, v in parts.items()),
        samples=config.rollout.group_size,
        prompts=config.rollout.prompts_per_step,
        steps=step,
        seed=config.train.seed,
        command=command or "reinforce_lite.train(...)",
        table=_table(evals, step),
    )


def hub_name(name: str) -> str:
    """The name of a model on the Hugging Face hub; the embedded one is that model in 4 bits."""
    return "HuggingFaceTB/SmolLM2-135M-Instruct" if name == EMBEDDED_NAME else name


def _data(config: Config) -> str:
    level = f", level {config.task.level}" if config.task.name == "wordmath" else ""
    return config.task.name + level + (f" ({config.task.path})" if config.task.path else "")


def _table(evals: Sequence[Record], step: int) -> str:
    rows = [e for e in evals if e["step"] in (0, step)]
    head = "| | split | strict | lenient | problems |\n| --- | --- | --- | --- | --- |\n"
    return head + "\n".join(
        f"| {'before' if e['step'] == 0 else f'after step {step}'} | {e['split']} "
        f"| {_share(e, 'strict')} | {_share(e, 'lenient')} | {e['n']} |"
        for e in rows
    )


def _share(record: Record, kind: str) -> str:
    if record[kind] is None:
        return "–"
    low, high = record[f"{kind}_interval"]
    return f"{percent(record[kind])} ({percent(low)} to {percent(high)})"
