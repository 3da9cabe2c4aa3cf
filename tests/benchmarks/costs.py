"""
What each feature adds to one publish to one handler.

Law: one line per feature, each against the same publish without it; no targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from eventbus import Envelope, EventBus, exponential

from . import ours
from .peers import Handler, aplain, plain
from .rows import Row
from .timing import Effort, Lane, another_thread, clone, lane, measure

PLAIN = "a plain publish"
APLAIN = "a plain apublish"
THREADED = "a plain publish, another thread alive"


def with_envelope(event: ours.OrderPlaced, envelope: Envelope[ours.OrderPlaced]) -> None:
    """
    Do nothing with an event and its envelope.
    """


def _publish(
    name: str, bus: EventBus | None = None, handler: Handler = plain, **options: Any
) -> Lane:
    return lane(name, ours.bus_of([clone(handler)], bus, **options).publish, ours.ORDER)


def _apublish(name: str, handler: Handler = aplain, **options: Any) -> Lane:
    call = ours.bus_of([clone(handler)], **options).apublish
    return lane(name, call, ours.ORDER, is_async=True)


def _told(name: str, statement: str) -> Lane:
    call = ours.one().publish
    return lane(name, call, ours.ORDER, statement=statement)


def _yes(event: ours.OrderPlaced) -> bool:
    return True


def _around(call: Callable[..., Any]) -> Callable[..., Any]:
    def around(event: Any) -> Any:
        return call(event)

    return around


def _headers() -> dict[str, str]:
    return {"tenant": "acme"}


def _on(error: type[Exception] = ConnectionError) -> Any:
    return exponential(attempts=3, initial=0.1, on=(error,))


def publish_lanes() -> Iterator[Lane]:
    """
    Yield a plain publish and the same with each feature of a synchronous bus.
    """
    yield _publish(PLAIN)
    yield lane(
        "9 more plain handlers", ours.bus_of([clone(plain) for _ in range(10)]).publish, ours.ORDER
    )
    yield _publish("priority=", priority=1)
    yield _publish("where=", where=_yes)
    yield _publish("wrap=", wrap=_around)
    yield _publish("weak=True", weak=True)
    yield _publish("retry=, success path", retry=_on())
    yield ours.deduplicated("idempotency_key=, new key each time")
    yield _publish("an Envelope parameter", handler=with_envelope)
    yield _told("receipt.id read", "call(event).id")
    yield _told("correlation_id= given", "call(event, correlation_id='c-1')")
    yield _told("headers= given", "call(event, headers={'tenant': 'acme'})")
    yield _publish("EventBus(headers=callable)", EventBus(headers=_headers))
    yield _publish("EventBus(envelopes='eager')", EventBus(envelopes="eager"))
    yield _publish("EventBus(timings=True)", EventBus(timings=True))
    yield _publish("an observer", EventBus(observers=[lambda details: None]))


def threaded_lanes() -> Iterator[Lane]:
    """
    Yield what needs a second thread, against a plain publish beside one.
    """
    yield _publish(THREADED)
    yield _publish("an async handler, on the loop thread", handler=aplain)


def apublish_lanes() -> Iterator[Lane]:
    """
    Yield a plain apublish and the same with each feature of its own.
    """
    yield _apublish(APLAIN)
    yield _apublish("a plain sync handler", handler=plain)
    yield _apublish("timeout=", timeout=3.0)
    yield _apublish("retry= and timeout=", timeout=3.0, retry=_on())
    yield _apublish("offload=True", handler=plain, offload=True)


def run(effort: Effort) -> Iterator[Row]:
    """
    Time every feature against the publish without it.

    Last what leaves a thread behind: a plain publish is cheaper in a process without.
    """
    yield from _against(PLAIN, measure(tuple(publish_lanes()), effort))
    yield from _against(APLAIN, measure(tuple(apublish_lanes()), effort))
    with another_thread():
        yield from _against(THREADED, measure(tuple(threaded_lanes()), effort))


def _against(name: str, times: dict[str, float]) -> Iterator[Row]:
    return (Row(lane, name, time, times[name]) for lane, time in times.items())
