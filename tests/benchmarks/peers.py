"""
The contenders: each peer library in its fastest documented configuration, and bare Python.

Law: one entry per contender in the two tables at the end, one function that wires it to given
handlers. No times and no targets here; peers are imported only when they are wired.

All do the same work: one event object reaches every handler, in the caller's thread. Handlers are
held strongly where a peer offers the choice, and no peer filters by sender.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import attrs

from .timing import Call, clone

Handler = Callable[..., Any]
Wire = Callable[[Sequence[Handler]], Call]


def plain(event: object) -> None:
    """
    Do nothing with an event: the handler of most contenders.
    """


async def aplain(event: object) -> None:
    """
    Do nothing with an event, as a coroutine.
    """


def named(event: object, **_named: object) -> None:
    """
    Do nothing with an event given by name, as Django's signals hand it over.
    """


async def anamed(event: object, **_named: object) -> None:
    """
    Do nothing with an event given by name, as a coroutine.
    """


@attrs.frozen
class Contender:
    """
    A peer to measure: what to import, how to wire it, and what its handlers look like.

    *distribution* names the package on the index; it is empty for what needs none. *how* says which
    configuration was chosen.
    """

    name: str
    module: str
    distribution: str
    wire: Wire
    handler: Handler = plain
    statement: str = "call(event)"
    how: str = ""

    @property
    def is_installed(self) -> bool:
        """
        Tell whether the peer can be imported here.
        """
        return find_spec(self.module) is not None

    @property
    def is_async(self) -> bool:
        """
        Tell whether a publish has to be awaited.
        """
        return inspect.iscoroutinefunction(self.handler)

    @property
    def version(self) -> str:
        """
        Return the installed version, or what to say instead.
        """
        return version_of(self.distribution) if self.is_installed else "not installed"

    def handlers(self, count: int) -> tuple[Handler, ...]:
        """
        Make *count* handlers that do nothing, each with a code object of its own.
        """
        return tuple(clone(self.handler) for _ in range(count))


def version_of(distribution: str) -> str:
    """
    Return the installed version of a distribution, or that it is used without installing.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "as it stands here"


def recorders(template: Handler, count: int, calls: list[tuple[int, object]]) -> list[Handler]:
    """
    Make *count* handlers of the template's shape that write down their number and the event.
    """

    def recorder(number: int) -> Handler:
        def record(event: object) -> None:
            calls.append((number, event))

        async def arecord(event: object) -> None:
            calls.append((number, event))

        def record_named(event: object, **_named: object) -> None:
            calls.append((number, event))

        async def arecord_named(event: object, **_named: object) -> None:
            calls.append((number, event))

        shapes: dict[Handler, Handler] = {
            plain: record,
            aplain: arecord,
            named: record_named,
            anamed: arecord_named,
        }
        return shapes[template]

    return [recorder(number) for number in range(count)]


def _bare(handlers: Sequence[Handler]) -> Call:
    def bare(event: object, handlers: tuple[Handler, ...] = tuple(handlers)) -> None:
        for handler in handlers:
            handler(event)

    return clone(bare)


def _abare(handlers: Sequence[Handler]) -> Call:
    async def bare(event: object, handlers: tuple[Handler, ...] = tuple(handlers)) -> None:
        for handler in handlers:
            await handler(event)

    return clone(bare)


def _psygnal(handlers: Sequence[Handler]) -> Any:
    psygnal = import_module("psygnal")
    emitter = type("Emitter", (), {"happened": psygnal.Signal(object)})()
    for handler in handlers:
        emitter.happened.connect(handler, check_nargs=False)
    return emitter.happened


def _blinker(handlers: Sequence[Handler]) -> Any:
    signal = import_module("blinker").Signal()
    for handler in handlers:
        signal.connect(handler, weak=False)
    return signal


def _pyee(handlers: Sequence[Handler]) -> Any:
    emitter = import_module("pyee").EventEmitter()
    for handler in handlers:
        emitter.add_listener("happened", handler)
    return emitter


def _pydispatcher(handlers: Sequence[Handler]) -> Any:
    dispatcher = import_module("pydispatch.dispatcher")
    for handler in tuple(dispatcher.getReceivers(None, "happened")):  # its table is global
        dispatcher.disconnect(handler, "happened", None, weak=False)
    for handler in handlers:
        dispatcher.connect(handler, signal="happened", sender=None, weak=False)
    return dispatcher


def _django(handlers: Sequence[Handler], *, use_caching: bool = False) -> Any:
    signal = import_module("django.dispatch").Signal(use_caching=use_caching)
    for handler in handlers:
        signal.connect(handler, weak=False)
    return signal


def _pymitter(handlers: Sequence[Handler]) -> Any:
    emitter = import_module("pymitter").EventEmitter()
    for handler in handlers:
        emitter.on("happened", handler)
    return emitter


def _aiosignal(handlers: Sequence[Handler]) -> Any:
    signal = import_module("aiosignal").Signal(None)
    signal.extend(handlers)
    signal.freeze()
    return signal


BARE = "bare loop"
ABARE = "bare loop, awaited"

SYNC: tuple[Contender, ...] = (
    Contender(BARE, "builtins", "", _bare, how="for handler in handlers: handler(event)"),
    Contender(
        "psygnal emit_fast",
        "psygnal",
        "psygnal",
        lambda handlers: _psygnal(handlers).emit_fast,
        how="compiled wheel; check_nargs=False, which spares slicing the arguments",
    ),
    Contender(
        "psygnal emit",
        "psygnal",
        "psygnal",
        lambda handlers: _psygnal(handlers).emit,
        how="compiled wheel; check_nargs=False, which spares slicing the arguments",
    ),
    Contender(
        "blinker send",
        "blinker",
        "blinker",
        lambda handlers: _blinker(handlers).send,
        how="weak=False, the event as sender",
    ),
    Contender(
        "pyee emit",
        "pyee",
        "pyee",
        lambda handlers: _pyee(handlers).emit,
        statement="call('happened', event)",
        how="the base EventEmitter",
    ),
    Contender(
        "PyDispatcher sendExact",
        "pydispatch",
        "PyDispatcher",
        lambda handlers: _pydispatcher(handlers).sendExact,
        statement="call('happened', None, event)",
        how="weak=False, one exact signal and sender",
    ),
    Contender(
        "Django send",
        "django",
        "Django",
        lambda handlers: _django(handlers).send,
        handler=named,
        statement="call(None, event=event)",
        how="weak=False",
    ),
    Contender(
        "Django send, cached",
        "django",
        "Django",
        lambda handlers: _django(handlers, use_caching=True).send,
        handler=named,
        statement="call(object, event=event)",
        how="weak=False, use_caching=True, a class as sender",
    ),
    Contender(
        "pymitter emit",
        "pymitter",
        "pymitter",
        lambda handlers: _pymitter(handlers).emit,
        statement="call('happened', event)",
        how="no wildcards",
    ),
)

ASYNC: tuple[Contender, ...] = (
    Contender(
        ABARE,
        "builtins",
        "",
        _abare,
        handler=aplain,
        how="for handler in handlers: await handler(event)",
    ),
    Contender(
        "aiosignal send",
        "aiosignal",
        "aiosignal",
        lambda handlers: _aiosignal(handlers).send,
        handler=aplain,
        how="frozen",
    ),
    Contender(
        "blinker send_async",
        "blinker",
        "blinker",
        lambda handlers: _blinker(handlers).send_async,
        handler=aplain,
        how="weak=False, the event as sender",
    ),
    Contender(
        "Django asend",
        "django",
        "Django",
        lambda handlers: _django(handlers, use_caching=True).asend,
        handler=anamed,
        statement="call(object, event=event)",
        how="weak=False, use_caching=True; runs its handlers as tasks",
    ),
    Contender(
        "pymitter emit_async",
        "pymitter",
        "pymitter",
        lambda handlers: _pymitter(handlers).emit_async,
        handler=aplain,
        statement="call('happened', event)",
        how="gathers its handlers as tasks",
    ),
)
