"""The loop. One step goes through the pipeline once; the rest is saving, measuring and reporting.

    problems ─▶ completions ─▶ rewards ─▶ advantages ─▶ weights ─▶ gradient ─▶ new policy
        ▲                                                                        │
        └──────────────────────────── the next step ◀────────────────────────────┘

A step changes weights and logs in one block that no signal cuts through. Before each step the trainer settles
the previous one: evaluations that are due, then the checkpoint. So a run that was killed anywhere and resumed
with the same config, versions and machine takes the same steps as one that was never stopped.
"""

import logging
import signal
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reinforce_lite.callbacks.base import (
    DRY_RUN,
    SAMPLING,
    SAVING_CHECKPOINT,
    SAVING_MODEL,
    UPDATING,
    Callback,
    Silent,
)
from reinforce_lite.callbacks.trackers import with_trackers
from reinforce_lite.config import Config, option_flag
from reinforce_lite.errors import DoesNotFitError, ReinforceLiteError, StoppedError
from reinforce_lite.evaluation.evaluate import evaluate_groups
from reinforce_lite.learner.objective import advantages, loss_weights
from reinforce_lite.planner.plan import MEMORY_KEYS
from reinforce_lite.rollout.collect import sample_completions, score_groups, select_problems
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.summary import best_step, summarize
from reinforce_lite.tasks.base import Task
from reinforce_lite.trainer.checkpoint import Progress
from reinforce_lite.trainer.context import TrainingContext, prepare
from reinforce_lite.trainer.dry_run import dry_run
from reinforce_lite.trainer.metrics import completion_records, step_metrics, step_tokens
from reinforce_lite.trainer.preflight import check_same_config
from reinforce_lite.trainer.signals import Interrupted, SignalGuard
from reinforce_lite.types import Group, Split
from reinforce_lite.utils import clock
from reinforce_lite.utils.clock import Clock
from reinforce_lite.utils.memory import (
    available_bytes,
    is_out_of_memory,
    limit_fragmentation,
    peak_bytes,
    release_cached_memory,
)
from reinforce_lite.utils.program import command_line
from reinforce_lite.utils.seeding import derive_seed

logger = logging.getLogger(__name__)


def train(
    config: Config,
    run: Run,
    task: Task | None = None,
    callback: Callback | None = None,
    command: str = "",
    start: float | None = None,
) -> Run:
    """Train in a run directory, from its latest checkpoint if there is one, to the final step.

    With `train.hours` it ends when they have passed since `start`, the moment at which the process started
    (by `utils.clock`; by default now).
    Raises UsageError for a config or data that differ from the checkpoint's, DoesNotFitError where memory is
    too small, StoppedError after a signal.
    """
    limit_fragmentation()
    run.lock()
    try:
        check_same_config(config, run)
        callback = with_trackers(config, run, callback or Silent())
        summary = run.summary
        if summary.get("stopped") == "steps" and summary["steps"] >= config.train.steps:
            logger.warning("%s is finished: %d steps are done", run.path, summary["steps"])
        else:
            _train(config, run, task, callback, command, clock.now() if start is None else start)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError(
            "out of memory in a part of the program that cannot be split further",
            f"see: {command_line('plan')}",
        ) from error
    finally:
        run.unlock()
        run.remove_if_empty()
    return run


def _train(
    config: Config, run: Run, task: Task | None, callback: Callback, command: str, start: float
) -> None:
    signals, trainer = SignalGuard(), None
    with signals.listening():
        try:
            with callback:
                trainer = Trainer(prepare(config, run, task, callback, signals, command, start))
                trainer.train()
        except Interrupted as interrupted:  # while the model was loaded or trackers were closed
            if trainer is None:
                raise StoppedError(
                    interrupted.signum, f"stopped by {interrupted} before the first step", run.resume_hint
                ) from None
            trainer.stop(interrupted.signum)


class Trainer:
    """The loop of one run, and how far it has come."""

    def __init__(self, context: TrainingContext) -> None:
        self.context = context
        self.config, self.run, self.callback = context.config, context.run, context.callback
        self.pipeline, self.updater = context.pipeline, context.updater
        self.signals, self.budget = context.signals, context.budget
        self.step = context.progress.step
        self.dry_run_bytes = context.progress.dry_run_bytes
        self.num_tokens = max((s.num_tokens for s in self.run.step_metrics), default=0)
        self.result_saved = False

    def train(self) -> None:
        """The loop, and what happens when it is cut short. Raises StoppedError after a signal."""
        try:
            self._loop()
        except Interrupted as interrupted:
            self.stop(interrupted.signum)
        except ReinforceLiteError as error:
            if isinstance(error, DoesNotFitError) and self.step:
                self._save_before_raising(error)
            self._report_if_quick()
            raise

    def _loop(self) -> None:
        self._start()
        is_final = self._settle()
        while not is_final:
            self._take_step(self.step + 1)
            is_final = self._settle()
        self._finish()

    def _take_step(self, step: int) -> None:
        """One step of the method: sample, reward, compare within the group, update."""
        config, phases = self.config, Clock()
        problems = select_problems(
            self.context.problems, config.rollout.prompts_per_step, step, config.train.seed
        )
        seed, sampling = derive_seed(config.train.seed, "rollout", step), self.pipeline.sampling()
        self.callback.phase(SAMPLING, len(problems) * sampling.samples)
        sampled = sample_completions(
            problems,
            self.pipeline.prompt_builder,
            self.pipeline.engine,
            sampling,
            seed,
            self.callback.advance,
        )
        release_cached_memory()
        phases.lap("rollout")
        groups = score_groups(problems, sampled, self.pipeline.scorer)
        self.signals.check()
        phases.lap("reward")
        self.callback.phase(UPDATING)
        group_advantages = self._advantages(groups)  # (Q, G)
        lengths = [g.lengths for g in groups]
        gradient = self.updater.compute_gradient(
            groups, loss_weights(group_advantages, lengths, self.context.objective, sampling.max_new_tokens)
        )
        with self.signals.uninterrupted():
            updated = self.updater.apply_gradient(gradient, step)
            phases.lap("update")
            self.num_tokens += step_tokens(groups)
            metrics = step_metrics(
                step,
                groups,
                gradient,
                updated,
                phases.laps,
                learning_rate=self.updater.learning_rate(step),
                num_tokens=self.num_tokens,
                step_time=phases.total,
                peak_memory=peak_bytes(self.pipeline.policy.device),
                micro_batch_tokens=self.updater.micro_batch_tokens,
                max_num_seqs=self.pipeline.engine.max_num_seqs,
            )
            self.run.append_completions(
                "rollouts", completion_records(step, groups, group_advantages.tolist())
            )
            self.run.append_step(metrics)
            self.step = step
        release_cached_memory()
        self.budget.steps.append(phases.total)
        self.callback.stepped(metrics, groups)

    def _advantages(self, groups: Sequence[Group]) -> Tensor:
        """(Q, G) advantages; 0 for a completion whose reward failed: nothing is learned from it.

        Its reward is the mean of the group's usable ones (rollout/scoring.py), so it moves no baseline.
        """
        usable = torch.tensor([g.usable for g in groups])
        return advantages([g.rewards for g in groups], self.context.objective) * usable

    def _start(self) -> None:
        """Everything before the first step; once config.toml is written the run can be resumed."""
        device = str(self.pipeline.policy.device)
        self.callback.started(self.config, self.run, self.step, device, self._eta)
        self.context.exporter.keep_best(self.step)
        (self.run.path / "summary.json").unlink(missing_ok=True)
        if self.step == 0 and self._needs_dry_run():
            self._dry_run()
        if not self.run.started:
            self.run.first_command(self.context.exporter.command)
        self.run.write_machine(self.context.machine)
        self.run.write_config(self.config)
        if self.step:
            self._report()  # measures how long a report takes

    def _needs_dry_run(self) -> bool:
        """Not with little time left, nor on a CPU where the plan needs less than half of the free memory."""
        roomy = self.pipeline.policy.device.type == "cpu" and self.context.plan.total < available_bytes() / 2
        return self.budget.allows_dry_run and not roomy

    def _dry_run(self) -> None:
        start = clock.now()
        self.callback.phase(DRY_RUN)
        dry_run(self.pipeline, self.context.problems, self.updater, self.context.objective)
        self.dry_run_bytes = peak_bytes(self.pipeline.policy.device)
        release_cached_memory()
        self.signals.check()
        self.budget.dry_run = clock.now() - start

    def _settle(self) -> bool:
        """Evaluate and save what is due at this step and not done yet. True: this step was the final one."""
        step, config = self.step, self.config
        if step == 0:
            self._evaluate("validation", config.eval.validation_n)
            self._evaluate("test", config.eval.n)
        due = {
            "validation": step > 0 and step % config.eval.every == 0,
            "checkpoint": step > 0 and step % config.train.save_every == 0,
            "report": self.context.refresher.is_due,
        }
        is_final = step >= config.train.steps or not self.budget.allows_step([k for k, v in due.items() if v])
        if due["validation"] or is_final:
            self._evaluate("validation", config.eval.validation_n)
        if is_final:
            self._evaluate("test", config.eval.n)
        if due["checkpoint"] or (is_final and step):
            self._save_checkpoint()
        if not is_final:
            self._report()
        return is_final

    def _evaluate(self, split: Split, n: int) -> None:
        if self.run.evaluated(self.step, split):
            return
        start = clock.now()
        problems = self.pipeline.problems(split, n)
        self.callback.phase(f"evaluating on {split}", len(problems))
        groups = self.pipeline.eval_groups(problems, self.callback.advance)
        result = evaluate_groups(groups, self.step, split)
        release_cached_memory()
        self.budget.durations[split] = seconds = clock.now() - start
        with self.signals.uninterrupted():
            if split == "validation" and self.context.exporter.is_best(self.step, result.to_record()):
                self._save_model("best", [*self.run.evals, result.to_record()])
            self.run.append_completions("eval_rollouts", completion_records(self.step, groups, split=split))
            self.run.append("evals", result.to_record() | {"seconds": seconds})
        self.callback.evaluated(result)

    def _save_model(self, folder: str, evals: Sequence[dict[str, Any]]) -> None:
        with self.budget.timing(folder):
            self.context.exporter.save(folder, self.step, evals)

    def _save_checkpoint(self) -> None:
        if self.context.checkpointer.saved(self.step):
            return
        self.callback.phase(SAVING_CHECKPOINT)
        with self.signals.uninterrupted(), self.budget.timing("checkpoint"):
            self.context.checkpointer.save(Progress(self.step, self._seconds(), self.dry_run_bytes))

    def _report(self, force: bool = False) -> None:
        self.context.refresher.refresh(force)
        self.budget.durations["report"] = self.context.refresher.seconds

    def _report_if_quick(self) -> None:
        """For a run that is cut short and must end within seconds."""
        if self.context.refresher.is_quick:
            self._report(force=True)
        elif self.run.started:
            logger.warning("to write a report of the run so far: %s", command_line("report", self.run.name))

    def stop(self, signum: int) -> None:
        """After a signal: save the last finished step and say how to resume, unless the run is finished."""
        self.signals.mark_handled()
        if self.result_saved:
            return
        state = "before the run was started"
        if self.run.started:
            state = (
                f"after step {self.step}; everything is saved"
                if self.step
                else "before the first step was done"
            )
            if self.step:
                self._save_checkpoint()
            self.run.write_summary(self._summary("signal"))
            self._report_if_quick()
        raise StoppedError(signum, f"stopped by {signal.Signals(signum).name} {state}", self.run.resume_hint)

    def _save_before_raising(self, error: DoesNotFitError) -> None:
        """Save the last finished step, and say how to resume from it with less memory."""
        self._save_checkpoint()
        resume = command_line("train", "--run", self.run.name, "--resume")
        keys = ", ".join(map(option_flag, MEMORY_KEYS))
        error.remedy = f"step {self.step} is saved: resume with {resume} and a smaller value of one of {keys}"

    def _finish(self) -> None:
        try:
            with self.signals.uninterrupted():
                self._save_result()
            self._report(force=True)
        except Interrupted:
            if not self.result_saved:
                raise
            self.signals.mark_handled()
            logger.warning(
                "the run is finished; to write its report: %s", command_line("report", self.run.name)
            )
        self.callback.finished(self.run)

    def _save_result(self) -> None:
        self.callback.phase(SAVING_MODEL)
        self._save_model("model", self.run.evals)
        if best_step(self.run.evals) in (0, self.step):
            self.context.exporter.drop_best()
        self.run.write_summary(self._summary("steps" if self.step >= self.config.train.steps else "hours"))
        self.result_saved = True

    def _summary(self, stop_reason: str) -> dict[str, Any]:
        peak, machine = peak_bytes(self.pipeline.policy.device), self.context.machine
        return summarize(self.run, self.config, self.step) | {
            "seconds": round(self._seconds(), 1),
            "stopped": stop_reason,
            "peak_memory_bytes": peak,
            "memory": {
                "planned_bytes": self.context.plan.total,
                "dry_run_bytes": self.dry_run_bytes,
                "peak_bytes": peak,
            },
            "reward_faults": self.pipeline.scorer.faults,
            "machine": machine["system"],
            **{key: machine[key] for key in ("versions", "device", "dtype")},
        }

    def _seconds(self) -> float:
        return self.context.progress.seconds + clock.now() - self.context.start

    def _eta(self) -> float:
        return self.budget.eta(self.config.train.steps - self.step)
