"""
What a bus is furnished with unless it was told otherwise.

Law: what a bus has a store for is kept there; the rest is kept in memory. What a bus
without a store does not need is not loaded for it. What cannot be a part is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING

from eventbus.dead_letter import DeadLetters, InMemoryDeadLetters
from eventbus.idempotency import IdempotencyStore, InMemoryIdempotencyStore

if TYPE_CHECKING:
    from eventbus.codec import Codec
    from eventbus.store import Store

__all__ = ["check_calls", "check_choices", "check_parts", "codec_for", "keys_in", "letters_in"]

# What each part of a bus has to have, of all that its protocol asks for, and what has it.
_PARTS = {
    "clock": ("monotonic sleep new_id", "VirtualClock()"),
    "codec": ("encode decode", "JSONCodec()"),
    "dead_letters": ("add query remove", "InMemoryDeadLetters()"),
    "idempotency": ("claim complete release", "InMemoryIdempotencyStore()"),
    "store": ("log progress letters", 'SQLiteStore("app.db")'),
}


def check_choices(errors: str, fanout: str, envelopes: str, max_depth: object) -> None:
    """
    Refuse what is none of the settings there are.

    Raises:
        ValueError: It is another one.
    """
    _one_of("errors", errors, "collect", "raise")
    _one_of("fanout", fanout, "sequential", "concurrent")
    _one_of("envelopes", envelopes, "lazy", "eager")
    if not isinstance(max_depth, int) or max_depth < 1:
        raise ValueError(f"max_depth is at least 1, not {max_depth!r}")


def _one_of(option: str, value: object, *allowed: str) -> None:
    if value not in allowed:
        raise ValueError(f"{option} is one of {', '.join(map(repr, allowed))}, not {value!r}")


def check_parts(*given: object) -> None:
    """
    Refuse what cannot be a part of a bus; they are given in the order of their names.

    Raises:
        TypeError: A class was given, or something else altogether.
    """
    for part, (option, (names, example)) in zip(given, _PARTS.items(), strict=True):
        if isinstance(part, type):
            raise TypeError(f"{option}={part.__qualname__} is a class: make one, as in {example}")
        for name in () if part is None else names.split():
            if not _has(part, name):
                raise TypeError(f"{option}={part!r} has no {name!r}. Give {example}, for example.")


def _has(part: object, name: str) -> bool:
    kind = type(part)
    is_there = hasattr(kind, name) or hasattr(kind, "__getattr__")
    return is_there or name in getattr(part, "__dict__", ())


def check_calls(*, observers: object, **given: object) -> None:
    """
    Refuse what is to be called and cannot be, or would have to be awaited.

    Observers are looked at one by one when they are let in.

    Raises:
        TypeError: It is not callable, or async.
    """
    for option, call in given.items():
        if call is not None and (not callable(call) or iscoroutinefunction(call)):
            example = "lambda: {...}" if option == "headers" else "a decorator"
            raise TypeError(f"{option}= is a plain callable, as {example} is, not {call!r}")
    if not isinstance(observers, Iterable):
        raise TypeError(f"observers= is a list of them, not {observers!r}")


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
