"""The ways of asking that an audit tries: the recipe's, and others that its task's reward can read.

A way is an answer format and a prompt. Each other way is told as the options that lead from the recipe to it.

Omitted on purpose: worked examples in another format than the recipe's, which only a person can check.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from reinforce_lite.config import Config, PromptConfig, option_text
from reinforce_lite.tasks import TASK_NAMES
from reinforce_lite.tasks.data_audit import WRITTEN
from reinforce_lite.tasks.grading import extract_answer
from reinforce_lite.types import AnswerFormat

INSTRUCTIONS: dict[AnswerFormat, dict[str, str]] = {
    "tags": {
        "short": "Give the final number in <answer> </answer> tags.",
        "steps": PromptConfig().instruction,
    },
    "boxed": {
        "short": "Give the final number within \\boxed{}.",
        "steps": "Reason step by step, and put your final number within \\boxed{}.",
    },
    "hash": {
        "short": "Give the final number on a line of its own after ####.",
        "steps": "Reason step by step, and give the final number on a line of its own after ####.",
    },
}
"""How each format is asked for."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way of asking."""

    name: str
    answer_format: AnswerFormat
    prompt: PromptConfig
    options: str = ""
    """To paste; none for the recipe as it is."""


def readable_formats(config: Config) -> list[AnswerFormat]:
    """The formats in which the task's reward can read answers: its own; a file of the user's may read any."""
    own = config.task.answer_format
    return [own] if config.task.name in TASK_NAMES else [own, *(f for f in WRITTEN if f != own)]


def ways_to_ask(config: Config) -> list[Way]:
    """The recipe's way first; for built-in tasks then a short and a longer instruction for each format,
    without worked examples, and with the recipe's where they show the format. For a task of reasoning-gym,
    whose data set holds the format, only the recipe's format.
    """
    own = Way("the recipe", config.task.answer_format, config.prompt)
    if config.task.name not in TASK_NAMES:
        return [own]
    formats = [own.answer_format] if config.task.name == "gym" else list(INSTRUCTIONS)
    others = [way for answer_format in formats for way in _ways_of_format(config, answer_format)]
    return [own, *(way for way in others if way.options)]


def _ways_of_format(config: Config, answer_format: AnswerFormat) -> Iterator[Way]:
    examples = config.prompt.examples
    fit = all(extract_answer(e.answer, answer_format)[0] is not None for e in examples)
    for shown in [(), examples] if examples and fit else [()]:
        for style, instruction in INSTRUCTIONS[answer_format].items():
            if config.task.name == "gym":  # whose answers need not be numbers
                instruction = instruction.replace("final number", "final answer")
            changes = {"instruction": instruction, "examples": shown, "prefill": ""}
            prompt = config.prompt.model_copy(update=changes)
            name = f"{answer_format}, {style}{', examples' if shown else ''}"
            yield Way(name, answer_format, prompt, _options(config, answer_format, prompt))


def _options(config: Config, answer_format: AnswerFormat, prompt: PromptConfig) -> str:
    """What to add to the recipe for this format and prompt; empty if they are the recipe's."""
    before, after = (
        {
            "task.answer_format": answer_format,
            "prompt.instruction": prompt.instruction,
            "prompt.prefill": prompt.prefill,
            "prompt.examples": [example.model_dump() for example in prompt.examples],
        }
        for answer_format, prompt in ((config.task.answer_format, config.prompt), (answer_format, prompt))
    )
    return options_text({key: value for key, value in after.items() if value != before[key]})


def options_text(values: Mapping[str, object]) -> str:
    """Keys and values as options to paste into a shell, as `config.option_text` writes each."""
    return " ".join(option_text(key, value) for key, value in values.items())
