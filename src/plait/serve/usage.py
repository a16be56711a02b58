"""How many tokens a request took, as OpenAI's `usage`."""

from collections.abc import Mapping
from typing import Any

from plait.serve.worker import Answers, Update


def usage(answers: Answers, latest: Mapping[int, Update]) -> dict[str, Any]:
    """Return the tokens of all answers so far; `latest` holds the last update of each.

    Prompts are counted once per prompt, answers each.
    """
    prompts = {ticket.prompt_number: ticket.handle.prompt_ids for ticket in answers.tickets}
    num_prompt = sum(map(len, prompts.values()))
    num_output = sum(update.delta.num_tokens for update in latest.values())
    cached: dict[int, int] = {}
    for index, update in latest.items():
        if update.delta.completion is not None:
            # The second answer to a prompt always finds the first one's: that is no saving.
            cached.setdefault(
                answers.tickets[index].prompt_number, update.delta.completion.num_cached_tokens
            )
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        "completion_tokens_details": {
            "reasoning_tokens": sum(update.num_reasoning_tokens for update in latest.values())
        },
    }
