"""Where a language model answers: any server that speaks the OpenAI API.

[endpoints.writer]
url = "http://127.0.0.1:8000/v1"
model = "Qwen/Qwen3-30B-A3B"
"""

import os
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from plait.core.config import Settings
from plait.core.errors import ConfigError


class EndpointSettings(Settings):
    """A model behind an OpenAI-compatible server, and how it is asked."""

    url: str
    """Base address, up to and with `/v1`."""
    model: str
    """Name that the server knows the model by."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none."""
    max_in_flight: Annotated[int, Field(gt=0)] = 64
    """Calls that wait for an answer at once."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Longest wait for one whole answer."""
    num_tries: Annotated[int, Field(gt=0)] = 6
    """How often a call is sent before it counts as failed."""
    backoff_s: Annotated[float, Field(ge=0)] = 1.0
    """Wait before the second try; it doubles with each one after it, up to a minute."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling."""
    json_answers: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    """How answers of a given form are asked for: `json_schema` is OpenAI's way, `json_object` with
    the schema beside it that of llama-cpp-python's server; `prompt` leaves it to the prompt."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Sent along with every call, for instance `chat_template_kwargs`."""
    prompt_price: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million tokens read, in the currency of your bill; for the running total."""
    answer_price: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million tokens written."""

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("an address begins with http:// or https://")
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0:  # ValueError from either if they cannot be read
            raise ValueError("an address needs a host, and a port is 1 to 65535")
        return url.rstrip("/")

    def api_key(self) -> str | None:
        """Return the key.

        Raises: ConfigError if the variable that should hold it is not set, or holds no key.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()  # a file read in may end its lines in CR
        if not key:
            raise ConfigError(
                f"api_key_env: the environment variable {self.api_key_env} is not set; export it, "
                f"or leave api_key_env out if {self.url} asks for no key"
            )
        if not (key.isascii() and key.isprintable()):  # HTTP's own error would show the key
            raise ConfigError(
                f"api_key_env: the environment variable {self.api_key_env} holds characters that "
                "no key has: spaces at its ends do no harm, others must be plain ASCII"
            )
        return key
