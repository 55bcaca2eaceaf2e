"""What tokenizers do each in their own way: chat templates, ends of responses, the first blank of a text.

Omitted on purpose: tools, documents and images in chat templates.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from reinforce_lite.errors import UsageError
from reinforce_lite.utils.text import harmless, one_line_error, shorten

_DEFAULT_TEMPLATE = (  # for a model without a chat template
    "{% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }}\nAnswer:"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}\n\n"
    "{% else %} {{ m['content'] }}\n\n{% endif %}{% endfor %}"
)
_RESPONSE = "\ue000"  # a private-use character, so that no template contains it


def decode_exactly(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text of tokens with every blank: joined to the text before them, it is what the tokens say.

    SentencePiece decoders drop a text's first blank, so the tokens are decoded behind a letter.
    """
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    before, text = (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (letter, [*letter, *token_ids])
    )
    return str(text[len(before) :])


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], today: date, add_generation_prompt: bool = True
) -> str:
    """The conversation as the chat template writes it; a template that prints the date prints `today`.

    Of several templates it is the one named "default"; without any, a plain layout.
    Raises UsageError where none is named "default", and with the template's own message where it fails.
    """
    template = _DEFAULT_TEMPLATE if tokenizer.chat_template is None else tokenizer.chat_template
    if isinstance(template, dict) and "default" not in template:
        raise UsageError(
            f"the model has several chat templates ({', '.join(sorted(template))}), and none is the default",
            "save the one to use as chat_template.jinja in a copy of the model's folder",
        )
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            chat_template=template["default"] if isinstance(template, dict) else template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            strftime_now=today.strftime,  # replaces transformers' own, which reads the clock
        )
    except Exception as error:  # a template is its author's program: it can raise anything
        raise UsageError(
            f"the model's chat template fails: {harmless(one_line_error(error))}",
            "change prompt.system or prompt.examples, or edit the template in a copy of the model's folder",
        ) from error
    return str(rendered)


def end_of_turn(tokenizer: Any) -> int | None:
    """The first special token that the chat template writes after a response; None where there is none.

    Also None where the template fails on a finished conversation, since it may still write prompts.
    """
    try:
        rendered = _finished_chat(tokenizer)
    except UsageError:
        return None
    _, _, after = rendered.partition(_RESPONSE)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = _special_ids(tokenizer)
    return next((token for token in ids if token in special), None)


def check_embedding(tokenizer: Any, rows: int, eos_token_ids: frozenset[int]) -> None:
    """Raise UsageError where a token without one of the embedding's `rows` can occur.

    A special token occurs only where the chat template writes it or where it ends a completion: the padding
    token that many models have added to their tokenizer alone does no harm.
    """
    beyond = {token: text for text, token in tokenizer.get_vocab().items() if token >= rows}
    if not beyond:
        return
    try:
        written = {*tokenizer(_finished_chat(tokenizer), add_special_tokens=False)["input_ids"]}
    except UsageError:  # PromptBuilder raises it, if the template fails on prompts too
        written = set()
    harmful = sorted(beyond.keys() - (_special_ids(tokenizer) - written - eos_token_ids))
    if harmful:
        named = shorten(", ".join(f"{beyond[token]!r} (id {token})" for token in harmful[:3]))
        raise UsageError(
            f"{len(harmful)} tokens of the tokenizer have no row in the model's embedding of {rows}: {named}",
            "use the tokenizer that belongs to the model, or save the model after "
            "model.resize_token_embeddings(len(tokenizer))",
        )


def _finished_chat(tokenizer: Any) -> str:
    """A question and its response, `_RESPONSE`."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _RESPONSE}]
    return render_chat(tokenizer, messages, date.today(), add_generation_prompt=False)


def _special_ids(tokenizer: Any) -> set[int]:
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
