"""Conversations to text through a Jinja chat template, user text kept apart from special tokens.

A chat template is a program that prints special tokens (`<SPECIAL_11>`) between message contents.
Once both are one string nobody can tell a marker that the template printed from one that a user
typed. So the template is compiled with every special token it spells replaced by a mark, a lone
surrogate code point, which no valid text can hold. In the rendered string the marks are exactly
the special tokens that the template put there, and everything else is plain text. This holds
whatever the template does to the contents, such as deleting `/think` from the middle of a forged
marker.

The environment is the one of transformers' `apply_chat_template`, so both render the same text.
"""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from plait.core.errors import DataError, RequestError

Message = Mapping[str, Any]

# The last mark stands for "cut here"; the trailing blank tells whether the template strips
# contents.
_CUT_MARK = "\udfff"
_FIRST_MARK = 0xD800
# What the template's own code may raise: 1/0, 'x'.index('y'), '{0}'.format(), 5 | dictsort ...
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def nano_template() -> str:
    """Return the source of the Nemotron Nano 2 chat template."""
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")


class ChatTemplate:
    """A compiled chat template.

    `special` maps special-token strings to ids, `named` names such as `bos_token` to strings.

    Raises: DataError if the source is not valid Jinja.
    """

    def __init__(
        self, source: str, special: Mapping[str, int], named: Mapping[str, str] | None = None
    ) -> None:
        # The longest first, so that no token is mistaken for the beginning of another.
        spelled = [text for text in sorted(special, key=len, reverse=True) if text in source]
        spelled += [text for text in (named or {}).values() if text not in spelled]
        self._marks = {text: chr(_FIRST_MARK + i) for i, text in enumerate(spelled)}
        self._texts = {ord(mark): text for text, mark in self._marks.items()}
        self._ids = {mark: special[text] for text, mark in self._marks.items()}
        self._named = {name: self._marks[text] for name, text in (named or {}).items()}
        for text, mark in self._marks.items():
            source = source.replace(text, mark)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"chat template, line {error.lineno}: {error.message}") from None

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """Return the text of a conversation.

        Options: tools, add_generation_prompt, enable_thinking, continue_final_message.
        Raises: RequestError if the template refuses the conversation.
        """
        return self._marked(messages, **options).translate(self._texts)

    def segments(self, messages: Sequence[Message], **options: Any) -> list[str | int]:
        """Return the text of a conversation as pieces: special tokens as ids, the rest as strings.

        Takes and raises what `render` does.
        """
        marked = self._marked(messages, **options)
        pieces = re.split(f"([{''.join(self._ids)}])", marked) if self._ids else [marked]
        return [self._ids.get(piece, piece) for piece in pieces if piece]

    def _marked(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        continue_final_message: bool = False,
    ) -> str:
        conversation = [dict(message) for message in messages]
        if _SURROGATE.search(_to_json([conversation, tools])):
            raise RequestError("the conversation holds half of a surrogate pair: not valid Unicode")
        if continue_final_message:
            if not conversation or not isinstance(conversation[-1].get("content"), str):
                raise RequestError(
                    "continue_final_message needs a final message with text to continue"
                )
            conversation[-1]["content"] += f"{_CUT_MARK} "
            add_generation_prompt = False
        try:
            text = self._template.render(
                messages=conversation,
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=enable_thinking,
                **self._named,
            )
        except _TEMPLATE_ERRORS as error:
            raise RequestError(f"the chat template refuses this conversation: {error}") from None
        return _cut(text) if continue_final_message else text


def _cut(text: str) -> str:
    """Drop all that follows the final message, as transformers does."""
    head, mark, tail = text.rpartition(_CUT_MARK)
    if not mark:
        raise RequestError(
            "the chat template does not print the final message: it cannot be continued"
        )
    return head if tail.startswith(" ") else head.rstrip()


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the conversation is not made of JSON values: {error}") from None


class _GenerationBlock(jinja2.ext.Extension):
    """Reads `{% generation %}`, with which some templates mark the answer, as a plain block."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters; these options are those of transformers.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
