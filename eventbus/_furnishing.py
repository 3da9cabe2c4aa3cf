"""
What a bus is furnished with unless it was told otherwise.

Law: what a bus has a store for is kept there; the rest is kept in memory. What a bus
without a store does not need is not loaded for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventbus.dead_letter import DeadLetters, InMemoryDeadLetters
from eventbus.idempotency import IdempotencyStore, InMemoryIdempotencyStore

if TYPE_CHECKING:
    from eventbus.codec import Codec
    from eventbus.store import Store

__all__ = ["codec_for", "keys_in", "letters_in"]


def keys_in(store: Store | None) -> IdempotencyStore:
    """
    Return where idempotency keys are kept.
    """
    return InMemoryIdempotencyStore() if store is None else store.idempotency


def codec_for(store: Store | None, codec: Codec | None) -> Codec | None:
    """
    Return how events are written down; ``None`` where none are.
    """
    if store is None or codec is not None:
        return codec
    from eventbus.codec import JSONCodec  # late: for start-up time

    return JSONCodec()


def letters_in(store: Store | None, codec: Codec | None) -> DeadLetters:
    """
    Return where dead letters are kept.
    """
    if store is None or codec is None:
        return InMemoryDeadLetters()
    from eventbus._stored_letters import StoredDeadLetters  # late: for start-up time

    return StoredDeadLetters(store.letters, codec)
