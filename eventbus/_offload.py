"""
The threads in which the offloaded handler of one subscription is called.

Law: nobody waits for them but who has asked for a call: they are daemons, each ends when
there is nothing to call, and those that hang take no other subscription's place. Hence not
the default executor of the loop, whose threads all share, and which is waited for at exit.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from threading import Lock, Thread

__all__ = ["Offload"]

Call = Callable[[], object]

# As many as asyncio's default executor may have, on machines of 28 processors and more.
_LIMIT = 32


class Offload:
    """
    Calls one after the other in each of at most 32 threads; what is too much waits.

    Args:
        name: What the threads are called.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._reset()

    def _reset(self) -> None:
        self._lock = Lock()
        self._running = 0
        self._waiting: deque[Call] = deque()
        self._pid = os.getpid()

    def submit(self, call: Call) -> None:
        """
        Have *call* called, which raises nothing, in a thread.

        Raises:
            RuntimeError: There are no more threads to be had.
        """
        if self._pid != os.getpid():
            self._reset()  # the threads are those of the process it was forked from
        with self._lock:
            if self._running >= _LIMIT:
                self._waiting.append(call)
                return
            self._running += 1
        try:
            Thread(target=self._work, args=(call,), name=self._name, daemon=True).start()
        except BaseException:
            with self._lock:
                self._running -= 1
            raise

    def _work(self, call: Call | None) -> None:
        while call is not None:
            call()
            with self._lock:
                call = self._waiting.popleft() if self._waiting else None
                self._running -= call is None
