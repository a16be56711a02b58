"""Kinds of task that name a row by its id: one call each, nothing to look up."""

import random

from plait.align.workbench.generate import LISTS, STATUSES
from plait.align.workbench.office import Office
from plait.align.workbench.planning import Plan, call, family, pick


@family(
    "Cancel event {id}",
    "Delete the event {id}",
    "Event {id} is off, take it out of the calendar",
)
def cancel_event_by_id(office: Office, rng: random.Random) -> Plan:
    """Delete an event."""
    identity, _ = pick(rng, office.tables["events"])
    return Plan({"id": identity}, [call("calendar_delete_event", event_id=identity)])


@family(
    "Make event {id} {minutes} minutes long",
    "Change the length of event {id} to {minutes} minutes",
    "Event {id} should take {minutes} minutes",
)
def set_duration_by_id(office: Office, rng: random.Random) -> Plan:
    """Change the length of an event."""
    identity, row = pick(rng, office.tables["events"])
    minutes = rng.choice([m for m in ("30", "60", "90") if m != row["duration"]])
    change = call("calendar_update_event", event_id=identity, field="duration", new_value=minutes)
    return Plan({"id": identity, "minutes": minutes}, [change])


@family(
    "Delete email {id}",
    "Remove the message {id}",
    "I don't need email {id} any more, get rid of it",
)
def delete_email_by_id(office: Office, rng: random.Random) -> Plan:
    """Delete an e-mail."""
    identity, _ = pick(rng, office.tables["emails"])
    return Plan({"id": identity}, [call("email_delete_email", email_id=identity)])


@family(
    "Delete task {id}",
    "Remove the task {id} from its board",
    "Nobody needs to do task {id}, drop it",
)
def delete_task_by_id(office: Office, rng: random.Random) -> Plan:
    """Delete a task."""
    identity, _ = pick(rng, office.tables["tasks"])
    return Plan({"id": identity}, [call("project_management_delete_task", task_id=identity)])


@family(
    "Move task {id} to {list}",
    "Put the task {id} into the list {list}",
    "Task {id} belongs in {list} now, move it",
)
def move_task_by_id(office: Office, rng: random.Random) -> Plan:
    """Move a task to another list."""
    identity, row = pick(rng, office.tables["tasks"])
    chosen = rng.choice([name for name in LISTS if name != row["list_name"]])
    change = call(
        "project_management_update_task", task_id=identity, field="list_name", new_value=chosen
    )
    return Plan({"id": identity, "list": chosen}, [change])


@family(
    "Set customer {id} to {status}",
    "Change the status of customer {id} to {status}",
    "Customer {id} is {status} now, note that",
)
def update_status_by_id(office: Office, rng: random.Random) -> Plan:
    """Change the status of a customer."""
    identity, row = pick(rng, office.tables["customers"])
    status = rng.choice([name for name in STATUSES if name != row["status"]])
    change = call("crm_update_customer", customer_id=identity, field="status", new_value=status)
    return Plan({"id": identity, "status": status}, [change])
