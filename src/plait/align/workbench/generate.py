"""Make small offices from a seed, so that every task can have its own.

Names, subjects and titles are distinct within an office: a task that names one means one row.
"""

import random
from datetime import date, datetime, timedelta

from pydantic import Field

from plait.align.workbench.office import NOW, TODAY, Office, Row
from plait.core.config import Settings
from plait.core.seed import mix_seed


def _words(text: str, separator: str = " ") -> tuple[str, ...]:
    return tuple(text.split(separator))


FIRST_NAMES = _words(
    "Aisha Amir Anaya Carlos Chenwei Dmitri Fatima Hana Jinsoo Kofi Leila Lena Luis Mateo "
    "Nadia Nia Olga Raj Santiago Sofia Tariq Yuki Zara"
)
LAST_NAMES = _words(
    "Ali Azizi Chen Cohen Diaz Ito Ivanov Jensen Khan Kim Mensah Moreau Okafor Ortiz Park Patel "
    "Rossi Santos Schmidt Silva Singh Tanaka Weber Zhang"
)
CUSTOMER_FIRST_NAMES = _words(
    "Alex Avery Cameron Casey Drew Jaden Jamie Jessie Jordan Kendall Morgan Nia Parker Quinn Reese "
    "Riley Rowan Sage Skyler Taylor"
)
CUSTOMER_LAST_NAMES = _words(
    "Adams Allen Baker Brown Clark Davis Evans Green Hall Harris Jackson King Lewis Moore Nelson "
    "Reed Scott Thomas Walker White"
)
SUBJECTS = _words(
    "budget,launch plan,holiday list,new laptops,office move,press note,quarterly report,security "
    "audit,sales figures,site outage,staff survey,supplier contract,team lunch,test results,"
    "training days,travel costs",
    separator=",",
)
EVENTS = _words(
    "board review,budget talk,code review,customer call,design sync,hiring panel,launch check,"
    "lunch and learn,planning round,press briefing,project kickoff,risk review,sales huddle,"
    "sprint review,strategy day,team retreat",
    separator=",",
)
TASK_VERBS = ("Add", "Check", "Fix", "Remove", "Rewrite", "Test")
TASK_OBJECTS = _words(
    "billing page,search box,login form,image cache,user menu,price table,export job,error log,"
    "mail queue,dark theme",
    separator=",",
)
BODIES = (
    "Thanks, I will look into it.",
    "Please send me the latest numbers.",
    "Can we talk tomorrow?",
    "All done on my side.",
    "I need two more days.",
    "Great work!",
)
LISTS = ("Backlog", "In Progress", "In Review", "Completed")
BOARDS = ("Back end", "Front end", "Design")
STATUSES = ("Lead", "Qualified", "Proposal", "Won", "Lost")
PRODUCTS = ("Software", "Hardware", "Services", "Consulting", "Training")
SOURCES = ("direct", "referral", "search engine", "social media")
DOMAIN = "atlas.com"


class OfficeSettings(Settings):
    """How large a generated office is."""

    num_people: int = Field(default=6, ge=2, le=len(FIRST_NAMES))
    num_events: int = Field(default=8, ge=1, le=len(EVENTS))
    num_emails: int = Field(default=8, ge=1, le=len(SUBJECTS))
    num_tasks: int = Field(default=8, ge=1, le=len(TASK_VERBS) * len(TASK_OBJECTS))
    num_customers: int = Field(default=6, ge=1, le=len(CUSTOMER_FIRST_NAMES))
    num_visits: int = Field(default=20, ge=1)


def make_office(settings: OfficeSettings, seed: int) -> Office:
    """Make an office; equal seeds make equal offices."""
    rng = random.Random(mix_seed(seed, "office"))
    first = rng.sample(FIRST_NAMES, settings.num_people)
    last = rng.sample(LAST_NAMES, settings.num_people)
    people = [f"{a}.{b}@{DOMAIN}".lower() for a, b in zip(first, last, strict=True)]
    tables = {
        "events": [
            {
                "event_name": name,
                "participant_email": rng.choice(people),
                "event_start": f"{day(rng, -20, 20)} {rng.randrange(9, 17):02}:00:00",
                "duration": rng.choice(("30", "60", "90")),
            }
            for name in rng.sample(EVENTS, settings.num_events)
        ],
        "emails": [
            {
                "box": "inbox",
                "address": rng.choice(people),
                "subject": subject,
                "sent_time": sent,
                "body": rng.choice(BODIES),
            }
            for subject, sent in zip(
                rng.sample(SUBJECTS, settings.num_emails),
                _times_before_now(rng, settings.num_emails),
                strict=True,
            )
        ],
        "visits": [_visit(rng) for _ in range(settings.num_visits)],
        "tasks": _tasks(rng, people, settings.num_tasks),
        "customers": _customers(rng, people, settings.num_customers),
    }
    return Office(people, {name: _numbered(rng, rows) for name, rows in tables.items()})


def day(rng: random.Random, first: int, last: int) -> str:
    """Return a day so many days from today, both ends included."""
    return str(date.fromisoformat(TODAY) + timedelta(days=rng.randint(first, last)))


def _times_before_now(rng: random.Random, count: int) -> list[str]:
    minutes = rng.sample(range(1, 60 * 24 * 60), count)
    return [str(datetime.fromisoformat(NOW) - timedelta(minutes=back)) for back in minutes]


def _visit(rng: random.Random) -> Row:
    return {
        "date_of_visit": day(rng, -6, -1),
        "visitor_id": f"{rng.randrange(10_000):04}",
        "page_views": str(rng.randint(1, 12)),
        "session_duration_seconds": str(rng.randint(1, 90)),
        "traffic_source": rng.choice(SOURCES),
        "user_engaged": rng.choice(("True", "False")),
    }


def _tasks(rng: random.Random, people: list[str], count: int) -> list[Row]:
    names = [f"{verb} {what}" for verb in TASK_VERBS for what in TASK_OBJECTS]
    return [
        {
            "task_name": name,
            "assigned_to_email": rng.choice(people),
            "list_name": rng.choice(LISTS),
            "due_date": day(rng, -10, 10),
            "board": rng.choice(BOARDS),
        }
        for name in rng.sample(names, count)
    ]


def _customers(rng: random.Random, people: list[str], count: int) -> list[Row]:
    last = rng.sample(CUSTOMER_LAST_NAMES, count)
    return [
        {
            "customer_name": f"{a} {b}",
            "assigned_to_email": rng.choice(people),
            "customer_email": f"{a}.{b}@example.com".lower(),
            "customer_phone": "",
            "last_contact_date": day(rng, -40, -1),
            "product_interest": rng.choice(PRODUCTS),
            "status": rng.choice(STATUSES),
            "notes": "",
            "follow_up_by": day(rng, 1, 30),
        }
        for a, b in zip(rng.sample(CUSTOMER_FIRST_NAMES, count), last, strict=True)
    ]


def _numbered(rng: random.Random, rows: list[Row]) -> dict[str, Row]:
    """Give rows distinct ids of 8 digits, in no telling order."""
    ids = rng.sample(range(1, 1000), len(rows))
    return {f"{identity:08}": row for identity, row in zip(ids, rows, strict=True)}
