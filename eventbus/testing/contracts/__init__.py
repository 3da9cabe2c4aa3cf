"""
What every implementation of a port does, as test suites: ours pass them, and so may yours.

Law: the front door of the room. A suite uses the protocol and nothing else; this room, and
no other, needs pytest. An implementation passes a suite by a subclass with one fixture::

    class TestMyLog(EventLogContract):
        @pytest.fixture
        def log(self, tmp_path):
            return MyLog(tmp_path / "log.db")
"""

from eventbus.testing.contracts._dead_letters import DeadLettersContract
from eventbus.testing.contracts._event_log import EventLogContract
from eventbus.testing.contracts._idempotency_store import IdempotencyStoreContract
from eventbus.testing.contracts._kept_letters import KeptLettersContract
from eventbus.testing.contracts._progress import ProgressContract

__all__ = [
    "DeadLettersContract",
    "EventLogContract",
    "IdempotencyStoreContract",
    "KeptLettersContract",
    "ProgressContract",
]
