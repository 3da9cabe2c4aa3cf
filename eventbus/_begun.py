"""
A coroutine that was begun where it was made, and goes on in a task.

Law: passes on what comes, in both directions, and remembers only what a task forgets: of
which cancellations the coroutine has asked itself. It decides nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Generator
from typing import Any

__all__ = ["Begun", "waiting"]


class Begun:
    """
    The rest of a coroutine that was begun already, and waits for something.

    It knows of which cancellations of its task it has asked itself, in a step of its own:
    no one else wants the task to end by them.

    Attributes:
        is_left: It is closed by whoever has left it behind, and has not ended by itself.
    """

    __slots__ = ("_own", "_steps", "_task", "_waits_for", "is_left")

    def __init__(self, steps: Any, waits_for: object) -> None:
        self.is_left = False
        self._steps = steps
        self._waits_for = waits_for
        self._task: Any = sys.modules["asyncio"].current_task()
        # The worker that has begun it would be gone if anybody else had asked before.
        self._own: int = self._task.cancelling()

    def uncancel(self) -> None:
        """
        Take back the cancellations that it has asked for.
        """
        while self._own > 0:
            self._own -= 1
            self._task.uncancel()

    def __await__(self) -> Generator[Any, Any, object]:
        waits_for, cancelling = self._waits_for, self._task.cancelling
        while True:
            try:
                answer = yield waits_for
            except BaseException as error:
                self.is_left = isinstance(error, GeneratorExit)
                step, argument = self._steps.throw, error
            else:
                step, argument = self._steps.send, answer
            before = cancelling()
            try:
                waits_for = step(argument)
            except StopIteration as end:
                return end.value
            finally:
                self._own = max(0, self._own + cancelling() - before)


async def waiting(result: Awaitable[object]) -> None:
    """
    Make a coroutine of what can be awaited.
    """
    await result
