"""Tool calls in a model's text: find them while the text grows.

The model writes calls as plain text, `<TOOLCALL>[{"name": ..., "arguments": {...}}]</TOOLCALL>`.
The parser reads one character at a time, so how a stream happens to be cut cannot matter: every
split of the same text gives the same message. Nothing is ever taken back: a call is handed out when
its closing brace has come and it is known to be valid, and what turns out to be no call is content,
character for character. Held back are only the beginning of a tag, an unfinished call and white
space that may turn out to be the end.
"""

import json
import secrets
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, NoReturn

from plait.core.text import is_unicode

OPENING, CLOSING = "<TOOLCALL>", "</TOOLCALL>"

_Place = Literal["text", "list", "object", "closing"]


class ToolCall(NamedTuple):
    """A call that the model made; `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


class Piece(NamedTuple):
    """What became certain: text of the answer and finished calls."""

    content: str
    calls: list[ToolCall]


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class ToolParser:
    """Splits the text of one answer into content and calls.

    The pieces of content join to stripped text.
    """

    def __init__(self, new_id: Callable[[], str] = _new_id) -> None:
        self._new_id = new_id
        self._place: _Place = "text"
        self._held = ""
        """Text that is not yet known to be content."""
        self._object = _ObjectEnd()
        self._mark = 0
        """Where in `_held` the object or the closing tag that is being read begins."""
        self._list_has_calls = False
        self._space = ""
        self._said_something = False
        self._content: list[str] = []
        self._calls: list[ToolCall] = []

    def feed(self, text: str) -> Piece:
        """Take the next characters and return what is now certain."""
        for character in text:
            self._take(character)
        return self._certain()

    def finish(self) -> Piece:
        """Return what is left at the end of the answer; a closing tag that was cut off is none."""
        if self._place == "closing" and self._list_has_calls:
            self._held = self._held[: self._mark]
        self._give_up()
        return self._certain()

    def _take(self, character: str) -> None:
        if self._place == "text":
            self._take_text(character)
            return
        self._held += character
        if self._place == "list":
            self._take_between_calls(character)
        elif self._place == "object":
            if self._object.take(character):
                self._take_call()
        else:
            self._take_closing()

    def _take_text(self, character: str) -> None:
        self._held += character
        while not OPENING.startswith(self._held):
            self._say(self._held[0])
            self._held = self._held[1:]
        if self._held == OPENING:
            self._place, self._list_has_calls = "list", False

    def _take_closing(self) -> None:
        tag = self._held[self._mark :]
        if tag == CLOSING and self._list_has_calls:
            self._held, self._place = "", "text"
        elif not CLOSING.startswith(tag) or tag == CLOSING:
            # No closing tag, but it may be another opening one.
            self._held = self._held[: self._mark]
            self._give_up()
            for character in tag:
                self._take_text(character)

    def _take_between_calls(self, character: str) -> None:
        """Between the calls of a list, whose brackets and commas may be missing or doubled."""
        if character == "{":
            self._place, self._object, self._mark = "object", _ObjectEnd(), len(self._held) - 1
            self._object.take(character)
        elif character == "<":
            self._place, self._mark = "closing", len(self._held) - 1
        elif not (character.isspace() or character in "[],"):
            self._give_up()

    def _take_call(self) -> None:
        call = _read_call(self._held[self._mark :])
        if call is None:
            self._give_up()
            return
        self._calls.append(ToolCall(self._new_id(), *call))
        self._held, self._place, self._list_has_calls = "", "list", True

    def _give_up(self) -> None:
        """What is held is no call: it is content, but for the brackets around calls."""
        if not (self._list_has_calls and self._held.strip("[], \t\r\n") == ""):
            for character in self._held:
                self._say(character)
        self._held, self._place, self._list_has_calls = "", "text", False

    def _say(self, character: str) -> None:
        if character.isspace():
            self._space += character if self._said_something else ""
            return
        self._content.append(self._space + character)
        self._space, self._said_something = "", True

    def _certain(self) -> Piece:
        piece = Piece("".join(self._content), self._calls)
        self._content, self._calls = [], []
        return piece


class _ObjectEnd:
    """Finds the closing brace of a JSON object, braces within strings left out."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def take(self, character: str) -> bool:
        """Take a character; True if it closes the object."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        return self._depth <= 0


def _read_call(text: str) -> tuple[str, str] | None:
    """Return name and arguments of a call, or None if the text is none.

    Control characters inside strings are let through, and arguments that a model wrote as a
    string of JSON are unpacked.
    """
    try:
        value = _loads(text)
        name, arguments = value.get("name"), value.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _loads(arguments)
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return None
        name.encode()
    except (ValueError, AttributeError, RecursionError):  # UnicodeEncodeError is a ValueError
        return None
    written = json.dumps(arguments, ensure_ascii=False)
    # Half a surrogate pair is something that only an escape can carry.
    return name, written if is_unicode(written) else json.dumps(arguments)


def _loads(text: str) -> Any:
    return json.loads(text, strict=False, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
