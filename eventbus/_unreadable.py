"""
What stands for an event that cannot be read.

Law: it is handed to nobody: handlers get events. Whoever looks at letters and logs sees it.
"""

from __future__ import annotations

import attrs

__all__ = ["Unreadable"]


@attrs.frozen
class Unreadable:
    """
    What stands for an event that cannot be read.

    Attributes:
        name: The event's stable name.
        version: The version of the payload's shape.
        payload: The bytes as they are stored.
        error: Why they cannot be read.

    .. versionadded:: 0.1
    """

    name: str
    version: int
    payload: bytes
    error: Exception = attrs.field(eq=False)
