"""
What a projection is declared as, and how its methods are found and called.

Law: everything is found out when the projection is made: which method takes which event,
and what else it asks for. Nothing here reads a log or writes a table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from eventbus._envelope import Envelope
from eventbus._marks import marks_in
from eventbus._signature import HandlerSignature, event_types_of, name_of, read_signature
from eventbus.errors import DeclarationError

__all__ = ["SLOT", "Declared", "Folder", "declared_of"]

SLOT = "__eventbus_projection__"

Call = Callable[[Envelope[Any], Any], object]


@attrs.frozen(kw_only=True)
class Declared:
    """
    What a class was declared as.

    Attributes:
        name: What its position and its version are kept under.
        version: The version of what it builds, from 1.
        tables: The script that makes its tables; empty where its state is in memory.
        partial: Whether it may be built from what is left of a pruned log.
    """

    name: str
    version: int
    tables: str
    partial: bool


def declared_of(state: object) -> Declared:
    """
    Return what the class of *state* was declared as.

    Raises:
        DeclarationError: It was not.
    """
    declared: Declared | None = getattr(type(state), SLOT, None)
    if declared is None:
        raise DeclarationError(
            f"{state!r} is no projection: give the class that was decorated with "
            f"@projection(...), or what makes an instance of it"
        )
    return declared


@attrs.frozen
class _Method:
    """
    One method: whose events it takes, and how it is called.
    """

    types: tuple[type, ...]
    call: Call


class Folder:
    """
    Calls the methods of one instance, in the order in which they are written.

    Attributes:
        state: The instance.
        event_types: What its methods take.
    """

    def __init__(self, state: Any) -> None:
        self.state = state
        declared = declared_of(state)
        self._methods = tuple(_method(*mark, declared) for mark in marks_in(state))
        self.event_types = tuple(
            dict.fromkeys(each for method in self._methods for each in method.types)
        )

    def fold(self, envelope: Envelope[Any], connection: Any) -> None:
        """
        Let the event change the state.
        """
        for method in self._methods:
            if isinstance(envelope.event, method.types):
                try:
                    method.call(envelope, connection)
                except BaseException as error:
                    error.add_note(
                        f"while {declared_of(self.state).name} was taking in {envelope.name} "
                        f"at offset {envelope.offset}"
                    )
                    raise


def _method(given: Any, handler: Callable[..., Any], options: Any, declared: Declared) -> _Method:
    name = name_of(handler)
    if options:
        raise DeclarationError(
            f"{name}: a projection takes in one event after another, whatever happens; drop "
            f"{', '.join(f'{option}=' for option in options)}"
        )
    signature = read_signature(handler, name)
    if signature.connection_keyword is not None and not declared.tables:
        raise DeclarationError(
            f"{name} asks for a connection, and the projection has no tables: "
            f"@projection(tables='CREATE TABLE ...')"
        )
    if signature.is_async:
        raise DeclarationError(f"{name}: a projection's methods build state and await nothing")
    types = signature.event_types if given is None else event_types_of(given)
    if not types:
        raise DeclarationError(f"{name} does not say which event it takes: @on(OrderPlaced)")
    return _Method(types, _caller(handler, signature))


def _caller(handler: Callable[..., Any], signature: HandlerSignature) -> Call:
    keyword = signature.connection_keyword

    def call(envelope: Envelope[Any], connection: Any) -> object:
        named = {} if keyword is None else {keyword: connection}
        if signature.envelope_keyword is not None:
            named[signature.envelope_keyword] = envelope
        elif signature.takes_envelope:
            return handler(envelope.event, envelope, **named)
        return handler(envelope.event, **named)

    return call
