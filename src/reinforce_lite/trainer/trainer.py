"""The loop. It walks the pipeline once a step; everything else is wiring.

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

from reinforce_lite.callbacks.base import Callback, Silent
from reinforce_lite.callbacks.trackers import with_trackers
from reinforce_lite.config import Config, option_flag
from reinforce_lite.errors import DoesNotFitError, ReinforceLiteError, StoppedError
from reinforce_lite.evaluation.evaluate import evaluate_groups
from reinforce_lite.learner import objective
from reinforce_lite.learner.objective import build_objective
from reinforce_lite.learner.optimizers import check_optimizer
from reinforce_lite.learner.updater import Updater
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.planner.plan import MEMORY_KEYS, check_fits, plan_unchanged
from reinforce_lite.report.refresher import ReportRefresher
from reinforce_lite.rollout.collect import sample_completions, score_groups, select_problems
from reinforce_lite.runlog import summary
from reinforce_lite.runlog.run import Run
from reinforce_lite.tasks import task_fingerprint
from reinforce_lite.tasks.base import Task
from reinforce_lite.trainer.checkpoint import Resuming, checkpoint_steps
from reinforce_lite.trainer.dry_run import dry_run
from reinforce_lite.trainer.export import Saves
from reinforce_lite.trainer.metrics import rollout_lines, step_line
from reinforce_lite.trainer.preflight import (
    check_disk_space,
    check_enough_problems,
    check_eval,
    check_same_config,
)
from reinforce_lite.trainer.signals import Interrupted, SignalGuard
from reinforce_lite.trainer.time_budget import TimeBudget
from reinforce_lite.types import Split
from reinforce_lite.utils import clock, memory
from reinforce_lite.utils.clock import Clock
from reinforce_lite.utils.environment import describe_machine
from reinforce_lite.utils.memory import is_out_of_memory, limit_fragmentation, release_cached_memory
from reinforce_lite.utils.seeding import derive_seed

logger = logging.getLogger(__name__)


def train(
    config: Config,
    run: Run,
    task: Task | None = None,
    screen: Callback | None = None,
    command: str = "",
    began: float | None = None,
) -> Run:
    """Train in a run directory, from its last checkpoint if it has one, to the last step or the deadline.

    `began` is when the process did, by the clock of `deadline`; now, if it is not given.
    Raises UsageError for a config or data that differ from the checkpoint's, WontFit where memory is too
    small, Stopped after a signal.
    """
    limit_fragmentation()
    run.lock()
    try:
        check_eval(config)
        listener = with_trackers(config, run, screen or Silent())
        check_same_config(config, run)
        done = run.summary
        if done.get("stopped") == "steps" and done["steps"] >= config.train.steps:
            logger.warning("%s is finished: %d steps are done", run.path, done["steps"])
        else:
            Trainer(config, run, task, listener, command, began).run_to_the_end()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError(
            "memory ran out where no smaller piece helps", "see: reinforce-lite plan"
        ) from error
    finally:
        run.unlock()
        run.remove_if_empty()
    return run


class Trainer:
    """One run: the pipeline, the updater, and how far it has come."""

    def __init__(
        self,
        config: Config,
        run: Run,
        task: Task | None,
        screen: Callback,
        command: str,
        began: float | None = None,
    ) -> None:
        self.config = config
        self.run = run
        self.screen = screen
        self.command = command
        self.started = clock.now() if began is None else began
        self.objective = build_objective(**config.objective.model_dump())
        objective.check_group_size(self.objective, config.rollout.group_size)
        self.plan = plan_unchanged(config)
        check_fits(self.plan)
        check_optimizer(config.update)
        self.pipeline = build_pipeline(config, task)
        self.problems = self.pipeline.problems("train")
        check_enough_problems(self.problems, config)
        temperature = self.objective.temperature(config.rollout.temperature)
        self.updater = Updater(self.pipeline.policy, config.update, temperature, config.train.seed)
        self.interrupts = SignalGuard()
        self.machine = describe_machine(self.pipeline.policy.device, self.pipeline.policy.dtype)
        data, versions = task_fingerprint(self.pipeline.task), self.machine["versions"]
        self.resuming = Resuming(run, config, self.updater, self.pipeline.engine, data, versions)
        came = self.resuming.resume()
        self.step, self.seconds_before, self.dry_run_bytes = came.step, came.seconds, came.dry_run_bytes
        self.num_tokens = max((line["num_tokens"] for line in run.read("steps")), default=0)
        self.deadline = self._deadline()
        self.saves = Saves(run, config, self.pipeline.policy, self.updater, self.deadline, command)
        self.keeper = ReportRefresher(run)
        self.ending = self.finished = False

    def run_to_the_end(self) -> None:
        """The loop. Raises Stopped after a signal, with the state saved."""
        check_disk_space(self.run, self.updater.state_bytes, self._model_bytes)
        with self.interrupts.listening():
            try:
                with self.screen:
                    self._loop_and_save()
            except Interrupted as signalled:  # while trackers started or ended
                self._stop(signalled.signum)

    def _loop_and_save(self) -> None:
        """The loop; cut short, it saves all before the screen is left: trackers may take long to end."""
        try:
            self.screen.started(
                self.config, self.run, self.step, str(self.pipeline.policy.device), self._left
            )
            self._loop()
        except Interrupted as signalled:
            self._stop(signalled.signum)
        except ReinforceLiteError as error:
            if isinstance(error, DoesNotFitError) and self.step:
                self._save_before(error)
            self._report_if_quick()
            raise

    def _loop(self) -> None:
        self.saves.last_if_best(self.step)
        (self.run.path / "summary.json").unlink(missing_ok=True)
        if self.step == 0 and self.deadline.allows_dry_run:
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
        if not self.run.started:
            self.run.command(self.command)
        self.run.write_machine(self.machine | {"planned_bytes": self.plan.total})
        self.run.write_config(self.config)

    def _deadline(self) -> TimeBudget:
        model = self._model_bytes
        saves = {"checkpoint": self.updater.state_bytes, "model": model, "best": model}
        evaluations = {e["split"]: e["seconds"] for e in self.run.evals}
        steps = [line["step_time"] for line in self.run.steps]
        return TimeBudget.of(self.config.train.hours, self.started, saves, evaluations, steps)

    @property
    def _model_bytes(self) -> int:
        policy = self.pipeline.policy
        parameters: int = sum(p.numel() for p in policy.model.parameters())
        return policy.dtype.itemsize * parameters

    def _left(self) -> float:
        """Seconds to the end, as it looks now."""
        return self.deadline.left(self.config.train.steps - self.step)

    def _rehearse(self) -> None:
        """One step of the largest kind that may come, so that memory runs out now rather than later."""
        start = clock.now()
        self.screen.phase("trying the largest step", 0)
        dry_run(self.pipeline, self.problems, self.updater, self.objective)
        self.dry_run_bytes = memory.peak_bytes(self.pipeline.policy.device)
        release_cached_memory()
        self.interrupts.check()
        self.deadline.largest = clock.now() - start

    def _take_step(self, step: int) -> None:
        phases = Clock()
        problems = select_problems(
            self.problems, self.config.rollout.prompts_per_step, step, self.config.train.seed
        )
        seed = derive_seed(self.config.train.seed, "rollout", step)
        sampling = self.pipeline.sampling(greedy=False)
        self.screen.phase("answering", len(problems) * sampling.samples)
        sampled = sample_completions(
            problems, self.pipeline.prompter, self.pipeline.engine, sampling, seed, self.screen.advance
        )
        release_cached_memory()
        phases.lap("rollout")
        groups = score_groups(problems, sampled, self.pipeline.scorer)
        self.interrupts.check()
        phases.lap("reward")
        self.screen.phase("learning", 0)
        advantages = objective.advantages([g.rewards for g in groups], self.objective)
        lengths = [[len(r.completion.token_ids) for r in g.rollouts] for g in groups]
        weights = objective.weights(advantages, lengths, self.objective, sampling.max_new_tokens)
        weights *= torch.tensor([[not r.fault for r in g.rollouts] for g in groups])
        gradient = self.updater.compute_gradient(groups, weights)
        with self.interrupts.whole():
            updated = self.updater.apply_gradient(gradient, step)
            phases.lap("update")
            line = step_line(step, groups, gradient, updated, self.updater.learning_rate(step), phases.laps)
            self.num_tokens += line.pop("tokens")
            line |= {"num_tokens": self.num_tokens, "step_time": phases.total}
            line |= {
                "memory/peak_bytes": memory.peak_bytes(self.pipeline.policy.device)
            } | self.resuming.at_once
            self.run.append("rollouts", *rollout_lines(step, groups, advantages.tolist()))
            self.run.append("steps", line)
            self.step = step
        release_cached_memory()
        self.deadline.steps.append(phases.total)
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
        self.ending = self.step >= self.config.train.steps or not self.deadline.allows_step(
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
        elif self.run.started:
            logger.warning("for a report of how far it came: reinforce-lite report %s", self.run.name)

    def _evaluate(self, split: Split, n: int) -> None:
        if self.run.evaluated(self.step, split):
            return
        start = clock.now()
        problems = self.pipeline.problems(split, n)
        self.screen.phase(f"evaluating on {split}", len(problems))
        groups = self.pipeline.answer(problems, self.screen.advance)
        result = evaluate_groups(groups, self.step, split)
        release_cached_memory()
        lines = [line | {"split": split} for line in rollout_lines(self.step, groups, None)]
        with self.interrupts.whole():
            if split == "validation":
                self.saves.best(self.step, result.line())
            self.run.append("eval_rollouts", *lines)
            self.deadline.taken[split] = clock.now() - start
            self.run.append("evals", result.line() | {"seconds": self.deadline.taken[split]})
        self.screen.evaluated(result)

    def _save_checkpoint(self) -> None:
        if self.step in checkpoint_steps(self.run.path / "checkpoints"):
            return
        self.screen.phase("saving", 0)
        with self.interrupts.whole():
            self.saves.checkpoint(self.step, self.resuming.meta(self._seconds(), self.dry_run_bytes))

    def _stop(self, signum: int) -> None:
        """After a signal: save the last finished step and say how to go on; a run that is done stays so."""
        self.interrupts.stopping()
        if self.finished:
            return
        how = "before anything was begun"
        if self.run.started:
            how = f"after step {self.step}; everything is saved"
            if self.step:
                self._save_checkpoint()
            self.run.write_summary(self._summary("signal"))
            self._report_if_quick()
        raise StoppedError(signum, f"stopped by {signal.Signals(signum).name} {how}", self.run.resume_hint)

    def _save_before(self, error: DoesNotFitError) -> None:
        """Save the last finished step, and say how to go on from it with less memory."""
        self._save_checkpoint()
        error.remedy = (
            f"step {self.step} is saved: go on with reinforce-lite train --run {self.run.name} "
            f"--resume and one of {', '.join(map(option_flag, MEMORY_KEYS))}"
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
        peak = memory.peak_bytes(self.pipeline.policy.device)
        return summary.summarize(self.run, self.config, self.step) | {
            "seconds": round(self._seconds(), 1),
            "stopped": stopped,
            "peak_memory_bytes": peak,
            "memory": {
                "planned_bytes": self.plan.total,
                "dry_run_bytes": self.dry_run_bytes,
                "peak_bytes": peak,
            },
            "reward_faults": self.pipeline.scorer.faults,
            "machine": self.machine["system"],
            **{key: self.machine[key] for key in ("versions", "device", "dtype")},
        }

    def _seconds(self) -> float:
        return self.seconds_before + clock.now() - self.started
