"""Episodes of the workbench, played by a script in the engine's place, and by a real engine."""

from typing import NamedTuple

import pytest

from plait.align.grpo import PolicySettings, policy_batch, policy_loss
from plait.align.prompts import tool_prompts
from plait.align.records import Refusals
from plait.align.rollout import Prompt
from plait.align.sampling import sample_groups
from plait.align.verify import Outcome
from plait.align.workbench.episode import demonstrate
from plait.align.workbench.tasks import WorkbenchSettings, make_task
from plait.data.tokenizer import Tokenizer
from plait.engine.engine import Engine
from plait.engine.request import Completion, SamplingParams
from plait.model.hf import load

PARAMS = SamplingParams(max_tokens=40)


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return Tokenizer.from_directory(base_model)


def tasks(tokenizer, number=1):
    made = [make_task(WorkbenchSettings(), 3, "train", index) for index in range(number)]
    return made, tool_prompts(made, tokenizer, 10_000, Refusals(strict=True))


def nobody(prompt, completion):
    raise AssertionError("environments score attempts themselves")


def without_blocks(text):
    return text.replace("<think></think>", "")


class Script:
    """Plays the turns of a conversation and keeps what it was given."""

    max_context = 100_000

    def __init__(self, tokenizer, turns):
        self.tokenizer, self._turns, self.seen = tokenizer, iter(turns), []

    def step(self):
        pass

    def submit(self, prompt, params):
        self.seen.append(prompt)
        turn = next(self._turns)
        ids = [*self.tokenizer.encode_plain(turn + "\n"), self.tokenizer.end_of_turn_id]
        zeros = [False] * len(ids)
        logprobs = [-1.0] * len(ids)
        return Done(Completion(prompt, ids, logprobs, zeros, turn, None, turn, "stop", 0, 0))


class Done(NamedTuple):
    result: Completion
    finished: bool = True

    def completion(self):
        return self.result


def test_a_right_play_reads_what_a_server_would_render_and_scores(tokenizer):
    (task,), prompts = tasks(tokenizer)
    shown = demonstrate(task)["messages"]
    rendered = [
        tokenizer.encode_conversation(shown[:n], tools=task.tools, enable_thinking=False)
        for n, message in enumerate(shown)
        if message["role"] == "assistant"
    ]
    turns = []
    for n, message in enumerate(shown):
        if message["role"] == "assistant":
            whole = tokenizer.render(
                shown[: n + 1],
                tools=task.tools,
                add_generation_prompt=False,
                enable_thinking=False,
            )
            before = tokenizer.render(shown[:n], tools=task.tools, enable_thinking=False)
            end = tokenizer.decode([tokenizer.end_of_turn_id])
            turns.append(whole[len(before) :].rpartition(end)[0].rstrip("\n"))
    script = Script(tokenizer, turns)
    ((rollout,),) = sample_groups(script, prompts, 1, PARAMS, lambda _: False, nobody, seed=0)
    assert (rollout.reward, rollout.reason) == (1.0, "correct")
    assert len(rendered) >= 2
    assert len(script.seen) == len(rendered)
    for seen, ids in zip(script.seen, rendered, strict=True):
        # a server drops the empty thinking block before past turns; here it stays as it was read
        assert without_blocks(tokenizer.decode(seen)) == without_blocks(tokenizer.decode(ids))
    assert script.seen[0] == rendered[0]
    sampled = [t for t, forced in zip(rollout.token_ids, rollout.forced, strict=True) if not forced]
    assert sampled == [id_ for turn in turns for id_ in [*tokenizer.encode_plain(turn + "\n"), 12]]


def test_mistakes_are_answered_and_loops_end(tokenizer):
    _, prompts = tasks(tokenizer)
    nonsense = "<TOOLCALL>[{]</TOOLCALL>"
    unknown = '<TOOLCALL>[{"name": "fly", "arguments": {}}]</TOOLCALL>'
    script = Script(tokenizer, [nonsense, unknown, *[unknown] * 20])
    ((rollout,),) = sample_groups(
        script, prompts, 1, PARAMS, lambda _: False, nobody, 0, max_turns=5
    )
    assert len(script.seen) == 5
    text = tokenizer.decode(rollout.token_ids)
    assert "Error: the call cannot be read" in text
    assert text.count("Error") == 4
    assert rollout.reward in (0.0, 1.0)


def test_trainer_and_engine_agree_through_responses_of_tools(base_model, tokenizer, monkeypatch):
    """An untrained model calls nothing by itself, so its turns are read as calls."""
    from plait.align import sampling
    from plait.grade.toolcall import ToolCall

    monkeypatch.setattr(sampling, "parse_calls", lambda _: [ToolCall("fly", {})])
    model = load(base_model)
    engine = Engine(model, tokenizer, max_context=8000)
    _, prompts = tasks(tokenizer, 2)
    ends = tuple(range(20, len(tokenizer.token_bytes), 2))  # half of all tokens end a turn
    params = SamplingParams(max_tokens=12, stop_token_ids=ends)
    groups = sample_groups(
        engine, prompts, 2, params, lambda p: p is prompts[0], nobody, 1, max_turns=3
    )
    assert any(any(r.forced) for group in groups for r in group)
    batch = policy_batch(groups, PolicySettings(), is_fresh=True)
    output = policy_loss(model, batch, PolicySettings())
    assert 0 < output.metrics["max_logprob_gap"] < 1e-4


def test_attempts_at_one_prompt_share_what_reading_it_gave(base_model, tokenizer):
    engine = Engine(load(base_model), tokenizer, max_context=8000)
    _, prompts = tasks(tokenizer, 2)
    groups = sample_groups(engine, prompts, 4, PARAMS, lambda _: False, nobody, 1)
    stats = engine.stats()
    lengths = [len(group[0].prompt_ids) for group in groups]
    # three of four attempts read only what stands behind the last stored state of their prompt
    assert stats.prefix_hit_tokens > 0.7 * 3 * sum(lengths)


def test_verifiers_work_while_the_engine_generates(tokenizer):
    """The first answer is judged before the last one has ended."""
    events = []

    class Late(Script):
        steps = 0

        def step(self):
            self.steps += 1

        def submit(self, prompt, params):
            done = super().submit(prompt, params)
            wanted = len(self.seen)
            script = self

            class Waiting:
                finished = property(lambda _: script.steps >= wanted)

                def completion(self):
                    events.append(f"answer {wanted}")
                    return done.result

            return Waiting()

    def judge(prompt, completion):
        events.append("begin")
        return lambda: events.append("wait") or Outcome(1.0, "")

    question = Prompt("q", [{"role": "user", "content": "Hi"}], None, "number", "1")
    sample_groups(Late(tokenizer, "ab"), [question], 2, PARAMS, lambda _: False, judge, 0)
    assert events == ["answer 1", "begin", "answer 2", "begin", "wait", "wait"]
