"""A model as a function of prompts, for rooms that know no endpoints: clean-up, labels, judges.

    ask = Ask(settings, cache / "replies.sqlite", "clean", max_tokens=6000)
    texts = ask(["...", "..."])        # None for each prompt that came to nothing

It holds settings only, so it can be sent to worker processes; each of them keeps its answers in the
same file, and nothing is asked twice.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from plait.core.endpoint import EndpointSettings
from plait.synth.client import Client, Unusable
from plait.synth.replies import ReplyStore
from plait.synth.role import Role


class Ask:
    """Puts prompts to an endpoint, as many at once as its settings allow."""

    def __init__(
        self,
        settings: EndpointSettings,
        store: Path,
        role: str,
        *,
        max_tokens: int,
        num_asks: int = 2,
        budget_tokens: int | None = None,
    ) -> None:
        self.settings, self.store, self.role = settings, store, role
        self.max_tokens, self.num_asks, self.budget_tokens = max_tokens, num_asks, budget_tokens

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        """Return an answer to each prompt, in order; None for one that was cut off or refused.

        Raises: EndpointError if the endpoint cannot be used; what was answered is kept.
        """
        return asyncio.run(self._answer(prompts))

    async def _answer(self, prompts: Sequence[str]) -> list[str | None]:
        store = ReplyStore(self.store)
        try:
            async with (
                Client(self.role, self.settings, store, self.budget_tokens) as client,
                asyncio.TaskGroup() as group,
            ):
                role = Role(client, self.num_asks)
                tasks = [group.create_task(self._one(role, prompt)) for prompt in prompts]
            return [task.result() for task in tasks]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            store.close()

    async def _one(self, role: Role, prompt: str) -> str | None:
        try:
            return await role.write(prompt, max_tokens=self.max_tokens)
        except Unusable:
            return None
