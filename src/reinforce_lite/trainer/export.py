"""The models and checkpoints of a run on the disk, and the time that each takes."""

import shutil
from dataclasses import dataclass
from typing import Any

from reinforce_lite.config import Config
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.embedded import EMBEDDED_NAME
from reinforce_lite.models.policy import Policy, save_policy
from reinforce_lite.runlog.run import Line, Run
from reinforce_lite.trainer.checkpoint import save_checkpoint
from reinforce_lite.trainer.time_budget import TimeBudget


@dataclass(slots=True)
class Saves:
    """Writes into a run's directory; what it took is left with the deadline."""

    run: Run
    config: Config
    policy: Policy
    updater: Updater
    deadline: TimeBudget
    command: str

    def model(self, folder: str, step: int, evals: list[Line]) -> None:
        """Save model/ or best/, with a card that has these evaluations."""
        with self.deadline.timing(folder):
            text = model_card(self.config, evals, step, self.run.command(self.command))
            save_policy(self.policy, self.run.path / folder, text)

    def best(self, step: int, result: Line) -> None:
        """Save best/ when this validation beats every earlier one, the untrained model's included."""
        earlier = [e["reward"] for e in self.run.read("evals") if e["split"] == "validation"]
        if step and all(result["reward"] > reward for reward in earlier):
            self.model("best", step, [*self.run.evals, result])

    def last_if_best(self, step: int) -> None:
        """When a finished run gets more steps: its model/ will be replaced, and may be the best so far."""
        model, best = self.run.path / "model", self.run.path / "best"
        if self.run.summary.get("best_step") == step > 0 and model.is_dir() and not best.is_dir():
            shutil.copytree(model, best)

    def checkpoint(self, step: int, meta: dict[str, Any]) -> None:
        """Save what a resumed run goes on from, after the lines that it belongs to."""
        with self.deadline.timing("checkpoint"):
            self.run.sync()
            save_checkpoint(self.run.path / "checkpoints", step, self.updater.state_dict(), meta)


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


def model_card(config: Config, evals: list[Line], step: int, command: str) -> str:
    """The card's text for the model of this step."""
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
