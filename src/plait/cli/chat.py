"""`plait chat`: talk to a model in the terminal.

The trace streams dimmed, the answer in normal type; Ctrl-C stops an answer, Ctrl-D leaves. When
input is not a terminal, lines are read from it and everything is printed plainly, think tags
included, so that a conversation can be piped.
"""

import io
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from rich.console import Console

from plait.core.errors import PlaitError
from plait.core.run_folder import model_directory
from plait.engine.engine import Engine
from plait.engine.request import Completion, SamplingParams

HELP = """\
/think          reason before answering          /no_think   answer at once
/budget N       think for about N tokens at most /budget off no limit
/clear          forget the conversation          /exit       leave (also Ctrl-D)
Ctrl-C          stop the answer and keep what is there"""

# Below this size one thread is faster than several: the work per operation is too small to share.
_ONE_THREAD_PARAMETERS = 20_000_000
_COMMAND = re.compile(r"/(\w+)(?:\s+(.*))?", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def chat(
    model: str, *, max_tokens: int = 1024, temperature: float = 0.6, top_p: float = 0.95
) -> None:
    """Load a model directory, run folder or hub id and hold a conversation until the user leaves.

    Raises: PlaitError if the model cannot be loaded or the sampling options are refused.
    """
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    engine = Engine.from_path(model_directory(model), max_num_seqs=1)
    num_parameters = engine.model.spec.num_parameters
    if num_parameters < _ONE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    interactive = sys.stdin.isatty()
    console = Console(
        force_terminal=None if interactive else False, highlight=False, soft_wrap=True
    )
    session = Chat(engine, params, console)
    facts = f"{model}: {num_parameters:,} parameters; /help shows the commands"
    console.out(facts, style="dim", highlight=False)
    for line in _lines(console, interactive=interactive):
        if not session.handle(line):
            break


class Chat:
    """A conversation and its switches."""

    def __init__(self, engine: Engine, params: SamplingParams, console: Console) -> None:
        self.engine = engine
        self.params = params
        self.console = console
        self.plain = not console.is_terminal
        """True shows the trace between its tags, for want of dimmed type."""
        self.messages: list[dict[str, Any]] = []
        self.enable_thinking: bool | None = None
        """None leaves it to the switches in the messages."""

    def handle(self, line: str) -> bool:
        """Take a line of input, a command or a message; return False to leave."""
        text = line.strip()
        command = _COMMAND.fullmatch(text)
        if command is None:
            if text:
                self.answer(text)
            return True
        name, argument = command[1], (command[2] or "").strip()
        if name in ("think", "no_think"):
            self.enable_thinking = name == "think"
            if argument:
                self.answer(argument)
            else:
                self._say(f"thinking {'on' if self.enable_thinking else 'off'}")
        elif name == "budget":
            self._set_budget(argument)
        elif name == "clear":
            self.messages.clear()
            self._say("conversation forgotten")
        elif name == "help":
            self._say(HELP)
        elif name in ("exit", "quit"):
            return False
        else:
            self._say(f"no command /{name}\n{HELP}")
        return True

    def answer(self, text: str) -> None:
        """Send a message and print the answer as it comes; both are forgotten if nothing comes."""
        if "/think" in text or "/no_think" in text:
            # The template finds the switch; a mode set by an earlier command must not overrule it.
            self.enable_thinking = None
        self.messages.append({"role": "user", "content": text})
        try:
            content = self._stream()
        except PlaitError as error:
            content = ""
            self._say(f"error: {error}")
        if content:
            self.messages.append({"role": "assistant", "content": content})
        else:
            self.messages.pop()

    def _stream(self) -> str:
        """Print an answer and return it, or what there was when the user stopped it."""
        started = time.monotonic()
        content, num_tokens, completion = "", 0, None
        deltas = self.engine.stream(
            self.messages, self._fitting_params(), enable_thinking=self.enable_thinking
        )
        in_trace = False
        try:
            for delta in deltas:
                if delta.reasoning:
                    opening = "<think>\n" if self.plain and not in_trace else ""
                    self._show(opening + delta.reasoning, dim=True)
                    in_trace = True
                if delta.content:
                    if in_trace:
                        self._show("\n</think>\n\n" if self.plain else "\n\n")
                        in_trace = False
                    self._show(delta.content)
                content += delta.content
                num_tokens, completion = delta.num_tokens, delta.completion
        except KeyboardInterrupt:
            self._show("\n")
            self._say("stopped" if content else "stopped before the answer: nothing kept")
            return content
        self._show("\n")
        if completion is not None:
            self._say(_summary(completion, num_tokens / max(time.monotonic() - started, 1e-9)))
        return content

    def _fitting_params(self) -> SamplingParams:
        """Cut max_tokens to what the context leaves, and keep a quarter of it for the answer."""
        prompt = self.engine.encode(self.messages, enable_thinking=self.enable_thinking)
        room = max(self.engine.max_context - len(prompt), 1)
        max_tokens = min(self.params.max_tokens or room, room)
        reserve = max_tokens // 4 if max_tokens >= 64 else 0
        return self.params.model_copy(
            update={"max_tokens": max_tokens, "min_answer_tokens": reserve}
        )

    def _set_budget(self, argument: str) -> None:
        if argument == "off":
            budget = None
        elif argument.isascii() and argument.isdigit():
            budget = int(argument)
        else:
            self._say(f"/budget takes a number of tokens or off, not {argument!r}")
            return
        self.params = self.params.model_copy(update={"max_thinking_tokens": budget})
        self._say("no thinking budget" if budget is None else f"thinking budget: {budget} tokens")

    def _show(self, text: str, *, dim: bool = False) -> None:
        # What a model writes must not move the cursor or change the terminal.
        safe = _CONTROL.sub("\ufffd", text)
        self.console.out(safe, end="", style="dim" if dim else None, highlight=False)

    def _say(self, text: str) -> None:
        self.console.out(text, style="dim", highlight=False)


def _summary(completion: Completion, tokens_per_s: float) -> str:
    parts = [f"{len(completion.token_ids)} tokens"]
    if completion.reasoning is not None:
        parts.append(f"{completion.num_reasoning_tokens} of them thinking")
    parts.append(f"{tokens_per_s:.0f} tokens/s")
    if completion.finish_reason == "length":
        parts.append("cut at the limit of tokens")
    return f"[{', '.join(parts)}]"


def _lines(console: Console, *, interactive: bool) -> Iterator[str]:
    """Yield lines until the end of input; Ctrl-C at the prompt drops the line."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Bytes that are no text are shown to the model as such, not thrown at the user.
        sys.stdin.reconfigure(errors="replace")
    if not interactive:
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # gives input() its line editing and history
    while True:
        try:
            yield input("\n> ")
        except KeyboardInterrupt:
            console.print("\nCtrl-D or /exit leaves", style="dim")
        except EOFError:
            console.print()
            return
