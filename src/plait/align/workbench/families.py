"""All kinds of task: importing this registers them."""

from plait.align.workbench import id_families, message_families, record_families
from plait.align.workbench.planning import FAMILIES

__all__ = ["FAMILIES", "id_families", "message_families", "record_families"]
