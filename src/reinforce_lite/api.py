"""The Python API: train, evaluate, ask and load, as the commands do.

import reinforce_lite as rl

run = rl.train("quickstart", {"train.steps": 10})
print(run.before, run.after)
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from reinforce_lite.callbacks.base import Callback
from reinforce_lite.callbacks.console import make_console
from reinforce_lite.config import Config, load_config, override_config
from reinforce_lite.engines import make_engine
from reinforce_lite.errors import UsageError
from reinforce_lite.evaluation.evaluate import Evaluation, evaluate_groups
from reinforce_lite.evaluation.failures import Failure, common_failures
from reinforce_lite.models.distributed import join
from reinforce_lite.models.policy import Policy
from reinforce_lite.pipeline import build_pipeline, check_prompt_length, load_configured_policy
from reinforce_lite.pipeline import load_base as load_shared_base
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import existing_run, find_run, trained_config
from reinforce_lite.tasks import load_task, require_task, stop_strings
from reinforce_lite.tasks.base import Task
from reinforce_lite.trainer import session
from reinforce_lite.types import NO_PERMISSIONS, Permissions, Problem, Sampling
from reinforce_lite.utils.memory import limit_fragmentation

ModelOrRun = str | PathLike[str]
"""Of a run or a model: a name, a path, or a Run."""


@dataclass(frozen=True, slots=True)
class Response:
    """The greedy response of a model to a question; `print` shows its text."""

    text: str
    """The prefill text included."""
    untrained: str | None
    """The response of the model that a run started with; None if no run was asked."""

    def __str__(self) -> str:
        return self.text


def train(  # noqa: PLR0913 -- all but two by name
    recipe: str = "quickstart",
    overrides: Mapping[str, Any] | None = None,
    *,
    task: Task | None = None,
    run: str = "",
    resume: bool = False,
    quiet: bool = False,
    trust_remote_code: bool = False,
    allow_pickles: bool = False,
    base: Policy | None = None,
) -> Run:
    """Train, and return the run: `run.before`, `run.after`, `run.steps`, `run.summary`, `run.path`.

    `recipe` is a shipped recipe or a TOML file, `overrides` are {"section.key": value}, `task` replaces the
    recipe's task, `run` is the name under runs/ (by default the recipe's name and the time).
    `trust_remote_code` and `allow_pickles` are permissions (`types.Permissions`), which nothing else gives.
    `base` is a model of `load_base`, which then is not loaded again.
    Raises ReinforceLiteError with the message of the command.
    """
    config = resolve_config(recipe, overrides, task)
    join(config.model.device)
    config, opened = session.open_together(config, run, resume)
    permissions = Permissions(trust_remote_code, allow_pickles)
    callback = Callback() if quiet else make_console()
    return session.train(config, opened, task, callback, permissions=permissions, base=base)


def load_base(
    recipe: str = "quickstart-adapter",
    overrides: Mapping[str, Any] | None = None,
    *,
    trust_remote_code: bool = False,
    allow_pickles: bool = False,
) -> Policy:
    """Load the model of a recipe once, for several calls of `train` that train adapters over it.

    base = rl.load_base("quickstart-adapter")
    runs = [rl.train("quickstart-adapter", {"train.seed": seed}, base=base) for seed in range(3)]

    Each run starts with a fresh adapter, and equals the same run in a process of its own. The comparison of
    merged completions is omitted, since merging would change the weights. Raises as `train`.
    """
    config = load_config(recipe, overrides)
    join(config.model.device)
    limit_fragmentation()
    return load_shared_base(config, Permissions(trust_remote_code, allow_pickles))


def load(run: ModelOrRun) -> Run:
    """An earlier run, by its name under runs/ or by path. Raises UsageError when there is none."""
    return find_run(fspath(run))


def ask(
    model_or_run: ModelOrRun,
    question: str,
    *,
    trust_remote_code: bool = False,
    allow_pickles: bool = False,
) -> Response:
    """Ask one question of a run's trained model, a model folder or a hub name; its response is greedy.

    print(rl.ask(run, "Ana has 3 pens and buys 4. How many has she?"))

    Of a run the untrained model is asked too. Permissions and errors are those of `train`.
    """
    permissions = Permissions(trust_remote_code, allow_pickles)
    *untrained, last = ask_model(fspath(model_or_run), question, permissions)
    return Response(last["response"], untrained[0]["response"] if untrained else None)


def evaluate(
    model_or_run: ModelOrRun,
    overrides: Mapping[str, Any] | None = None,
    *,
    samples: int = 1,
    task: Task | None = None,
    quiet: bool = False,
    trust_remote_code: bool = False,
    allow_pickles: bool = False,
) -> Evaluation:
    """Accuracy on the test problems: of a run's trained model, a model folder or a hub name.

    One sample per problem is greedy; several are drawn as in training and give pass@k as well. Permissions
    and errors are those of `train`.
    """
    name = fspath(model_or_run)
    config = trained_config(name)
    config = override_config(config, _with_task(overrides, task))
    permissions = Permissions(trust_remote_code, allow_pickles)
    console = Callback() if quiet else make_console()
    return evaluate_model(config, console, samples, task, permissions)[0]


def resolve_config(recipe: str, overrides: Mapping[str, Any] | None, task: Task | None) -> Config:
    """The config of a recipe with overrides. A task that is an object is named after its class."""
    return load_config(recipe, _with_task(overrides, task))


def _with_task(overrides: Mapping[str, Any] | None, task: Task | None) -> dict[str, Any]:
    """The overrides; a task given as an object is named after its class, so it is not taken for the
    config's.
    """
    named = dict(overrides or {})
    if task is not None:
        require_task(task)
        named["task.name"] = type(task).__name__
    return named


def evaluate_model(
    config: Config,
    callback: Callback,
    samples: int = 1,
    task: Task | None = None,
    permissions: Permissions = NO_PERMISSIONS,
) -> tuple[Evaluation, list[Failure], list[Problem]]:
    """Evaluate `config.model` on the first `config.eval.n` test problems.

    Returns the evaluation, the most common reasons why completions are wrong, and the problems.
    """
    if samples < 1:
        raise UsageError(f"samples is {samples}", "give 1 for greedy completions, or more to sample")
    limit_fragmentation()
    with callback:
        task = task or load_task(config.task)  # an error in it comes before the model is announced
        callback.phase(f"loading {config.model.name}")
        with closing(build_pipeline(config, task, permissions)) as pipeline:
            problems = pipeline.problems("test", config.eval.n)
            callback.phase("evaluating on test", len(problems) * samples)
            groups = pipeline.eval_groups(problems, callback.advance, samples)
        result = evaluate_groups(groups, None, "test")
        callback.evaluated(result)
    return result, common_failures(groups), problems


def ask_model(
    model_or_run: str, question: str, permissions: Permissions = NO_PERMISSIONS
) -> list[dict[str, str]]:
    """The greedy response of a model, or of a run's untrained and trained models in that order.

    Each entry has `model` (a label, for an unfinished run with its step) and `response`.
    """
    config = trained_config(model_or_run)
    run = existing_run(model_or_run)
    trained = "trained" if run is None or run.is_finished else run.model_progress
    models = [("untrained", run.config), (trained, config)] if run else [("response", config)]
    return [
        {"model": label, "response": _respond(config, question, permissions, is_first=position == 0)}
        for position, (label, config) in enumerate(models)
    ]


def _respond(config: Config, question: str, permissions: Permissions, is_first: bool) -> str:
    """The assistant's response, its prefill included; the first also tells of a question that is too long."""
    policy = load_configured_policy(config, permissions, keep_float32=False)
    prompt = PromptBuilder(policy.tokenizer, config.prompt)(question)
    if is_first:
        check_prompt_length(prompt, config, policy)
    name = config.rollout.engine
    engine = make_engine("native" if name == "vllm" else name, policy)  # vLLM takes longer to start
    greedy = Sampling(1, config.rollout.max_new_tokens, temperature=0.0, stop=stop_strings(config))
    return prompt.prefill + engine.generate([prompt], greedy, seed=0)[0][0].text
