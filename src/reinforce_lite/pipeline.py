"""The parts of a run, assembled from its config: shared by train, eval and ask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reinforce_lite.config import Config
from reinforce_lite.engines import make_engine
from reinforce_lite.engines.base import Engine, ignore_progress
from reinforce_lite.errors import UsageError
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
    """The road from a problem to a scored group, and the policy that travels it."""

    config: Config
    policy: Policy
    task: Task
    prompt_builder: PromptBuilder
    engine: Engine
    scorer: Scorer
    _problems: dict[tuple[Split, int | None], list[Problem]] = field(default_factory=dict)

    def problems(self, split: Split, n: int | None = None) -> list[Problem]:
        """The first `n` problems of a split (default: all), without those whose prompt is too long.

        Raises UsageError when none remains.
        """
        if (split, n) not in self._problems:
            self._problems[split, n] = self.prompt_builder.within_limit(self.task.problems(split)[:n])
        if not self._problems[split, n]:
            raise UsageError(
                f"no {split} problem has a prompt of at most {self.config.prompt.max_tokens} tokens",
                "raise prompt.max_tokens, or give fewer worked examples",
            )
        return self._problems[split, n]

    def sampling(self) -> Sampling:
        """How a group is sampled in training."""
        rollout = self.config.rollout
        return Sampling(
            samples=rollout.group_size,
            max_new_tokens=rollout.max_new_tokens,
            min_new_tokens=rollout.min_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
        )

    def eval_sampling(self, samples: int = 1) -> Sampling:
        """How an evaluation samples: one greedy completion, or several at the rollout's temperature
        and top-p.
        """
        rollout = self.config.rollout
        limit = self.config.eval.max_new_tokens or rollout.max_new_tokens
        if samples == 1:
            return Sampling(samples=1, max_new_tokens=limit, temperature=0.0)
        return Sampling(samples, limit, temperature=rollout.temperature, top_p=rollout.top_p)

    def eval_groups(
        self, problems: Sequence[Problem], progress: Callable[[int], None] = ignore_progress, samples: int = 1
    ) -> list[Group]:
        """Scored completions of each problem, as an evaluation samples them."""
        seed = derive_seed(self.config.train.seed, "evaluation")
        sampling = self.eval_sampling(samples)
        sampled = sample_completions(problems, self.prompt_builder, self.engine, sampling, seed, progress)
        return score_groups(problems, sampled, self.scorer)


def build_pipeline(config: Config, task: Task | None = None) -> Pipeline:
    """Load the task, then the model: a fault in the data is found before a weight is read.

    Raises UsageError for a task, reward, model or context length that cannot work.
    """
    task = task or load_task(config.task)
    check_task(task)
    scorer = Scorer(task)
    scorer.probe(task.problems("train")[0])
    model = config.model
    keep_float32 = config.update.optimizer_state == "32-bit"
    policy = load_policy(
        model.name,
        model.dtype,
        model.device,
        model.trust_remote_code,
        keep_float32,
        config.max_sequence_tokens,
    )
    _check_context(policy, config)
    prompt_builder = PromptBuilder(policy.tokenizer, config.prompt)
    engine = make_engine(config.rollout.engine, policy, config.rollout.max_num_seqs)
    return Pipeline(config, policy, task, prompt_builder, engine, scorer)


def _check_context(policy: Policy, config: Config) -> None:
    limit = getattr(policy.model.config, "max_position_embeddings", None)
    requested = config.max_sequence_tokens
    if limit and requested > limit:
        raise UsageError(
            f"prompts of {config.prompt.max_tokens} and completions of "
            f"{requested - config.prompt.max_tokens} tokens do not fit into the context of {limit} tokens "
            f"that {policy.name} has",
            "lower prompt.max_tokens or rollout.max_new_tokens",
        )
