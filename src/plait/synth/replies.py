"""What endpoints have answered: every reply is kept under the hash of its call, for good.

An SQLite file, written as each reply arrives, so a run that is killed at any moment asks again only
what had no answer yet. It also knows what all of it has cost.
"""

import json
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from plait.core.errors import ConfigError, DataError

_TABLE = (
    "create table if not exists replies (key text primary key, role text, prompt_tokens integer, "
    "answer_tokens integer, reply text) without rowid"
)

_LOCKED_S = 60.0
"""Longest wait for another process that writes."""


class Reply(NamedTuple):
    """One answer of a model."""

    text: str
    reasoning: str | None
    """What it thought before, where the server or `<think>` tags tell that apart."""
    finish_reason: str
    """As OpenAI names them: `stop`, `length`, `content_filter` ..."""
    prompt_tokens: int
    answer_tokens: int


class ReplyStore:
    """Replies by key, and the number of calls and tokens of each role over all runs."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(file, isolation_level=None, timeout=_LOCKED_S)
            self._write_ahead()
            self._database.execute("pragma synchronous = normal")
            self._database.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{file}: cannot be used to keep replies: {error}; remove it if it is broken"
            ) from None
        self.calls: Counter[str] = Counter()
        self.prompt_tokens: Counter[str] = Counter()
        self.answer_tokens: Counter[str] = Counter()
        sums = "select role, count(*), sum(prompt_tokens), sum(answer_tokens) from replies"
        for role, calls, prompt_tokens, answer_tokens in self._database.execute(
            f"{sums} group by role"
        ):
            self._count(role, calls, prompt_tokens, answer_tokens)

    @property
    def num_tokens(self) -> int:
        """Return how many tokens have been read and written in all."""
        return self.prompt_tokens.total() + self.answer_tokens.total()

    def get(self, key: str) -> Reply | None:
        """Return the reply under a key, or None."""
        row = self._database.execute("select reply from replies where key = ?", (key,)).fetchone()
        return Reply(*json.loads(row[0])) if row else None

    def put(self, key: str, role: str, reply: Reply) -> None:
        """Keep a reply. Raises: DataError if the file cannot take it, as on a full disk."""
        counts = (reply.prompt_tokens, reply.answer_tokens)
        text = json.dumps(reply, ensure_ascii=True)
        try:
            cursor = self._database.execute(
                "insert or ignore into replies values (?, ?, ?, ?, ?)", (key, role, *counts, text)
            )
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self._file}: a reply cannot be kept: {error}; make room, then run the same "
                "command: it goes on from here"
            ) from None
        if cursor.rowcount:
            self._count(role, 1, *counts)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _write_ahead(self) -> None:
        # Two processes that open a new file at once: here SQLite does not wait for the other.
        deadline = time.monotonic() + _LOCKED_S
        while True:
            try:
                self._database.execute("pragma journal_mode = wal")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _count(self, role: str, calls: int, prompt_tokens: int, answer_tokens: int) -> None:
        self.calls[role] += calls
        self.prompt_tokens[role] += prompt_tokens
        self.answer_tokens[role] += answer_tokens
