"""
How a Python started by a test is told that warnings are errors.
"""

from __future__ import annotations

import sys

__all__ = ["STRICT"]

STRICT = ["-W", "error"]
if (3, 12) <= sys.version_info < (3, 12, 4):  # takes `?1` for a name (python/cpython#117995)
    STRICT += ["-W", "ignore::DeprecationWarning"]
