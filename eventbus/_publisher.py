"""
What comes before and after the calls of a publish: options, envelope, publisher's key.

Law: of no colour: nothing here calls a handler or waits. A plain publish passes
this room only when it is nested, or when something asks for its envelope.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TypedDict

import attrs

from eventbus._envelope import NO_HEADERS, Draft, Envelope, here
from eventbus._event import Declaration
from eventbus._furniture import Furniture
from eventbus._logger import logger
from eventbus._publisher_keys import PublisherKeys
from eventbus._receipt import Receipt, ancestry, begin, free_key, raise_failures
from eventbus._route import Route
from eventbus._verdict import cycle_at_limit, log_failure
from eventbus.dead_letter import DeadLetter
from eventbus.errors import BusClosedError, RunningLoopError
from eventbus.instrumentation import Published, Unhandled

__all__ = ["PublishOptions", "Publisher", "refuse_loop"]


class PublishOptions(TypedDict, total=False):
    """
    What `EventBus.publish` and its twins take as keywords.

    .. versionadded:: 0.1
    """

    idempotency_key: str | None
    """One event of its class for each key and window; the others are duplicates."""
    correlation_id: str | None
    """Default: the one of the event being handled here, or the event's own id."""
    headers: Mapping[str, str] | None
    """Added to those of the bus."""
    delay: float | None
    """Seconds until it is published; none or less: now."""
    at: datetime | None
    """When it is published, with a time zone; in the past: now."""
    connection: Any
    """A connection to the store's own database: the event joins its transaction."""
    expected_version: int | None
    """How many events the stream of the event's key must have; else `ConcurrencyError`."""


_KNOWN = frozenset(PublishOptions.__annotations__)


@attrs.define(eq=False, repr=False, kw_only=True)
class Publisher:
    """
    Prepares and concludes the publishes of one bus.

    Attributes:
        furniture: What to work with.
        headers: Called for each publish, in the publisher's context.
        is_eager: Make the envelope before the first handler is called.
        max_depth: How deep publishes may be nested.
        raises: Raise failures once all handlers have run.
        is_closing: Only what handlers publish is still taken.
        keys: The publishers' own keys.
    """

    furniture: Furniture
    headers: Callable[[], Mapping[str, str]] | None
    is_eager: bool
    max_depth: int
    raises: bool
    is_closing: bool = False
    keys: PublisherKeys = attrs.field(
        init=False,
        default=attrs.Factory(lambda self: PublisherKeys(self.furniture), takes_self=True),
    )

    def announce(self, receipt: Receipt, route: Route) -> None:
        """
        Tell the observers, and count: from here on the event is under way.
        """
        if self.furniture.observers:
            self.furniture.notify(Published(envelope=receipt.envelope, subscriptions=route.names))
        # Last: what is counted is called, or counted as missed.
        route.published += 1

    def begin(
        self,
        event: object,
        route: Route,
        options: Mapping[str, Any],
        *,
        is_stored_next: bool = False,
        is_to_wait: bool = False,
        is_awaited: bool = False,
    ) -> Receipt:
        """
        Return a receipt with its options, and the publisher's key held, if it has one.

        The key of a publish *is_to_wait*, for its block's end or its moment, is not asked for;
        where the publish *is_awaited*, `ahold` does so.

        Raises:
            PublishCycleError: It is nested deeper than the bus allows.
            BusClosedError: The bus is closing, and no handler publishes it.
        """
        parent = here.get()
        receipt = begin(event, route, parent)
        if parent is not None:
            self.descend(receipt, parent)
        elif self.is_closing:
            raise BusClosedError(
                f"the bus is closing and takes no {route.name}, unless from its handlers. "
                f"Publish before close(), or make a new bus."
            )
        if options or self.headers is not None:
            receipt.options = self._checked(options, route)
        if (
            options.get("idempotency_key") is not None
            and not is_to_wait
            and (is_awaited or not self.keys.claim(receipt, is_stored_next=is_stored_next))
        ):
            return receipt
        if self.is_eager:
            receipt.envelope  # noqa: B018 - made now
        return receipt

    async def ahold(self, receipt: Receipt, *, is_stored_next: bool) -> None:
        """
        Hold the publisher's key of a publish that was begun, if it has one.
        """
        if await self.keys.aclaim(receipt, is_stored_next=is_stored_next) and self.is_eager:
            receipt.envelope  # noqa: B018 - made now

    def redriving(self, letter: DeadLetter, route: Route) -> Receipt:
        """
        Return the receipt of a dead letter's redrive: the same envelope, a new story.

        What the handler publishes was caused by the event, not by what redrives it.
        """
        parent = here.get()
        receipt = begin(letter.event, route, parent)
        receipt.sealed = letter.envelope
        receipt.options = {"redriven": letter}
        receipt.unqueued = route.queued + route.durable  # it is handled here and now
        if parent is not None:
            self.descend(receipt, parent)
        # It comes the subscription's way once more: the counts still add up.
        route.subscriptions[0].counters.routed += 1
        return receipt

    def descend(self, receipt: Receipt, parent: Receipt) -> None:
        """
        Note that *receipt*'s event is published by a handler of *parent*'s.

        Raises:
            PublishCycleError: That is deeper than the bus allows.
        """
        if parent.finished:
            _cut(parent)
            return
        receipt.depth = parent.depth + 1
        if receipt.depth >= self.max_depth:
            receipt.depth = _depth(receipt)
            if receipt.depth >= self.max_depth:
                raise cycle_at_limit(receipt)

    def seal(self, receipt: Receipt, declaration: Declaration) -> Envelope[Any]:
        """
        Make the receipt's envelope, once, and its parents' before it.
        """
        parent, options, clock = receipt.parent, receipt.options or {}, self.furniture.clock
        cause = None if parent is None else parent.sealed or _sealed(parent)
        draft: Draft[Any] = Draft()
        draft.event = receipt.event
        draft.id = draft.correlation_id = options.get("id") or clock.new_id()
        since = receipt.since  # when a queue accepted it, in the publish
        age = 0.0 if since is None else clock.monotonic() - since
        draft.time = datetime.fromtimestamp(clock.time() - age, UTC)
        draft.name = declaration.name
        draft.version = declaration.version
        draft.key = None if declaration.key is None else _key(declaration, receipt.event)
        draft.causation_id = None
        draft.headers = options.get("headers") or NO_HEADERS
        draft.is_late = receipt.finished and since is None
        draft.offset, draft.is_replay = None, False
        if cause is not None:
            draft.causation_id = cause.id
            draft.correlation_id = cause.correlation_id
        if options.get("correlation_id"):
            draft.correlation_id = options["correlation_id"]
        # Of two threads that come here at once, both leave with the same one.
        first: Envelope[Any] = vars(receipt).setdefault("sealed", draft.seal())
        return first

    def conclude(self, receipt: Receipt) -> Receipt:
        """
        Do what is due when all handlers are done.

        Raises:
            HandlerErrors: Some failed, on a bus with ``errors="raise"``.
        """
        if receipt.failures or self.furniture.observers:  # spares the call where it does nothing
            self.settle(receipt)
            if self.raises:
                receipt.raise_for_failures()
        return receipt

    @contextmanager
    def concluding(self) -> Generator[list[Receipt]]:
        """
        Do what is due for the receipts collected in the block, also if it is interrupted.

        Raises:
            HandlerErrors: Some failed, on a bus with ``errors="raise"``.
        """
        receipts: list[Receipt] = []
        try:
            yield receipts
        except BaseException:
            for receipt in receipts:
                self.settle(receipt)
                self.interrupted(receipt)
            raise
        self.conclude_many(receipts)

    def conclude_many(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        """
        Do what is due when the handlers of many events are done.

        Raises:
            HandlerErrors: Some failed, on a bus with ``errors="raise"``.
        """
        for receipt in receipts:
            self.settle(receipt)
        if self.raises:
            failed = [
                (each, receipt.route.name) for receipt in receipts for each in receipt.failures
            ]
            if failed:
                raise_failures(f"{len(receipts)} events", failed)
        return list(receipts)

    def interrupted(self, receipt: Receipt) -> None:
        """
        Log the failures that would have been raised, for something else is.
        """
        if not self.furniture.logs_failures:
            for failure in receipt.failures:
                log_failure(receipt, failure)

    def settle(self, receipt: Receipt) -> None:
        """
        Free the publisher's key after a failure, and report what nobody handled.
        """
        if receipt.failures:
            free_key(receipt)
        if self.furniture.observers and receipt.unhandled:
            self.furniture.notify(Unhandled(envelope=receipt.envelope))

    def _checked(self, options: Mapping[str, Any], route: Route) -> dict[str, Any]:
        unknown = sorted(set(options) - _KNOWN)
        if unknown:
            raise TypeError(
                f"publish() has no option {unknown[0]!r}. Known are {', '.join(sorted(_KNOWN))}."
            )
        for option in ("idempotency_key", "correlation_id"):
            value = options.get(option)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{option} of {route.name} must be text, not {value!r}")
        headers = _merged(self.headers and self.headers(), options.get("headers"), route)
        return {**options, "headers": headers}


def refuse_loop(route: Route, cure: str = "Use await bus.apublish(...).") -> None:
    """
    Refuse to block an event loop for the async handlers of *route*, if it has any.

    Raises:
        RunningLoopError: It has. No handler has been called.
    """
    if route.needs_loop is not None:
        raise RunningLoopError(
            f"publish() of {route.name} in a thread with a running event loop cannot wait for "
            f"{route.needs_loop}, which needs the loop. {cure}",
            subscription=route.needs_loop,
        )


def _sealed(parent: Receipt) -> Envelope[Any]:
    """
    Return the parent's envelope, its own parents' made before it.
    """
    # One by one, for the chain may be long and the stack short.
    for ancestor in [each for each in ancestry(parent) if each.sealed is None][::-1]:
        ancestor.envelope  # noqa: B018 - made now
    return parent.envelope


def _key(declaration: Declaration, event: object) -> str | None:
    try:
        return declaration.key_of(event)
    except Exception:
        logger().exception(
            "the key= of %s raised; the event goes on without a key", declaration.name
        )
        return None


def _merged(own: Any, given: Any, route: Route) -> Mapping[str, str]:
    for headers in (own, given):
        if not (headers is None or isinstance(headers, Mapping)):
            raise TypeError(f"headers of {route.name} are a mapping, not {headers!r}")
    merged: dict[Any, Any] = {**(own or {}), **(given or {})}
    for name, value in merged.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers of {route.name} map text to text, not {name!r} to {value!r}")
    return MappingProxyType(merged)


def _cut(parent: Receipt) -> None:
    """
    Let a publish that is over go from its own cause, once that is written down.

    What publishes then has outlived the handler that started it: a task, a thread. A
    chain of such tasks would keep all of its ancestors.
    """
    parent.envelope  # noqa: B018 - made now
    parent.parent = None


def _depth(receipt: Receipt) -> int:
    """
    Count the publishes *receipt* is nested in, as far as they are still under way.
    """
    depth = 0
    for each in ancestry(receipt.parent):
        if each.finished:
            _cut(each)
            break
        depth += 1
    return depth
