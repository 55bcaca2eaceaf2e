"""The model card of a saved model: base model, data, command, accuracy before and after."""

from reinforce_lite.config import Config
from reinforce_lite.models import embedded
from reinforce_lite.runlog.run import Line

_CARD = """---
library_name: transformers
base_model: {base}
tags: [reinforce-lite, reinforcement-learning]
---

# {base}, trained with Reinforce-Lite

- **Base model:** {base}
- **Data:** {data}
- **Objective:** {objective}, {samples} answers to each of {prompts} questions a step
- **Steps:** {steps}, seed {seed}
- **Command:** `{command}`

{table}

Strict: the one number in the answer block equals the gold answer. Lenient: the last number anywhere
does. A gain in strict alone is learning of the format. Answers are greedy; intervals are 95% (Wilson).
"""


def write(config: Config, evals: list[Line], step: int, command: str) -> str:
    """The card's text for the model of this step."""
    base = "HuggingFaceTB/SmolLM2-135M-Instruct" if config.model.name == embedded.NAME else config.model.name
    parts = config.objective.model_dump(exclude_none=True)
    return _CARD.format(
        base=base,
        data=_data(config),
        objective=", ".join(f"{v}" if k == "preset" else f"{k} {v}" for k, v in parts.items()),
        samples=config.rollout.samples_per_prompt,
        prompts=config.rollout.prompts_per_step,
        steps=step,
        seed=config.train.seed,
        command=command or "reinforce_lite.train(...)",
        table=_table(evals, step),
    )


def _data(config: Config) -> str:
    level = f", level {config.task.level}" if config.task.name == "wordmath" else ""
    return config.task.name + level + (f" ({config.task.path})" if config.task.path else "")


def _table(evals: list[Line], step: int) -> str:
    rows = [e for e in evals if e["step"] in (0, step)]
    head = "| | problems | strict | lenient | n |\n| --- | --- | --- | --- | --- |\n"
    return head + "\n".join(
        f"| {'before' if e['step'] == 0 else f'after step {step}'} | {e['split']} "
        f"| {_share(e, 'strict')} | {_share(e, 'lenient')} | {e['n']} |"
        for e in rows
    )


def _share(line: Line, kind: str) -> str:
    if line[kind] is None:
        return "–"
    low, high = line[f"{kind}_interval"]
    return f"{line[kind]:.1%} ({low:.1%} to {high:.1%})"
