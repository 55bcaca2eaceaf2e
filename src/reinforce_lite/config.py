"""The configuration of a run: a few small sections, from a recipe file and the command line.

Precedence: command line, recipe file, the defaults below. An unknown key is an error that names the nearest
known one. Recipes are TOML files with one table per section; `recipes/` holds the shipped ones.
"""

import datetime
import json
import logging
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from reinforce_lite.errors import UsageError
from reinforce_lite.types import AnswerFormat
from reinforce_lite.utils.finite import to_json
from reinforce_lite.utils.text import did_you_mean

logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "quickstart"
RECIPES = Path(__file__).with_name("recipes")
"""The shipped ones."""
RENAMED = {
    "rollout.samples_per_prompt": "rollout.group_size",
    "rollout.answers_in_flight": "rollout.max_num_seqs",
    "objective.clamp": "objective.advantage_clip",
    "objective.normalize": "objective.loss_normalization",
    "update.state": "update.optimizer_state",
    "eval.samples": "the option --samples of `eval`",
    "model.trust_remote_code": "the options --trust-remote-code and --allow-pickles (in Python: arguments)",
}
"""Keys of version 0.1 and what they are called now."""

Positive = Annotated[int, Field(gt=0)]
FinitePositive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[int, Field(ge=0)]

Baseline = Literal["leave-one-out", "group", "none"]
Scale = Literal["leave-one-out", "group", "none"]
GradientSamples = Literal["all", "one"]
LossNormalization = Literal["constant", "sequence-sum", "sequence-mean"]
EngineCorrection = Literal["none", "truncated"]
TrackerName = Literal["trackio", "wandb", "tensorboard"]
PresetName = Literal["reinforce-lite", "article", "rloo", "grpo", "dr-grpo", "monte-carlo"]


class Section(BaseModel):
    """A table of a recipe: immutable; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _encodable(cls, value: Any) -> Any:
        """Bytes of a command line that are not UTF-8 become half characters, which no tokenizer takes."""
        try:
            json.dumps(value, ensure_ascii=False, skipkeys=True, default=str).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds bytes that are not UTF-8") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        return value


class ModelConfig(Section):
    """Which model, and how it is computed."""

    name: str = "smollm2-135m"
    """The embedded smollm2-135m, a Hugging Face hub name, or a local folder."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The dtype of the forward and backward pass; auto is bfloat16 where the device computes it faster,
    float16 on a CUDA device that has tensor cores without bfloat16 (T4, V100, 20-series), else float32.
    update.optimizer_state says what the optimizer keeps in addition."""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """auto takes the first available one, in this order."""
    base_weights: Literal["auto", "int8"] = "auto"
    """How the frozen weights under an adapter are held: auto in `dtype`, int8 in 8 bits where memory is too
    small for that. Products are then slower, and rounded weights are another starting point."""


class AdapterConfig(Section):
    """A low-rank adapter that is trained in place of the model, whose own weights are then frozen."""

    rank: NotNegative = 0
    """The rank of its matrices; 0: no adapter, all weights are trained."""
    alpha: FinitePositive = 32.0
    """Its products are multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Linear layers to adapt, by the end of their names, such as q_proj; by default all but the head."""

    @model_validator(mode="after")
    def _targets_of_an_adapter(self) -> "AdapterConfig":
        if self.targets and not self.rank:
            raise ValueError("targets are set but rank is 0, so all weights would be trained: set rank")
        return self


class TaskConfig(Section):
    """Where problems come from."""

    name: str = "wordmath"
    """wordmath, gsm8k, jsonl, hub, gym, or a Python file of your own (./my_task.py)."""
    path: str = ""
    """Where the data is: a file or folder (gsm8k, jsonl), a dataset's name (hub), a task's name (gym)."""
    split: str = "train"
    """hub: the split to train on."""
    columns: dict[str, str] = {}
    """jsonl and hub: the names of the columns `question` and `answer` where they differ. For `question` also
    several in a text: `{Body} {Question}`."""
    answer_format: AnswerFormat = "tags"
    """Where the reward looks for the answer: `<answer>72</answer>` (tags), `\\boxed{72}` (boxed), or a line
    `#### 72` (hash). The prompt must ask for it. The reward of your own Python file decides for itself."""
    level: Annotated[int, Field(ge=1, le=4)] = 1
    """wordmath: 1 (one step, small numbers) to 4 (several steps, larger numbers, distractors)."""
    params: dict[str, Any] = {}
    """gym: the parameters of the reasoning-gym task. On the command line a list or table is JSON."""
    seed: int = 0
    """Of generated problems and of held-out splits."""
    reward_seconds: Annotated[float, Field(gt=0)] = 10.0
    """The longest that the reward of your own Python file, or a scorer of gym, may take for a completion.
    After that its process is killed, and nothing is learned from the completion."""
    reward_memory: Annotated[float, Field(gt=0)] = 2.0
    """The most memory that its process may take, in GB (10^9 bytes), imports and subprocesses included."""
    reward_workers: Positive = 1
    """How many such processes score completions concurrently."""

    @field_validator("params")
    @classmethod
    def _storable(cls, params: dict[str, Any]) -> dict[str, Any]:
        """The params as config.toml will give them back."""
        try:
            stored: dict[str, Any] = tomllib.loads(tomli_w.dumps(params))
        except (TypeError, RecursionError) as error:
            raise ValueError(str(error)) from None
        if to_json(stored, default=str) != json.dumps(stored, default=str):  # which writes NaN and Infinity
            raise ValueError("NaN and infinity are no parameters")
        return stored


class ExampleConfig(Section):
    """A worked example, shown as an earlier exchange of the conversation."""

    question: str
    answer: str


class PromptConfig(Section):
    """What the model reads before it writes."""

    system: str = ""
    """The system message; empty leaves it to the model's chat template."""
    instruction: str = (
        "Show your work in <think> </think> tags, then return the final number in <answer> </answer> tags."
    )
    """The text after the question."""
    prefill: str = ""
    """The beginning of the assistant's response, written for it."""
    examples: tuple[ExampleConfig, ...] = ()
    """Worked examples before the question."""
    max_tokens: Positive = 1024
    """Problems with a longer prompt are skipped and counted, never cut."""
    date: datetime.date | None = None
    """The day (as 2026-11-30) for chat templates that print today's date; by default today, and for a run the
    day it was started."""


class RolloutConfig(Section):
    """How completions are sampled in training."""

    engine: Literal["native", "hf", "vllm"] = "native"
    """native: our own decoder; hf: transformers' generate, slower, for any causal language model; vllm: vLLM,
    which must be installed, with a copy of the weights."""
    prompts_per_step: Positive = 8
    """Questions per step."""
    group_size: Positive = 10
    """Completions per question (G)."""
    max_new_tokens: Positive = 256
    min_new_tokens: NotNegative = 0
    max_num_seqs: Positive = 256
    """The most sequences decoded concurrently; memory may allow fewer."""
    selection: Literal["shuffle", "adaptive"] = "shuffle"
    """Which questions a step asks. shuffle: each once an epoch. adaptive: rather those whose completions are
    likely to be neither all right nor all wrong, judged by what the policy did on them before."""
    refill: Positive = 1
    """A step asks further questions until prompts_per_step of them have completions whose rewards differ, at
    most this many times prompts_per_step in all; 1: none."""
    temperature: FinitePositive = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    stop: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    """Strings that end a completion, and are kept. By default those of task.answer_format: `</answer>` for
    tags, the end of the line for hash (written `####...` and a line break), none for boxed. With an empty
    list, and by default for a task of your own, the model alone ends it."""
    repetition_detection: bool = True
    """End a completion once its last 64 tokens repeat a pattern of at most 16, in evaluations too; it counts
    as truncated. Switch it off for tasks whose right answers repeat like this, such as large grids."""

    @model_validator(mode="after")
    def _min_below_max(self) -> "RolloutConfig":
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens is larger than max_new_tokens")
        return self

    @model_validator(mode="after")
    def _groups_can_differ(self) -> "RolloutConfig":
        if self.group_size == 1 and (self.refill > 1 or self.selection == "adaptive"):
            raise ValueError(
                "refill and adaptive selection look for groups whose rewards differ, but group_size is 1: "
                "raise it, or set refill to 1 and selection to shuffle"
            )
        return self


class ObjectiveConfig(Section):
    """The preset names a member of the family; every other key replaces one part of it."""

    preset: PresetName = "reinforce-lite"
    baseline: Baseline | None = None
    """Subtracted from each reward: the mean of the group's other rewards, of all of them, or nothing."""
    scale: Scale | None = None
    """Divides the difference: the standard deviation of the same rewards."""
    advantage_clip: Annotated[float, Field(gt=0)] | Literal["none"] | None = None
    """Advantages are clipped to plus and minus this. With the leave-one-out scale and no clip, one completion
    that differs from all others (their deviation is 0) outweighs the rest of its step."""
    gradient_samples: GradientSamples | None = None
    """Take the gradient of every completion, or of one per question."""
    loss_normalization: LossNormalization | None = None
    """constant: divide by questions x completions x max_new_tokens; sequence-sum: average the sums over each
    completion's tokens; sequence-mean: average their means."""
    logprob_temperature: FinitePositive | Literal["sampling"] | None = None
    """The temperature of the log-probabilities that are differentiated; `sampling` is the rollout's."""
    engine_correction: EngineCorrection = "none"
    """truncated: multiply each token's loss weight by min(p_update / p_engine, 2), where the two are its
    probabilities in the update and in the engine, at the rollout's temperature. For an engine that rounds
    differently, such as vllm in bfloat16. It needs rollout.top_p 1 and rollout.min_new_tokens 0."""


class UpdateConfig(Section):
    """How the weights change."""

    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6
    """0 changes no weight: a control."""
    warmup_steps: NotNegative = 0
    """Steps over which the learning rate rises linearly; it is constant afterwards."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    micro_batch_tokens: Positive = 16384
    """The most tokens of a micro-batch, padding included, without the prefix that all prompts share; a longer
    completion passes alone."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and recompute the rest: far less memory for about a
    third more time in the update."""
    optimizer_state: Literal["32-bit", "16-bit", "8-bit"] = "32-bit"
    """32-bit: float32 AdamW, with float32 master weights of a 16-bit policy; float16 needs it. 8-bit: 8-bit
    moments, and the policy's own weights stochastically rounded (needs torchao). 16-bit: everything in
    bfloat16, as in the article's program; small updates are lost to rounding."""
    offload_optimizer: bool = False
    """Keep 8-bit moments in the machine's own memory, for a card that is still too small. This saves 2 bytes
    per parameter on the card; they cross the bus twice in every step."""
    shard_optimizer: bool = False
    """With several processes, shard the optimizer state (32-bit or 16-bit): each process keeps only the state
    for its part of every weight, and the weights are gathered after each step. The result is the same. If a
    process is lost, so is its part, and the run resumes from its last checkpoint, not from its last step."""
    shard_weights: bool = False
    """With several processes, train a float32 copy of the model, which torch's FSDP2 shards together with the
    gradient and the optimizer state. Each process still holds the whole model, to sample from. The result is
    the same, but the update is slower: weights are gathered layer by layer, and the prompt is computed again
    for each completion. It includes shard_optimizer. It needs 32-bit optimizer state and model.dtype bfloat16
    or float32, and does not work with an adapter."""


class TrainConfig(Section):
    """How long, and from which seed."""

    steps: Positive = 100
    warm_start: NotNegative = 0
    """The number of steps at the start that learn from their right completions alone, by maximum likelihood.
    For tasks that are too hard."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """End within this many hours, evaluated and saved, if that comes before the last step."""
    seed: int = 0
    save_every: Positive = 10
    """Steps between checkpoints."""

    @model_validator(mode="after")
    def _steps_follow_the_warm_start(self) -> "TrainConfig":
        if self.warm_start >= self.steps:
            raise ValueError("warm_start must be smaller than steps")
        return self


class EvalConfig(Section):
    """How accuracy is measured."""

    n: Positive = 200
    """Test problems, evaluated before and after training."""
    validation_n: Positive = 64
    """Validation problems, evaluated during training; they choose the best step."""
    every: Positive = 10
    """Steps between evaluations on validation."""
    max_new_tokens: Positive | None = None
    """Of an evaluation's completions; rollout.max_new_tokens when not given."""


class LogConfig(Section):
    """Who else receives the metrics."""

    trackers: tuple[TrackerName, ...] = ()
    """Send the metrics there too; each needs the extra of its name. By default nothing is sent anywhere."""


class Config(Section):
    """The configuration of a whole run."""

    recipe: str = "custom"
    """The recipe's name, which summaries and reports show."""
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    task: TaskConfig = TaskConfig()
    prompt: PromptConfig = PromptConfig()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    update: UpdateConfig = UpdateConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @property
    def max_sequence_tokens(self) -> int:
        """The most tokens that a prompt and its completion have together, in training or evaluation."""
        return self.prompt.max_tokens + max(self.rollout.max_new_tokens, self.eval.max_new_tokens or 0)

    @property
    def corrected_at(self) -> float | None:
        """The temperature at which tokens get importance weights; None without `engine_correction`."""
        return None if self.objective.engine_correction == "none" else self.rollout.temperature


def load_config(recipe: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """A shipped recipe or a TOML file, with the overrides `{"section.key": value}` applied.

    Raises UsageError for an unknown recipe, a file that is not TOML, an unknown key or a bad value.
    """
    if recipe.endswith(".toml"):
        file = Path(recipe)
    elif recipe in recipe_names():
        file = RECIPES / f"{recipe}.toml"
    else:
        remedy = f"the shipped ones are {', '.join(recipe_names())}; a file of your own ends in .toml"
        raise UsageError(f"there is no recipe {recipe!r}", remedy)
    values = {"recipe": file.stem} | _read(file, recipe)
    as_written = parse_config(values, recipe)
    config = override_config(as_written, overrides or {})
    warn_of_learning_rate(as_written, config)
    return config


def warn_of_learning_rate(recipe: Config, config: Config) -> None:
    """Warn where an adapter was added to a recipe without one, and has the learning rate of all weights."""
    rate = config.update.learning_rate
    if config.adapter.rank and not recipe.adapter.rank and rate == recipe.update.learning_rate:
        logger.warning(
            "the recipe's learning rate, %g, is for all weights; an adapter usually needs about ten times as "
            "much: --update.learning-rate %g",
            *(rate, 10 * rate),
        )


def override_config(base: Config, overrides: Mapping[str, Any]) -> Config:
    """The config with `{"section.key": value}` applied; raises as `load_config` does."""
    values = base.model_dump()
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        if not key or not isinstance(values.setdefault(section, {}), dict):
            raise UsageError(f"{dotted!r} is not of the form section.key", "for example train.steps")
        values[section][key] = value
    return parse_config(values, "overrides")


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """A validated config; `source` says in errors where the values came from. Raises UsageError."""
    _check_keys(values, source)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2])  # deeper parts name a union's branches
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{source}: {where}: {message}, got {first['input']!r}") from None


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(file.stem for file in RECIPES.glob("*.toml"))


def dump_config(config: Config) -> str:
    """The config as TOML; `load_config` reads back the same config."""
    values = config.model_dump(mode="json", exclude_none=True)
    values["task"]["params"] = config.task.params  # TOML has dates, JSON has not
    return tomli_w.dumps(values)


def config_value(config: Config, dotted: str) -> Any:
    """A value by its dotted name, as in `config_value(config, "train.steps")`."""
    section, _, key = dotted.partition(".")
    return getattr(getattr(config, section), key)


def option_flag(dotted: str) -> str:
    """A key as an option of the command line.

    >>> option_flag("train.save_every")
    '--train.save-every'
    """
    return f"--{dotted.replace('_', '-')}"


def option_text(dotted: str, value: object) -> str:
    """A key and its value as an option to paste into a shell.

    >>> option_text("prompt.prefill", ""), option_text("update.offload_optimizer", False)
    ("--prompt.prefill ''", '--update.no-offload-optimizer')
    >>> option_text("rollout.stop", ("</s>", "a b")), option_text("task.params", {"n": [1]})
    ("--rollout.stop '</s>' 'a b'", "--task.params n '[1]'")
    """
    if isinstance(value, bool):
        section, _, name = dotted.partition(".")
        return option_flag(dotted if value else f"{section}.no-{name}")
    words: Sequence[object] = value if isinstance(value, list | tuple) else (value,)
    if dotted == "prompt.examples":
        words = [json.dumps(value, ensure_ascii=False)]
    if isinstance(value, Mapping):
        words = [w for k, v in value.items() for w in (k, v if isinstance(v, str) else json.dumps(v))]
    return " ".join([option_flag(dotted), *(shlex.quote(str(word)) for word in words)])


def config_differences(old: Config, new: Config, ignored: frozenset[str] = frozenset()) -> list[str]:
    """Every key that differs, as "section.key: old -> new", except the `ignored` keys."""
    a, b = flat_values(old), flat_values(new)
    return [f"{key}: {a[key]!r} -> {b[key]!r}" for key in a if a[key] != b[key] and key not in ignored]


def flat_values(config: Config, include: Any = None) -> dict[str, Any]:
    """JSON values by dotted key, without `recipe`; `include` as in pydantic's model_dump."""
    sections = config.model_dump(mode="json", include=include, exclude={"recipe"})
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}


def _read(file: Path, source: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"can't read the recipe {source}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, deep nesting
        raise UsageError(f"{source} is not a TOML file: {error}") from None
    model = values.get("model")
    if isinstance(model, dict) and model.get("trust_remote_code") is False:
        del model["trust_remote_code"]  # in every config.toml of version 0.1; it permits nothing
    return values


def _check_keys(
    values: Mapping[str, Any], source: str, table: type[Section] = Config, prefix: str = ""
) -> None:
    """Raises UsageError for a key that neither `table` nor one of its sections has."""
    known = [prefix + key for key in table.model_fields]
    for key, value in values.items():
        name = prefix + key
        if name in RENAMED:
            remedy = "rename it" if "." in RENAMED[name] else "remove it, and give the option if you want it"
            raise UsageError(f"{source}: the key {name} has become {RENAMED[name]}", remedy)
        if name not in known:
            remedy = did_you_mean(name, known, f"known here: {', '.join(known)}")
            raise UsageError(f"{source}: there is no key {name!r}", remedy)
        section: Any = table.model_fields[key].annotation
        if isinstance(value, Mapping) and hasattr(section, "model_fields"):
            _check_keys(value, source, section, f"{name}.")
