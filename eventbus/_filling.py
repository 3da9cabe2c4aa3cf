"""
How a durable subscription's books are filled: reading on, and choosing what is next.

Law: reads in pages, so that a long log takes no more room than a short one, and begins
little ahead of the handlers. What waits behind another one of its key is not read before
it may go on. The user's code that runs here, filters and upcasters, runs in whichever
thread takes the turn; a turn that takes long is left to the next one to be ended.
"""

from __future__ import annotations

from eventbus._entry import Entry, readied, seconds_until
from eventbus._hearing import Hearing
from eventbus._logger import logger
from eventbus.event_log import Record

__all__ = ["LONG", "PAGE", "Filling"]

_MOST = 256  # events begun at once, for handlers that take next to no time
_QUICK, _SLOW = 0.01, 0.04  # seconds in which what was begun at once is, or is not, over
PAGE = 256  # records that are looked at in one turn, at most
LONG = 0.05  # seconds of looking at records, after which it is the others' turn


class Filling(Hearing):
    """
    The part of a consumer that reads and chooses.
    """

    def _size_up(self, now: float) -> None:
        """
        Begin so many at once as are over in a moment: fewer commits, and little ahead.
        """
        took = now - self._begun_at
        if not self._books.in_hand:
            if took < _QUICK:
                self._window = min(_MOST, self._window * 2)
        elif took > _SLOW:
            self._window = max(self.mode.workers, self._window // 2)

    # -- reading -------------------------------------------------------------------------------

    def _read_on(self, until: float) -> bool:
        """
        Look at the next records; whether it was ended by the time.
        """
        books = self._books
        if self._dead_end is not None:
            return False
        if books.waits or len(books.fresh) >= self._window or not self.has_more:
            return False
        limit = max(PAGE, 2 * self._window)
        self.has_more = False  # first: what is appended from here on says so itself
        number = 0
        for record in self._reader.after(books.position, limit):
            number += 1
            entry = Entry(record.offset, epoch=self._epoch)
            if not self._examine(entry, record):
                return False
            books.position = record.offset
            if entry.receipt is not None:
                books.fresh.append(entry)
            if self._clock.monotonic() > until:
                self.has_more = True
                return True
        if number == limit:
            self.has_more = True
        return False

    def _examine(self, entry: Entry, record: Record) -> bool:
        """
        Look at a record; ``False`` if nothing after it is to be looked at.
        """
        try:
            is_wanted = self._reader.examine(entry, record)
        except Exception as error:
            return self._cannot_read(entry, error)
        if not is_wanted:
            return True
        receipt = entry.receipt
        assert receipt is not None
        if self.delivery.is_met(receipt):
            entry.key = self.delivery.order_of(receipt)
            if not entry.is_over:
                return True
        entry.receipt = None
        return True

    def _cannot_read(self, entry: Entry, error: Exception) -> bool:
        record = entry.record
        match self.mode.unreadable:
            case "raise":
                self._dead_end = error
                return False
            case "quarantine":
                receipt = self._reader.unread(entry, error)  # first: it makes the delivery
                self.delivery.unreadable(receipt, error)
            case _:  # skip
                logger().warning("%s passes record %s by: %s", self.name, entry.offset, error)
        assert record is not None
        return True

    def _look_for_dead_end(self) -> None:
        """
        Stop at what cannot be read, once all before it is over.
        """
        error = self._dead_end
        if error is None or not (self._books.is_empty or self._books.pendings):
            return
        self._dead_end = None
        self.state, self.why, self._is_raised = "stopped", error, False
        logger().error("%s has stopped, for it cannot go on: %s", self.name, error, exc_info=error)

    def _count_unread(self) -> int:
        if self.hands_out:
            return max(0, self._store.log.last_offset() - self._books.position)
        if self.state in ("consuming", "closed"):
            return 0
        # Nobody here looks at them, as things are, and they are not handled.
        return max(0, self._store.progress.position(self.name).lag - self.queue.depth().pending)

    # -- choosing what is next -----------------------------------------------------------------

    def _choose(self, until: float) -> bool:
        """
        Choose what is to be begun, or kept; whether it was ended by the time.
        """
        books = self._books
        while books.under_way < self._window and (entry := books.next()) is not None:
            if not self._decide_on(entry):
                return False
            if self._clock.monotonic() > until:
                return True
        return False

    def _decide_on(self, entry: Entry) -> bool:
        """
        Begin an entry, keep it or put it aside; ``False`` if it has to be the next one again.
        """
        books = self._books
        if books.is_behind(entry):
            return True
        if entry.receipt is None:
            if not self._read_again(entry):
                if self._dead_end is not None:
                    books.put_back(entry)
                return self._dead_end is None
            if books.is_behind(entry):  # its key was not known before
                return True
        if self.holds_back(entry):
            if entry.record is not None and entry.record.key in books.keys_in_hand():
                books.put_back(entry)  # those before it are about to be kept
                return False
            assert entry.receipt is not None
            books.hold(entry, self.delivery.held_letter(entry.receipt))
        elif entry.due is not None:
            seconds = seconds_until(entry.due, entry.story, self._clock.time())
            entry.due_at = self._clock.monotonic() + seconds
            books.put_to_sleep(entry)
            self.queue.offer(readied(entry, self._clock.monotonic()))
        else:
            books.begin.append(entry)
        return True

    def _read_again(self, entry: Entry) -> bool:
        """
        Read the record of an entry that the store knows; ``False`` if it is over now.
        """
        record = self._reader.at(entry.offset)
        if record is None:
            self._books.done(entry)
            return False
        if not self._examine(entry, record):
            return False
        if entry.receipt is None and not entry.is_over:
            self._books.done(entry)
        return entry.receipt is not None
