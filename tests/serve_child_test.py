"""A directory that compression wrote is served as any other."""

import openai

from plait.compress.cut import Cut
from plait.compress.prune import prune_directory
from plait.model.hf import save
from plait.serve.conftest import HELLO, command, tiny_engine

CUT = Cut(  # of the preset `test`, M-M*-M with 6 heads of 10 channels in 2 groups
    layers=(0, 1, 3, 5),
    embedding=tuple(range(0, 48, 2)),
    feed_forward={1: tuple(range(40))},
    mamba_heads={0: (0, 2, 3, 4), 5: (1, 2, 4, 5)},
    mamba_channels={0: tuple(range(7)), 5: tuple(range(3, 10))},
)


def test_a_compressed_child_is_served(tmp_path):
    engine = tiny_engine()
    save(engine.model, tmp_path / "parent")
    engine.tokenizer.save(tmp_path / "parent")
    child = tmp_path / "child"
    prune_directory(tmp_path / "parent", CUT, child, {})
    with (
        command(str(child), "--memory", "1GiB") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        answer = client.chat.completions.create(
            model=str(child),
            messages=HELLO,
            max_tokens=40,
            extra_body={"max_thinking_tokens": 8, "budget_rule": "hard", "ignore_eos": True},
        )
    assert answer.usage.completion_tokens_details.reasoning_tokens == 8
    assert answer.choices[0].message.content
