"""Kinds of task about e-mail and the calendar."""

import random

from plait.align.workbench.generate import (
    BODIES,
    EVENTS,
    SUBJECTS,
    day,
)
from plait.align.workbench.office import Office
from plait.align.workbench.planning import Plan, call, family, find, first_name, pick


@family(
    "Send an email to {address} with the subject '{subject}' and the body '{body}'",
    "Email {address}: subject '{subject}', body '{body}'",
    "Please write to {address}. Use '{subject}' as subject and '{body}' as text",
)
def send_to_address(office: Office, rng: random.Random) -> Plan:
    """Send an e-mail to an address that is given."""
    address, subject, body = rng.choice(office.people), rng.choice(SUBJECTS), rng.choice(BODIES)
    values = {"address": address, "subject": subject, "body": body}
    return Plan(values, [call("email_send_email", recipient=address, subject=subject, body=body)])


@family(
    "Send {name} an email with the subject '{subject}' and the body '{body}'",
    "Email {name}: subject '{subject}', body '{body}'",
    "Write to {name} please, with '{subject}' as subject and '{body}' as text",
)
def send_to_name(office: Office, rng: random.Random) -> Plan:
    """Send an e-mail to someone whose address must be found."""
    plan = send_to_address(office, rng)
    address = plan.values["address"]
    values = {**plan.values, "name": first_name(address)}
    return Plan(values, [find(address), *plan.steps])


@family(
    "Delete the email about '{subject}'",
    "Remove the message with the subject '{subject}'",
    "I don't need the email called '{subject}' any more, get rid of it",
)
def delete_email(office: Office, rng: random.Random) -> Plan:
    """Delete an e-mail found by subject."""
    identity, row = pick(rng, office.tables["emails"])
    steps = [
        call("email_search_emails", query=row["subject"]),
        call("email_delete_email", email_id=identity),
    ]
    return Plan({"subject": row["subject"]}, steps)


@family(
    "Reply to {name}'s last email with '{body}'",
    "Answer the latest email from {name}: '{body}'",
    "Write back to {name}'s most recent message, saying '{body}'",
)
def reply_to_last(office: Office, rng: random.Random) -> Plan:
    """Reply to the last e-mail someone sent."""
    _, row = pick(rng, office.tables["emails"])
    sent = {i: r for i, r in office.tables["emails"].items() if r["address"] == row["address"]}
    last = max(sent, key=lambda identity: sent[identity]["sent_time"])
    body = rng.choice(BODIES)
    steps = [
        call("email_search_emails", query=row["address"]),
        call("email_reply_email", email_id=last, body=body),
    ]
    values = {"name": first_name(row["address"]), "body": body}
    return Plan(values, [find(row["address"]), *steps])


@family(
    "Forward the email about '{subject}' to {name}",
    "Send the message '{subject}' on to {name}",
    "Let {name} have a copy of the email with the subject '{subject}'",
)
def forward_email(office: Office, rng: random.Random) -> Plan:
    """Forward an e-mail found by subject to someone by name."""
    identity, row = pick(rng, office.tables["emails"])
    address = rng.choice(office.people)
    steps = [
        call("email_search_emails", query=row["subject"]),
        find(address),
        call("email_forward_email", email_id=identity, recipient=address),
    ]
    return Plan({"subject": row["subject"], "name": first_name(address)}, steps)


@family(
    "Book a {minutes}-minute meeting called '{event}' with {name} on {day} at {hour}:00",
    "Create an event '{event}' with {name}, {day} {hour}:00, {minutes} minutes long",
    "Put '{event}' into the calendar: {minutes} minutes with {name}, {day} at {hour}:00",
)
def create_event(office: Office, rng: random.Random) -> Plan:
    """Book a meeting with someone by name."""
    address, event, when = rng.choice(office.people), rng.choice(EVENTS), day(rng, 1, 20)
    hour, minutes = rng.randint(9, 17), rng.choice((30, 60, 90))
    create = call(
        "calendar_create_event",
        event_name=event,
        participant_email=address,
        event_start=f"{when} {hour:02}:00:00",
        duration=minutes,
    )
    values = {
        "event": event,
        "name": first_name(address),
        "day": when,
        "hour": f"{hour:02}",
        "minutes": str(minutes),
    }
    return Plan(values, [find(address), create])


@family(
    "Cancel the {event}",
    "Delete the event '{event}'",
    "The {event} is off, take it out of the calendar",
)
def cancel_event(office: Office, rng: random.Random) -> Plan:
    """Delete an event found by name."""
    identity, row = pick(rng, office.tables["events"])
    steps = [
        call("calendar_search_events", query=row["event_name"]),
        call("calendar_delete_event", event_id=identity),
    ]
    return Plan({"event": row["event_name"]}, steps)


@family(
    "Move the {event} to {day} at {hour}:00",
    "Reschedule '{event}' for {day}, {hour}:00",
    "The {event} should start on {day} at {hour}:00 instead",
)
def move_event(office: Office, rng: random.Random) -> Plan:
    """Change the start of an event found by name."""
    identity, row = pick(rng, office.tables["events"])
    when, hour = day(rng, 1, 20), f"{rng.randint(9, 17):02}"
    start = f"{when} {hour}:00:00"
    steps = [
        call("calendar_search_events", query=row["event_name"]),
        call("calendar_update_event", event_id=identity, field="event_start", new_value=start),
    ]
    return Plan({"event": row["event_name"], "day": when, "hour": hour}, steps)
