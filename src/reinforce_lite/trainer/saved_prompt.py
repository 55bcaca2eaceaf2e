"""prompt.json: the prompt that a model was trained with, for programs that know nothing of its run.

A model that was trained with worked examples responds differently without them. Omitted on purpose: questions
with the text of a control token, which this program alone reads as plain characters.
"""

from dataclasses import asdict, dataclass
from typing import Any

from reinforce_lite.pipeline import PromptedPolicy
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.tasks import TASK_NAMES, stop_strings
from reinforce_lite.tasks.stopping import FINISHED_LINE, HASH_LINE
from reinforce_lite.types import AnswerFormat
from reinforce_lite.utils.finite import to_json
from reinforce_lite.utils.secrets import mask_all

FILE_NAME = "prompt.json"


@dataclass(frozen=True, slots=True)
class SavedPrompt:
    """The fields of prompt.json."""

    text: str
    """The whole prompt up to where the model continues, with `placeholder` for the question."""
    placeholder: str
    add_special_tokens: bool
    """Whether the tokenizer adds its own (BOS) to the text; a chat template writes them into it."""
    messages: list[dict[str, str]]
    """The same as a conversation, with the placeholder, before the chat template wrote it."""
    prefill: str
    """The end of `text` that belongs to the response."""
    answer_format: AnswerFormat | None
    """Where grading reads the answer; None for a task of the user's own."""
    stop: list[str]
    """A response ends after the first of these."""
    stop_pattern: str | None
    """A regular expression for `re.MULTILINE`: a response ends after its first match. For hash only."""
    eos_token_ids: list[int]
    """A response ends before the first of these."""
    max_new_tokens: int
    sampling: dict[str, dict[str, float]]
    """Temperature and top-p in an evaluation (0 is greedy) and in training."""

    def to_json(self) -> str:
        """The text of the file, secrets masked."""
        return to_json(mask_all(asdict(self)), indent=2, ensure_ascii=False) + "\n"


def saved_prompt(trained: PromptedPolicy) -> SavedPrompt:
    """The prompt of a run, as its prompt builder renders it."""
    builder, config, stops = trained.prompt_builder, trained.config, stop_strings(trained.config)
    placeholder, rollout = _placeholder(builder), config.rollout
    greedy: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0}
    return SavedPrompt(
        text=builder.text(placeholder),
        placeholder=placeholder,
        add_special_tokens=builder.adds_special_tokens,
        messages=builder.messages(placeholder),
        prefill=builder.prefill,
        answer_format=config.task.answer_format if config.task.name in TASK_NAMES else None,
        stop=[stop for stop in stops if stop != HASH_LINE],
        stop_pattern=FINISHED_LINE.pattern if HASH_LINE in stops else None,
        eos_token_ids=sorted(trained.policy.eos_token_ids),
        max_new_tokens=rollout.max_new_tokens,
        sampling={
            "evaluation": greedy,
            "training": {"temperature": rollout.temperature, "top_p": rollout.top_p},
        },
    )


def _placeholder(builder: PromptBuilder) -> str:
    """`{question}`, in more braces where the prompt's own texts hold that."""
    placeholder = "{question}"
    while placeholder in builder.text(""):
        placeholder = f"{{{placeholder}}}"
    return placeholder
