"""The parts of a run, assembled from its config: shared by train, eval and ask."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from reinforce_lite.config import Config, PromptConfig
from reinforce_lite.engines import make_engine
from reinforce_lite.engines.base import Engine, OnProgress, ignore_progress
from reinforce_lite.engines.vllm import VLLMEngine
from reinforce_lite.engines.vllm_check import check_vllm
from reinforce_lite.errors import UsageError
from reinforce_lite.models.adapter import resolve_adapter
from reinforce_lite.models.device import pick_device, pick_dtype
from reinforce_lite.models.llama import supports_model
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.rollout.collect import sample_completions, score_groups
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.rollout.scoring import Scorer, check_faults
from reinforce_lite.tasks import TASK_NAMES, check_task, load_task, stop_strings
from reinforce_lite.tasks.base import Task
from reinforce_lite.tasks.grading import OPENINGS, extract_answer
from reinforce_lite.tasks.reward_worker import WorkerTask
from reinforce_lite.types import (
    NO_PERMISSIONS,
    AnswerFormat,
    Completion,
    Group,
    Permissions,
    Problem,
    Prompt,
    Sampling,
    Split,
)
from reinforce_lite.utils.seeding import derive_seed

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class PromptedPolicy:
    """A policy and the prompts that it is trained with: all of a run that its saved model needs."""

    config: Config
    policy: Policy
    prompt_builder: PromptBuilder


@dataclass(slots=True)
class Pipeline(PromptedPolicy):
    """What leads from a problem to a scored group: task, prompt builder, policy, engine, scorer."""

    task: Task
    engine: Engine
    scorer: Scorer
    _problems: dict[tuple[Split, int | None], list[Problem]] = field(default_factory=dict)

    def problems(self, split: Split, n: int | None = None) -> list[Problem]:
        """The first `n` problems of a split (default: all) whose prompt is not too long.

        Raises UsageError when none remains.
        """
        if (split, n) not in self._problems:
            self._problems[split, n] = self.prompt_builder.within_limit(self.task.problems(split), n)
        if not self._problems[split, n]:
            raise UsageError(
                f"no {split} problem has a prompt of at most {self.config.prompt.max_tokens} tokens",
                "raise prompt.max_tokens, or give fewer worked examples",
            )
        return self._problems[split, n]

    def close(self) -> None:
        """End vLLM and the worker processes of the task's reward, if there are any."""
        if isinstance(self.task, WorkerTask):
            self.task.close()
        if isinstance(self.engine, VLLMEngine):
            self.engine.close()

    def sampling(self) -> Sampling:
        """How a group is sampled in training."""
        r = self.config.rollout
        return Sampling(
            samples=r.group_size,
            max_new_tokens=r.max_new_tokens,
            min_new_tokens=r.min_new_tokens,
            temperature=r.temperature,
            top_p=r.top_p,
            stop=stop_strings(self.config),
            repetition_detection=r.repetition_detection,
            recorded_temperature=self.config.corrected_at or 1.0,
        )

    def eval_groups(
        self, problems: Sequence[Problem], progress: OnProgress = ignore_progress, samples: int = 1
    ) -> list[Group]:
        """Scored completions of each problem, as an evaluation samples them.

        Raises ReinforceLiteError as `check_faults`.
        """
        groups = score_groups(problems, self.eval_completions(problems, progress, samples), self.scorer)
        check_faults(groups)
        return groups

    def eval_completions(
        self, problems: Sequence[Problem], progress: OnProgress = ignore_progress, samples: int = 1
    ) -> list[tuple[Prompt, list[Completion]]]:
        """Each problem's prompt and its completions, as an evaluation samples them.

        One sample is greedy; several are drawn at the rollout's temperature and top-p. They end where those
        of training end.
        """
        seed, rollout = derive_seed(self.config.train.seed, "evaluation"), self.config.rollout
        limit = self.config.eval.max_new_tokens or rollout.max_new_tokens
        sampling = replace(self.sampling(), samples=samples, max_new_tokens=limit, min_new_tokens=0)
        if samples == 1:
            sampling = replace(sampling, temperature=0.0, top_p=1.0)
        return sample_completions(problems, self.prompt_builder, self.engine, sampling, seed, progress)


def build_pipeline(
    config: Config,
    task: Task | None = None,
    permissions: Permissions = NO_PERMISSIONS,
    base: Policy | None = None,
) -> Pipeline:
    """Load the task, then the model: a fault in the data is found before a weight is read.

    `base` is a loaded model to train an adapter over (`load_base`).
    Raises UsageError for a task, reward, model or context length that cannot work.
    """
    if config.rollout.engine == "vllm":
        check_vllm(pick_device(config.model.device).type)
    task = task or load_task(config.task)
    check_task(task)
    scorer = Scorer(task)
    scorer.probe(task.problems("train")[0])
    policy = share_base(base, config) if base else load_configured_policy(config, permissions)
    _check_context(policy, config)
    if config.task.name in TASK_NAMES:  # a task of the user's own has no answer format
        _warn_of_format(config.prompt, config.task.answer_format)
    prompt_builder = PromptBuilder(policy.tokenizer, config.prompt)
    rollout = config.rollout
    sizes = rollout.max_num_seqs, rollout.prompts_per_step, config.max_sequence_tokens
    engine = make_engine(rollout.engine, policy, *sizes, config.corrected_at or 1.0)
    return Pipeline(config, policy, prompt_builder, task, engine, scorer)


def load_configured_policy(
    config: Config, permissions: Permissions = NO_PERMISSIONS, keep_float32: bool = True
) -> Policy:
    """The policy that `config.model` names, with its adapter, as updates need it. Raises as `load_policy`.

    Without `keep_float32` it has no master weights: for one that is not trained.
    """
    model, longest = config.model, config.max_sequence_tokens
    base, adapter, saved = resolve_adapter(model.name, config.adapter)
    keep_float32 &= config.update.optimizer_state == "32-bit" and not adapter.rank
    int8 = model.base_weights == "int8" and adapter.rank > 0  # a merged model has no base
    policy = load_policy(base, model.dtype, model.device, permissions, keep_float32, longest, int8)
    if adapter.rank:
        policy.add_adapter(adapter, config.train.seed, saved)
    return policy


def load_base(config: Config, permissions: Permissions) -> Policy:
    """The policy that `config.model` names, for several runs that train adapters over it one after another.

    Raises as `load_policy`.
    """
    policy = load_configured_policy(config, permissions)
    policy.is_shared = True
    return policy


def share_base(policy: Policy, config: Config) -> Policy:
    """A policy of `load_base` with a fresh adapter of this config, in place of the former run's.

    Raises UsageError where the config asks for another model or trains all weights.
    """
    model = config.model
    name, adapter, saved = resolve_adapter(model.name, config.adapter)
    device = pick_device(model.device)
    is_same = (name, pick_dtype(model.dtype, device), device.type) == (
        policy.name,
        policy.dtype,
        policy.device.type,
    ) and (model.base_weights == "int8") == policy.is_int8
    ours = supports_model(policy.model, config.max_sequence_tokens)
    if not (adapter.rank and is_same and ours == (policy.llama is not None)):
        raise UsageError(
            f"the run can't share the loaded {policy.name}: it trains all weights, or another [model]",
            "share a base among runs that train adapters, load one for each [model]",
        )
    policy.add_adapter(adapter, config.train.seed, saved)
    return policy


def _warn_of_format(prompt: PromptConfig, answer_format: AnswerFormat) -> None:
    """A prompt that shows or asks for another format than the reward's teaches the model to be wrong."""
    examples = prompt.examples
    shown = [e for e in examples if extract_answer(e.answer, answer_format)[0] is not None]
    if len(shown) < len(examples):
        logger.warning(
            "%d of %d worked examples hold no answer in the format %r that the reward reads: "
            "change prompt.examples or task.answer_format",
            *(len(examples) - len(shown), len(examples), answer_format),
        )
    text = f"{prompt.instruction}\n{prompt.prefill}"
    system = prompt.system.replace(OPENINGS["hash"], "")  # there it may be a heading in Markdown
    asked = [name for name, opening in OPENINGS.items() if opening in text + system]
    if asked and answer_format not in asked:
        logger.warning(
            "the prompt asks for the format %r, but the reward reads %r: change prompt.instruction or "
            "task.answer_format, for example --task.answer-format %s",
            *(asked[0], answer_format, asked[0]),
        )


def check_prompt_length(prompt: Prompt, config: Config, policy: Policy) -> None:
    """Warn of a prompt that is longer than those of training; raise UsageError for one that does not fit."""
    tokens, completion, limit = len(prompt.token_ids), config.rollout.max_new_tokens, policy.context
    if limit and tokens + completion > limit:
        raise UsageError(
            f"a prompt of {tokens} tokens and a completion of {completion} do not fit into the context of "
            f"{limit} tokens that {policy.name} has",
            "ask a shorter question",
        )
    if tokens > config.prompt.max_tokens:
        logger.warning(
            "the prompt has %d tokens; in training none has more than prompt.max_tokens = %d",
            *(tokens, config.prompt.max_tokens),
        )


def _check_context(policy: Policy, config: Config) -> None:
    limit = policy.context
    longest, prompt = config.max_sequence_tokens, config.prompt.max_tokens
    if limit and longest > limit:
        raise UsageError(
            f"prompts of {prompt} and completions of {longest - prompt} tokens do not fit into the context "
            f"of {limit} tokens that {policy.name} has",
            "lower prompt.max_tokens or rollout.max_new_tokens",
        )
