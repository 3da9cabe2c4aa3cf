"""
Who may write to a store now: its own writer, or one of those that it lends a connection.

Law: one at a time. Borrowers come in the order in which they ask; after each of them the
writer has its turn, if it waits, and after the writer the next of them: so nobody starves.
A borrower is in here while its handler runs, for that is the lent transaction itself: user
code under a lock of ours, and the only one. So nobody waits here without an end: each wait
is over when busy_timeout is, a task's also when it is cancelled, and what could only wait
for itself is refused at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from threading import TIMEOUT_MAX, Lock, RLock, get_ident
from typing import TYPE_CHECKING

from eventbus._fork import renewed
from eventbus.errors import StoreLockedError

if TYPE_CHECKING:
    import asyncio

__all__ = ["Gate"]


class _Turn:
    """
    Somebody's turn, from when it is asked for to when it is over.

    Attributes:
        name: Whose it is, for those who wait.
        thread: Where the asker goes on.
        is_in: It has come.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.thread = get_ident()
        self.is_in = False


class _Asked(_Turn, ABC):
    """
    A turn that has to be waited for.
    """

    @abstractmethod
    def wake(self) -> bool:
        """
        Let the asker go on; ``False`` if that is gone.
        """


class _ThreadTurn(_Asked):
    """
    Waited for in a thread, which does nothing else.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._woken = Lock()
        self._woken.acquire()

    def wait(self, seconds: float) -> None:
        """
        Wait until it has come, or that long.
        """
        self._woken.acquire(timeout=min(seconds, TIMEOUT_MAX))

    def wake(self) -> bool:
        self._woken.release()
        return True


class _TaskTurn(_Asked):
    """
    Waited for in a task, whose loop goes on meanwhile.

    Attributes:
        is_taken_up: The task knows that it has come.
    """

    is_taken_up = False

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name)
        self.loop = loop
        self.woken = loop.create_future()

    def wake(self) -> bool:
        try:
            if self.thread == get_ident():
                self.woken.set_result(None)
            else:
                self.loop.call_soon_threadsafe(self.woken.set_result, None)
        except RuntimeError:  # the loop has been closed: nobody waits any more
            return False
        return True

    def take_back(self) -> None:
        """
        Let the asker wait anew; in its thread.
        """
        self.is_in, self.woken = False, self.loop.create_future()


class Gate:
    """
    Lets one after the other in.

    Args:
        place: What is written to, for messages.
        seconds: How long anybody waits, at most: the store's busy_timeout.

    Attributes:
        free: Held by whoever is in. Who acquires it without a wait is in, and says by
            `leave` that it is out again; everybody else asks.
    """

    def __init__(self, place: str, seconds: float) -> None:
        self.free = Lock()
        self._place = place
        self._seconds = seconds
        # Reentrant: the end of a task that was left behind comes when garbage is collected.
        self._guard = renewed(RLock())
        self._borrowers: deque[_Asked] = deque()
        self._writer: _Asked | None = None
        self._holder: _Turn | None = None  # while that is a borrower
        self._standing: set[int] = set()  # threads that wait here, and do nothing else

    @property
    def is_wanted(self) -> bool:
        """
        Whether a borrower is in, or waits.
        """
        return self._holder is not None or bool(self._borrowers)

    # -- the writer, of which there is one -----------------------------------------------------

    @contextmanager
    def writing(self) -> Generator[None]:
        """
        Be in for the block, as the writer.

        Raises:
            StoreLockedError: Borrowers were in for as long as one waits.
        """
        if not self.free.acquire(blocking=False):
            self._wait_to_write()
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """
        Be out again, and let the next one in.
        """
        self.free.release()
        if self._borrowers:
            with self._guard:
                self._let_in()

    def _wait_to_write(self) -> None:
        turn = _ThreadTurn("the store")
        with self._guard:
            self._writer = turn
            self._let_in()
        turn.wait(self._seconds)
        with self._guard:
            if not turn.is_in:
                self._writer = None
                raise self._locked()

    # -- borrowers: the twins ------------------------------------------------------------------

    @contextmanager
    def turn(self, name: str) -> Generator[None]:
        """
        Be in for the block, on behalf of *name*; wait for it in this thread.

        Raises:
            StoreLockedError: Others were in for as long as one waits, or this very thread is.
        """
        turn = self._at_once(name) or _ThreadTurn(name)
        try:
            if isinstance(turn, _ThreadTurn):
                with self.standing_still():
                    self._ask(turn)
                    turn.wait(self._seconds)
                if not turn.is_in:
                    raise self._locked()
            yield
        finally:
            self._end(turn)

    @asynccontextmanager
    async def aturn(self, name: str) -> AsyncGenerator[None]:
        """
        Do as `turn`, waiting in this task: its loop goes on.
        """
        turn = self._at_once(name) or await self._atask(name)
        try:
            yield
        finally:
            self._end(turn)

    async def _atask(self, name: str) -> _Turn:
        import asyncio  # late: whoever awaits has it loaded already

        loop = asyncio.get_running_loop()
        turn, end = _TaskTurn(name, loop), loop.time() + self._seconds
        try:
            self._ask(turn)
            while not self._is_taken_up(turn):
                left = end - loop.time()
                if left <= 0:
                    raise self._locked()
                await asyncio.wait([turn.woken], timeout=left)
        except BaseException:
            self._end(turn)
            raise
        return turn

    def _is_taken_up(self, turn: _TaskTurn) -> bool:
        with self._guard:
            turn.is_taken_up = turn.is_in
        return turn.is_in

    @contextmanager
    def standing_still(self) -> Generator[None]:
        """
        Let no task of this thread in while the thread waits in the block: it could not go on.

        Raises:
            StoreLockedError: One is in already, or a handler that has called from here.
        """
        me = get_ident()
        with self._guard:
            holder = self._holder
            if isinstance(holder, _TaskTurn) and holder.thread == me and not holder.is_taken_up:
                # It does not know yet: it comes afterwards, and is first again.
                holder.take_back()
                self._borrowers.appendleft(holder)
                self._holder = None
                self.free.release()
            elif holder is not None and holder.thread == me:
                raise StoreLockedError(
                    f"{self._place}: {holder.name} has a transaction open in this very thread, and "
                    f"waiting would keep it from ending. In a handler with a connection, publish "
                    f"or use the connection; beside it, await the async method (apublish, ...)",
                    path=self._place,
                )
            self._standing.add(me)
        try:
            yield
        finally:
            with self._guard:
                self._standing.discard(me)
                self._let_in()

    # -- who is next ---------------------------------------------------------------------------

    def _at_once(self, name: str) -> _Turn | None:
        """
        Return a turn if nobody is in, nor waits.
        """
        if self._borrowers or not self.free.acquire(blocking=False):
            return None
        self._holder = turn = _Turn(name)
        turn.is_in = True
        return turn

    def _ask(self, turn: _Asked) -> None:
        with self._guard:
            self._borrowers.append(turn)
            self._let_in()

    def _let_in(self) -> None:
        """
        Let the next one in, if nobody is; the guard is held.
        """
        while (turn := self._next()) is not None and self.free.acquire(blocking=False):
            if turn is self._writer:
                self._writer = None
            else:
                self._borrowers.remove(turn)
                self._holder = turn
            turn.is_in = True
            if turn.wake():
                return
            self._put_out(turn)

    def _next(self) -> _Asked | None:
        if self._writer is not None:
            return self._writer
        for turn in tuple(self._borrowers):
            if not (isinstance(turn, _TaskTurn) and turn.thread in self._standing):
                return turn
        return None

    def _end(self, turn: _Turn) -> None:
        with self._guard:
            if turn.is_in:
                self._put_out(turn)
                self._let_in()
            elif isinstance(turn, _Asked) and turn in self._borrowers:
                self._borrowers.remove(turn)

    def _put_out(self, turn: _Turn) -> None:
        turn.is_in, self._holder = False, None
        self.free.release()

    def _locked(self) -> StoreLockedError:
        holder = self._holder
        name = "the store itself" if holder is None else holder.name
        return StoreLockedError(
            f"{self._place}: {name} was writing, in this process, when all of busy_timeout was "
            f"over ({self._seconds:g} s). Nobody else can write while a handler has a connection: "
            f"let it be quick",
            path=self._place,
        )
