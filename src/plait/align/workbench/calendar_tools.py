"""Tools for the calendar: events with a name, a participant, a start and a length."""

from typing import Any, Literal

from plait.align.workbench.office import Office
from plait.align.workbench.registry import (
    Address,
    AnyTime,
    Id,
    Minutes,
    Text,
    Time,
    check_value,
    row_of,
    shown,
    tool,
)

EventField = Literal["event_name", "participant_email", "event_start", "duration"]
_KINDS: dict[str, Any] = {
    "event_name": Text,
    "participant_email": Address,
    "event_start": Time,
    "duration": Minutes,
}


@tool("calendar_get_event_information_by_id")
def get_event(office: Office, event_id: Id, field: EventField) -> Any:
    """Return one field of an event."""
    return {field: row_of(office, "events", event_id, "event")[field]}


@tool("calendar_search_events")
def search_events(
    office: Office, query: str = "", time_min: AnyTime = "", time_max: AnyTime = ""
) -> Any:
    """Search events by name or participant and by start time; at most 5 are returned."""
    found = [
        identity
        for identity, row in sorted(office.tables["events"].items(), key=_start)
        if query.lower() in f"{row['event_name']}\n{row['participant_email']}".lower()
        and (not time_min or row["event_start"] >= time_min)
        and (not time_max or row["event_start"] <= time_max)
    ]
    return shown(office, "events", "event_id", found)


@tool("calendar_create_event", changes=True)
def create_event(
    office: Office,
    event_name: Text,
    participant_email: Address,
    event_start: Time,
    duration: Minutes,
) -> Any:
    """Create an event and return its id."""
    row = {
        "event_name": event_name,
        "participant_email": participant_email,
        "event_start": event_start,
        "duration": str(duration),
    }
    return office.add("events", row)


@tool("calendar_delete_event", changes=True)
def delete_event(office: Office, event_id: Id) -> Any:
    """Delete an event."""
    row_of(office, "events", event_id, "event")
    del office.tables["events"][event_id]
    return "deleted"


@tool("calendar_update_event", changes=True)
def update_event(office: Office, event_id: Id, field: EventField, new_value: Text) -> Any:
    """Change one field of an event."""
    row_of(office, "events", event_id, "event")
    office.change("events", event_id, field, check_value(_KINDS[field], new_value))
    return "updated"


def _start(item: tuple[str, dict[str, str]]) -> tuple[str, str]:
    return item[1]["event_start"], item[0]
