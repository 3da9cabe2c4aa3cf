"""
For tests of code that publishes: a test bus, and a recording of any bus.

Law: the front door of the room. Names and ``__all__``, nothing that runs; nothing here
needs a test framework.
"""

from eventbus._clock import VirtualClock
from eventbus.testing._bus import TestBus
from eventbus.testing._faults import Faults
from eventbus.testing._idempotence import IdempotenceCheck
from eventbus.testing._record import Recording, record
from eventbus.testing._recorder import RecordedDelivery
from eventbus.testing._reordering import Reordering

__all__ = [
    "Faults",
    "IdempotenceCheck",
    "RecordedDelivery",
    "Recording",
    "Reordering",
    "TestBus",
    "VirtualClock",
    "record",
]
