"""Tools for projects: tasks on boards, in lists, with an owner and a due date."""

from typing import Any, Literal

from plait.align.workbench.office import Office
from plait.align.workbench.registry import (
    Address,
    AnyDate,
    Date,
    Id,
    Text,
    ToolError,
    check_value,
    row_of,
    shown,
    tool,
)

List = Literal["Backlog", "In Progress", "In Review", "Completed"]
Board = Literal["Back end", "Front end", "Design"]
TaskField = Literal["task_name", "assigned_to_email", "list_name", "due_date", "board"]
_KINDS: dict[str, Any] = {
    "task_name": Text,
    "assigned_to_email": Address,
    "list_name": List,
    "due_date": Date,
    "board": Board,
}


@tool("project_management_get_task_information_by_id")
def get_task(office: Office, task_id: Id, field: TaskField) -> Any:
    """Return one field of a task."""
    return {field: row_of(office, "tasks", task_id, "task")[field]}


@tool("project_management_search_tasks")
def search_tasks(
    office: Office,
    task_name: str = "",
    assigned_to_email: str = "",
    list_name: str = "",
    due_date: AnyDate = "",
    board: str = "",
) -> Any:
    """Search tasks by what their fields contain; give at least one."""
    wanted = {
        "task_name": task_name,
        "assigned_to_email": assigned_to_email,
        "list_name": list_name,
        "due_date": due_date,
        "board": board,
    }
    if not any(wanted.values()):
        raise ToolError("give at least one thing to search for")
    found = [
        identity
        for identity, row in office.tables["tasks"].items()
        if all(text.lower() in row[key].lower() for key, text in wanted.items())
    ]
    return shown(office, "tasks", "task_id", found, most=50)


@tool("project_management_create_task", changes=True)
def create_task(
    office: Office,
    task_name: Text,
    assigned_to_email: Address,
    list_name: List,
    due_date: Date,
    board: Board,
) -> Any:
    """Create a task for someone on the team and return its id."""
    row = {
        "task_name": task_name,
        "assigned_to_email": _on_team(office, assigned_to_email),
        "list_name": list_name,
        "due_date": due_date,
        "board": board,
    }
    return office.add("tasks", row)


@tool("project_management_delete_task", changes=True)
def delete_task(office: Office, task_id: Id) -> Any:
    """Delete a task."""
    row_of(office, "tasks", task_id, "task")
    del office.tables["tasks"][task_id]
    return "deleted"


@tool("project_management_update_task", changes=True)
def update_task(office: Office, task_id: Id, field: TaskField, new_value: Text) -> Any:
    """Change one field of a task."""
    row_of(office, "tasks", task_id, "task")
    value = check_value(_KINDS[field], new_value)
    if field == "assigned_to_email":
        _on_team(office, value)
    office.change("tasks", task_id, field, value)
    return "updated"


def _on_team(office: Office, address: str) -> str:
    if address not in office.people:
        raise ToolError(f"{address} is not on the team; find addresses in the company directory")
    return address
