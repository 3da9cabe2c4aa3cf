"""
The suite of `eventbus.testing.contracts` for idempotency keys, and what it works with.
"""

from eventbus.testing.contracts._idempotency_store import IdempotencyStoreContract
from eventbus.testing.contracts._together import (
    EPSILON,
    LEASE,
    SOURCE,
    TTL,
    MakeStore,
    Source,
    together,
)

__all__ = [
    "EPSILON",
    "LEASE",
    "SOURCE",
    "TTL",
    "IdempotencyStoreContract",
    "MakeStore",
    "Source",
    "together",
]
