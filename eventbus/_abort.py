"""
What ends a handler and is no `Exception`: the handler's failure, or its caller's affair.

Law: a cancellation is for the caller only if somebody has asked the task that runs here to
end. One that a handler met in what it awaited is a failure like any other: nobody else
would ever hear of it.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from eventbus.errors import HandlerAbortedError

__all__ = ["as_failure", "concerns_caller", "is_cancellation", "running_loop"]


def running_loop() -> Any:
    """
    Return the event loop that runs in this thread; without asyncio there is none.
    """
    # Another thread may be importing it at this very moment.
    find = getattr(sys.modules.get("asyncio.events"), "_get_running_loop", None)
    return None if find is None else find()


def concerns_caller(error: BaseException, *, is_awaited: bool = True) -> bool:
    """
    Whether *error*, raised by a handler, is no failure of it: it ends who called it.

    Where nobody waits for what was called, only the program's interruption is nobody's
    failure, and the end of the task.
    """
    if isinstance(error, Exception) or _is_stray_cancellation(error):
        return False
    if is_awaited or is_cancellation(error):
        return True
    return isinstance(error, KeyboardInterrupt) and _is_main_thread()


def as_failure(error: BaseException, subscription: str) -> Exception:
    """
    Return the failure that *error*, raised by the handler of *subscription*, amounts to.
    """
    if isinstance(error, Exception):
        return error
    if is_cancellation(error):
        why = (
            "a cancellation, and nobody has cancelled who called it: what it waited for was "
            "cancelled. Catch asyncio.CancelledError around that."
        )
    else:
        why = (
            f"{error!r}, which is for programs and tasks to end with: raise an Exception to fail, "
            f"or GiveUp to fail for good"
        )
    failure = HandlerAbortedError(f"{subscription} ended with {why}", subscription=subscription)
    failure.__cause__ = error
    return failure


def is_cancellation(error: BaseException) -> bool:
    """
    Whether *error* is what a task is cancelled with, wherever it comes from.
    """
    asyncio: Any = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_stray_cancellation(error: BaseException) -> bool:
    if not is_cancellation(error):
        return False
    asyncio: Any = sys.modules["asyncio"]
    task = None if running_loop() is None else asyncio.current_task()
    return task is None or not task.cancelling()
