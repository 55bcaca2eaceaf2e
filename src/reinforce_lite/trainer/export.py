"""The models and checkpoints of a run on the disk, and the time that each takes."""

import shutil
from dataclasses import dataclass
from typing import Any

from reinforce_lite.config import Config
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models import policy as models
from reinforce_lite.models.policy import Policy
from reinforce_lite.runlog.run import Line, Run
from reinforce_lite.trainer import checkpoint
from reinforce_lite.trainer import model_card as card
from reinforce_lite.trainer.time_budget import Deadline


@dataclass(slots=True)
class Saves:
    """Writes into a run's directory; what it took is left with the deadline."""

    run: Run
    config: Config
    policy: Policy
    updater: Updater
    deadline: Deadline
    command: str

    def model(self, folder: str, step: int, evals: list[Line]) -> None:
        """Save model/ or best/, with a card that has these evaluations."""
        with self.deadline.timing(folder):
            text = card.write(self.config, evals, step, self.run.command(self.command))
            models.save(self.policy, self.run.path / folder, text)

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
            checkpoint.save(self.run.path / "checkpoints", step, self.updater.state(), meta)
