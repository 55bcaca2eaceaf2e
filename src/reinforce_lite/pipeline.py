"""Everything that a run is made of, built from its config: shared by train, eval and ask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from reinforce_lite import engines, tasks
from reinforce_lite.config import Config
from reinforce_lite.engines.base import Engine, nobody
from reinforce_lite.errors import UsageError
from reinforce_lite.models import llama
from reinforce_lite.models import policy as models
from reinforce_lite.models.policy import Policy
from reinforce_lite.rollout import collect as rollout
from reinforce_lite.rollout.prompts import Prompter
from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.tasks.base import Task
from reinforce_lite.types import Group, Problem, Sampling, Split
from reinforce_lite.utils import memory
from reinforce_lite.utils import seeding as seeds


@dataclass(slots=True)
class Road:
    """The stations from a problem to a scored group, and the policy that they share."""

    config: Config
    policy: Policy
    task: Task
    prompter: Prompter
    engine: Engine
    scorer: Scorer
    _found: dict[tuple[Split, int | None], list[Problem]] = field(default_factory=dict)

    def problems(self, split: Split, n: int | None = None) -> list[Problem]:
        """The first `n` problems of a split, without those whose prompt is too long; all by default.

        Raises UsageError when none is left.
        """
        if (split, n) not in self._found:
            self._found[split, n] = self.prompter.fitting(self.task.problems(split)[:n])
        if not self._found[split, n]:
            raise UsageError(
                f"no {split} problem has a prompt of at most {self.config.prompt.max_tokens} tokens",
                "raise prompt.max_tokens, or give fewer worked examples",
            )
        return self._found[split, n]

    def sampling(self, greedy: bool) -> Sampling:
        """How completions are drawn: one greedy answer to be measured, or a group to be trained on."""
        section = self.config.rollout
        if greedy:
            limit = self.config.eval.max_new_tokens or section.max_new_tokens
            return Sampling(samples=1, max_new_tokens=limit, temperature=0.0)
        return Sampling(
            samples=section.samples_per_prompt,
            max_new_tokens=section.max_new_tokens,
            min_new_tokens=section.min_new_tokens,
            temperature=section.temperature,
            top_p=section.top_p,
        )

    def answer(
        self, problems: Sequence[Problem], progress: Callable[[int], None] = nobody, samples: int = 1
    ) -> list[Group]:
        """Scored answers to each problem: one greedy, or several at the rollout's temperature and top-p."""
        seed = seeds.derive(self.config.train.seed, "evaluation")
        sampling = self.sampling(greedy=True)
        if samples > 1:
            drawn = self.config.rollout
            sampling = replace(sampling, samples=samples, temperature=drawn.temperature, top_p=drawn.top_p)
        sampled = rollout.sample(problems, self.prompter, self.engine, sampling, seed, progress)
        return rollout.score(problems, sampled, self.scorer)


def build(config: Config, task: Task | None = None) -> Road:
    """Load the task, then the model: a fault in the data is found before a weight is read."""
    task = task or tasks.load(config.task)
    tasks.check(task)
    scorer = Scorer(task)
    scorer.probe(task.problems("train")[0])
    memory.keep_small()
    section = config.model
    finer = config.update.state == "32-bit"
    policy = models.load(section.name, section.dtype, section.device, section.trust_remote_code, finer)
    _check_context(policy, config)
    policy.fast = longest(config) <= llama.reach(policy.model)
    prompter = Prompter(policy.tokenizer, config.prompt)
    engine = engines.make(config.rollout.engine, policy, config.rollout.answers_in_flight)
    return Road(config, policy, task, prompter, engine, scorer)


def _check_context(policy: Policy, config: Config) -> None:
    limit = getattr(policy.model.config, "max_position_embeddings", None)
    asked = longest(config)
    if limit and asked > limit:
        raise UsageError(
            f"prompts of {config.prompt.max_tokens} and answers of {asked - config.prompt.max_tokens} tokens "
            f"do not fit into the {limit} tokens that {policy.name} can see",
            "lower prompt.max_tokens or rollout.max_new_tokens",
        )


def longest(config: Config) -> int:
    """The most tokens that a prompt and its answer may have together."""
    return config.prompt.max_tokens + max(config.rollout.max_new_tokens, config.eval.max_new_tokens or 0)
