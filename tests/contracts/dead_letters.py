"""
The suite of `eventbus.testing.contracts` for dead letters, and the letters it works with.
"""

from eventbus.testing.contracts._dead_letters import DeadLettersContract, MakeStore
from eventbus.testing.contracts._letters import (
    NOON,
    OrderPlaced,
    PaymentError,
    ids,
    letter,
    minutes,
    raised,
)

__all__ = [
    "NOON",
    "DeadLettersContract",
    "MakeStore",
    "OrderPlaced",
    "PaymentError",
    "ids",
    "letter",
    "minutes",
    "raised",
]
