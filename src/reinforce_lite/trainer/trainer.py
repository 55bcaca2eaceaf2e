"""The loop. It walks the road once a step; everything else is wiring.

    problems ─▶ rollout.sample ─▶ rollout.score ─▶ objective.advantages ─▶ objective.weights
        ▲                                                                        │
        └──── the next step ◀──── run directory ◀──── updater.apply ◀──── updater.gradient

A step changes weights and logs in one block that no signal cuts through. Before each step the
trainer settles the last one: evaluations that are due and not there yet, then the checkpoint. So a
run that was killed anywhere and one that was never stopped pass through the same states.
"""

import logging
import shutil
import signal
from typing import Any

import torch

from reinforce_lite import config, report, tasks
from reinforce_lite import pipeline as road
from reinforce_lite.callbacks import trackers
from reinforce_lite.callbacks.console import Screen, Silent
from reinforce_lite.errors import ReinforceLiteError, Stopped, WontFit
from reinforce_lite.evaluation import evaluate as evaluation
from reinforce_lite.learner import objective, optimizers
from reinforce_lite.learner.updater import Updater
from reinforce_lite.planner import plan
from reinforce_lite.rollout import collect as rollout
from reinforce_lite.runlog import summary
from reinforce_lite.runlog.run import Run
from reinforce_lite.tasks.base import Task
from reinforce_lite.trainer import (
    checkpoint,
)
from reinforce_lite.trainer import (
    dry_run as rehearsal,
)
from reinforce_lite.trainer import (
    preflight as checks,
)
from reinforce_lite.trainer import (
    time_budget as deadline,
)
from reinforce_lite.trainer.export import Saves
from reinforce_lite.trainer.metrics import rollout_lines, step_line
from reinforce_lite.trainer.resume import Resuming
from reinforce_lite.trainer.signals import Interrupted, Interrupts
from reinforce_lite.types import Split
from reinforce_lite.utils import environment as machine
from reinforce_lite.utils import memory
from reinforce_lite.utils import seeding as seeds

logger = logging.getLogger(__name__)


def train(
    settings: config.Config,
    run: Run,
    task: Task | None = None,
    screen: Screen | None = None,
    command: str = "",
    began: float | None = None,
) -> Run:
    """Train in a run directory, from its last checkpoint if it has one, to the last step or the deadline.

    `began` is when the process did, by the clock of `deadline`; now, if it is not given.
    Raises UsageError for a config or data that differ from the checkpoint's, WontFit where memory is too
    small, Stopped after a signal.
    """
    run.lock()
    try:
        checks.greedy(settings)
        listener = trackers.listener(settings, run, screen or Silent())
        checks.same_config(settings, run)
        done = run.summary
        if done.get("stopped") == "steps" and done["steps"] >= settings.train.steps:
            logger.warning("%s is finished: %d steps are done", run.path, done["steps"])
        else:
            Trainer(settings, run, task, listener, command, began).run_to_the_end()
    except Exception as error:
        if not memory.ran_out(error):
            raise
        raise WontFit("memory ran out where no smaller piece helps", "see: reinforce-lite plan") from error
    finally:
        run.unlock()
        run.drop_if_nothing_was_begun()
    return run


class Trainer:
    """One run: the road, the updater, and how far it has come."""

    def __init__(
        self,
        settings: config.Config,
        run: Run,
        task: Task | None,
        screen: Screen,
        command: str,
        began: float | None = None,
    ) -> None:
        self.config = settings
        self.run = run
        self.screen = screen
        self.command = command
        self.started = deadline.now() if began is None else began
        self.objective = objective.from_preset(**settings.objective.model_dump())
        objective.check_group_size(self.objective, settings.rollout.samples_per_prompt)
        self.plan = plan.as_it_is(settings)
        plan.check(self.plan)
        optimizers.check(settings.update)
        self.road = road.build(settings, task)
        self.problems = self.road.problems("train")
        checks.enough(self.problems, settings)
        temperature = self.objective.temperature(settings.rollout.temperature)
        self.updater = Updater(self.road.policy, settings.update, temperature, settings.train.seed)
        self.interrupts = Interrupts()
        self.machine = machine.describe(self.road.policy.device, self.road.policy.dtype)
        data, versions = tasks.fingerprint(self.road.task), self.machine["versions"]
        self.resuming = Resuming(run, settings, self.updater, self.road.engine, data, versions)
        came = self.resuming.resume()
        self.step, self.seconds_before, self.probe_bytes = came.step, came.seconds, came.probe_bytes
        self.num_tokens = max((line["num_tokens"] for line in run.read("steps")), default=0)
        self.deadline = self._deadline()
        self.saves = Saves(run, settings, self.road.policy, self.updater, self.deadline, command)
        self.keeper = report.Keeper(run)
        self.ending = self.finished = False

    def run_to_the_end(self) -> None:
        """The loop. Raises Stopped after a signal, with the state saved."""
        checks.room(self.run, self.updater.state_bytes, self._model_bytes)
        with self.interrupts.listening():
            try:
                with self.screen:
                    self._loop_and_save()
            except Interrupted as signalled:  # while trackers started or ended
                self._stop(signalled.signum)

    def _loop_and_save(self) -> None:
        """The loop; cut short, it saves all before the screen is left: trackers may take long to end."""
        try:
            self.screen.started(self.config, self.run, self.step, str(self.road.policy.device), self._left)
            self._loop()
        except Interrupted as signalled:
            self._stop(signalled.signum)
        except ReinforceLiteError as error:
            if isinstance(error, WontFit) and self.step:
                self._save_before(error)
            self._report_if_quick()
            raise

    def _loop(self) -> None:
        self.saves.last_if_best(self.step)
        (self.run.path / "summary.json").unlink(missing_ok=True)
        if self.step == 0 and self.deadline.leaves_time_to_try:
            self._rehearse()
        self._begin()
        if self.step:
            self._report()  # so that it is known what one takes
        self._settle()
        while not self.ending:
            self._take_step(self.step + 1)
            self._settle()
        self._finish()

    def _begin(self) -> None:
        """Write what the run is. From here on it can be gone on with."""
        if not self.run.begun:
            self.run.command(self.command)
        self.run.write_machine(self.machine | {"planned_bytes": self.plan.total})
        self.run.write_config(self.config)

    def _deadline(self) -> deadline.Deadline:
        model = self._model_bytes
        saves = {"checkpoint": self.updater.state_bytes, "model": model, "best": model}
        evaluations = {e["split"]: e["seconds"] for e in self.run.evals}
        steps = [line["step_time"] for line in self.run.steps]
        return deadline.Deadline.of(self.config.train.hours, self.started, saves, evaluations, steps)

    @property
    def _model_bytes(self) -> int:
        policy = self.road.policy
        parameters: int = sum(p.numel() for p in policy.model.parameters())
        return policy.dtype.itemsize * parameters

    def _left(self) -> float:
        """Seconds to the end, as it looks now."""
        return self.deadline.left(self.config.train.steps - self.step)

    def _rehearse(self) -> None:
        """One step of the largest kind that may come, so that memory runs out now rather than later."""
        start = deadline.now()
        self.screen.phase("trying the largest step", 0)
        rehearsal.run(self.road, self.problems, self.updater, self.objective)
        self.probe_bytes = memory.peak_bytes(self.road.policy.device)
        memory.give_back()
        self.interrupts.check()
        self.deadline.largest = deadline.now() - start

    def _take_step(self, step: int) -> None:
        clock = deadline.Clock()
        problems = rollout.questions(
            self.problems, self.config.rollout.prompts_per_step, step, self.config.train.seed
        )
        seed = seeds.derive(self.config.train.seed, "rollout", step)
        sampling = self.road.sampling(greedy=False)
        self.screen.phase("answering", len(problems) * sampling.samples)
        sampled = rollout.sample(
            problems, self.road.prompter, self.road.engine, sampling, seed, self.screen.advance
        )
        memory.give_back()
        clock.lap("rollout")
        groups = rollout.score(problems, sampled, self.road.scorer)
        self.interrupts.check()
        clock.lap("reward")
        self.screen.phase("learning", 0)
        advantages = objective.advantages([g.rewards for g in groups], self.objective)
        lengths = [[len(r.completion.token_ids) for r in g.rollouts] for g in groups]
        weights = objective.weights(advantages, lengths, self.objective, sampling.max_new_tokens)
        weights *= torch.tensor([[not r.fault for r in g.rollouts] for g in groups])
        gradient = self.updater.gradient(groups, weights)
        with self.interrupts.whole():
            updated = self.updater.apply(gradient, step)
            clock.lap("update")
            line = step_line(step, groups, gradient, updated, self.updater.learning_rate(step), clock.laps)
            self.num_tokens += line.pop("tokens")
            line |= {"num_tokens": self.num_tokens, "step_time": clock.total}
            line |= {"memory/peak_bytes": memory.peak_bytes(self.road.policy.device)} | self.resuming.at_once
            self.run.append("rollouts", *rollout_lines(step, groups, advantages.tolist()))
            self.run.append("steps", line)
            self.step = step
        memory.give_back()
        self.deadline.steps.append(clock.total)
        self.screen.stepped(line, groups)

    def _settle(self) -> None:
        """Do what is due at this step and not done yet: evaluations, then the checkpoint."""
        if self.step == 0:
            self._evaluate("validation", self.config.eval.validation_n)
            self._evaluate("test", self.config.eval.n)
        due = {
            "validation": self.step > 0 and self.step % self.config.eval.every == 0,
            "checkpoint": self.step > 0 and self.step % self.config.train.save_every == 0,
            "report": self.keeper.is_due,
        }
        self.ending = self.step >= self.config.train.steps or not self.deadline.leaves_a_step(
            [name for name, is_due in due.items() if is_due]
        )
        if due["validation"] or self.ending:
            self._evaluate("validation", self.config.eval.validation_n)
        if self.ending:
            self._evaluate("test", self.config.eval.n)
        if due["checkpoint"] or (self.ending and self.step):
            self._save_checkpoint()
        if not self.ending:
            self._report()

    def _report(self, must: bool = False) -> None:
        self.keeper.refresh(must)
        self.deadline.taken["report"] = self.keeper.seconds

    def _report_if_quick(self) -> None:
        """For a run that is cut short, and must end within seconds."""
        if self.keeper.is_quick:
            self._report(must=True)
        elif self.run.begun:
            logger.warning("for a report of how far it came: reinforce-lite report %s", self.run.name)

    def _evaluate(self, split: Split, n: int) -> None:
        if self.run.evaluated(self.step, split):
            return
        start = deadline.now()
        problems = self.road.problems(split, n)
        self.screen.phase(f"evaluating on {split}", len(problems))
        groups = self.road.answer(problems, self.screen.advance)
        result = evaluation.evaluate(groups, self.step, split)
        memory.give_back()
        lines = [line | {"split": split} for line in rollout_lines(self.step, groups, None)]
        with self.interrupts.whole():
            if split == "validation":
                self.saves.best(self.step, result.line())
            self.run.append("eval_rollouts", *lines)
            self.deadline.taken[split] = deadline.now() - start
            self.run.append("evals", result.line() | {"seconds": self.deadline.taken[split]})
        self.screen.evaluated(result)

    def _save_checkpoint(self) -> None:
        if self.step in checkpoint.steps(self.run.path / "checkpoints"):
            return
        self.screen.phase("saving", 0)
        with self.interrupts.whole():
            self.saves.checkpoint(self.step, self.resuming.meta(self._seconds(), self.probe_bytes))

    def _stop(self, signum: int) -> None:
        """After a signal: save the last finished step and say how to go on; a run that is done stays so."""
        self.interrupts.stopping()
        if self.finished:
            return
        how = "before anything was begun"
        if self.run.begun:
            how = f"after step {self.step}; everything is saved"
            if self.step:
                self._save_checkpoint()
            self.run.write_summary(self._summary("signal"))
            self._report_if_quick()
        raise Stopped(signum, f"stopped by {signal.Signals(signum).name} {how}", self.run.how_to_go_on)

    def _save_before(self, error: WontFit) -> None:
        """Save the last finished step, and say how to go on from it with less memory."""
        self._save_checkpoint()
        error.remedy = (
            f"step {self.step} is saved: go on with reinforce-lite train --run {self.run.name} "
            f"--resume and one of {', '.join(map(config.option, plan.SMALLER))}"
        )

    def _finish(self) -> None:
        try:
            with self.interrupts.whole():
                self._save_result()
            self._report(must=True)
        except Interrupted:
            if not self.finished:
                raise
            self.interrupts.stopping()
            logger.warning("the run is done; for its report: reinforce-lite report %s", self.run.name)
        self.screen.finished(self.run)

    def _save_result(self) -> None:
        self.screen.phase("saving", 0)
        self.saves.model("model", self.step, self.run.evals)
        if summary.best_step(self.run.evals) in (0, self.step):
            shutil.rmtree(self.run.path / "best", ignore_errors=True)
        self.run.write_summary(self._summary("steps" if self.step >= self.config.train.steps else "hours"))
        self.finished = True

    def _summary(self, stopped: str) -> dict[str, Any]:
        peak = memory.peak_bytes(self.road.policy.device)
        return summary.summarize(self.run, self.config, self.step) | {
            "seconds": round(self._seconds(), 1),
            "stopped": stopped,
            "peak_memory_bytes": peak,
            "memory": {
                "planned_bytes": self.plan.total,
                "probe_bytes": self.probe_bytes,
                "peak_bytes": peak,
            },
            "reward_faults": self.road.scorer.faults,
            "machine": self.machine["system"],
            **{key: self.machine[key] for key in ("versions", "device", "dtype")},
        }

    def _seconds(self) -> float:
        return self.seconds_before + deadline.now() - self.started
