"""What every generator's settings share, and what a generator is given besides them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, model_validator

from plait.core.config import Settings, nearest
from plait.core.endpoint import EndpointSettings
from plait.core.errors import ConfigError
from plait.synth.chunks import CountTokens

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]

DEFAULT_ROLE = "default"


class SynthSettings(Settings):
    """Settings of the stage `synth`; each generator adds its own."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    """Who is asked, each by default at the endpoint `default`."""

    generator: str
    """Which generator writes."""
    endpoints: dict[str, EndpointSettings]
    """Models by role; `default` stands in for roles that are not named."""
    category: str
    """Category of the documents that are written."""
    files: tuple[str, ...] = ()
    """The user's JSONL files that the generator starts from: seeds, or documents with a text."""
    categories: tuple[str, ...] = ()
    """Categories of the input `documents` that are read; none means all."""
    max_items: PositiveInt | None = None
    """Items that are taken from the beginning; None takes all."""
    num_asks: PositiveInt = 3
    """How often a model is asked for an answer of use before the item is dropped."""
    budget_tokens: PositiveInt | None = None
    """Tokens read and written in all runs together after which no call is sent (those in flight are
    awaited); the items that are left are dropped as `over_budget`."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of documents held out, chosen by a hash of their id. Our choice."""
    seed: int = 0
    """Of every choice that is left to chance."""

    @model_validator(mode="after")
    def _roles_are_known(self) -> "SynthSettings":
        known = [*self.roles, DEFAULT_ROLE]
        for name in self.endpoints:
            if name not in known:
                raise ValueError(f"endpoints: no role {name!r}; {nearest(name, known)}")
        for role in self.roles:
            if role not in self.endpoints and DEFAULT_ROLE not in self.endpoints:
                raise ValueError(f"endpoints: needs one for the role {role!r}, or {DEFAULT_ROLE!r}")
        return self

    def endpoint(self, role: str) -> EndpointSettings:
        """Return the endpoint of a role."""
        return self.endpoints.get(role) or self.endpoints[DEFAULT_ROLE]

    def files_read(self) -> list[Path]:
        """Return the user's files. Raises: ConfigError for one that does not exist."""
        paths = [Path(name).expanduser() for name in self.files]
        for path in paths:
            if not path.is_file():
                raise ConfigError(f"files: {path} does not exist (from {Path.cwd()})")
        return paths


class Page(NamedTuple):
    """A document to write from."""

    id: str
    text: str
    metadata: dict[str, Any]


Embed = Callable[[Sequence[str], str | None], Any]
"""Returns a vector of unit length for each text, by the model at a path or a built-in one."""


class Sources(NamedTuple):
    """What generators use and other rooms have: documents, tokens, languages, syntax, vectors."""

    documents: Callable[[], Iterator[dict[str, Any]]]
    """Reads the stage's documents, each with `text`, `id` and `metadata`."""
    num_documents: Callable[[], int]
    """How many documents that are."""
    num_tokens: CountTokens
    """Length of a text in tokens."""
    language_of: Callable[[str], str]
    """Code of the language that a text is in."""
    parses: Callable[[str, str], bool | None]
    """Whether code of a programming language has the syntax of one; None if nobody can say."""
    embed: Embed
    cache: Path
    """Folder for what is costly to make again."""
