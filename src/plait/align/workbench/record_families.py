"""Kinds of task about analytics, projects and customers."""

import random

from plait.align.workbench.generate import (
    BOARDS,
    CUSTOMER_FIRST_NAMES,
    CUSTOMER_LAST_NAMES,
    EVENTS,
    LISTS,
    PRODUCTS,
    STATUSES,
    TASK_OBJECTS,
    TASK_VERBS,
    day,
)
from plait.align.workbench.office import Office
from plait.align.workbench.planning import Plan, call, family, find, first_name, pick

METRICS = {
    "total visits": "total_visits",
    "engaged users": "user_engaged",
    "direct visits": "visits_direct",
    "visits from referrals": "visits_referral",
}
PLOTS = ("bar", "line", "scatter", "histogram")


@family(
    "Make a {plot} chart of {metric} from {first} to {last}",
    "Plot {metric} between {first} and {last} as a {plot} chart",
    "I would like to see {metric} from {first} until {last}; draw a {plot} chart",
)
def plot_metric(office: Office, rng: random.Random) -> Plan:
    """Make a plot."""
    del office  # a plot is made whatever was visited
    first, last = sorted((day(rng, -30, -16), day(rng, -15, -1)))
    metric, plot = rng.choice(sorted(METRICS)), rng.choice(PLOTS)
    create = call(
        "analytics_create_plot",
        time_min=first,
        time_max=last,
        value_to_plot=METRICS[metric],
        plot_type=plot,
    )
    return Plan({"metric": metric, "plot": plot, "first": first, "last": last}, [create])


@family(
    "If there were more than {least} visits on {day}, make a {plot} chart of total visits that day",
    "More than {least} visits on {day}? Then plot that day's total visits as a {plot} chart",
    "Only in case {day} had over {least} visits, draw a {plot} chart of its total visits",
)
def plot_if_busy(office: Office, rng: random.Random) -> Plan:
    """Make a plot on a condition; half of the time there is nothing to do."""
    when, plot = day(rng, -6, -1), rng.choice(PLOTS)
    visits = sum(row["date_of_visit"] == when for row in office.tables["visits"].values())
    least = max(visits + rng.choice((-1, 0)), 0)
    steps = [call("analytics_total_visits_count", time_min=when, time_max=when)]
    if visits > least:
        create = call(
            "analytics_create_plot",
            time_min=when,
            time_max=when,
            value_to_plot="total_visits",
            plot_type=plot,
        )
        steps.append(create)
    return Plan({"least": str(least), "day": when, "plot": plot}, steps)


@family(
    "Add a task '{task}' for {name} to the {list} list of the {board} board, due {day}",
    "Create '{task}' on the {board} board in {list}, owner {name}, due {day}",
    "{name} should do '{task}' by {day}: put it into {list} on the {board} board",
)
def create_task(office: Office, rng: random.Random) -> Plan:
    """Create a task for someone by name."""
    address, due = rng.choice(office.people), day(rng, 1, 20)
    task = f"{rng.choice(TASK_VERBS)} {rng.choice(TASK_OBJECTS)} again"
    chosen, board = rng.choice(LISTS), rng.choice(BOARDS)
    create = call(
        "project_management_create_task",
        task_name=task,
        assigned_to_email=address,
        list_name=chosen,
        due_date=due,
        board=board,
    )
    values = {
        "task": task,
        "name": first_name(address),
        "list": chosen,
        "board": board,
        "day": due,
    }
    return Plan(values, [find(address), create])


@family(
    "Move the task '{task}' to {list}",
    "Put '{task}' into the list {list}",
    "'{task}' belongs in {list} now, move it",
)
def move_task(office: Office, rng: random.Random) -> Plan:
    """Move a task found by name to another list."""
    identity, row = pick(rng, office.tables["tasks"])
    chosen = rng.choice([name for name in LISTS if name != row["list_name"]])
    steps = [
        call("project_management_search_tasks", task_name=row["task_name"]),
        call(
            "project_management_update_task",
            task_id=identity,
            field="list_name",
            new_value=chosen,
        ),
    ]
    return Plan({"task": row["task_name"], "list": chosen}, steps)


@family(
    "Delete the task '{task}'",
    "Remove '{task}' from its board",
    "Nobody needs to do '{task}', drop it",
)
def delete_task(office: Office, rng: random.Random) -> Plan:
    """Delete a task found by name."""
    identity, row = pick(rng, office.tables["tasks"])
    steps = [
        call("project_management_search_tasks", task_name=row["task_name"]),
        call("project_management_delete_task", task_id=identity),
    ]
    return Plan({"task": row["task_name"]}, steps)


@family(
    "Move all of {name}'s tasks that are in {old} to {new}",
    "Everything of {name}'s in {old} goes to {new}",
    "Take {name}'s tasks out of {old} and put each into {new}",
)
def move_all_tasks(office: Office, rng: random.Random) -> Plan:
    """Move all tasks of one person in one list, at most four; there may be none."""
    _, row = pick(rng, office.tables["tasks"])
    address = row["assigned_to_email"]
    old, new = rng.sample(LISTS, 2)
    wanted = {"assigned_to_email": address, "list_name": old}
    steps = [find(address), call("project_management_search_tasks", **wanted)]
    found = [i for i, r in office.tables["tasks"].items() if wanted.items() <= r.items()]
    for identity in found[:4]:
        move = {"task_id": identity, "field": "list_name", "new_value": new}
        steps.append(call("project_management_update_task", **move))
    if len(found) > 4:
        return move_all_tasks(office, rng)
    return Plan({"name": first_name(address), "old": old, "new": new}, steps)


@family(
    "Update the status of {customer} to {status}",
    "Set {customer} to {status} in the CRM",
    "{customer} counts as {status} from now on, note that",
)
def update_status(office: Office, rng: random.Random) -> Plan:
    """Change the status of a customer."""
    identity, row = pick(rng, office.tables["customers"])
    status = rng.choice([name for name in STATUSES if name != row["status"]])
    change = {"customer_id": identity, "field": "status", "new_value": status}
    steps = [
        call("crm_search_customers", customer_name=row["customer_name"]),
        call("crm_update_customer", **change),
    ]
    return Plan({"customer": row["customer_name"], "status": status}, steps)


@family(
    "Give {customer} to {name}",
    "Assign the customer {customer} to {name}",
    "{name} takes over the customer {customer}",
)
def reassign_customer(office: Office, rng: random.Random) -> Plan:
    """Let someone else look after a customer."""
    identity, row = pick(rng, office.tables["customers"])
    address = rng.choice([person for person in office.people if person != row["assigned_to_email"]])
    change = {"customer_id": identity, "field": "assigned_to_email", "new_value": address}
    steps = [
        find(address),
        call("crm_search_customers", customer_name=row["customer_name"]),
        call("crm_update_customer", **change),
    ]
    return Plan({"customer": row["customer_name"], "name": first_name(address)}, steps)


@family(
    "Add {customer} as a {status} of {name}'s who is interested in {product}",
    "New customer {customer}: status {status}, interest {product}, assigned to {name}",
    "{name} has found a customer, {customer}. Enter the status {status} and the interest {product}",
)
def add_customer(office: Office, rng: random.Random) -> Plan:
    """Add a customer for someone by name."""
    customer = f"{rng.choice(CUSTOMER_FIRST_NAMES)} {rng.choice(CUSTOMER_LAST_NAMES)} junior"
    address = rng.choice(office.people)
    status, product = rng.choice(STATUSES), rng.choice(PRODUCTS)
    add = call(
        "crm_add_customer",
        customer_name=customer,
        assigned_to_email=address,
        status=status,
        product_interest=product,
    )
    values = {
        "customer": customer,
        "name": first_name(address),
        "status": status,
        "product": product,
    }
    return Plan(values, [find(address), add])


@family(
    "If {customer} is not won yet, book a 30-minute '{event}' on {day} at {hour}:00 with whoever "
    "is assigned to them",
    "Unless {customer} is already won, put a 30-minute '{event}' with the person in charge of "
    "them on {day}, {hour}:00",
    "Should {customer} still not be won, whoever looks after them gets a 30-minute '{event}' on "
    "{day} at {hour}:00",
)
def meet_about_customer(office: Office, rng: random.Random) -> Plan:
    """Look into one domain, act in another, on a condition."""
    _, row = pick(rng, office.tables["customers"])
    when, hour, event = day(rng, 1, 20), f"{rng.randint(9, 17):02}", rng.choice(EVENTS)
    steps = [call("crm_search_customers", customer_name=row["customer_name"])]
    if row["status"] != "Won":
        create = call(
            "calendar_create_event",
            event_name=event,
            participant_email=row["assigned_to_email"],
            event_start=f"{when} {hour}:00:00",
            duration=30,
        )
        steps.append(create)
    values = {"customer": row["customer_name"], "event": event, "day": when, "hour": hour}
    return Plan(values, steps)
