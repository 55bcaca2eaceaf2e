"""Before an hour is spent: is the reward right, and will this model learn anything from this task?

The untrained model answers training problems as the first step of a run would sample them, with the recipe's
prompt and in each answer format that the task's reward can read. What decides is the share of groups with
right and wrong completions: only these have a gradient. It changes nothing.

Omitted on purpose: keeping the samples for the run. They are drawn with other seeds than its steps, so that a
run does not depend on whether it was audited.
"""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from reinforce_lite.config import Config, PromptConfig, option_flag, override_config
from reinforce_lite.evaluation.statistics import Interval, wilson_interval
from reinforce_lite.pipeline import Pipeline, build_pipeline, stop_strings
from reinforce_lite.rollout.collect import sample_completions, score_groups
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.rollout.selection import epoch_problems
from reinforce_lite.tasks import TASK_NAMES, check_task, load_task
from reinforce_lite.tasks.base import Task
from reinforce_lite.tasks.data_audit import PAID_FOR_NOTHING, WRITTEN, DataAudit, audit_data
from reinforce_lite.tasks.reward_worker import WorkerTask
from reinforce_lite.types import NO_PERMISSIONS, AnswerFormat, Group, Permissions
from reinforce_lite.utils import clock
from reinforce_lite.utils.memory import limit_fragmentation
from reinforce_lite.utils.seeding import derive_seed

Forecast = Literal["likely", "slowly", "unlikely", "nothing left"]

LEARNS, LEARNS_SLOWLY = 0.25, 0.1
"""Shares of live groups from which a run is likely to learn, and to learn slowly."""
NEARLY_SOLVED = 0.9
"""Accuracy from which there is little left to learn."""
MUCH_BETTER = 0.1
"""By how much more live groups another way of asking must have to be recommended."""
OFTEN_CUT = 0.05
"""The share of truncated completions from which a higher limit is recommended."""
ROUND = 4
"""Questions that each way of asking gets in a round."""
MAX_ROUNDS = 12
INSTRUCTIONS: dict[AnswerFormat, str] = {
    "tags": PromptConfig().instruction,
    "boxed": "Reason step by step, and put your final number within \\boxed{}.",
    "hash": "Reason step by step, and give the final number on a line of its own after ####.",
}
"""How each format is asked for without examples."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way of asking."""

    name: str
    answer_format: AnswerFormat
    prompt: PromptConfig
    options: str = ""
    """To paste; none for the recipe as it is."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the untrained model did when it was asked one way. Shares are fractions of 1."""

    way: Way
    questions: int
    accuracy: float
    """pass@1, by the strict verdict."""
    solved: float
    """Share of questions with a right completion among the group's: pass@G."""
    live: float
    """Share of groups with right and wrong completions."""
    live_interval: Interval
    format_failures: float
    """Share of completions with the right number but not in the format."""
    truncated: float
    mean_tokens: float

    @property
    def forecast(self) -> Forecast:
        """Whether training is likely to learn."""
        if self.accuracy >= NEARLY_SOLVED:
            return "nothing left"
        if self.live >= LEARNS:
            return "likely"
        return "slowly" if self.live >= LEARNS_SLOWLY else "unlikely"


@dataclass(frozen=True, slots=True)
class Audit:
    """All findings; `ways` begins with the recipe as it is."""

    data: DataAudit
    ways: tuple[Sampled, ...]
    advice: tuple[str, ...]
    """What to change first, each with options to paste."""


def audit(
    config: Config,
    minutes: float,
    task: Task | None = None,
    permissions: Permissions = NO_PERMISSIONS,
    progress: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Audit a recipe in about `minutes`; the first round is finished however long it takes.

    Raises UsageError as `train` does.
    """
    limit_fragmentation()
    end = clock.now() + 60 * minutes
    task = task or load_task(config.task)
    with closing(task) if isinstance(task, WorkerTask) else nullcontext():
        check_task(task)
        progress("checking the reward on golds and on texts that solve nothing")
        data = audit_data(task.problems("train"), _probed_scorer(task).score, readable_formats(config))
        if data.reason_broken:
            return Audit(data, (), ())
        progress(f"loading {config.model.name}")
        pipeline = build_pipeline(config, task, permissions)
        asked: list[tuple[Way, Scorer, list[Group]]] = [
            (way, _scorer(pipeline, way), []) for way in ways_to_ask(config)
        ]
        for number in range(MAX_ROUNDS):
            for way, scorer, groups in asked:
                if number == 0 or clock.now() < end:
                    progress(f"sampling {ROUND} questions, {way.name}")
                    groups += _ask(pipeline, way, scorer, number)
    sampled = tuple(summarize(way, groups) for way, _, groups in asked)
    return Audit(data, sampled, tuple(give_advice(config, data, sampled)))


def _probed_scorer(task: Task) -> Scorer:
    """Raises UsageError for a reward that fails on a plain response."""
    scorer = Scorer(task)
    scorer.probe(task.problems("train")[0])
    return scorer


def _scorer(pipeline: Pipeline, way: Way) -> Scorer:
    """The reward that reads answers in the way's format."""
    config = pipeline.config.task
    if way.answer_format == config.answer_format:
        return pipeline.scorer
    return Scorer(load_task(config.model_copy(update={"answer_format": way.answer_format})))


def readable_formats(config: Config) -> list[AnswerFormat]:
    """The formats in which the task's reward can read answers: its own; a file of the user's may read any."""
    own = config.task.answer_format
    return [own] if config.task.name in TASK_NAMES else [own, *(f for f in WRITTEN if f != own)]


def ways_to_ask(config: Config) -> list[Way]:
    """The recipe's way, and for tasks of numbers the other formats without worked examples."""
    own = Way("the recipe", config.task.answer_format, config.prompt)
    if config.task.name not in TASK_NAMES or config.task.name == "gym":
        return [own]
    others = []
    for answer_format, instruction in INSTRUCTIONS.items():
        prompt = config.prompt.model_copy(update={"instruction": instruction, "examples": (), "prefill": ""})
        if (answer_format, prompt) != (own.answer_format, own.prompt):
            options = f"--task.answer-format {answer_format} --prompt.instruction '{instruction}'"
            options += " --prompt.prefill ''" if config.prompt.prefill else ""
            if config.prompt.examples:  # options can't remove them
                options += ", in a copy of the recipe without prompt.examples"
            others.append(Way(f"{answer_format}, no examples", answer_format, prompt, options))
    return [own, *others]


def _ask(pipeline: Pipeline, way: Way, scorer: Scorer, number: int) -> list[Group]:
    """The groups of a round's questions."""
    config = override_config(pipeline.config, {"task.answer_format": way.answer_format})
    problems = epoch_problems(pipeline.problems("train"), ROUND * number, ROUND, config.train.seed)
    sampling = replace(pipeline.sampling(), stop=stop_strings(config))
    builder = PromptBuilder(pipeline.policy.tokenizer, way.prompt)
    seed = derive_seed(config.train.seed, "audit", number)
    sampled = sample_completions(problems, builder, pipeline.engine, sampling, seed)
    return score_groups(problems, sampled, scorer)


def summarize(way: Way, groups: Sequence[Group]) -> Sampled:
    """The figures of one way of asking."""
    rollouts = [r for g in groups for r in g.rollouts]
    live = sum(g.is_live for g in groups)
    missed = [r.lenient is not None and r.lenient.correct and not r.strict.correct for r in rollouts]
    return Sampled(
        way=way,
        questions=len(groups),
        accuracy=fmean(r.strict.correct for r in rollouts),
        solved=fmean(any(r.strict.correct for r in g.rollouts) for g in groups),
        live=live / len(groups),
        live_interval=wilson_interval(live, len(groups)),
        format_failures=fmean(missed),
        truncated=fmean(r.completion.truncated for r in rollouts),
        mean_tokens=fmean(len(r.completion.token_ids) for r in rollouts),
    )


def give_advice(config: Config, data: DataAudit, ways: Sequence[Sampled]) -> list[str]:
    """What to change, the most important first; empty where the recipe is good as it is."""
    own = ways[0]
    best = own if own.forecast == "nothing left" else max(ways, key=lambda sampled: sampled.live)
    advice = []
    name, share = data.easiest
    if share >= PAID_FOR_NOTHING:
        advice.append(
            f"{name} is right for {share:.0%} of the problems: mix the problems, or mend the reward"
        )
    if best.live >= own.live + MUCH_BETTER:
        advice.append(f"ask another way: {best.way.options}")
    if best.truncated >= OFTEN_CUT:
        longer = 2 * config.rollout.max_new_tokens
        advice.append(
            f"{best.truncated:.0%} are cut at the limit: {option_flag('rollout.max_new_tokens')} {longer}"
        )
    if best.forecast == "unlikely":
        easier = config.task.name == "wordmath" and config.task.level > 1
        remedy = f"--task.level {config.task.level - 1}" if easier else "easier problems, or a larger model"
        advice.append(f"too few groups have a signal: {remedy}")
    elif best.forecast == "slowly":
        larger = max(16, 2 * config.rollout.group_size)
        advice.append(
            "few groups have a signal: "
            f"--rollout.group-size {larger} --rollout.selection adaptive --rollout.refill 2"
        )
    elif best.forecast == "nothing left":
        harder = config.task.name == "wordmath" and config.task.level < 4
        remedy = f"--task.level {config.task.level + 1}" if harder else "harder problems"
        advice.append(f"the model solves nearly all: {remedy}")
    return advice
