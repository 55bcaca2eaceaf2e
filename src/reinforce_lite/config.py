"""What a run is: a few small sections, from a recipe file and the command line.

Precedence: command line, recipe file, the defaults below. An unknown key is an error that names
the nearest known one. Recipes are TOML with one table a section; `recipes/` holds the shipped ones.
"""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reinforce_lite.errors import UsageError
from reinforce_lite.utils.text import did_you_mean

Positive = Annotated[int, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A table of a recipe: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(Section):
    name: str = "smollm2-135m"
    """The embedded smollm2-135m, a Hugging Face hub name, or a local folder."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """What products are computed in; auto is bfloat16 where the device has units for it.
    update.optimizer_state says what the optimizer has beside it."""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """auto takes the first that is there, in this order."""
    trust_remote_code: bool = False
    """Allow a model that brings its own Python code or pickled weights: both run as you."""


class TaskConfig(Section):
    name: str = "wordmath"
    """wordmath, gsm8k, jsonl, hub, gym, or a Python file of your own (./my_task.py)."""
    path: str = ""
    """Where it is: a file or folder (gsm8k, jsonl), a data set's name (hub), a task's name (gym)."""
    split: str = "train"
    """hub: the split to train on."""
    columns: dict[str, str] = {}
    """jsonl and hub: the names of the question and answer columns, where they differ."""
    level: Annotated[int, Field(ge=1, le=4)] = 1
    """wordmath: 1 (one step, small numbers) to 4 (several steps, larger numbers, distractors)."""
    params: dict[str, int | float | bool | str] = {}
    """gym: parameters of the task."""
    seed: int = 0
    """Of procedural problems and of held-out parts."""


class ExampleConfig(Section):
    """A worked example, shown as an earlier exchange."""

    question: str
    answer: str


class PromptConfig(Section):
    system: str = ""
    """The system line; empty leaves it to the model's chat template."""
    instruction: str = (
        "Show your work in <think> </think> tags, then return the final number in <answer> </answer> tags."
    )
    """Follows the question."""
    prefill: str = ""
    """The assistant's turn, begun for it."""
    examples: tuple[ExampleConfig, ...] = ()
    """Worked examples before the question."""
    max_tokens: Positive = 1024
    """A longer prompt is skipped and counted, never cut."""


class RolloutConfig(Section):
    engine: Literal["native", "hf"] = "native"
    """native: our own decoder; hf: transformers' generate, slower, for any model."""
    prompts_per_step: Positive = 8
    """Questions in a step."""
    group_size: Positive = 10
    """Answers to each (the group's size, G)."""
    max_new_tokens: Positive = 256
    min_new_tokens: NotNegative = 0
    max_num_seqs: Positive = 256
    """At most so many are decoded at once; memory may allow fewer."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9

    @model_validator(mode="after")
    def _min_below_max(self) -> "RolloutConfig":
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens is larger than max_new_tokens")
        return self


class ObjectiveConfig(Section):
    """The preset names one of the family; any other key replaces that part of it."""

    preset: Literal["reinforce-lite", "article", "rloo", "grpo", "dr-grpo", "monte-carlo"] = "reinforce-lite"
    baseline: Literal["leave-one-out", "group", "none"] | None = None
    """Subtracted from each reward: the mean of the other answers, of the whole group, or nothing."""
    scale: Literal["leave-one-out", "group", "none"] | None = None
    """Divides what is left: the standard deviation of the same."""
    advantage_clip: Annotated[float, Field(gt=0)] | Literal["none"] | None = None
    """Advantages are held within plus and minus this. With scale `others` and no clamp, an answer unlike all
    others (their deviation is 0) drowns the rest of its step."""
    gradient_samples: Literal["all", "one"] | None = None
    """Take the gradient of every answer, or of one a question."""
    loss_normalization: Literal["constant", "sequence-sum", "sequence-mean"] | None = None
    """Divide by questions x answers x max_new_tokens; average the answers' sums; or their means."""
    logprob_temperature: Annotated[float, Field(gt=0)] | Literal["sampling"] | None = None
    """Whose log-probability is differentiated: the policy's at this temperature."""


class UpdateConfig(Section):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    warmup_steps: NotNegative = 0
    """The rate rises in a line over so many steps and is constant after."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    micro_batch_tokens: Positive = 16384
    """Tokens, prompt included, that pass through the policy at once with gradient."""
    activation_checkpointing: bool = False
    """Keep each layer's input alone for the way back and make the rest again: far less memory, and about a
    third more time in the update."""
    optimizer_state: Literal["32-bit", "16-bit", "8-bit"] = "32-bit"
    """32-bit: float32 AdamW, and float32 weights behind a bfloat16 policy. 8-bit: moments of 8 bits, and the
    policy's own weights stochastically rounded (needs torchao). 16-bit: all in bfloat16, as the first
    implementation had it; small updates are lost."""


class TrainConfig(Section):
    steps: Positive = 100
    hours: Annotated[float, Field(gt=0)] | None = None
    """End within so many hours of the start, evaluated and saved, if that comes before the last step."""
    seed: int = 0
    save_every: Positive = 10
    """Steps between checkpoints."""


class EvalConfig(Section):
    n: Positive = 200
    """Test problems, before and after."""
    validation_n: Positive = 64
    """Validation problems, during training; they choose the best step."""
    every: Positive = 10
    """Steps between evaluations on validation."""
    max_new_tokens: Positive | None = None
    """As in training when not given."""
    samples: Positive = 1
    """`eval` only: answers to each problem. One is greedy; more are sampled as in training, for pass@k.
    Evaluations during training are always one greedy answer."""


class LogConfig(Section):
    trackers: tuple[Literal["trackio", "wandb", "tensorboard"], ...] = ()
    """Also send the metrics there, each with the extra of its name; by default nothing is sent anywhere."""


class Config(Section):
    """A whole run."""

    recipe: str = "custom"
    """The recipe's name, for the record."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    prompt: PromptConfig = PromptConfig()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    update: UpdateConfig = UpdateConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()


def load_config(recipe: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """A shipped recipe's name or a TOML file, with `{"section.key": value}` laid over it.

    Raises UsageError for an unknown recipe, a file that is not TOML, an unknown key or a bad value.
    """
    path = Path(recipe) if recipe.endswith(".toml") else None
    values = _read(path, recipe) if path else _shipped(recipe)
    values.setdefault("recipe", path.stem if path else recipe)
    return override_config(parse_config(values, recipe), overrides or {})


def override_config(base: Config, overrides: Mapping[str, Any]) -> Config:
    """A config with `{"section.key": value}` laid over it; errors as `load`."""
    values = base.model_dump()
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        if not key or not isinstance(values.setdefault(section, {}), dict):
            raise UsageError(f"{dotted!r} is not of the form section.key", "for example train.steps")
        values[section][key] = value
    return parse_config(values, "overrides")


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """Check a recipe's values; `source` names where they came from."""
    _check_names(values, source)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2])  # deeper parts name a union's branches
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{source}: {where}: {message}, got {first['input']!r}") from None


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    folder = files("reinforce_lite") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def dump_config(config: Config) -> str:
    """The config as TOML, which `load` reads back as the same config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def config_value(config: Config, dotted: str) -> Any:
    """A value by its name, as in `value(config, "train.steps")`."""
    section, _, key = dotted.partition(".")
    return getattr(getattr(config, section), key)


def option_flag(dotted: str) -> str:
    """A key as the command line has it.

    >>> option("train.save_every")
    '--train.save-every'
    """
    return f"--{dotted.replace('_', '-')}"


def config_differences(old: Config, new: Config, but: frozenset[str] = frozenset()) -> list[str]:
    """Each key that differs, as "section.key: old -> new", leaving out the keys named in `but`."""
    a, b = _flat(old), _flat(new)
    return [f"{key}: {a[key]!r} -> {b[key]!r}" for key in a if a[key] != b[key] and key not in but]


def _flat(config: Config) -> dict[str, Any]:
    sections = config.model_dump(mode="json", exclude={"recipe"})
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}


def _read(path: Path, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"can't read the recipe {source}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{source} is not a TOML file: {error}") from None


def _shipped(name: str) -> dict[str, Any]:
    if name not in recipe_names():
        raise UsageError(
            f"there is no recipe {name!r}",
            f"the shipped ones are {', '.join(recipe_names())}; a file of your own ends in .toml",
        )
    return tomllib.loads((files("reinforce_lite") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"))


def _check_names(values: Mapping[str, Any], source: str) -> None:
    for name, section in values.items():
        field = Config.model_fields.get(name)
        if field is None:
            raise _unknown(name, list(Config.model_fields), source)
        known: dict[str, Any] = getattr(field.annotation, "model_fields", {})
        for key in section if known and isinstance(section, Mapping) else ():
            if key not in known:
                raise _unknown(f"{name}.{key}", [f"{name}.{k}" for k in known], source)


def _unknown(name: str, known: list[str], source: str) -> UsageError:
    return UsageError(
        f"{source}: there is no key {name!r}",
        did_you_mean(name, known, f"known here: {', '.join(known)}"),
    )
