"""Tools for e-mail: an inbox and an outbox, and the directory of addresses."""

from typing import Any, Literal

from plait.align.workbench.office import NOW, Office
from plait.align.workbench.registry import (
    Address,
    AnyDate,
    Id,
    Text,
    row_of,
    shown,
    tool,
)

EmailField = Literal["box", "address", "subject", "sent_time", "body"]


@tool("company_directory_find_email_address")
def find_email_address(office: Office, name: Text) -> Any:
    """Find the e-mail addresses of the people whose name contains a text."""
    return [p for p in office.people if name.lower() in p.partition("@")[0]] or "nothing found"


@tool("email_get_email_information_by_id")
def get_email(office: Office, email_id: Id, field: EmailField) -> Any:
    """Return one field of an e-mail."""
    return {field: row_of(office, "emails", email_id, "e-mail")[field]}


@tool("email_search_emails")
def search_emails(
    office: Office, query: str = "", date_min: AnyDate = "", date_max: AnyDate = ""
) -> Any:
    """Search e-mails with all words in subject, body or address, latest first; at most 5."""
    words = query.lower().split()
    found = [
        identity
        for identity, row in sorted(office.tables["emails"].items(), key=_sent, reverse=True)
        if all(word in f"{row['subject']} {row['body']} {row['address']}".lower() for word in words)
        and (not date_min or row["sent_time"][:10] >= date_min)
        and (not date_max or row["sent_time"][:10] <= date_max)
    ]
    return shown(office, "emails", "email_id", found)


@tool("email_send_email", changes=True)
def send_email(office: Office, recipient: Address, subject: Text, body: Text) -> Any:
    """Send an e-mail."""
    return _send(office, recipient, subject, body)


@tool("email_delete_email", changes=True)
def delete_email(office: Office, email_id: Id) -> Any:
    """Delete an e-mail."""
    row_of(office, "emails", email_id, "e-mail")
    del office.tables["emails"][email_id]
    return "deleted"


@tool("email_forward_email", changes=True)
def forward_email(office: Office, email_id: Id, recipient: Address) -> Any:
    """Forward an e-mail."""
    row = row_of(office, "emails", email_id, "e-mail")
    return _send(office, recipient, f"FW: {row['subject']}", row["body"])


@tool("email_reply_email", changes=True)
def reply_email(office: Office, email_id: Id, body: Text) -> Any:
    """Reply to the sender of an e-mail."""
    row = row_of(office, "emails", email_id, "e-mail")
    return _send(office, row["address"], row["subject"], body)


def _send(office: Office, recipient: str, subject: str, body: str) -> str:
    row = {
        "box": "outbox",
        "address": recipient,
        "subject": subject,
        "sent_time": NOW,
        "body": body,
    }
    office.add("emails", row)
    return "sent"


def _sent(item: tuple[str, dict[str, str]]) -> tuple[str, str]:
    return item[1]["sent_time"], item[0]
