"""
One attempt: a handler folded into a call that returns when the handler is done.

Law: what stands between policies and handler is put together here, once: the
envelope, ``wrap``, the timeout, the thread or loop it runs on. Nothing here
retries, claims or buries.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from eventbus._abort import running_loop
from eventbus._clock import Clock
from eventbus._envelope import here
from eventbus._loop_thread import LoopThread, StoppedError
from eventbus._offload import Offload
from eventbus._signature import HandlerSignature, read_signature
from eventbus._subscription import Subscription
from eventbus.errors import (
    BusClosedError,
    HandlerSignatureError,
    HandlerTimeoutError,
    RunningLoopError,
)

__all__ = ["acall_of", "call_of", "settle", "wrapped"]

if TYPE_CHECKING:
    from asyncio import Future

AnyCall = Callable[..., Any]
Outcome: TypeAlias = tuple[Any, BaseException | None]
Wrap = Callable[[AnyCall], AnyCall]


def wrapped(subscription: Subscription, wraps: tuple[Wrap, ...]) -> AnyCall:
    """
    Return what is called with the event: the handler inside its ``wrap`` hooks.

    Args:
        subscription: Whose handler.
        wraps: The hooks, the first one innermost.

    Raises:
        HandlerSignatureError: A hook returned something that cannot stand in for the
            handler: no callable, or a sync one for an async handler.
    """
    call = _with_connection(_dereferenced(subscription), subscription.signature)
    call = _with_envelope(call, subscription.signature)
    for wrap in wraps:
        call = wrap(call)
        signature = read_signature(call, f"{subscription.name}, wrap=", wrapped=False)
        if subscription.signature.is_async and not signature.is_async:
            raise HandlerSignatureError(
                f"{subscription.name} is async, but wrap= returned {call!r}, which is not: what "
                f"it opens would close before the handler has run. Return an async def for "
                f"handlers for which inspect.iscoroutinefunction() is true."
            )
        call = _with_envelope(call, signature)
    return call


def _dereferenced(subscription: Subscription) -> AnyCall:
    handler: AnyCall | None = subscription.handler
    if handler is not None and not subscription.options.weak:
        return handler

    def call(*arguments: Any, **keywords: Any) -> Any:
        handler = subscription.handler
        return None if handler is None else handler(*arguments, **keywords)

    async def acall(*arguments: Any, **keywords: Any) -> Any:
        handler: AnyCall | None = subscription.handler
        return None if handler is None else await handler(*arguments, **keywords)

    return _named_after(handler, acall if subscription.signature.is_async else call)


def _with_connection(handler: AnyCall, signature: HandlerSignature) -> AnyCall:
    keyword = signature.connection_keyword
    if keyword is None:
        return handler

    def call(*arguments: Any, **keywords: Any) -> Any:
        keywords[keyword] = here.get().connection
        return handler(*arguments, **keywords)

    async def acall(*arguments: Any, **keywords: Any) -> Any:
        return await call(*arguments, **keywords)

    return _named_after(handler, acall if signature.is_async else call)


def _with_envelope(handler: AnyCall, signature: HandlerSignature) -> AnyCall:
    if not signature.takes_envelope:
        return handler
    keyword = signature.envelope_keyword

    def call(event: Any) -> Any:
        envelope = here.get().envelope
        return handler(event, **{keyword: envelope}) if keyword else handler(event, envelope)

    async def acall(event: Any) -> Any:
        return await call(event)

    return _named_after(handler, acall if signature.is_async else call)


def _named_after(handler: Any, call: Any) -> AnyCall:
    """
    Give *call* the name of what it stands for, so that a ``wrap`` hook can show it.
    """
    with suppress(TypeError):  # a mock made after a function has mocks for names
        functools.update_wrapper(call, handler, updated=())
        del call.__wrapped__  # which would keep it alive, and show another signature
    return cast(AnyCall, call)


def call_of(
    subscription: Subscription, handler: AnyCall, acall: AnyCall, loop: LoopThread
) -> AnyCall:
    """
    Return one attempt for `publish`: what blocks until the handler is done.

    A handler that is only called, and not known to be async, comes back as it is.
    """
    if not subscription.needs_loop:
        return handler

    def call(event: Any) -> None:
        _wait_for(lambda: acall(event), subscription, loop)

    return call


def acall_of(subscription: Subscription, handler: AnyCall, clock: Clock) -> AnyCall:
    """
    Return one attempt for `apublish`: what may return something to await.
    """
    limit, acall = subscription.options.timeout, handler
    if (threads := subscription.threads) is not None:
        acall = partial(_offloaded, handler, subscription, threads)
    return acall if limit is None else _limited(acall, limit, clock, subscription.name)


async def _offloaded(
    handler: AnyCall, subscription: Subscription, threads: Offload, event: Any
) -> None:
    """
    Call *handler* in a thread, which cannot be stopped.

    Cancelled, it calls no more what was not begun. What was is waited for, so that
    nothing is left running; but what has a limit is left alone then, for otherwise the
    limit would be none.
    """
    import asyncio  # late: whoever awaits has it loaded already

    is_limited = subscription.options.timeout is not None
    _held = subscription.handler  # a weak one stays until the thread has called it
    running = asyncio.get_running_loop().create_future()
    ticket = [True]  # of the call and its end one gets it
    threads.submit(partial(_called, ticket, running, copy_context(), handler, event))
    try:
        result, error = await asyncio.shield(running)
    except asyncio.CancelledError as cancelled:
        if _taken(ticket) or is_limited:
            running.cancel()
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise cancelled from (None if running.cancelled() else running.result()[1])
    if error is not None:
        raise error
    if isawaitable(result):
        await result


def _taken(ticket: list[bool]) -> bool:
    try:
        return ticket.pop()
    except IndexError:
        return False


def _called(
    ticket: list[bool], running: Future[Outcome], context: Context, handler: AnyCall, event: Any
) -> None:
    """
    Call *handler*, in a thread, and settle *running* with what came of it, in its loop.
    """
    if not _taken(ticket):
        return
    outcome = context.run(_outcome, handler, event)

    def settle() -> None:
        if not running.done():
            running.set_result(outcome)

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        running.get_loop().call_soon_threadsafe(settle)


def _outcome(handler: AnyCall, event: Any) -> Outcome:
    # Not raised: a future takes no StopIteration, and on Python 3.11 makes of a TimeoutError
    # a new one without its traceback.
    try:
        return handler(event), None
    except BaseException as error:
        return None, error


def _limited(acall: AnyCall, limit: float, clock: Clock, name: str) -> AnyCall:
    async def limited(event: Any) -> None:
        own: TimeoutError | None = None
        try:
            async with clock.timeout(limit):
                try:
                    await acall(event)
                except TimeoutError as error:
                    own = error
                    raise
        except TimeoutError as error:
            if error is own:
                raise  # the handler's own, not ours
            raise HandlerTimeoutError(
                f"{name} ran longer than its timeout of {limit:g} s on {type(event).__qualname__}",
                subscription=name,
                limit=limit,
            ) from error

    return limited


def settle(result: object, subscription: Subscription, loop: LoopThread) -> None:
    """
    Wait, in `publish`, for what a handler returned, if it can be awaited.

    Raises:
        RunningLoopError: It can, but an event loop runs in this thread.
    """
    if not isawaitable(result):
        return
    if running_loop() is not None:
        if isinstance(result, CoroutineType):
            result.close()
        raise RunningLoopError(
            f"{subscription.name} returned an awaitable, and publish() cannot wait for it in a "
            f"thread with a running event loop. Use await bus.apublish(...).",
            subscription=subscription.name,
        )
    _wait_for(lambda: result, subscription, loop)


def _wait_for(
    make: Callable[[], Awaitable[object]], subscription: Subscription, loop: LoopThread
) -> None:
    """
    Run what *make* returns on the bus's loop thread, as part of the publish here.

    Raises:
        BusClosedError: The bus was closed before it ended.
    """
    receipt = here.get()

    async def run() -> None:
        here.set(receipt)
        await make()

    try:
        loop.run(run)
    except StoppedError as stopped:
        raise BusClosedError(
            f"the bus was closed before {subscription.name} had handled "
            f"{type(receipt.event).__qualname__}. Close it when its last publish has returned."
        ) from stopped.__cause__
