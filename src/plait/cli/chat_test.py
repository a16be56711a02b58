import io
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console

from plait.cli.chat import Chat, _lines, chat
from plait.core.errors import RequestError
from plait.data.train_tokenizer import train_tokenizer
from plait.engine.engine import Engine
from plait.engine.request import Completion, Delta, SamplingParams
from plait.model.hf import save
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

DONE = Completion(
    prompt_ids=[1],
    token_ids=[1] * 9,
    logprobs=None,
    forced=[False] * 9,
    text="",
    reasoning="hm so",
    content="hi [b]you[/b]",
    finish_reason="length",
    num_reasoning_tokens=4,
    num_closing_tags=1,
)
THINKING_ANSWER = [
    Delta("hm ", "", 1),
    Delta("so", "", 2),
    Delta("", "hi [b]", 5),
    Delta("", "you[/b]", 9, DONE),
]


class FakeEngine(Engine):
    """Answers each message with the next list of deltas; an exception in a list is raised."""

    def __init__(self, *answers: list) -> None:
        self.answers = list(answers)
        self.max_context = 200
        self.asked: list[tuple] = []

    def encode(self, prompt, **options) -> list[int]:
        return [1] * (10 * len(prompt))

    def stream(self, prompt, params=None, **options) -> Iterator[Delta]:
        self.asked.append(([dict(message) for message in prompt], params, options))
        answer = self.answers.pop(0)

        def deltas() -> Iterator[Delta]:
            for each in answer:
                if not isinstance(each, Delta):
                    raise each
                yield each

        return deltas()


def talk(engine: FakeEngine, *lines: str, terminal: bool = False, **params) -> tuple[Chat, str]:
    file = io.StringIO()
    colors = "standard" if terminal else None
    console = Console(file=file, force_terminal=terminal, soft_wrap=True, color_system=colors)
    session = Chat(engine, SamplingParams(max_tokens=100, **params), console)
    for line in lines:
        if not session.handle(line):
            break
    return session, file.getvalue()


def test_plain_output_shows_trace_between_tags_and_a_summary():
    session, text = talk(FakeEngine(THINKING_ANSWER), "hello\n")
    assert text.startswith(
        "<think>\nhm so\n</think>\n\nhi [b]you[/b]\n[9 tokens, 4 of them thinking, "
    )
    assert text.endswith("tokens/s, cut at the limit of tokens]\n")
    assert session.messages == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi [b]you[/b]"},
    ]


def test_a_terminal_shows_the_trace_dimmed_and_the_answer_not():
    _, text = talk(FakeEngine(THINKING_ANSWER), "hello", terminal=True)
    assert "\x1b[2mhm \x1b[0m" in text
    assert "hi [b]you[/b]" in text
    assert "\x1b[2mhi" not in text
    assert "think>" not in text


def test_what_the_model_writes_cannot_steer_the_terminal():
    _, text = talk(FakeEngine([Delta("", "a\x1b[2Jb\r\x9bc\td\ne")]), "hello", terminal=True)
    assert "a\ufffd[2Jb\ufffd\ufffdc" in text
    assert "\x1b[2J" not in text


def test_history_is_sent_and_cleared():
    answers = [[Delta("", "one")], [Delta("", "two")], [Delta("", "three")]]
    engine = FakeEngine(*answers)
    talk(engine, "a", "b", "/clear", "c")
    contents = [[message["content"] for message in asked[0]] for asked in engine.asked]
    assert contents == [["a"], ["a", "one", "b"], ["c"]]


def test_switches_and_budget_reach_the_engine():
    engine = FakeEngine(*[[Delta("", "x")]] * 7)
    _, text = talk(
        engine,
        *("a", "/no_think", "b", "/think", "c", "/budget 7", "d", "/budget off", "e"),
        *("f /no_think", "/no_think g"),
    )
    assert [options["enable_thinking"] for *_, options in engine.asked] == [
        *(None, False, True, True, True, None, False),
    ]
    budgets = [params.max_thinking_tokens for _, params, _ in engine.asked]
    assert budgets == [None, None, None, 7, None, None, None]
    assert engine.asked[-1][0][-1]["content"] == "g"
    assert "thinking budget: 7 tokens" in text


@pytest.mark.parametrize("argument", ["", "-1", "many", "²"])
def test_bad_budgets_and_unknown_commands_are_explained(argument):
    engine = FakeEngine()
    _, text = talk(engine, f"/budget {argument}", "/nonsense", "/help")
    assert "/budget takes a number of tokens or off" in text
    assert "no command /nonsense" in text
    assert engine.asked == []


def test_a_path_is_a_message_and_an_empty_line_is_nothing():
    engine = FakeEngine([Delta("", "x")])
    talk(engine, "", "  ", "/usr/bin is what?")
    assert len(engine.asked) == 1


def test_exit_leaves():
    engine = FakeEngine()
    talk(engine, "/exit", "a")
    assert engine.asked == []


def test_ctrl_c_keeps_the_part_that_came():
    engine = FakeEngine([Delta("", "half an"), KeyboardInterrupt()], [Delta("", "x")])
    session, text = talk(engine, "a", "b")
    assert "half an\nstopped\n" in text
    assert [message["content"] for message in session.messages] == ["a", "half an", "b", "x"]


def test_ctrl_c_while_thinking_forgets_the_question():
    session, text = talk(FakeEngine([Delta("hm"), KeyboardInterrupt()]), "a")
    assert "nothing kept" in text
    assert session.messages == []


def test_an_error_is_shown_and_the_conversation_goes_on():
    engine = FakeEngine([RequestError("too long")], [Delta("", "x")])
    session, text = talk(engine, "a", "b")
    assert "error: too long" in text
    assert [message["content"] for message in session.messages] == ["b", "x"]


def test_max_tokens_shrinks_with_the_room_and_a_quarter_is_kept_for_the_answer():
    engine = FakeEngine(*[[Delta("", "x")]] * 10)
    talk(engine, *"abcdefghij")
    rooms = [(params.max_tokens, params.min_answer_tokens) for _, params, _ in engine.asked]
    assert rooms[0] == (100, 25)
    assert rooms[5] == (90, 22)
    assert rooms[9] == (10, 0)


def test_a_piped_conversation_with_the_model_of_a_run_folder(tmp_path, monkeypatch, capsys):
    tokenizer = train_tokenizer(
        ["hello User Assistant <think>\nso\n</think>\n\n"] * 3, vocab_size=290
    )
    spec = ModelSpec.preset("test").model_copy(update={"vocab_size": tokenizer.vocab_size})
    directory = tmp_path / "04_sft" / "model"
    save(init_weights(HybridLM(spec), seed=0), directory)
    tokenizer.save(directory)
    monkeypatch.setattr("sys.stdin", io.StringIO("/budget 3\nhello\n/no_think\nhello again\n"))
    threads = torch.get_num_threads()
    chat(str(tmp_path / "04_sft"), max_tokens=40, temperature=0.0)
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("parameters; /help shows the commands")
    assert lines[1] == "thinking budget: 3 tokens"
    assert sum("tokens/s" in line for line in lines) == 2
    assert sum("thinking, " in line for line in lines) == 1


def test_input_that_is_not_utf8_is_read(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    assert list(_lines(Console(), interactive=False)) == ["caf\ufffd\n"]
