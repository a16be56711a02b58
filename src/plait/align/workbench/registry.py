"""The tools of the workbench: typed functions on an office, with their JSON schemas.

A tool is a function whose first parameter is the office; the rest are what the model fills in. The
schema comes from the signature and the docstring, and the same signature checks each call, so the
two cannot disagree. What goes wrong is answered as text that begins with "Error:", for the model to
read.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
)

from plait.align.workbench.office import Office
from plait.core.config import nearest


class ToolError(Exception):
    """What the model did wrong; its text is the tool's answer."""


class Tool(NamedTuple):
    """A function a model may call."""

    name: str
    function: Callable[..., Any]
    changes: bool
    """Whether it can change the office."""
    arguments: type[BaseModel]

    @property
    def schema(self) -> dict[str, Any]:
        """The declaration a model reads, in OpenAI's form."""
        parameters = _untitled(self.arguments.model_json_schema())
        description = (inspect.getdoc(self.function) or "").splitlines()[0]
        function = {"name": self.name, "description": description, "parameters": parameters}
        return {"type": "function", "function": function}

    @property
    def brief(self) -> dict[str, Any]:
        """The declaration cut to names and types, a third of the tokens: for tiny models."""
        properties = self.schema["function"]["parameters"]["properties"]
        types = {name: {"type": each.get("type", "string")} for name, each in properties.items()}
        return {"type": "function", "function": {"name": self.name, "parameters": types}}


TOOLS: dict[str, Tool] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def tool(name: str, *, changes: bool = False) -> Callable[[Function], Function]:
    """Register a function as a tool; for use as a decorator."""

    def register(function: Function) -> Function:
        _, *parameters = inspect.signature(function).parameters.values()
        fields: dict[str, Any] = {
            p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in parameters
        }
        arguments = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        TOOLS[name] = Tool(name, function, changes, arguments)
        return function

    return register


def call_tool(office: Office, name: str, arguments: Mapping[str, Any]) -> str:
    """Call a tool and return its answer as text: JSON, or an error that says what to do."""
    found = TOOLS.get(name)
    if found is None:
        return f"Error: unknown tool {name!r}; {nearest(name, list(TOOLS))}"
    try:
        checked = found.arguments.model_validate(dict(arguments))
        values = {key: getattr(checked, key) for key in found.arguments.model_fields}
        return json.dumps(found.function(office, **values), ensure_ascii=False)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        return "Error: " + "; ".join(problems)
    except ToolError as error:
        return f"Error: {error}"


def _is_date(text: str) -> str:
    datetime.strptime(text, "%Y-%m-%d")
    return text


def _is_time(text: str) -> str:
    datetime.strptime(text, "%Y-%m-%d %H:%M:%S")
    return text


def _is_address(text: str) -> str:
    name, _, place = text.partition("@")
    if not name or "." not in place or " " in text:
        raise ValueError("not an e-mail address")
    return text.lower()


def _is_empty_or(check: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: check(text) if text else text


def _as_text(value: Any) -> Any:
    """Take a number where a text is due: ids and durations come as either."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Text = Annotated[str, Field(min_length=1)]
Id = Annotated[str, BeforeValidator(_as_text), Field(description="8 digits")]
Date = Annotated[str, AfterValidator(_is_date), Field(description="YYYY-MM-DD")]
AnyDate = Annotated[str, AfterValidator(_is_empty_or(_is_date)), Field(description="YYYY-MM-DD")]
Time = Annotated[str, AfterValidator(_is_time), Field(description="YYYY-MM-DD HH:MM:SS")]
AnyTime = Annotated[
    str, AfterValidator(_is_empty_or(_is_time)), Field(description="YYYY-MM-DD HH:MM:SS")
]
Address = Annotated[str, AfterValidator(_is_address), Field(description="e-mail address")]
AnyAddress = Annotated[
    str, AfterValidator(_is_empty_or(_is_address)), Field(description="e-mail address")
]
Minutes = Annotated[int, Field(gt=0, le=24 * 60, description="minutes")]


def check_value(kind: Any, value: str) -> str:
    """Check a new value of a field that has the type `kind`; return it as it is stored.

    Raises: ToolError saying what is wrong with it.
    """
    try:
        return str(TypeAdapter(kind).validate_python(value))
    except ValidationError as error:
        raise ToolError(f"new_value: {error.errors()[0]['msg']}") from None


def row_of(office: Office, table: str, identity: str, what: str) -> dict[str, str]:
    """Return a row.

    Raises: ToolError if there is none with that id.
    """
    try:
        return office.tables[table][identity]
    except KeyError:
        raise ToolError(f"no {what} has the id {identity!r}") from None


def shown(office: Office, table: str, key: str, rows: list[str], most: int = 5) -> Any:
    """Return rows with their ids, at most so many, or a text that there are none."""
    found = [{key: identity, **office.tables[table][identity]} for identity in rows[:most]]
    return found or "nothing found"


def _untitled(schema: Any) -> Any:
    """Drop the titles pydantic adds: tokens that say nothing."""
    if isinstance(schema, dict):
        return {
            k: _untitled(v) for k, v in schema.items() if not (k == "title" and isinstance(v, str))
        }
    return [_untitled(item) for item in schema] if isinstance(schema, list) else schema
