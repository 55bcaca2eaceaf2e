"""Problem to token ids, through the model's own chat template.

Token ids are made once, here, and travel to the engine and the policy as they are. Text that comes
from outside (a question, an example) is never read as control tokens: where it holds the text of
one, it is encoded apart, as plain characters.

Left out on purpose: tools, images and multi-turn histories.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from reinforce_lite.config import PromptConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.types import Problem, Prompt

logger = logging.getLogger(__name__)

# Stands for a text while the chat template is rendered, so that no template trims, parses or
# strips what it holds (Qwen3's removes <think> from earlier turns).
_MARK = re.compile("\ue000(\\d+)\ue001")

_PLAIN = (  # for a model without a chat template
    "{% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }}\nAnswer:"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}\n\n"
    "{% else %} {{ m['content'] }}\n\n{% endif %}{% endfor %}"
)


class PromptBuilder:
    """Builds the prompt of any question for one model and one `[prompt]` section.

    Raises UsageError when the chat template loses a part of the prompt.
    """

    def __init__(self, tokenizer: Any, config: PromptConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self._controls = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        self._adds_bos = tokenizer.bos_token_id is not None and (
            tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        )
        self._texts = self._fixed_texts()
        rendered = self._render()
        self._pieces = _MARK.split(rendered)  # template text, index, template text, index, ...
        lost = set(range(len(self._texts) + 1)) - {int(i) for i in self._pieces[1::2]}
        if lost:
            raise UsageError(
                "the model's chat template leaves out a part of the prompt",
                "set prompt.system to nothing, or drop prompt.examples",
            )
        opened = rendered.rstrip().endswith("<think>")  # some templates open the thinking themselves
        self.prefill = ("<think>\n" if opened else "") + config.prefill

    def __call__(self, question: str) -> Prompt:
        """The prompt of one question."""
        texts = [*self._texts, self._ask(question)]
        parts = [texts[int(p)] if i % 2 else p for i, p in enumerate(self._pieces)]
        outside = [*(i for i in range(len(parts)) if i % 2), len(parts)]  # the prefill is the last part
        parts.append(self.config.prefill)
        if any(control in parts[i] for i in outside for control in self._controls):
            ids = [t for i, part in enumerate(parts) for t in self._encode(part, plain=i in outside)]
        else:
            ids = self._encode("".join(parts))
        if self._adds_bos and ids[:1] != [self.tokenizer.bos_token_id]:
            ids = [self.tokenizer.bos_token_id, *ids]
        return Prompt(tuple(ids), self.prefill)

    def fitting(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems whose prompt is within max_tokens; the others are skipped, and counted aloud."""
        kept = [p for p in problems if self._fits(p.question)]
        if len(kept) < len(problems):
            logger.warning(
                "%d of %d problems are skipped: their prompt is longer than prompt.max_tokens = %d",
                len(problems) - len(kept),
                len(problems),
                self.config.max_tokens,
            )
        return kept

    def _fits(self, question: str) -> bool:
        # No tokenizer makes more tokens than bytes, so most questions need no look.
        fixed = sum(len(t.encode()) for t in (*self._pieces, *self._texts, self._ask(question), self.prefill))
        return fixed < self.config.max_tokens or len(self(question).token_ids) <= self.config.max_tokens

    def _ask(self, question: str) -> str:
        return f"{question.strip()}\n{self.config.instruction}".strip()

    def _fixed_texts(self) -> list[str]:
        system = [self.config.system] if self.config.system else []
        return system + [t for e in self.config.examples for t in (self._ask(e.question), e.answer)]

    def _messages(self, system_apart: bool) -> list[dict[str, str]]:
        """The exchange with marks for its texts; the last mark is the question's."""
        marks = [f"\ue000{i}\ue001" for i in range(len(self._texts) + 1)]
        head: list[dict[str, str]] = []
        if self.config.system:
            system = marks.pop(0)
            if system_apart:
                head = [{"role": "system", "content": system}]
            else:
                marks[0] = f"{system}\n\n{marks[0]}"
        return head + [
            {"role": "assistant" if i % 2 else "user", "content": mark} for i, mark in enumerate(marks)
        ]

    def _render(self) -> str:
        template = self.tokenizer.chat_template
        if template is None:
            logger.warning("the model has no chat template: it gets a plain question-and-answer layout")
            template = _PLAIN

        def render(system_apart: bool) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    self._messages(system_apart),
                    chat_template=template,
                    add_generation_prompt=True,
                    tokenize=False,
                )
            )

        try:
            return render(system_apart=True)
        except TemplateError:  # some templates know no system line: it goes before the first question
            return render(system_apart=False)

    def _encode(self, text: str, plain: bool = False) -> list[int]:
        if not text:
            return []
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)
        return list(encoded["input_ids"])
