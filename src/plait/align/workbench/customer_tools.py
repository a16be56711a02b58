"""Tools for customers: who they are, who looks after them and how far things are."""

from typing import Any, Literal

from plait.align.workbench.office import Office
from plait.align.workbench.registry import (
    Address,
    AnyAddress,
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

Status = Literal["Qualified", "Won", "Lost", "Lead", "Proposal"]
Product = Literal["Software", "Hardware", "Services", "Consulting", "Training"]
CustomerField = Literal[
    "customer_name",
    "assigned_to_email",
    "customer_email",
    "customer_phone",
    "last_contact_date",
    "product_interest",
    "status",
    "notes",
    "follow_up_by",
]
_KINDS: dict[str, Any] = {
    "assigned_to_email": Address,
    "last_contact_date": Date,
    "product_interest": Product,
    "status": Status,
    "follow_up_by": Date,
}


@tool("crm_search_customers")
def search_customers(
    office: Office,
    customer_name: str = "",
    customer_email: str = "",
    product_interest: str = "",
    status: str = "",
    assigned_to_email: str = "",
    last_contact_date_min: AnyDate = "",
    last_contact_date_max: AnyDate = "",
    follow_up_by_min: AnyDate = "",
    follow_up_by_max: AnyDate = "",
) -> Any:
    """Search customers by what their fields contain and by dates; at most 5 are returned."""
    wanted = {
        "customer_name": customer_name,
        "customer_email": customer_email,
        "product_interest": product_interest,
        "status": status,
        "assigned_to_email": assigned_to_email,
    }
    dates = {
        "last_contact_date": (last_contact_date_min, last_contact_date_max),
        "follow_up_by": (follow_up_by_min, follow_up_by_max),
    }
    if not any(wanted.values()) and not any(map(any, dates.values())):
        raise ToolError("give at least one thing to search for")
    found = [
        identity
        for identity, row in office.tables["customers"].items()
        if all(text.lower() in row[key].lower() for key, text in wanted.items())
        and all(
            (not least or row[key] >= least) and (not most or row[key] <= most)
            for key, (least, most) in dates.items()
        )
    ]
    return shown(office, "customers", "customer_id", found)


@tool("crm_update_customer", changes=True)
def update_customer(office: Office, customer_id: Id, field: CustomerField, new_value: Text) -> Any:
    """Change one field of a customer."""
    row_of(office, "customers", customer_id, "customer")
    office.change("customers", customer_id, field, check_value(_KINDS.get(field, Text), new_value))
    return "updated"


@tool("crm_add_customer", changes=True)
def add_customer(
    office: Office,
    customer_name: Text,
    assigned_to_email: Address,
    status: Status,
    customer_email: AnyAddress = "",
    customer_phone: str = "",
    last_contact_date: AnyDate = "",
    product_interest: Literal[Product, ""] = "",
    notes: str = "",
    follow_up_by: AnyDate = "",
) -> Any:
    """Add a customer and return the id."""
    row = {
        "customer_name": customer_name,
        "assigned_to_email": assigned_to_email,
        "customer_email": customer_email,
        "customer_phone": customer_phone,
        "last_contact_date": last_contact_date,
        "product_interest": product_interest,
        "status": status,
        "notes": notes,
        "follow_up_by": follow_up_by,
    }
    return office.add("customers", row)


@tool("crm_delete_customer", changes=True)
def delete_customer(office: Office, customer_id: Id) -> Any:
    """Delete a customer."""
    row_of(office, "customers", customer_id, "customer")
    del office.tables["customers"][customer_id]
    return "deleted"
