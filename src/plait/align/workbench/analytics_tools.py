"""Tools for analytics: counts of a web site's visits by day, and plots of them."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal

from plait.align.workbench.office import Office, Row
from plait.align.workbench.registry import AnyDate, Date, Id, ToolError, tool

Source = Literal["", "direct", "referral", "search engine", "social media"]
Value = Literal[
    "total_visits",
    "session_duration_seconds",
    "user_engaged",
    "visits_direct",
    "visits_referral",
    "visits_search_engine",
    "visits_social_media",
]
Plot = Literal["bar", "line", "scatter", "histogram"]


@tool("analytics_get_visitor_information_by_id")
def get_visitor(office: Office, visitor_id: Id) -> Any:
    """Return the visits of a visitor; ids of visitors have 4 digits."""
    found = [row for row in office.tables["visits"].values() if row["visitor_id"] == visitor_id]
    if not found:
        raise ToolError(f"no visitor has the id {visitor_id!r}")
    return found


@tool("analytics_create_plot", changes=True)
def create_plot(
    office: Office, time_min: Date, time_max: Date, value_to_plot: Value, plot_type: Plot
) -> Any:
    """Plot a value over a range of days and return the plot's file."""
    path = f"plots/{time_min}_{time_max}_{value_to_plot}_{plot_type}.png"
    office.add("plots", {"file_path": path})
    return path


@tool("analytics_total_visits_count")
def total_visits(office: Office, time_min: AnyDate = "", time_max: AnyDate = "") -> Any:
    """Return the number of visits of each day."""
    return {day: len(rows) for day, rows in _days(office, time_min, time_max)}


@tool("analytics_engaged_users_count")
def engaged_users(office: Office, time_min: AnyDate = "", time_max: AnyDate = "") -> Any:
    """Return the number of engaged users of each day."""
    return {
        day: sum(row["user_engaged"] == "True" for row in rows)
        for day, rows in _days(office, time_min, time_max)
    }


@tool("analytics_traffic_source_count")
def traffic_source(
    office: Office, time_min: AnyDate = "", time_max: AnyDate = "", traffic_source: Source = ""
) -> Any:
    """Return the number of visits of each day from one source, or from all."""
    return {
        day: sum(traffic_source in ("", row["traffic_source"]) for row in rows)
        for day, rows in _days(office, time_min, time_max)
    }


@tool("analytics_get_average_session_duration")
def average_duration(office: Office, time_min: AnyDate = "", time_max: AnyDate = "") -> Any:
    """Return the average session of each day, in seconds."""
    return {
        day: round(sum(float(row["session_duration_seconds"]) for row in rows) / len(rows), 2)
        for day, rows in _days(office, time_min, time_max)
    }


def _days(office: Office, first: str, last: str) -> Iterator[tuple[str, list[Row]]]:
    """Yield the days of a range that have visits, in order, with their visits."""
    days = defaultdict(list)
    for row in office.tables["visits"].values():
        day = row["date_of_visit"]
        if (not first or day >= first) and (not last or day <= last):
            days[day].append(row)
    yield from sorted(days.items())
