"""A model in a role: asked for a text or a filled form until the answer is of use.

What comes back is checked before it counts: whole (not cut off at `max_tokens`), no refusal, of
the form that was asked for, and whatever else the generator demands. An answer that fails is asked
for again with another seed, `num_asks` times in all; then the item is dropped for the last reason.
"""

import functools
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from plait.synth.client import Call, Client, Message, Unusable
from plait.synth.replies import Reply

Form = TypeVar("Form", bound=BaseModel)
Result = TypeVar("Result")

_LOOKED_AT = 200
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", re.DOTALL)


class Role:
    """A client and how often it is asked for the same thing."""

    def __init__(self, client: Client, num_asks: int) -> None:
        self.client = client
        self.num_asks = num_asks

    async def write(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int,
        check: Callable[[str], Result] = str,
        sample: int = 0,
    ) -> Result:
        """Return a text, as `check` makes it; `check` raises Unusable for one of no use.

        Raises: Unusable if no answer was of use.
        """

        def read(reply: Reply) -> Result:
            return check(whole_text(reply))

        return await self._ask(prompt, max_tokens, None, read, sample)

    async def think(self, prompt: str, *, max_tokens: int) -> Reply:
        """Return a text and the reasoning before it.

        Raises: Unusable if no answer was of use.
        """

        def read(reply: Reply) -> Reply:
            return reply._replace(text=whole_text(reply))

        return await self._ask(prompt, max_tokens, None, read, 0)

    async def fill(
        self,
        prompt: str | Sequence[Message],
        form: type[Form],
        *,
        max_tokens: int,
        check: Callable[[Form], None] = lambda _: None,
        sample: int = 0,
    ) -> Form:
        """Return a filled form; `check` raises Unusable for one of no use.

        Raises: Unusable if no answer was of use.
        """

        def read(reply: Reply) -> Form:
            filled = parse_form(whole_text(reply), form)
            check(filled)
            return filled

        return await self._ask(prompt, max_tokens, form.model_json_schema(), read, sample)

    async def _ask(
        self,
        prompt: str | Sequence[Message],
        max_tokens: int,
        schema: dict[str, Any] | None,
        read: Callable[[Reply], Result],
        sample: int,
    ) -> Result:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        failure = Unusable("not_asked")
        for number in range(self.num_asks):
            call = Call(messages, max_tokens, schema, f"{sample}.{number}")
            reply = await self.client.complete(call)
            try:
                return read(reply)
            except Unusable as error:
                failure = error
        raise failure


def whole_text(reply: Reply) -> str:
    """Return the text of a reply. Raises: Unusable if it is cut off, refused or empty."""
    if reply.finish_reason == "content_filter" or is_refusal(reply.text):
        raise Unusable("refused", reply.text[:_LOOKED_AT])
    if reply.finish_reason == "length":
        raise Unusable("cut_off", f"{reply.answer_tokens} tokens")
    if not reply.text.strip():
        raise Unusable("empty_answer")
    return reply.text.strip()


def parse_form(text: str, form: type[Form]) -> Form:
    """Return a form from its JSON, fenced or not. Raises: Unusable if it is not that."""
    fenced = _FENCED.fullmatch(text)
    try:
        return form.model_validate_json(fenced[1] if fenced else text)
    except ValidationError as error:
        first = error.errors()[0]
        raise Unusable("invalid_json", f"{first['msg']} in {text[:80]!r}") from None


def is_refusal(text: str) -> bool:
    """Say whether a text begins as models begin when they decline."""
    return bool(_refusals().search(text[:_LOOKED_AT]))


@functools.cache
def _refusals() -> re.Pattern[str]:
    lines = resources.files("plait.synth").joinpath("refusals.txt").read_text().splitlines()
    return re.compile("|".join(line for line in lines if line), re.IGNORECASE)
