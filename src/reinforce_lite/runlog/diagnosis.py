"""What the figures of a run mean, in plain words; what is wrong, if anything, and what to try.

What counts as wrong is decided in `health.py` alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from reinforce_lite.evaluation.statistics import against_chance, constant_hint, control_verdict
from reinforce_lite.runlog.health import WINDOW, find_warnings, mean_over_groups
from reinforce_lite.runlog.records import StepMetrics
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.summary import before_and_after, incomplete_evaluations, reward_faults
from reinforce_lite.utils.text import as_sentence, duration, interval, percent


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Sentences, each for a line of its own."""

    figures: list[str]
    problems: list[str]
    """What is wrong, each with what to try; usually empty."""
    next: str
    """What to do with the run."""


def diagnose(run: Run) -> Diagnosis:
    """Read a run's files. Works while it trains, and after a kill."""
    steps = run.step_metrics
    figures = [_progress(run, steps), *_accuracy(run, steps)]
    if steps:
        last = steps[-WINDOW:]
        figures += [
            _reward(steps, last),
            *_signal(steps),
            _lengths(last),
            _entropy(steps, last),
            _time(steps),
        ]
        if peak := steps[-1].peak_memory:  # older versions have none
            figures.append(f"Its peak memory is {peak / 1e9:.1f} GB.")
    done, log = _last_step(run, steps), run.path / "steps.jsonl"
    problems = [as_sentence(text) for text in find_warnings(steps).values()]
    if faults := reward_faults(steps, run.evals):
        problems.append(
            f"The reward failed on {faults} completions, from which nothing is learned: the field `fault` in "
            f"{run.path / 'rollouts.jsonl'} and {run.path / 'eval_rollouts.jsonl'} says why."
        )
    if lost := len(incomplete_evaluations(run)):
        problems.append(
            f"{run.path / 'eval_rollouts.jsonl'} lacks completions of {lost} of the {len(run.evals)} "
            "evaluations: whether their accuracy differs by more than chance is unknown."
        )
    if missing := run.missing_steps(done):
        problems.append(f"{log} lacks {missing} of the {done} steps: the figures above omit them.")
    return Diagnosis(figures, problems, _next(run))


def _last_step(run: Run, steps: list[StepMetrics]) -> int:
    """The last step of the log or of a run that has ended, whose log may have been lost."""
    ended: int = run.summary.get("steps", 0)
    if run.summary.get("stopped") == "not finite":  # it went back to an earlier step
        return ended
    return max([ended, *(s.step for s in steps)])


def _progress(run: Run, steps: list[StepMetrics]) -> str:
    wanted, stopped = run.config.train.steps, run.summary.get("stopped")
    reasons = {
        "steps": "it is finished",
        "hours": "its time was up",
        "signal": "a signal stopped it",
        "not finite": "it stopped because its numbers were not finite",
    }
    state = reasons.get(stopped or "", "it is training, or was killed")
    return f"{_last_step(run, steps)} of {wanted} steps are done: {state}."


def _accuracy(run: Run, steps: list[StepMetrics]) -> Iterator[str]:
    evals = before_and_after(run, _last_step(run, steps))
    before, after = evals.get("before"), evals.get("after")
    for kind in ("strict", control_verdict((before or {}).get("lenient"))):
        if not before or before.get(kind) is None:
            continue
        start = f"{percent(before[kind])} {interval(before[f'{kind}_interval'])}"
        name = kind.replace("_", " ")
        if not after or after.get(kind) is None:
            yield f"Untrained, {start} of {before['n']} test problems are right ({name})."
            continue
        p, end = evals["paired_p"][kind], f"{percent(after[kind])} {interval(after[f'{kind}_interval'])}"
        chance = "" if p is None else f": {against_chance(p, after[kind] - before[kind], after['n'])}"
        yield f"Of {after['n']} test problems {start} were right before and {end} after ({name}){chance}."
    if constant := constant_hint(after or {}):
        yield as_sentence(constant)


def _reward(steps: list[StepMetrics], last: list[StepMetrics]) -> str:
    first = fmean(s.reward for s in steps[:WINDOW])
    if len(steps) < 2 * WINDOW:
        return f"The mean reward is {fmean(s.reward for s in steps):.2f} so far."
    now = fmean(s.reward for s in last)
    return f"The mean reward went from {first:.2f} over the first {WINDOW} steps to {now:.2f} over the last."


def _signal(steps: list[StepMetrics]) -> Iterator[str]:
    if warm := [s for s in steps if s.warm_start]:
        count, idle = len(warm), sum(not s.updated for s in warm)
        right = percent(fmean(s.strict for s in warm))
        yield (
            f"{count} of the steps were a warm start, which learns from right completions alone ({right} of "
            f"those sampled); {idle} of them changed nothing."
        )
    if last := [s for s in steps if not s.warm_start][-WINDOW:]:
        silent = percent(mean_over_groups(last, [s.no_signal_ratio for s in last]), 0)
        yield f"In {silent} of the last groups all completions earned the same, which teaches nothing."


def _lengths(last: list[StepMetrics]) -> str:
    tokens, cut = fmean(s.mean_length for s in last), fmean(s.clipped_ratio for s in last)
    again = fmean(s.repetition_ratio or 0.0 for s in last)
    why = f", {percent(again, 0)} where they repeat themselves" if again else ""
    at_limit = percent(cut - again, 0)
    return f"Completions have {tokens:.0f} tokens on average; {at_limit} are cut at the limit{why}."


def _entropy(steps: list[StepMetrics], last: list[StepMetrics]) -> str:
    first = [s.entropy for s in steps[:WINDOW] if s.entropy is not None]
    now = [s.entropy for s in last if s.entropy is not None]
    if not first or not now:
        return "The entropy is not known: log-probabilities were not finite."
    return (
        f"The entropy is {fmean(now):.2f} nats per token, {fmean(first):.2f} at the start: near 0 all "
        "completions of a question would be the same."
    )


def _time(steps: list[StepMetrics]) -> str:
    total = max(1e-9, sum(s.step_time for s in steps))
    rollout, update = sum(s.rollout_seconds for s in steps), sum(s.update_seconds for s in steps)
    reward = sum(s.reward_seconds for s in steps)
    shares = f"{percent(rollout / total, 0)} sampling, {percent(update / total, 0)} updating"
    return (
        f"A step takes {duration(total / len(steps))}: {shares}, {percent(reward / total, 0)} in the reward."
    )


def _next(run: Run) -> str:
    stopped = run.summary.get("stopped")
    if stopped == "not finite":
        good = f"the last good weights are in {run.path / 'model'}"
        return f"Start a new run with a lower update.learning_rate; {good}."
    if not run.is_finished:
        model = f"The model of {run.model_progress}, is in {run.path / 'model'}. " if run.model_step else ""
        export = f"; to write its model so far: {run.export_command}" if run.export_command else ""
        return f"{model}If it is not training now, {run.resume_hint}{'' if model else export}"
    where = f"the model is in {run.path / 'model'}" if run.has_model else f"it has no model: {run.model_hint}"
    return f"Read completions in {run.path / 'report.html'}; {where}."
