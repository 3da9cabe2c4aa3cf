"""
A thread that brings something on whenever the log has grown.

Law: it sleeps until it is roused or a moment has passed, fails aloud and tries again, and
ends when it is told to, between two events. What it does in a turn is given to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from eventbus._fork import renewed
from eventbus._logger import logger
from eventbus.errors import LeaseLostError, SubscriptionBusyError
from eventbus.event_log import EventLog

__all__ = ["Follower"]

_POLL = 0.25  # seconds after which to look for what other processes have appended
_STANDBY = 1.0  # seconds after which to ask again whether somebody else has ended
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0  # seconds after a failure

Turns = Callable[[], AbstractContextManager[Callable[[], object]]]


class Follower:
    """
    Brings something on in a thread of its own.

    Args:
        name: What, for those who read logs and stacks.
        log: What it follows.
        turns: Opens what is open between two turns, and yields the turn.

    Attributes:
        error: What the last try has ended with; ``None`` while all is well.
    """

    def __init__(self, name: str, log: EventLog, turns: Turns) -> None:
        self.error: Exception | None = None
        self._name, self._log, self._open = name, log, turns
        self._changed = renewed(threading.Condition())
        self._is_roused = self._is_ending = False
        self._turns = 0
        self._thread = threading.Thread(
            target=self._run, name=f"eventbus-projection-{name}", daemon=True
        )

    def start(self) -> None:
        """
        Begin.
        """
        self._thread.start()

    def end(self) -> None:
        """
        End, and return when it has.
        """
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        self._thread.join()

    def wait_for_turn(self, timeout: float) -> None:
        """
        Wait until something was done, or *timeout* seconds have passed.
        """
        with self._changed:
            before = self._turns
            self._changed.wait_for(lambda: self._turns != before, timeout)

    def _run(self) -> None:
        stop = self._log.on_append(self._rouse)
        pause = _FIRST_PAUSE
        try:
            while not self._is_ending:
                try:
                    with self._open() as turn:
                        pause = _FIRST_PAUSE
                        self._keep_on(turn)
                except Exception as error:
                    pause = self._failed(error, pause)
        finally:
            stop()

    def _keep_on(self, turn: Callable[[], object]) -> None:
        while not self._is_ending:
            turn()
            self.error = None
            self._sleep(_POLL, is_turn=True)

    def _failed(self, error: Exception, pause: float) -> float:
        """
        Say so, once for each kind of failure, and return how long to wait the next time.
        """
        is_new = repr(error) != repr(self.error)
        self.error = error
        if isinstance(error, SubscriptionBusyError):
            self._sleep(_STANDBY)
            return _FIRST_PAUSE
        if isinstance(error, LeaseLostError):  # this process stood still for longer
            logger().warning(
                "projection %s is brought on by somebody else now: %s", self._name, error
            )
        elif is_new:
            logger().error(
                "projection %s has stopped, and will try again", self._name, exc_info=error
            )
        self._sleep(pause)
        return min(pause * 2, _LONGEST_PAUSE)

    def _sleep(self, seconds: float, *, is_turn: bool = False) -> None:
        with self._changed:
            if is_turn:
                self._turns += 1
                self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._is_ending or (is_turn and self._is_roused), seconds
            )
            self._is_roused = False

    def _rouse(self) -> None:
        with self._changed:
            self._is_roused = True
            self._changed.notify_all()
