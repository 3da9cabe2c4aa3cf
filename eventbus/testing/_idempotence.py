"""
The idempotence check: every handler runs twice, and whose runs differ is reported.

Law: the second run is a rehearsal. It calls the handler as a redelivery would, but
what it publishes is compared and goes no further, and what it raises reaches nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import isawaitable
from typing import Any

import attrs

from eventbus._envelope import here
from eventbus._receipt import Receipt
from eventbus._route import Folded
from eventbus._subscription import Subscription
from eventbus.testing._fields import name_of_type, same, shown, values_of

__all__ = ["CatchUp", "IdempotenceCheck", "is_rehearsing", "observed", "overheard"]

# How many events one handler is reported for; the others would say the same.
MOST = 3


@attrs.define(eq=False)
class Run:
    """
    What one run of a handler did, apart from its side effects.

    Attributes:
        within: The publish whose event it handles.
        is_rehearsal: It is the second run.
        published: The events it published itself.
        heard: Their publishes; one that waits for its block or its moment comes by twice.
        result: What it returned.
        error: What it raised.
        is_open: The handler is running.
        is_done: It has run to its end and raised nothing.
    """

    within: Receipt
    is_rehearsal: bool = False
    published: list[object] = attrs.field(factory=list)
    heard: set[Receipt] = attrs.field(factory=set)
    result: object = None
    error: Exception | None = None
    is_open: bool = False
    is_done: bool = False

    @contextmanager
    def attempt(self) -> Generator[None]:
        """
        Note down what the handler does; a new attempt takes the place of the last.
        """
        self.published, self.is_done = [], False
        self.is_open = True
        try:
            yield
            self.is_done = True
        finally:
            self.is_open = False


_run: ContextVar[Run | None] = ContextVar("eventbus_testing_run", default=None)


@contextmanager
def _standing_in(run: Run | None) -> Generator[None]:
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def is_rehearsing() -> bool:
    """
    Tell whether a second run is under way here.
    """
    run = _run.get()
    return run is not None and run.is_rehearsal


def overheard(receipt: Receipt) -> bool:
    """
    Note that an event is published here; ``True`` if it must not be delivered.
    """
    run = _run.get()
    if run is None:
        return False
    if run.is_open and here.get() is run.within and receipt not in run.heard:
        run.heard.add(receipt)
        run.published.append(receipt.event)
    return run.is_rehearsal


def observed(handler: Callable[[Any], Any], event: Any) -> Any:
    """
    Call *handler*, and note down what it does if that is asked for here.
    """
    run = _run.get()
    if run is None or here.get() is not run.within:
        return handler(event)
    with run.attempt():
        run.result = handler(event)
    return _awaited(run, run.result) if isawaitable(run.result) else run.result


async def _awaited(run: Run, result: Any) -> Any:
    published = run.published
    with run.attempt():
        run.published = published
        run.result = await result
    return run.result


@attrs.frozen
class CatchUp:
    """
    How what is queued is handled, in either colour.
    """

    call: Callable[[], object]
    acall: Callable[[], Awaitable[object]]


@attrs.define(eq=False)
class IdempotenceCheck:
    """
    A check under way: it began when it was made, and ends with its block.

    Usable in ``with``, and in ``async with`` where handlers are async. The end of the block
    handles what is queued, so that it is checked as well.

    .. versionadded:: 0.1
    """

    _without: Set[str]
    _catch_up: CatchUp
    _differences: dict[str, list[str]] = attrs.field(init=False, factory=dict)
    is_over: bool = attrs.field(init=False, default=False)

    def end(self) -> None:
        """
        End the check and report.

        Raises:
            AssertionError: Handlers did something else the second time. It names them
                all, and says for each what differed.
        """
        __tracebackhide__ = True
        self.is_over = True
        if self._differences:
            differences, self._differences = self._differences, {}
            raise AssertionError(_report(differences))

    def give_up(self) -> None:
        """
        End the check without a report.
        """
        self.is_over = True
        self._differences.clear()

    def __enter__(self) -> IdempotenceCheck:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        __tracebackhide__ = True
        with self._ending(kind) as goes_on:
            if goes_on:
                self._catch_up.call()

    async def __aenter__(self) -> IdempotenceCheck:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        __tracebackhide__ = True
        with self._ending(kind) as goes_on:
            if goes_on:
                await self._catch_up.acall()

    @contextmanager
    def _ending(self, kind: type[BaseException] | None) -> Generator[bool]:
        """
        End the check after what is done within; what is raised there, or was, is the news.
        """
        __tracebackhide__ = True
        try:
            yield kind is None and not self.is_over
        except BaseException:
            self.give_up()
            raise
        self.end() if kind is None else self.give_up()

    # -- the second run: the twins -----------------------------------------------------------

    def twice(self, subscription: Subscription, folded: Folded, attempt: Any, event: Any) -> None:
        """
        Deliver *event*, then rehearse one more attempt of it.
        """
        first = self._begin(subscription)
        with _standing_in(first):
            folded.call(event)
        if first is None or not _was_delivered(first, subscription):
            return
        second = Run(first.within, is_rehearsal=True)
        with _standing_in(second):
            try:
                folded.settle(attempt(event))
            except Exception as error:
                second.error = error  # also a timeout's, around the handler
        self._compare(subscription, event, first, second)

    async def atwice(
        self, subscription: Subscription, folded: Folded, attempt: Any, event: Any
    ) -> None:
        """
        Deliver *event*, then rehearse one more attempt of it.
        """
        first = self._begin(subscription)
        with _standing_in(first):
            if isawaitable(delivery := folded.acall(event)):
                await delivery
        if first is None or not _was_delivered(first, subscription):
            return
        second = Run(first.within, is_rehearsal=True)
        with _standing_in(second):
            try:
                if isawaitable(result := attempt(event)):
                    await result
            except Exception as error:
                second.error = error  # also a timeout's, around the handler
        self._compare(subscription, event, first, second)

    def _begin(self, subscription: Subscription) -> Run | None:
        return None if subscription.name in self._without else Run(here.get())

    def _compare(self, subscription: Subscription, event: object, first: Run, second: Run) -> None:
        if lines := list(_differences(first, second)):
            found = self._differences.setdefault(subscription.name, [])
            found.append("\n".join([f"    on {shown(event)}", *(f"      {x}" for x in lines)]))


def _was_delivered(run: Run, subscription: Subscription) -> bool:
    failures = run.within.failures
    return run.is_done and all(each.subscription != subscription.name for each in failures)


def _differences(first: Run, second: Run) -> Iterator[str]:
    if second.error is not None:
        yield f"raised {shown(second.error)} the second time"
        return
    if not same(first.result, second.result):
        yield f"returned {shown(first.result)}, the second time {shown(second.result)}"
    if len(first.published) == len(second.published):
        for one, other in zip(first.published, second.published, strict=True):
            if not same(one, other):
                yield from _changed(one, other)
    else:
        yield f"published {_list(first.published)}, the second time {_list(second.published)}"


def _changed(one: object, other: object) -> Iterator[str]:
    if type(one) is not type(other):
        yield f"published {shown(one)}, the second time {shown(other)}"
        return
    yield f"published {shown(one)}, the second time with"
    mine, theirs = values_of(one), values_of(other)
    for name in {**mine, **theirs}:
        if not same(mine.get(name), theirs.get(name)):
            yield f"  {name}: {shown(theirs.get(name))} instead of {shown(mine.get(name))}"


def _list(events: list[object]) -> str:
    if not events:
        return "nothing"
    return (
        shown(events[0])
        if len(events) == 1
        else f"{len(events)} events: " + ", ".join(name_of_type(type(each)) for each in events)
    )


def _report(differences: dict[str, list[str]]) -> str:
    count = len(differences)
    title = "1 handler is" if count == 1 else f"{count} handlers are"
    lines = [f"{title} not idempotent: delivered twice, the second run differs.", ""]
    for name, found in differences.items():
        lines += [f"  {name}", *found[:MOST]]
        if len(found) > MOST:
            lines.append(f"    … and on {len(found) - MOST} more")
    return "\n".join(lines)
