"""Chat templates that fail, that print the date and that end turns; blanks at the start of a completion."""

from datetime import date
from typing import Any

import pytest

from helpers.sentencepiece import EOS, KINDS, Kind, sentencepiece_tokenizer
from helpers.tiny import CHATML, END, make_tokenizer
from reinforce_lite.errors import UsageError
from reinforce_lite.models.tokenizer import check_embedding, decode_exactly, end_of_turn, render_chat

DAY = date(2026, 11, 30)
QUESTION = [{"role": "user", "content": "2+2?"}]


def render(template: Any) -> str:
    return render_chat(make_tokenizer(template), QUESTION, DAY)


@pytest.mark.parametrize("kind", KINDS)
def test_sentencepiece_keeps_the_first_blank_of_a_completion(kind: Kind) -> None:
    tokenizer = sentencepiece_tokenizer(kind)
    ids = tokenizer.convert_tokens_to_ids(["▁", "-", "7", "▁", "."])
    assert decode_exactly(tokenizer, ids) == " -7 ."
    assert decode_exactly(tokenizer, ids[1:]) == "-7 ."
    assert decode_exactly(tokenizer, [EOS, *ids]) == "</s> -7 ."
    assert decode_exactly(tokenizer, []) == ""


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"], "😀"),
        (["<0x98>", "▁", "7"], "� 7"),  # half an emoji: the replacement character, and nothing before it
    ],
)
def test_bytes_at_the_start_of_a_completion(tokens: list[str], text: str) -> None:
    tokenizer = sentencepiece_tokenizer("llama")
    assert decode_exactly(tokenizer, tokenizer.convert_tokens_to_ids(tokens)) == text


@pytest.mark.parametrize("text", [" -7", "-7", "\n -7 , ok ?", " ", "", "é😀"])
def test_bytes_of_bpe_are_decoded_as_they_are(text: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert decode_exactly(tokenizer, ids) == text


def test_of_several_templates_the_default_is_used() -> None:
    assert render({"rag": "no", "default": "yes"}) == "yes"
    with pytest.raises(UsageError, match="rag, tool_use") as caught:
        render({"tool_use": "no", "rag": "no"})
    assert "chat_template.jinja" in caught.value.remedy


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ raise_exception('first\nsecond\x1b[2J') }}", "first second"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ tools.first.second }}", "'None' has no attribute 'first'"),
        ("{{ date_string.year }}", "'date_string' is undefined"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages[0]['content'].nothing() }}", "has no attribute 'nothing'"),
    ],
)
def test_a_template_that_fails_is_refused_with_its_own_message(template: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        render(template)
    assert message in caught.value.cause
    assert "\n" not in caught.value.cause
    assert "\x1b" not in caught.value.cause
    assert "template" in caught.value.remedy


def test_a_template_prints_the_date_that_it_is_given() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "30 Nov 2026"
    llama = "{% if strftime_now is defined %}{% set day = strftime_now('%Y-%m-%d') %}{% endif %}{{ day }}"
    assert render(llama) == "2026-11-30"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, END),
        (CHATML.replace("<|im_end|>", " <|endoftext|><|im_end|>"), 0),
        (CHATML.replace("<|im_end|>", ""), None),
        ({"default": CHATML}, END),
        (None, None),
        ("{{ raise_exception('never') }}", None),
        ("<|im_start|>{{ messages[0]['content'] }}<|im_end|>", None),  # it writes no response
    ],
)
def test_end_of_turn_is_the_special_token_that_follows_a_response(template: Any, end: int | None) -> None:
    assert end_of_turn(make_tokenizer(template)) == end


def test_a_token_without_a_row_in_the_embedding_is_refused_where_it_can_occur() -> None:
    """Control tokens have the ids 0 to 2, bytes 3 to 258, later ones those from 259 on."""
    tokenizer = make_tokenizer()
    check_embedding(tokenizer, 259, frozenset({END}))
    with pytest.raises(UsageError, match=r"1 tokens.*258\b.*id 258"):
        check_embedding(tokenizer, 258, frozenset({END}))
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "extra_special_tokens": ["<|end|>"]})
    check_embedding(tokenizer, 259, frozenset({END}))  # neither occurs
    with pytest.raises(UsageError, match="id 260"):
        check_embedding(tokenizer, 259, frozenset({260}))
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|end|>")
    with pytest.raises(UsageError, match="id 260"):
        check_embedding(tokenizer, 259, frozenset({END}))
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool>"])  # a text may contain it
    with pytest.raises(UsageError, match="id 259"):
        check_embedding(tokenizer, 259, frozenset({END}))
