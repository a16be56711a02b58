"""Settings that refuse what they do not know.

A `Settings` subclass is frozen, has its defaults as field defaults and nowhere else, and is filled
from TOML tables. Mistakes become one `ConfigError` that names the source, the key and the nearest
valid key.
"""

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from plait.core.errors import ConfigError

Table = TypeVar("Table", bound="Settings")
_SHOWN_CHARACTERS = 200


class Settings(BaseModel):
    """Base of every settings table: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def parse(cls: type[Table], table: Mapping[str, Any], source: str) -> Table:
        """Build from a table as TOML gives it.

        Raises: ConfigError naming `source`, each wrong key and, if unknown, the nearest valid one.
        """
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            problems = [describe_problem(cls, detail) for detail in error.errors()]
            raise ConfigError(f"{source}: " + "; ".join(problems)) from None
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    def files_read(self) -> list[Path]:
        """Return the user's files that these settings name; a change in them is a change of work.

        Raises: ConfigError for a name or pattern that matches nothing.
        """
        return []

    def lacks(self, roles: Collection[str]) -> str | None:
        """Say what is missing where a stage has inputs under `roles`; None if nothing is."""
        return None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises: ConfigError if it is missing, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def nearest(word: str, allowed: list[str]) -> str:
    """Say which allowed word was probably meant, or list them all."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "allowed: " + ", ".join(sorted(allowed))


def shortened(value: Any) -> str:
    """Return how a value is written, cut where it is too long to be read in a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"


def describe_problem(cls: type[BaseModel], detail: Any) -> str:
    """Say what is wrong with a table of `cls`, from one entry of pydantic's `errors()`."""
    if not detail["loc"]:  # of the table as a whole
        return detail["msg"].removeprefix("Value error, ")
    *parents, last = detail["loc"]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key {shortened(key)}; {nearest(str(last), _keys_at(cls, parents))}"
    if detail["type"] == "missing":
        return f"key {key!r} is required and missing"
    message = detail["msg"].removeprefix("Value error, ")
    return f"key {shortened(key)}: {message} (found {shortened(detail['input'])})"


def _keys_at(cls: type[BaseModel], parents: list[Any]) -> list[str]:
    """Return the valid keys of the nested table that `parents` leads to."""
    path = iter(parents)
    for name in path:
        field = cls.model_fields.get(name)
        annotation = field.annotation if field else None
        models = _models_in(annotation)
        if not models:
            break
        cls = models[0]
        if get_origin(annotation) in (dict, list, tuple):
            next(path, None)  # the key or index of one table among many
    return list(cls.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
