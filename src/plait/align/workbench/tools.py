"""All tools of the workbench: importing this registers the 27 of them."""

from plait.align.workbench import (
    analytics_tools,
    calendar_tools,
    customer_tools,
    email_tools,
    project_tools,
)
from plait.align.workbench.registry import TOOLS, call_tool

__all__ = [
    "TOOLS",
    "analytics_tools",
    "calendar_tools",
    "call_tool",
    "customer_tools",
    "email_tools",
    "project_tools",
]
