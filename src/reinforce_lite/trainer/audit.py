"""Before an hour is spent: is the reward right, and will this model learn anything from this task?

The untrained model answers training problems as the first step of a run would sample them: with the recipe's
prompt, and in other ways of asking that the task's reward can read (`audit_ways.py`). What decides is the
share of groups whose completions earn different rewards: only these have a gradient. Each round asks the
recipe's way and the better half of the others, so most of the time goes to ways that may be recommended
(successive halving, https://arxiv.org/abs/1502.07943). It changes nothing, and keeps its samples for a run of
the same recipe (`audit_cache.py`).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace

from reinforce_lite.config import Config, override_config
from reinforce_lite.errors import UsageError
from reinforce_lite.pipeline import Pipeline, build_pipeline
from reinforce_lite.rollout.collect import sample_completions, score_groups
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.rollout.selection import epoch_problems
from reinforce_lite.runlog.records import Record
from reinforce_lite.tasks import check_task, load_task, reward_sources, stop_strings, task_fingerprint
from reinforce_lite.tasks.base import NumberTask, Task
from reinforce_lite.tasks.data_audit import DataAudit, audit_data
from reinforce_lite.tasks.reward_worker import WorkerTask
from reinforce_lite.trainer.audit_advice import Advice, Sampled, give_advice, summarize
from reinforce_lite.trainer.audit_cache import KeptAudit, first_step, keep_audit
from reinforce_lite.trainer.audit_ways import Way, readable_formats, ways_to_ask
from reinforce_lite.types import NO_PERMISSIONS, AnswerFormat, Group, Permissions, Problem
from reinforce_lite.utils import clock
from reinforce_lite.utils.memory import limit_fragmentation
from reinforce_lite.utils.seeding import derive_seed

ROUND = 4
"""Questions that a way of asking gets in a round; the recipe's way gets those of a step in the first."""
MAX_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Audit:
    """All findings; `ways` begins with the recipe as it is."""

    data: DataAudit
    ways: tuple[Sampled, ...]
    advice: tuple[Advice, ...]
    """What to change, the most important first."""

    @property
    def options(self) -> str:
        """The options of all advice, to paste."""
        return " ".join(advice.options for advice in self.advice if advice.options)

    def to_record(self) -> Record:
        """What `audit --json` prints and audit.json of a run holds."""
        questions = self.ways[0].counts if self.ways else ()
        return {
            "data": asdict(self.data) | {"broken": self.data.reason_broken},
            "ways": [_way_record(sampled) for sampled in self.ways],
            "advice": list(map(str, self.advice)),
            "options": self.options,
            "questions": [asdict(count) for count in questions],
        }


def _way_record(sampled: Sampled) -> Record:
    way = sampled.way
    figures = asdict(replace(sampled, counts=()))
    del figures["counts"]
    return figures | {"way": way.name, "options": way.options, "forecast": sampled.forecast}


@dataclass(slots=True)
class _Asked:
    """A way of asking, and what it has brought so far."""

    way: Way
    scorer: Scorer
    groups: list[Group] = field(default_factory=list)
    rounds: int = 0
    sampling_seconds: float = 0.0

    @property
    def promise(self) -> tuple[float, float]:
        """By which ways are compared: the share of live groups, then accuracy."""
        sampled = summarize(self.way, self.groups)
        return sampled.live, sampled.accuracy


def audit(
    config: Config,
    minutes: float,
    task: Task | None = None,
    permissions: Permissions = NO_PERMISSIONS,
    progress: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Audit a recipe in about `minutes`; the first round is finished however long it takes.

    Raises UsageError as `train` does, and for minutes that can't pass.
    """
    if not 0 <= minutes < math.inf:
        raise UsageError(f"an audit can't take {minutes:g} minutes", "for example --minutes 3")
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
        with closing(build_pipeline(config, task, permissions)) as pipeline:
            return _audit_model(pipeline, data, end, progress)


def _audit_model(pipeline: Pipeline, data: DataAudit, end: float, progress: Callable[[str], None]) -> Audit:
    """Ask the model in all ways until `end`."""
    ways = ways_to_ask(pipeline.config)
    scorers = {name: _scorer(pipeline, name) for name in {way.answer_format for way in ways}}
    asked = [_Asked(way, scorers[way.answer_format]) for way in ways]
    _ask(pipeline, asked[0], *first_step(pipeline), progress)
    seconds = asked[0].sampling_seconds
    _ask_in_rounds(pipeline, asked, end, progress)
    sampled = tuple(summarize(a.way, a.groups) for a in asked)
    found = Audit(data, sampled, tuple(give_advice(pipeline.config, data, sampled)))
    _keep(found, pipeline, asked[0].groups, seconds)
    return found


def _probed_scorer(task: Task) -> Scorer:
    """Raises UsageError for a reward that fails on a plain response."""
    scorer = Scorer(task)
    scorer.probe(task.problems("train")[0])
    return scorer


def _scorer(pipeline: Pipeline, answer_format: AnswerFormat) -> Scorer:
    """The reward that reads answers in a format."""
    if answer_format == pipeline.config.task.answer_format:
        return pipeline.scorer
    assert isinstance(pipeline.task, NumberTask), "others are asked in one format (ways_to_ask)"
    return Scorer(replace(pipeline.task, answer_format=answer_format))


def _ask_in_rounds(
    pipeline: Pipeline, asked: Sequence[_Asked], end: float, progress: Callable[[str], None]
) -> None:
    """Ask each way but the recipe's once, then that and the better half of the others until `end`."""
    own, *others = asked
    for other in others:
        _ask_round(pipeline, other, 0, progress)
    first = pipeline.config.rollout.prompts_per_step
    while own.rounds < MAX_ROUNDS and clock.now() < end:
        others = sorted(others, key=lambda a: a.promise, reverse=True)[: (len(others) + 1) // 2]
        _ask_round(pipeline, own, first - ROUND, progress)
        for other in others:
            if clock.now() < end:
                _ask_round(pipeline, other, 0, progress)


def _ask_round(pipeline: Pipeline, asked: _Asked, skipped: int, progress: Callable[[str], None]) -> None:
    """Ask a way the next ROUND questions; `skipped` is how many more than ROUND its first round asked."""
    seed, start = pipeline.config.train.seed, ROUND * asked.rounds + skipped
    problems = epoch_problems(pipeline.problems("train"), start, ROUND, seed)
    _ask(pipeline, asked, problems, derive_seed(seed, "audit", asked.rounds), progress)


def _ask(
    pipeline: Pipeline, asked: _Asked, problems: Sequence[Problem], seed: int, progress: Callable[[str], None]
) -> None:
    """Add the groups of these questions, sampled as a step samples them."""
    way = asked.way
    progress(f"sampling {len(problems)} questions, {way.name}")
    config = override_config(pipeline.config, {"task.answer_format": way.answer_format})
    sampling = replace(pipeline.sampling(), stop=stop_strings(config))
    builder = PromptBuilder(pipeline.policy.tokenizer, way.prompt)
    start = clock.now()
    sampled = sample_completions(problems, builder, pipeline.engine, sampling, seed)
    asked.sampling_seconds += clock.now() - start
    asked.groups += score_groups(problems, sampled, asked.scorer)
    asked.rounds += 1


def _keep(found: Audit, pipeline: Pipeline, groups: Sequence[Group], seconds: float) -> None:
    """Keep the audit, with the completions that are those of a run's first step."""
    problems, seed = first_step(pipeline)
    first = groups[: len(problems)]
    kept = KeptAudit(
        found.to_record(),
        seed,
        tuple(problem.id for problem in problems),
        tuple(tuple(r.completion for r in group.rollouts) for group in first),
        seconds,
    )
    keep_audit(kept, pipeline, task_fingerprint(pipeline.task), reward_sources(pipeline.task))
