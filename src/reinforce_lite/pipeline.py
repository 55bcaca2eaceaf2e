"""Everything that a run is made of, built from its config: shared by train, eval and ask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from reinforce_lite.config import Config
from reinforce_lite.engines import make_engine
from reinforce_lite.engines.base import Engine, ignore_progress
from reinforce_lite.errors import UsageError
from reinforce_lite.models.llama import max_exact_length
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.rollout.collect import sample_completions, score_groups
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.tasks import check_task, load_task
from reinforce_lite.tasks.base import Task
from reinforce_lite.types import Group, Problem, Sampling, Split
from reinforce_lite.utils.seeding import derive_seed


@dataclass(slots=True)
class Pipeline:
    """The pipeline from a problem to a scored group, and the policy that they share."""

    config: Config
    policy: Policy
    task: Task
    prompter: PromptBuilder
    engine: Engine
    scorer: Scorer
    _found: dict[tuple[Split, int | None], list[Problem]] = field(default_factory=dict)

    def problems(self, split: Split, n: int | None = None) -> list[Problem]:
        """The first `n` problems of a split, without those whose prompt is too long; all by default.

        Raises UsageError when none is left.
        """
        if (split, n) not in self._found:
            self._found[split, n] = self.prompter.within_limit(self.task.problems(split)[:n])
        if not self._found[split, n]:
            raise UsageError(
                f"no {split} problem has a prompt of at most {self.config.prompt.max_tokens} tokens",
                "raise prompt.max_tokens, or give fewer worked examples",
            )
        return self._found[split, n]

    def sampling(self, greedy: bool) -> Sampling:
        """How completions are drawn: one greedy answer to be measured, or a group to be trained on."""
        rollout = self.config.rollout
        if greedy:
            limit = self.config.eval.max_new_tokens or rollout.max_new_tokens
            return Sampling(samples=1, max_new_tokens=limit, temperature=0.0)
        return Sampling(
            samples=rollout.group_size,
            max_new_tokens=rollout.max_new_tokens,
            min_new_tokens=rollout.min_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
        )

    def answer(
        self, problems: Sequence[Problem], progress: Callable[[int], None] = ignore_progress, samples: int = 1
    ) -> list[Group]:
        """Scored answers to each problem: one greedy, or several at the rollout's temperature and top-p."""
        seed = derive_seed(self.config.train.seed, "evaluation")
        sampling = self.sampling(greedy=True)
        if samples > 1:
            drawn = self.config.rollout
            sampling = replace(sampling, samples=samples, temperature=drawn.temperature, top_p=drawn.top_p)
        sampled = sample_completions(problems, self.prompter, self.engine, sampling, seed, progress)
        return score_groups(problems, sampled, self.scorer)


def build_pipeline(config: Config, task: Task | None = None) -> Pipeline:
    """Load the task, then the model: a fault in the data is found before a weight is read."""
    task = task or load_task(config.task)
    check_task(task)
    scorer = Scorer(task)
    scorer.probe(task.problems("train")[0])
    model = config.model
    keep_float32 = config.update.optimizer_state == "32-bit"
    policy = load_policy(model.name, model.dtype, model.device, model.trust_remote_code, keep_float32)
    _check_context(policy, config)
    policy.fast = longest(config) <= max_exact_length(policy.model)
    prompter = PromptBuilder(policy.tokenizer, config.prompt)
    engine = make_engine(config.rollout.engine, policy, config.rollout.max_num_seqs)
    return Pipeline(config, policy, task, prompter, engine, scorer)


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
