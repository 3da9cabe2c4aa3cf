"""
One published event and the facts about it, and where the code stands now.

Law: an envelope is a value, made once and never changed. `here` is the only
state that follows the flow of control; only the rooms that call handlers move it.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Protocol

import attrs

__all__ = ["Envelope", "current_envelope"]

# With a default, a bare `Envelope` is a complete annotation, also to strict type checkers.
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    E_co = TypeVar("E_co", covariant=True, default=Any)
else:  # the default, for a bare `Envelope`, only means something to a type checker
    E_co = typing.TypeVar("E_co", covariant=True)

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


# No slot for weak references: it would keep `Draft` from becoming an envelope.
@attrs.frozen(kw_only=True, weakref_slot=False)
class Envelope(Generic[E_co]):
    """
    One published event and what is known about it.

    An envelope is made when something first asks for it, and before the envelope
    of any event its handlers publish: ids and times of cause and effect are in order.

    Attributes:
        event: The event.
        id: A UUIDv7 in canonical text, unique to this publish.
        time: When the envelope was made, in UTC: during the publish, unless
            *is_late* says otherwise.
        name: The event's declared name, by default its class's.
        version: The version of the event's shape, from 1.
        key: What groups events of one entity, or ``None``.
        correlation_id: Shared by everything that one root event led to; the root's
            own id unless the publisher gave another.
        causation_id: The id of the event whose handler published this one, or
            ``None`` for a root.
        headers: What publisher and bus added: text to text.
        is_late: The publish had already returned when something first asked. *time*
            is then the moment of asking: the event was published before it. A bus
            with ``envelopes="eager"``, an observer or headers never makes a late one.
        offset: Where the event stands in the log, from 1; ``None`` where it is in no log,
            or will only be when the transaction is committed that it is part of.
        is_replay: The event was handled, or passed by, before: it is replayed.

    .. versionadded:: 0.1
    """

    event: E_co = attrs.field(hash=False)
    id: str
    time: datetime
    name: str
    version: int = 1
    key: str | None = None
    correlation_id: str
    causation_id: str | None = None
    headers: Mapping[str, str] = attrs.field(default=NO_HEADERS, hash=False)
    is_late: bool = False
    offset: int | None = None
    is_replay: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {field.name: getattr(self, field.name) for field in attrs.fields(Envelope)}
        return _made_again, ({**facts, "headers": dict(self.headers)},)


class Draft(Generic[E_co]):
    """
    An envelope while it is written; when all is there, `seal` makes it one.

    A frozen class stores each field by a call, which makes an envelope six times as
    expensive as this does.
    """

    __slots__ = tuple(field.name for field in attrs.fields(Envelope))

    event: E_co
    id: str
    time: datetime
    name: str
    version: int
    key: str | None
    correlation_id: str
    causation_id: str | None
    headers: Mapping[str, str]
    is_late: bool
    offset: int | None
    is_replay: bool

    def seal(self) -> Envelope[E_co]:
        """
        Become the envelope; nothing can be changed any more.
        """
        sealed: Any = self
        sealed.__class__ = Envelope
        return sealed  # type: ignore[no-any-return]


# Says where the log has put an event, before anybody has seen the envelope.
stamp: Callable[[Envelope[Any], int | None], None] = vars(Envelope)["offset"].__set__


def _made_again(facts: dict[str, Any]) -> Envelope[Any]:
    # A read-only view of a mapping can be neither pickled nor copied.
    facts["headers"] = MappingProxyType(facts["headers"])
    return Envelope(**facts)


class Published(Protocol):
    """
    What `here` knows of a publish under way.
    """

    @property
    def envelope(self) -> Envelope[Any]:
        """
        The envelope, made now if it was not yet.
        """
        ...


# Inside the handlers of which publish the flow of control stands. A copy of a context goes on
# showing what stood here when it was made, whoever runs it, and whenever.
here: ContextVar[Any] = ContextVar("eventbus_here", default=None)


def current_envelope() -> Envelope[Any] | None:
    """
    Return the envelope of the event being handled here, or ``None`` outside handlers.

    It follows the context: what a handler starts, a task or a thread that runs a copy
    of its context, still sees the envelope after the handler has returned.

    .. versionadded:: 0.1
    """
    publish: Published | None = here.get()
    return None if publish is None else publish.envelope
