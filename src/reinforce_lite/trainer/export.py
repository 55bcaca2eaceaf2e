"""The models of a run on the disk: model/, best/, and the card that each carries."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from reinforce_lite.config import Config
from reinforce_lite.models.embedded import EMBEDDED_NAME
from reinforce_lite.models.policy import Policy, save_policy
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run


@dataclass(frozen=True, slots=True)
class Exporter:
    """Writes model folders into the run directory."""

    run: Run
    config: Config
    policy: Policy
    command: str
    """The command of this process; the card shows the one that started the run."""

    def save(self, folder: str, step: int, evals: Sequence[Record]) -> None:
        """Write model/ or best/, with a card that shows these evaluations."""
        card = model_card(self.config, evals, step, self.run.first_command(self.command))
        save_policy(self.policy, self.run.path / folder, card)

    def is_best(self, step: int, result: Record) -> bool:
        """Whether this validation beats every earlier one, the untrained model's included."""
        earlier = [e["reward"] for e in self.run.evals if e["split"] == "validation"]
        return step > 0 and all(result["reward"] > reward for reward in earlier)

    def keep_best(self, step: int) -> None:
        """Before a finished run continues: its model/ will be replaced, and may be the best so far."""
        model, best = self.run.path / "model", self.run.path / "best"
        if self.run.summary.get("best_step") == step > 0 and model.is_dir() and not best.is_dir():
            shutil.copytree(model, best)

    def drop_best(self) -> None:
        """Remove best/ where model/ is the best."""
        shutil.rmtree(self.run.path / "best", ignore_errors=True)


_CARD = """---
library_name: transformers
base_model: {base}
tags: [reinforce-lite, reinforcement-learning]
---

# {base}, trained with Reinforce-Lite

- **Base model:** {base}
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
    base = "HuggingFaceTB/SmolLM2-135M-Instruct" if config.model.name == EMBEDDED_NAME else config.model.name
    parts = config.objective.model_dump(exclude_none=True)
    return _CARD.format(
        base=base,
        data=_data(config),
        objective=", ".join(f"{v}" if k == "preset" else f"{k} {v}" for k, v in parts.items()),
        samples=config.rollout.group_size,
        prompts=config.rollout.prompts_per_step,
        steps=step,
        seed=config.train.seed,
        command=command or "reinforce_lite.train(...)",
        table=_table(evals, step),
    )


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
    return f"{record[kind]:.1%} ({low:.1%} to {high:.1%})"
