"""The state of the workbench: an office's tables in memory, at a fixed time.

Five tables can be worked on: calendar, e-mail, analytics, projects and customers (analytics is a
log of visits that no tool changes, and the plots made from it), and a directory says who works
there. A row is a dictionary of texts under its id and is replaced, never changed, so that copies of
an office can share it. Two offices that began alike have the same
*outcome* if every row that was there has the same values and the same rows were added; the ids of
added rows do not count, for they only say in which order they came, nor does case in free text.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

NOW = "2023-11-30 00:00:00"
TODAY = NOW[:10]
TABLES = ("events", "emails", "visits", "plots", "tasks", "customers")

Row = dict[str, str]

_ID_WIDTH = 8


class Difference(NamedTuple):
    """A table that is not as it should be, and how many of its rows are not."""

    table: str
    num_rows: int


class Office:
    """All tables of one office; tools read and change it in place."""

    def __init__(self, people: Iterable[str], tables: dict[str, dict[str, Row]]):
        self.people = sorted(people)
        self.tables: dict[str, dict[str, Row]] = {name: tables.get(name, {}) for name in TABLES}
        self._added: dict[str, set[str]] = {name: set() for name in TABLES}
        self._next_ids = {
            name: max(map(int, rows), default=-1) + 1 for name, rows in self.tables.items()
        }

    def copy(self) -> "Office":
        """Return an office that changes apart from this one."""
        tables = {name: dict(rows) for name, rows in self.tables.items()}
        other = Office(self.people, tables)
        other._added = {name: set(added) for name, added in self._added.items()}
        other._next_ids = dict(self._next_ids)
        return other

    def add(self, table: str, row: Row) -> str:
        """Add a row under the next id, which no row ever had, and return the id."""
        number = self._next_ids[table]
        self._next_ids[table] = number + 1
        identity = str(number).zfill(_ID_WIDTH)
        self.tables[table][identity] = row
        self._added[table].add(identity)
        return identity

    def change(self, table: str, identity: str, field: str, value: str) -> None:
        """Give a row's field another value."""
        self.tables[table][identity] = {**self.tables[table][identity], field: value}

    def outcome(self, table: str) -> Counter[tuple[Any, ...]]:
        """Count the rows of a table by what counts in them; comparable with ==."""
        return Counter(
            ("" if identity in self._added[table] else identity, *sorted(_plain(row).items()))
            for identity, row in self.tables[table].items()
        )

    def differences(self, expected: "Office") -> list[Difference]:
        """Say in which tables the outcome differs from an expected one; empty if in none."""
        differences = []
        for name in TABLES:
            if self.tables[name] == expected.tables[name]:
                continue
            found, wanted = self.outcome(name), expected.outcome(name)
            if found != wanted:
                rows = max((found - wanted).total(), (wanted - found).total())
                differences.append(Difference(name, rows))
        return differences


def _plain(row: Row) -> Row:
    return {key: value.lower().strip() for key, value in row.items()}
