"""prompt.json against what the prompt builder and plain transformers make of a question."""

import json
import re
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.paths import ROOT
from helpers.sentencepiece import KINDS, sentencepiece_tokenizer
from helpers.tiny import CHATML, make_tokenizer
from reinforce_lite.config import Config, ExampleConfig, PromptConfig, load_config
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.trainer.saved_prompt import SavedPrompt, saved_prompt
from reinforce_lite.types import AnswerFormat

EXAMPLE = ExampleConfig(question="1+1?", answer="<think>a</think><answer>2</answer>")
PROMPT = PromptConfig(system="Be brief.", instruction="Use tags.", prefill="<think>", examples=(EXAMPLE,))
QUESTION = "2+2 is  what?"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


def saved(tokenizer: Any, config: Config) -> SavedPrompt:
    trained: Any = SimpleNamespace(
        config=config,
        prompt_builder=PromptBuilder(tokenizer, config.prompt),
        policy=SimpleNamespace(eos_token_ids=frozenset({7, 2})),
    )
    return saved_prompt(trained)


def token_ids(tokenizer: Any, prompt: SavedPrompt, question: str) -> list[int]:
    text = prompt.text.replace(prompt.placeholder, question)
    return list(tokenizer(text, add_special_tokens=prompt.add_special_tokens)["input_ids"])


TOKENIZERS: dict[str, Any] = {
    "template": lambda: make_tokenizer(),
    "no system role": lambda: make_tokenizer(NO_SYSTEM),
    "no template": lambda: make_tokenizer(None),
    **{
        f"{kind}, no template, BOS {adds_bos}": lambda kind=kind, adds_bos=adds_bos: sentencepiece_tokenizer(
            kind, adds_bos
        )
        for kind in KINDS
        for adds_bos in (True, False)
    },
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_text_has_the_tokens_of_the_prompt(name: str) -> None:
    """For every kind of tokenizer, whatever it adds by itself."""
    tokenizer = TOKENIZERS[name]()
    config = Config(prompt=PROMPT)
    prompt = saved(tokenizer, config)
    expected = PromptBuilder(tokenizer, config.prompt)(QUESTION)
    assert token_ids(tokenizer, prompt, QUESTION) == list(expected.token_ids)
    assert prompt.prefill == expected.prefill == "<think>"
    assert prompt.text.endswith("<think>")


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM])
def test_the_messages_rendered_by_transformers_are_the_text(template: str) -> None:
    tokenizer = make_tokenizer(template)
    prompt = saved(tokenizer, Config(prompt=PROMPT))
    text = tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
    assert text + "<think>" == prompt.text
    assert prompt.messages[-1] == {"role": "user", "content": "{question}\nUse tags."}
    assert prompt.messages[-2] == {"role": "assistant", "content": EXAMPLE.answer}


def test_thinking_that_the_template_opens_belongs_to_the_response() -> None:
    tokenizer = make_tokenizer(CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}")
    prompt = saved(tokenizer, Config(prompt=PromptConfig(prefill="Well,")))
    assert prompt.prefill == "<think>\nWell,"
    assert prompt.text.endswith("<|im_start|>assistant\n<think>\nWell,")


def test_a_placeholder_in_the_prompts_own_texts_is_not_replaced() -> None:
    tokenizer = make_tokenizer()
    config = Config(prompt=PromptConfig(system="Read {question}.", instruction=""))
    prompt = saved(tokenizer, config)
    ids = list(PromptBuilder(tokenizer, config.prompt)(QUESTION).token_ids)
    assert token_ids(tokenizer, prompt, QUESTION) == ids


def test_the_file_of_the_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("quickstart")
    record = json.loads(saved(make_tokenizer(), config).to_json())
    assert len(record["messages"]) == 9
    assert {key: value for key, value in record.items() if key not in ("text", "messages")} == {
        "placeholder": "{question}",
        "add_special_tokens": False,
        "prefill": "",
        "answer_format": "tags",
        "stop": ["</answer>"],
        "stop_pattern": None,
        "eos_token_ids": [2, 7],
        "max_new_tokens": 64,
        "sampling": {
            "evaluation": {"temperature": 0.0, "top_p": 1.0},
            "training": {"temperature": 0.7, "top_p": 0.9},
        },
    }
    monkeypatch.setenv("SOME_API_KEY", "sk-very-secret")
    secret = saved(make_tokenizer(), Config(prompt=PromptConfig(system="sk-very-secret"))).to_json()
    assert "sk-very-secret" not in secret
    assert "[SOME_API_KEY]" in secret


def test_a_task_of_the_users_own_has_no_answer_format() -> None:
    record = saved(make_tokenizer(), load_config("quickstart", {"task.name": "./mine.py"}))
    assert (record.answer_format, record.stop) == (None, [])


WORDS: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "integer",
    str | None: "text or null",
    AnswerFormat | None: "text or null",
    list[str]: "list of texts",
    list[int]: "list of integers",
    list[dict[str, str]]: "list of `role` and `content`",
    dict[str, dict[str, float]]: "table",
}


def test_its_keys_are_documented_with_their_types() -> None:
    page = (ROOT / "docs" / "howto" / "use-the-model.md").read_text(encoding="utf-8")
    table = page.split("| key | type |")[1].split("\n\n")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE))
    assert documented == {field.name: WORDS[field.type] for field in fields(SavedPrompt)}
