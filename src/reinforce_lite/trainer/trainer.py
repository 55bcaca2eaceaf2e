"""The loop. One step goes through the pipeline once; the rest is saving, measuring and reporting.

    problems ─▶ completions ─▶ rewards ─▶ advantages ─▶ loss weights ─▶ gradient ─▶ new policy
        ▲                                                                             │
        └────────────────────────────── the next step ◀───────────────────────────────┘

A step changes weights and logs in one block that no signal cuts through. Before each step the trainer settles
the previous one: evaluations that are due, then the checkpoint. So a run that was killed anywhere and resumed
with the same config, versions and machine takes the same steps as one that was never stopped.

Several processes walk the same loop (models/distributed.py). They share the work inside its calls. The main
process alone writes, and decides what depends on the clock.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch

from reinforce_lite.callbacks.base import (
    COMPARING_MERGED,
    DRY_RUN,
    SAMPLING,
    SAVING_CHECKPOINT,
    SAVING_MODEL,
    UPDATING,
    Callback,
)
from reinforce_lite.config import option_flag
from reinforce_lite.errors import (
    DoesNotFitError,
    FileError,
    NotFiniteError,
    ReinforceLiteError,
    StoppedError,
)
from reinforce_lite.evaluation.evaluate import evaluate_groups
from reinforce_lite.learner.objective import compute_advantages, compute_loss_weights, warm_start_advantages
from reinforce_lite.models.distributed import agree, can_transfer, exchange, is_main, local_size, watched
from reinforce_lite.planner.plan import MEMORY_KEYS
from reinforce_lite.report.refresher import ReportRefresher
from reinforce_lite.rollout.collect import sample_completions, score_groups
from reinforce_lite.rollout.selection import QuestionSelector
from reinforce_lite.runlog.health import non_finite_streak
from reinforce_lite.runlog.records import Record, StepMetrics
from reinforce_lite.runlog.summary import best_step, seconds_told, summarize
from reinforce_lite.trainer.checkpoint import Progress, checkpoint_steps
from reinforce_lite.trainer.context import TrainingContext
from reinforce_lite.trainer.dry_run import dry_run
from reinforce_lite.trainer.export import (
    MERGE_PROBLEMS,
    compares_merged,
    is_best,
    keep_best,
    merge_adapter,
    merge_seconds,
    remove_best,
    save_model,
    trial_save,
)
from reinforce_lite.trainer.metrics import completion_records, step_metrics
from reinforce_lite.trainer.preflight import describe_prompt
from reinforce_lite.trainer.self_check import check_sampler_gap
from reinforce_lite.trainer.signals import Interrupted, SignalGuard
from reinforce_lite.types import Completion, Group, Problem, Prompt, Split
from reinforce_lite.utils import clock, memory
from reinforce_lite.utils.program import command_line
from reinforce_lite.utils.seeding import derive_seed
from reinforce_lite.utils.text import one_line_error

logger = logging.getLogger(__name__)

NOT_FINITE_STEPS = 3
"""Steps in a row with NaN or infinity, after which training goes back once, and then stops."""
QUICK_SAVE_SECONDS = 10.0
"""A run that is stopped writes its model if that is expected to take no longer."""
MEMORY_OPTIONS = ", ".join(map(option_flag, MEMORY_KEYS))


class Trainer:
    """The loop of one run, and how far it has come."""

    def __init__(
        self, context: TrainingContext, callback: Callback, signals: SignalGuard, command: str, start: float
    ) -> None:
        self.context, self.callback, self.signals, self.command = context, callback, signals, command
        self.run, self.budget = context.run, context.budget
        self.pipeline, self.config = context.pipeline, context.pipeline.config
        self.start = start - max(context.progress.seconds, seconds_told(self.run))
        """The moment, by `utils.clock`, at which the run would have started if it had never been stopped."""
        self.step, self.dry_run_bytes = context.progress.step, context.progress.dry_run_bytes
        self.streak = 0
        """Steps in a row, up to the last one, that were not finite."""
        self._read_logs()
        self.refresher = ReportRefresher(self.run)
        self.result_saved = False
        self.step_is_whole = True
        """Weights and optimizer are those after `step`: False while a step changes them."""
        self.saved_step = self.step
        """The step of the last checkpoint."""
        self.went_back = False
        self.freshness = context.freshness
        """None once the engine is known to get the new weights."""
        self.audit = context.audit
        """What was sampled before the run; None after the first step, whether it was of use or not."""

    def train(self) -> None:
        """The loop, and what happens when it is cut short. Raises StoppedError after a signal."""
        try:
            self._start()
            while not self._settle():
                self._take_step(self.step + 1)
            self._finish()
            return
        except Interrupted as interrupted:
            self.stop(interrupted)
            return
        except ReinforceLiteError as error:
            failure = error
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            failure = out_of_memory_error(error)
        self._fail(failure)  # outside of the except clause, whose error holds the tensors of its frames

    def _fail(self, failure: ReinforceLiteError) -> NoReturn:
        """Save what there is, and raise the failure."""
        if not isinstance(failure, (NotFiniteError, FileError)):
            memory.release_cached_memory()
            self._save_checkpoint(failure)
        saved = checkpoint_steps(self.context.checkpointer.folder)
        if isinstance(failure, DoesNotFitError) and saved:
            resume = command_line("train", "--run", self.run.name, "--resume")
            failure.remedy = (
                f"step {saved[-1]} is saved: resume with {resume} "
                f"and a smaller value of one of {MEMORY_OPTIONS}"
            )
        if isinstance(failure, NotFiniteError):
            self._report(force=True)
        else:
            self._report_if_quick()
        raise failure

    def _take_step(self, step: int) -> None:
        """One step of the method: sample, reward, compare within the group, update."""
        pipeline, phases = self.pipeline, clock.Clock()
        updater, warm_start = self.context.updater, step <= self.config.train.warm_start
        groups = self._sample_groups(step, phases)
        advantages, loss_weights = self._weigh(groups, warm_start)
        if advantages.any():
            self.callback.phase(UPDATING)
        gradient = updater.compute_gradient(groups, loss_weights)
        check_sampler_gap(gradient.sampler_gap, step, pipeline.policy)
        with self.signals.uninterrupted():
            self.step_is_whole = False
            updated = updater.apply_gradient(gradient, step)
            weights_finite = not updated or all(exchange(updater.weights_are_finite))
            phases.lap("update")
            self.num_tokens += sum(len(g.prompt.token_ids) * len(g.rollouts) + sum(g.lengths) for g in groups)
            metrics = step_metrics(
                step,
                groups,
                gradient,
                updated,
                weights_finite,
                phases.laps,
                learning_rate=updater.learning_rate(step),
                num_tokens=self.num_tokens,
                step_time=phases.total,
                peak_memory=self._peak_memory(),
                micro_batch_tokens=updater.micro_batch_tokens,
                max_num_seqs=pipeline.engine.max_num_seqs,
                warm_start=warm_start,
            )
            self.run.append("rollouts", *completion_records(step, groups, advantages.tolist()))
            self.run.append("steps", metrics.to_record())
            self.selector.record(step, groups)
            self.step, self.step_is_whole = step, weights_finite
            self.budget.step_seconds.append(metrics.step_time)
            self.callback.stepped(metrics, groups)
            self.streak = self.streak + 1 if metrics.not_finite else 0
            if self.streak >= NOT_FINITE_STEPS or not weights_finite:
                self._go_back_or_stop(metrics)
        if self.freshness and metrics.updated and self.freshness.passed(step):
            self.freshness = None
        memory.release_cached_memory()

    def _weigh(self, groups: Sequence[Group], warm_start: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(Q, G) advantages and loss weights, 0 where nothing is learned."""
        objective, rollout = self.context.objective, self.config.rollout
        questions = rollout.prompts_per_step
        if warm_start:
            objective = replace(objective, gradient_samples="all")  # right completions are few
            ids = [[r.completion.token_ids for r in g.rollouts] for g in groups]
            advantages = warm_start_advantages([g.right for g in groups], ids)
            # With refill every group that teaches counts.
            questions = max(questions, int(advantages.any(dim=1).sum()))
        else:
            # Nothing is learned from a completion whose reward failed (rollout/scoring.neutralize).
            scored = torch.tensor([g.scored for g in groups])
            advantages = compute_advantages([g.rewards for g in groups], objective) * scored
            if rollout.refill > 1:  # other questions were asked in place of groups that are not live
                advantages *= torch.tensor([[g.is_live] for g in groups])
        loss_weights = compute_loss_weights(
            advantages,
            [g.lengths for g in groups],
            objective,
            max_new_tokens=rollout.max_new_tokens,
            questions=questions,
        )
        return advantages, loss_weights

    def _sample_groups(self, step: int, phases: clock.Clock) -> list[Group]:
        """The step's scored groups; with refill, of further questions until enough have a signal."""
        groups: list[Group] = []
        while problems := self.selector.select(step, groups):
            purpose = f"rollout after {len(groups)} questions" if groups else "rollout"
            sampled = self._sample(problems, derive_seed(self.config.train.seed, purpose, step), phases)
            memory.release_cached_memory()
            phases.lap("rollout")
            groups += score_groups(problems, sampled, self.pipeline.scorer)
            self.signals.check()
            phases.lap("reward")
        return groups

    def _sample(
        self, problems: Sequence[Problem], seed: int, phases: clock.Clock
    ) -> list[tuple[Prompt, list[Completion]]]:
        """The prompts and completions of these problems: the audit's if it sampled them with this seed."""
        pipeline, sampling = self.pipeline, self.pipeline.sampling()
        audit, self.audit = self.audit, None
        if audit and (completions := audit.completions_of(problems, seed)):
            logger.warning("the completions of step 1 are those of the audit, and are not sampled again")
            phases.add("rollout", audit.seconds)
            prompts = [pipeline.prompt_builder(problem.question) for problem in problems]
            return list(zip(prompts, completions, strict=True))
        self.callback.phase(SAMPLING, len(problems) * sampling.samples)
        return sample_completions(
            problems, pipeline.prompt_builder, pipeline.engine, sampling, seed, self.callback.advance
        )

    def _go_back_or_stop(self, metrics: StepMetrics) -> None:
        """Weights that are not finite, or several such steps: back to the last checkpoint once, then stop.

        The same seeds take the same steps again, so going back helps against a fault that passes, such as a
        flipped bit. A learning rate that is too high fails again: then the run stops, with the weights of the
        last checkpoint as its model, and with the lines of the steps that failed, for the report.
        """
        what = f"{metrics.not_finite} not finite in step {metrics.step}"
        if self.streak > 1:
            what += f" and in the {self.streak - 1} before it"
        self.step, self.step_is_whole = self.context.checkpointer.go_back(self.context.permissions), True
        self.saved_step = self.step
        if not self.went_back:
            self.went_back = True
            self.run.rewind(self.step)
            self._read_logs()
            logger.warning("%s: back to step %d, once; if it happens again the run stops", what, self.step)
            return
        self._save_model("model", self.run.evals)
        self.run.write_json("summary", self._summary("not finite"))
        raise NotFiniteError(
            f"{what}, after going back to an earlier step once",
            f"start a new run with an --update.learning-rate below {self.config.update.learning_rate:g}; "
            f"the weights of step {self.step} are in {self.run.path / 'model'}",
        )

    def _read_logs(self) -> None:
        """What continues from the lines of earlier steps."""
        steps = self.run.step_metrics
        self.num_tokens = max((s.num_tokens or 0 for s in steps), default=0)
        self.streak = non_finite_streak(steps)
        self.earlier_peak = max((s.peak_memory or 0 for s in steps), default=0)
        rollout, problems = self.config.rollout, self.pipeline.problems("train")
        self.selector = QuestionSelector(problems, rollout, self.config.train.seed)
        audited = self.context.audit_record.get("questions", ())
        self.selector.restore(self._questions_asked(steps), self.run.read("rollouts"), audited)

    def _peak_memory(self) -> int:
        """Bytes, of this process and of those that took the earlier steps."""
        return max(self.earlier_peak, memory.peak_bytes(self.pipeline.policy.device))

    def _questions_asked(self, steps: Sequence[StepMetrics]) -> int:
        """In all steps so far. A step whose line is damaged is counted by its completions."""
        told = {s.step: s.questions_asked or self.config.rollout.prompts_per_step for s in steps}
        lost = set(range(1, self.step + 1)) - told.keys()
        asked = {(line["step"], line["problem_id"]) for line in self.run.read("rollouts")} if lost else set()
        counts = Counter(step for step, _ in asked)
        return sum(told.values()) + sum(counts[n] or self.config.rollout.prompts_per_step for n in lost)

    def _start(self) -> None:
        """Everything before the first step; once config.toml is written the run can be resumed."""
        device, steps = str(self.pipeline.policy.device), self.config.train.steps
        self.callback.started(
            self.config, self.run, self.step, device, lambda: self.budget.eta(self.step, steps)
        )
        if is_main():
            trial_save(self.run, self.pipeline)
            keep_best(self.run, self.step)
        self.run.remove("summary.json")  # the run is no longer finished
        if self.step == 0:
            self._dry_run()
        self.run.write_command(self.command)
        first = self.pipeline.problems("train")[0].question
        self.run.write_json("first_prompt", describe_prompt(self.pipeline.prompt_builder, first))
        self.run.write_json("machine", self.context.machine)
        if not self.run.started:
            self._write_audit()
        self.run.write_config(self.config)
        if self.step:
            self._report()  # measures how long a report takes

    def _write_audit(self) -> None:
        """What a resume restores the prior of adaptive selection from, when the cache may be gone."""
        if self.context.audit_record:
            self.run.write_json("audit", self.context.audit_record)
        else:
            self.run.remove("audit.json")  # of a run that was killed before it was started

    def _dry_run(self) -> None:
        """Not with little time left, nor on a CPU where the plan needs less than half of the free memory."""
        device = self.pipeline.policy.device
        planned = self.context.machine["planned_bytes"] * local_size()
        roomy = device.type == "cpu" and planned < memory.available_bytes() / 2
        if agree(lambda: roomy or not self.budget.allows_dry_run):
            return
        start = clock.now()
        self.callback.phase(DRY_RUN)
        dry_run(self.pipeline, self.context.updater, self.context.objective)
        self.dry_run_bytes = memory.peak_bytes(device)
        memory.release_cached_memory()
        self.signals.check()
        self.budget.dry_run_seconds = clock.now() - start

    def _settle(self) -> bool:
        """Evaluate and save what is due at this step and not done yet. True: this step was the final one."""
        step, config = self.step, self.config
        if step == 0:
            self._evaluate("validation", config.eval.validation_n)
            self._evaluate("test", config.eval.n)
        due = {
            "validation": step > 0 and step % config.eval.every == 0,
            "checkpoint": step > 0 and step % config.train.save_every == 0 and not self.streak,
            "report": self.refresher.is_due,
        }
        all_due = [name for name, is_due in due.items() if is_due]
        is_final = step >= config.train.steps or not agree(lambda: self.budget.allows_step(all_due))
        if is_final and step == 0:
            raise self.budget.refusal(self.run.name)
        if due["validation"] or is_final:
            self._evaluate("validation", config.eval.validation_n)
        if is_final:
            self._evaluate("test", config.eval.n)
        if due["checkpoint"] or is_final:
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
        memory.release_cached_memory()
        self.budget.durations[split] = seconds = clock.now() - start
        if split == "test":
            self.budget.durations |= merge_seconds(self.pipeline.policy, seconds, len(problems))
        with self.signals.uninterrupted():
            record = result.to_record()
            if split == "validation" and is_best(self.run, self.step, record):
                self._save_model("best", [*self.run.evals, record])
            self.run.append("eval_rollouts", *completion_records(self.step, groups, split=split))
            self.run.append("evals", record | {"seconds": seconds})
        self.callback.evaluated(result)

    def _save_model(self, folder: str, evals: Sequence[Record]) -> None:
        if not is_main():
            return
        expected = self.budget.durations[folder]
        with self.budget.timing(folder), watched("saving the model", expected):
            save_model(self.run, folder, self.pipeline, self.step, evals)

    def _save_checkpoint(self, failure: ReinforceLiteError | None = None) -> None:
        """Save the last step, unless it is; `failure` is why the run ends."""
        is_sharded = self.context.updater.is_sharded
        if not (is_main() or is_sharded) or not self.step_is_whole or self.step in (0, self.saved_step):
            return
        if is_sharded and not can_transfer(failure):
            if is_main():
                logger.warning(
                    "step %d is not saved: a lost process held part of the optimizer state", self.step
                )
            return
        self.callback.phase(SAVING_CHECKPOINT)
        expected = self.budget.durations["checkpoint"]
        saving = watched("saving a checkpoint", expected)
        with self.signals.uninterrupted(), self.budget.timing("checkpoint"), saving:
            self.context.checkpointer.save(Progress(self.step, clock.now() - self.start, self.dry_run_bytes))
        self.saved_step = self.step

    def _report(self, force: bool = False) -> None:
        if not is_main():
            return
        self.refresher.refresh(force)
        self.budget.durations["report"] = self.refresher.seconds

    def _report_if_quick(self) -> None:
        """For a run that is cut short and must end within seconds."""
        if self.refresher.is_quick:
            self._report(force=True)
        elif self.run.started and is_main():
            logger.warning("to write a report of the run so far: %s", command_line("report", self.run.name))

    def _save_model_if_quick(self) -> None:
        """For a run that is cut short: its checkpoint is saved, so nothing is lost where this fails.

        Before the first step there is no trained model to write.
        """
        if not is_main() or not self.step or not self.step_is_whole:
            return
        try:
            if self.budget.durations["best"] <= QUICK_SAVE_SECONDS:
                self.callback.phase(SAVING_MODEL)
                self._save_model("model", self.run.evals)
                return
        except Exception as error:  # for example a full disk
            logger.warning("no model was written: %s", one_line_error(error))
        logger.warning("to write the model of step %d: %s", self.step, self.run.export_command)

    def stop(self, interrupted: Interrupted) -> None:
        """After a signal: save the last finished step and say how to resume, unless the run is finished."""
        self.signals.mark_handled()
        if self.result_saved:
            return
        if not self.run.started:
            state = "before the run was started"
        elif self.step == 0:
            state = "before the first step was done; finished evaluations are kept"
        else:
            state = f"after step {self.step}; everything is saved"
            self._save_checkpoint()
        if self.run.started:
            self.run.write_json("summary", self._summary("signal"))
            self._report_if_quick()
            self._save_model_if_quick()
        cause = f"stopped by {interrupted} {state}"
        raise StoppedError(interrupted.signum, cause, self.run.resume_hint) from None

    def _finish(self) -> None:
        try:
            with self.signals.uninterrupted():
                self.callback.phase(SAVING_MODEL)
                self._save_model("model", self.run.evals)
                if is_main() and best_step(self.run.evals) in (0, self.step):
                    remove_best(self.run)
                stop_reason = "steps" if self.step >= self.config.train.steps else "hours"
                self.run.write_json("summary", self._summary(stop_reason))
                self.result_saved = True
            self._merge_adapter()
            self._report(force=True)
        except Interrupted:
            if not self.result_saved:
                raise
            self.signals.mark_handled()
            logger.warning(
                "the run is finished; to write its report: %s", command_line("report", self.run.name)
            )
        self.callback.finished(self.run)

    def _merge_adapter(self) -> None:
        """Add the adapter to summary.json: its size and, if compared, what merging changes."""
        if not self.pipeline.policy.adapter:
            return
        if compares_merged(self.pipeline.policy):
            self.callback.phase(COMPARING_MERGED, 2 * MERGE_PROBLEMS)
        adapter = merge_adapter(self.pipeline, self.callback.advance)
        self.run.write_json("summary", self.run.summary | {"adapter": adapter})

    def _summary(self, stop_reason: str) -> dict[str, Any]:
        peak, machine = self._peak_memory(), self.context.machine
        return summarize(self.run, self.config, self.step) | {
            "seconds": round(clock.now() - self.start, 1),
            "stopped": stop_reason,
            "peak_memory_bytes": peak,
            "memory": {
                "planned_bytes": machine["planned_bytes"],
                "dry_run_bytes": self.dry_run_bytes,
                "peak_bytes": peak,
            },
            "machine": machine["system"],
            "test_problems": len(self.pipeline.task.problems("test")),
            **{key: machine[key] for key in ("versions", "device", "dtype", "self_check")},
        }


def out_of_memory_error(error: Exception) -> DoesNotFitError:
    """What to raise where memory ran out and nothing can be halved."""
    return DoesNotFitError(
        f"out of memory in a part of the program that cannot be split further ({one_line_error(error)})",
        f"choose a smaller value of one of {MEMORY_OPTIONS}",
    )
