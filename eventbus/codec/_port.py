"""
What a codec is: the value it makes, its protocol, and a codec around a codec.

Law: whoever stores events knows a codec by this protocol alone. Nothing here knows
JSON, a type or a hook.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from eventbus.errors import DecodeError, EncodeError

__all__ = ["Codec", "Encoded", "PayloadCodec"]


class Encoded(NamedTuple):
    """
    An event as it is stored: what `Codec.decode` takes, ``decode(*encoded)``.

    Attributes:
        name: The event's name.
        version: The version of its shape, from 1.
        payload: Its fields.

    .. versionadded:: 0.1
    """

    # A tuple, because one is made for each event stored: three times as quick as attrs.

    name: str
    version: int
    payload: bytes


class Codec(Protocol):
    """
    Turns events into name, version and bytes, and back.

    A codec keeps nothing of the events; what it knows are classes. All methods may be
    called from any thread. What becomes of an event that cannot be read is not its
    affair: it raises.

    .. versionadded:: 0.1
    """

    def encode(self, event: Any, /) -> Encoded:
        """
        Write an event; its class is known from then on.

        Raises:
            EncodeError: It cannot be written so that it would come back equal.
            DeclarationError: Another live class has its name and version.
        """
        ...

    def decode(self, name: str, version: int, payload: bytes, /) -> Any:
        """
        Read an event, brought up to the version its class has now.

        Raises:
            UnknownEventError: No class is known that such events come back as.
            DecodeError: It cannot be read.
        """
        ...

    def know(self, *event_types: type) -> None:
        """
        Let events be read as these classes, and as classes derived from them.

        Raises:
            DeclarationError: Another live class has the name and version of one of them.
        """
        ...

    def check(self) -> None:
        """
        Look whether the upcasters of all classes known lead up to them.

        Raises:
            DeclarationError: There is a gap, a fork, or a step beyond; it names it.
        """
        ...

    def class_of(self, name: str, version: int, /) -> type | None:
        """
        Return the class that such events come back as, or ``None``; reads no payload.
        """
        ...

    def names_of(self, event_type: type, /) -> tuple[str, ...]:
        """
        Return every name that events of a class may be stored by, the present one first.
        """
        ...


class PayloadCodec:
    """
    A codec around a codec, which compresses, encrypts or signs its payloads.

    ::

        PayloadCodec(JSONCodec(), write=zlib.compress, read=zlib.decompress)

    Args:
        codec: The codec inside.
        write: From the payload of the codec inside to what is stored, bytes again.
        read: Back. What it raises becomes a `DecodeError`.

    .. versionadded:: 0.1
    """

    def __init__(
        self, codec: Codec, *, write: Callable[[bytes], bytes], read: Callable[[bytes], bytes]
    ) -> None:
        self.codec = codec
        self._write = write
        self._read = read
        self.know = codec.know
        self.check = codec.check
        self.class_of = codec.class_of
        self.names_of = codec.names_of

    def encode(self, event: Any, /) -> Encoded:
        """
        Write an event with the codec inside, then its payload.
        """
        inner = self.codec.encode(event)
        try:
            written: Any = self._write(inner.payload)
            payload = written if type(written) is bytes else bytes(memoryview(written))
            return Encoded(inner.name, inner.version, payload)
        except Exception as error:
            raise EncodeError(
                f"the payload of {inner.name} could not be wrapped: {_spelled(error)}", event=event
            ) from error

    def decode(self, name: str, version: int, payload: bytes, /) -> Any:
        """
        Read a payload, then the event with the codec inside.
        """
        try:
            inner = self._read(payload)
        except Exception as error:
            raise DecodeError(
                f"the payload of {name!r} version {version} could not be unwrapped: "
                f"{_spelled(error)}",
                name=name,
                version=version,
                reason=_spelled(error),
            ) from error
        return self.codec.decode(name, version, inner)


def _spelled(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
