"""
How a Python started by a test is told that warnings are errors.
"""

from __future__ import annotations

__all__ = ["STRICT"]

STRICT = ["-W", "error"]
