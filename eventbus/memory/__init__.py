"""
A durable store that lasts as long as this process: for tests, and to look at.

Law: the front door of the room. Everything behind it keeps the promises of the store on
disk, under the same contract suites, except the one that needs a disk.
"""

from eventbus.memory._log import InMemoryEventLog
from eventbus.memory._store import MemoryStore

__all__ = ["InMemoryEventLog", "MemoryStore"]
