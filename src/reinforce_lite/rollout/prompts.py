"""Problem to token ids, through the model's own chat template.

Token ids are made here, once, and passed unchanged to the engine and the policy. Text from outside
(a question, a worked example, the system message, the prefill) is never read as control tokens:
where it contains the text of one, it is encoded as plain characters.

Omitted on purpose: tools, images and multi-turn histories.
"""

import logging
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

from reinforce_lite.config import PromptConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.models.tokenizer import render_chat
from reinforce_lite.types import Problem, Prompt
from reinforce_lite.utils.text import whole_characters

logger = logging.getLogger(__name__)

# The chat template is rendered once, with a placeholder for each text: the text's index between two
# private-use characters. The rendered string is split at the placeholders, and the texts are put in
# for each question. So no template can trim, parse or strip them (Qwen3's removes <think> blocks
# from earlier responses), and it is known which parts of a prompt come from outside.
_PLACEHOLDER = "\ue000{}\ue001"
_PLACEHOLDER_PATTERN = re.compile(_PLACEHOLDER.format(r"(\d+)"))


class PromptBuilder:
    """Builds the prompt of any question for one tokenizer and one [prompt] section.

    Its tokens are those of `tokenizer.apply_chat_template`, BOS included, and then the prefill's. Without a
    chat template they begin as the tokenizer's own texts do.

    Raises UsageError when the chat template fails or drops a part of the prompt.
    """

    def __init__(self, tokenizer: Any, config: PromptConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self._control_tokens = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        self._start = [] if tokenizer.chat_template is not None else _start_ids(tokenizer)
        self._fixed_texts = self._system_and_examples()
        self._layout, rendered = self._render_template()
        # Template text at the even positions, the index of a text at the odd ones.
        self._pieces = _PLACEHOLDER_PATTERN.split(rendered)
        dropped = set(range(len(self._fixed_texts) + 1)) - {int(i) for i in self._pieces[1::2]}
        if dropped:
            raise UsageError(
                "the model's chat template leaves out a part of the prompt",
                "set prompt.system to nothing, or drop prompt.examples",
            )
        opened = re.search(r"<think>\s*$", rendered)  # as some templates do
        self.prefill = (opened[0] if opened else "") + config.prefill

    def __call__(self, question: str) -> Prompt:
        """The prompt of one question."""
        parts = self._parts(question)
        if any(control in part for part in parts[1::2] for control in self._control_tokens):
            ids = [t for i, part in enumerate(parts) for t in self._encode(part, plain=i % 2 == 1)]
        else:
            ids = self._encode("".join(parts))
        return Prompt((*self._start, *ids), self.prefill)

    @property
    def adds_special_tokens(self) -> bool:
        """Whether a prompt is what the tokenizer makes of `text` with its special tokens, or with none."""
        return bool(self._start)

    def text(self, question: str) -> str:
        """The prompt of one question as text, prefill included."""
        return "".join(self._parts(question))

    def messages(self, question: str) -> list[dict[str, str]]:
        """The same as the conversation that the chat template gets, without the prefill."""
        texts = [*self._fixed_texts, self._user_message(question)]

        def fill(content: str) -> str:
            return _PLACEHOLDER_PATTERN.sub(lambda match: texts[int(match[1])], content)

        return [{"role": m["role"], "content": fill(m["content"])} for m in self._layout]

    def within_limit(self, problems: Sequence[Problem], n: int | None = None) -> list[Problem]:
        """The first `n` problems (default: all) whose prompt has at most prompt.max_tokens tokens.

        Warns how many problems are skipped on the way to them.
        """
        fitting: list[Problem] = []
        skipped = 0
        for problem in problems:
            if len(fitting) == n:
                break
            if self._is_within_limit(problem.question):
                fitting.append(problem)
            else:
                skipped += 1
        if skipped:
            logger.warning(
                "%d of %d problems are skipped: their prompt is longer than prompt.max_tokens = %d",
                skipped,
                skipped + len(fitting),
                self.config.max_tokens,
            )
        return fitting

    def _is_within_limit(self, question: str) -> bool:
        # A text has at most as many tokens as bytes, so most questions need no tokenizing.
        texts = (*self._pieces, *self._fixed_texts, self._user_message(question), self.prefill)
        n_bytes = sum(len(text.encode()) for text in texts)
        return n_bytes < self.config.max_tokens or len(self(question).token_ids) <= self.config.max_tokens

    def _parts(self, question: str) -> list[str]:
        """The template's text at the even positions, what comes from outside at the odd ones."""
        texts = [*self._fixed_texts, self._user_message(question)]
        parts = [texts[int(piece)] if i % 2 else piece for i, piece in enumerate(self._pieces)]
        return [*parts, self.config.prefill]

    def _user_message(self, question: str) -> str:
        return whole_characters(f"{question.strip()}\n{self.config.instruction}".strip())

    def _system_and_examples(self) -> list[str]:
        system = [self.config.system] if self.config.system else []
        examples = self.config.examples
        return system + [text for e in examples for text in (self._user_message(e.question), e.answer)]

    def _messages(self, system_role: bool) -> list[dict[str, str]]:
        """The conversation with placeholders for its texts; the last one is the question's.

        Without `system_role` the system message goes before the first user message.
        """
        placeholders = [_PLACEHOLDER.format(i) for i in range(len(self._fixed_texts) + 1)]
        messages: list[dict[str, str]] = []
        if self.config.system:
            system = placeholders.pop(0)
            if system_role:
                messages = [{"role": "system", "content": system}]
            else:
                placeholders[0] = f"{system}\n\n{placeholders[0]}"
        return messages + [
            {"role": "assistant" if i % 2 else "user", "content": placeholder}
            for i, placeholder in enumerate(placeholders)
        ]

    def _render_template(self) -> tuple[list[dict[str, str]], str]:
        """The conversation with placeholders, and what the template makes of it."""
        if self.tokenizer.chat_template is None:
            logger.warning("the model has no chat template: it gets a plain question-and-answer layout")
        today = self.config.date or date.today()
        messages = self._messages(system_role=True)
        try:
            return messages, render_chat(self.tokenizer, messages, today)
        except UsageError:  # some templates have no system role
            messages = self._messages(system_role=False)
            return messages, render_chat(self.tokenizer, messages, today)

    def _encode(self, text: str, plain: bool = False) -> list[int]:
        """Token ids with nothing added; `plain` reads control tokens as ordinary characters."""
        if not text:
            return []
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)
        return list(encoded["input_ids"])


def _start_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: BOS, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    if not plain:  # a vocabulary without this letter
        return [i for i in tokenizer("")["input_ids"] if i != tokenizer.eos_token_id]
    ids = list(tokenizer("a")["input_ids"])
    return ids[: ids.index(plain[0])]
