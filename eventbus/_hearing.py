"""
What is told of the deliveries of one durable subscription, until a turn listens.

Law: whoever handles an event tells here what came of it, from any thread, and goes on.
What has to hold at once, for another worker may come to the next event before any turn
does, is noted at once; all else is noted by the turn, in the order in which it was told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, Protocol

from eventbus._books import Books
from eventbus._clock import Clock
from eventbus._entry import Entry, LoggedReceipt
from eventbus._log_queue import LogQueue
from eventbus._log_reader import LogReader
from eventbus._mode import Durable
from eventbus._tenure import Tenure
from eventbus.kept_letters import KeptLetter
from eventbus.store import Store

__all__ = ["Handles", "Hearing", "State", "entry_of_job"]

State = Literal["idle", "standby", "consuming", "stopped", "closed"]

_INSTANT = 0.001  # seconds by which an alarm may ring too early


class Handles(Protocol):
    """
    What a consumer knows of the subscription's delivery.
    """

    def is_met(self, receipt: LoggedReceipt) -> bool:
        """
        Whether the filter lets the event pass; one that raises gives the event up.
        """
        ...

    def order_of(self, receipt: LoggedReceipt) -> str | None:
        """
        Return what orders the event; what raises gives the event up.
        """
        ...

    def unreadable(self, receipt: LoggedReceipt, error: Exception) -> None:
        """
        Give an event up that cannot be read.
        """
        ...

    def held_letter(self, receipt: LoggedReceipt) -> KeptLetter:
        """
        Return the letter of an event that waits behind another letter.
        """
        ...

    def kept(self, receipt: LoggedReceipt, letter: KeptLetter) -> None:
        """
        Count one that was kept so, and tell whoever observes.
        """
        ...

    def uncount(self, number: int) -> None:
        """
        Count those no more that came its way and went back to the log.
        """
        ...


class Hearing:
    """
    The part of a consumer that listens.

    Args:
        name: The subscription's.
        mode: How it is to be consumed.
        store: Where its place, its deliveries and its letters are kept.
        queue: Where its workers take their jobs from.
        reader: Reads the log for it.
        clock: The bus's.
        wake: Called when a turn is to be taken soon.
        is_quiet: Nobody takes turns by himself: what is known is written at once.

    Attributes:
        delivery: What decides on its events; there is none before the first receipt.
        state: What it does: ``standby``: somebody else consumes it.
        why: Why it has stopped.
        has_more: The log may have more than was read.
        is_closing: What is in hand is the last.
        is_started: The bus was.
        is_retiring: It is to end when what it has in hand is over.
    """

    delivery: Handles

    def __init__(
        self,
        name: str,
        mode: Durable,
        *,
        store: Store,
        queue: LogQueue,
        reader: LogReader,
        clock: Clock,
        wake: Callable[[], None],
        is_quiet: bool = False,
    ) -> None:
        self.name = name
        self.mode = mode
        self.queue = queue
        self.state: State = "idle"
        self.why: Exception | None = None
        self._tenure = Tenure(name, mode.lease, store, clock)
        self.has_more = True
        self.is_closing = False
        self.is_started = False
        self._store = store
        self._reader = reader
        self._clock = clock
        self._wake = wake
        self._is_quiet = is_quiet
        self._books = Books()
        self._told: deque[tuple[Callable[..., None], Entry, tuple[Any, ...]]] = deque()
        self._window = mode.workers
        self._begun_at = self._unsaved_since = 0.0
        self._look_at = self._try_at = 0.0
        self._pause = 0.0
        self._seen_changes: int | None = None
        self._must_look = False
        self._epoch: int = 0
        self._is_raised = self._is_turning = False
        self._dead_end: Exception | None = None
        self.is_retiring = False

    # -- what workers tell ---------------------------------------------------------------------

    def _tell(self, what: Callable[..., None], entry: Entry, *details: Any) -> None:
        self._told.append((what, entry, details))
        if len(self._told) * 2 >= self._window or not self.queue.ready:
            self._wake()

    def done(self, entry: Entry) -> None:
        """
        Learn that an entry is finished.
        """
        entry.is_over = True
        self._tell(self._books.done, entry)

    def finished(self, entry: Entry) -> None:
        """
        Learn that an entry is finished, as the store does by the same transaction.
        """
        entry.is_over = True
        self._tell(self._books.finished, entry)

    def retry(self, entry: Entry, delay: float, story: str) -> None:
        """
        Learn that an attempt failed, and another one follows in so many seconds.
        """
        entry.is_begun = False
        entry.due, entry.story = self._clock.time() + delay, story
        entry.due_at = self._clock.monotonic() + delay
        self._tell(self._retry, entry)

    def _retry(self, entry: Entry) -> None:
        held = [] if entry.key is None else self.queue.take_held(entry.key)
        self._books.retry(entry, [entry_of_job(job) for job in held])

    def dead(self, entry: Entry, letter: KeptLetter) -> None:
        """
        Learn that an entry was given up on.
        """
        entry.is_over = True
        if letter.holds_key and letter.record.key is not None:
            self._books.dead_keys.add(letter.record.key)  # at once: the next one may be ready
        if self.mode.on_dead_letter == "stop":
            self.state = "stopped"
        self._tell(self._books.dead, entry, letter)

    def hold(self, entry: Entry, letter: KeptLetter) -> None:
        """
        Learn that an entry waits behind a letter.
        """
        entry.is_over = True
        self._tell(self._books.hold, entry, letter)

    def asleep(self, entry: Entry) -> None:
        """
        Learn that an entry, which was begun, cannot be handled yet.
        """
        self._tell(self._books.put_to_sleep, entry)

    def awake(self, entry: Entry) -> None:
        """
        Learn that it can be now.
        """
        self._tell(self._books.awake, entry)

    def ask(self, entry: Entry, ring: Callable[[], None]) -> bool:
        """
        Have an entry's next attempt begun, and *ring* called then.
        """
        entry.ring = ring
        self._tell(self._books.ask, entry)
        return True

    def back(self, entry: Entry) -> None:
        """
        Take an entry back that was not handed to its handler.
        """
        self._tell(self._books.take_back, entry)

    def holds_back(self, entry: Entry) -> bool:
        """
        Whether an entry is to wait behind a letter.
        """
        record = entry.record
        return (
            self.mode.on_dead_letter == "hold_key"
            and record is not None
            and record.key in self._books.dead_keys
        )

    def may_hold(self, key: str) -> bool:
        """
        Whether events of a key may wait behind a letter, as far as is known without the store.
        """
        return self.state != "consuming" or key in self._books.dead_keys

    @property
    def awaits_start(self) -> bool:
        """
        Whether nothing is done before the bus is started; where tests take turns, they do that.
        """
        return not (self.is_started or self._is_quiet)

    @property
    def hands_out(self) -> bool:
        """
        Whether its handler may be called.
        """
        return self.state == "consuming" and not self.is_closing

    def knows(self, entry: Entry) -> bool:
        """
        Whether an entry was handed out since it consumes: else somebody may have it anew.
        """
        return entry.epoch == self._epoch

    def wait_for(self, entry: Entry) -> float:
        """
        Return how long an entry's next attempt has to wait, in seconds.
        """
        seconds = entry.due_at - self._clock.monotonic()
        return seconds if seconds > _INSTANT else 0.0

    def _listen(self) -> bool:
        heard = bool(self._told)
        while self._told:
            what, entry, details = self._told.popleft()
            if self.knows(entry):  # else it is somebody else's by now
                what(entry, *details)
        return heard


def entry_of_job(job: Any) -> Entry:
    """
    Return what follows a job from the record to its end.
    """
    entry: Entry = job.receipt.entry
    return entry
