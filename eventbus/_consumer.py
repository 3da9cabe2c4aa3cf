"""
One durable subscription, as far as it is consumed here: lease, books, log and queue.

Law: a turn does all there is to do, and is taken by one thread at a time. Nobody but a
turn writes to the store, so that a commit is shared by all that came meanwhile. A turn
that meets a broken store says so once, loses nothing and tries again; one that has lost
its lease forgets what it has, for it is somebody else's now.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from typing import Any

from eventbus._books import Books
from eventbus._entry import Entry, entry_of, readied
from eventbus._filling import LONG, PAGE, Filling
from eventbus._hearing import State, entry_of_job
from eventbus._insight import DurableStats
from eventbus._logger import logger
from eventbus.errors import LeaseLostError
from eventbus.kept_letters import Selection
from eventbus.progress import Lease, Transaction

__all__ = ["Consumer", "State"]

_UNSAVED = 0.2  # seconds until the store learns that nothing was its business
_LOOK = 1.0  # seconds between two looks whether a letter is gone that has stopped it
_KEYS = 64  # keys that are taken up in one transaction
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between two tries of a store that fails


class Consumer(Filling):
    """
    Consumes one subscription, while it has the lease.

    Args:
        given, options: See `eventbus._hearing.Hearing`.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.queue.owes = self.owes
        self.queue.aside = lambda: self._books.aside
        self.queue.unread_in_log = self._count_unread
        self.queue.state_of_log = self._why_not
        self.queue.go_on = self.go_on

    def _why_not(self) -> str:
        return "" if self.state == "consuming" else self.state

    def transaction(self, *, is_redrive: bool) -> AbstractContextManager[Transaction]:
        """
        Open a transaction for a handler, in which its progress is stored as well.

        A redrive makes none, and is anybody's affair who has the handler.
        """
        return self._store.progress.transaction(self._borrower(is_redrive=is_redrive))

    def atransaction(self, *, is_redrive: bool) -> AbstractAsyncContextManager[Transaction]:
        """
        Do as `transaction`; whoever it waits for, the event loop goes on.
        """
        return self._store.progress.atransaction(self._borrower(is_redrive=is_redrive))

    def _borrower(self, *, is_redrive: bool) -> Lease | str:
        if is_redrive:
            return self.name
        if (lease := self.lease) is not None:
            return lease
        raise LeaseLostError(
            f"{self.name} is not consumed here any more, so its handler gets no connection",
            subscription=self.name,
            owner="",
        )

    def place(self) -> DurableStats:
        """
        Return where the subscription stands.
        """
        position = self._store.progress.position(self.name)
        return DurableStats(
            offset=position.offset,
            lag=position.lag,
            pending=position.pending,
            dead=position.dead,
            state=self.state,
            owner=None if position.lease is None else position.lease.owner,
        )

    # -- a turn --------------------------------------------------------------------------------

    def turn(self) -> bool:
        """
        Do what there is to do; ``False`` if that was nothing.
        """
        now = self._clock.monotonic()
        if self.state == "closed" or now < self._try_at:
            return False
        self._is_turning = True
        try:
            did = self._try_to_advance(now)
        finally:
            self._is_turning = False
        self.queue.settle_up()
        if self.is_retiring and not self.owes() and not self.queue.has_jobs:
            self.close()
        return did

    def _try_to_advance(self, now: float) -> bool:
        try:
            did = self._is_owner(now) and self._advance(now)
        except LeaseLostError as error:
            logger().warning("%s", error)
            self._forget("standby")
            return False
        except Exception:
            self._fail(now)
            return False
        self._recover()
        return did

    def owes(self) -> bool:
        """
        Whether it has something to do that it can do.
        """
        if self.state == "idle":
            return self.is_started and not self.is_closing
        if self.lease is None:
            return False
        if self._is_turning:
            return True  # what is in the books may be on its way from one place to another
        if self._told or self._books.has_news:
            return True
        if self._has_to_look():
            return True
        is_behind = self.has_more or self._books.unsaved > 0 or not self._books.is_empty
        return self.hands_out and is_behind

    def _advance(self, now: float) -> bool:
        books = self._books
        heard = self._listen()
        self._look_whether_to_go_on(now)
        if self.hands_out and not self.queue.is_paused:
            self._size_up(now)
            until = now + LONG
            heard = self._read_on(until) or heard
            heard = self._choose(until) or heard
            self._look_for_dead_end()
        else:
            books.put_off()
        self._listen()  # what was given up while it was read
        if books.has_news or self._has_to_save(now):
            self._write(now)
            heard = True
        return self._look_for_free_keys(now) or heard

    def _write(self, now: float) -> None:
        books, lease = self._books, self.lease
        assert lease is not None
        advance = self._store.progress.advance(lease, books.step())
        kept, begun = books.kept(advance), books.written(advance)
        for entry in begun:
            self._hand_out(entry)
        if begun:
            self._begun_at = now
        for entry, letter in kept:
            assert entry.receipt is not None
            self.delivery.kept(entry.receipt, letter)

    def _look_for_free_keys(self, now: float) -> bool:
        """
        Take up again what waits behind letters that are gone; whether there was any.

        One question for all keys, and none while nothing is written: many may be held long.
        """
        books = self._books
        is_ready = books.dead_keys and not books.has_news
        is_ready = is_ready and self.hands_out and not self.queue.is_paused
        if not is_ready or not self._has_changed(now):
            return False
        free = books.dead_keys - self._store.letters.stuck_keys(self.name)
        taken = self._take_up(sorted(free - books.keys_in_hand()))
        if taken:
            self._look_at = now  # the rest in the next turn: others want theirs
        if len(taken) < len(free):
            self._seen_changes = None  # a claim may run out, of which no change tells
        return bool(taken)

    def _has_changed(self, now: float) -> bool:
        """
        Whether it is time to look, and something was written since the last look.
        """
        must_look, self._must_look = self._must_look, False
        if now < self._look_at and not must_look:
            return False
        self._look_at, changes = now + _LOOK, self._store.log.changes()
        has_changed, self._seen_changes = changes != self._seen_changes, changes
        return has_changed or must_look

    def _take_up(self, keys: Sequence[str]) -> Collection[str]:
        """
        Let what was held wait for its turn again, but not what somebody is redriving.
        """
        lease, now = self.lease, self._clock.time()
        assert lease is not None
        for start in range(0, len(keys), _KEYS):
            some = keys[start : start + _KEYS]
            taken = self._store.progress.take_up(lease, some, now=now)
            if taken:
                offsets = sorted(each for held in taken.values() for each in held)
                entries = [Entry(each, is_pending=True, epoch=self._epoch) for each in offsets]
                self._books.take_up(taken, entries)
                return taken
        return ()

    def _has_to_save(self, now: float) -> bool:
        if not self._books.unsaved:
            self._unsaved_since = now
            return False
        is_waited_for = self._is_quiet or self.is_closing or self.queue.is_watched
        is_idle = self._books.is_empty
        return self._books.unsaved >= PAGE or (
            is_idle and (is_waited_for or now - self._unsaved_since >= _UNSAVED)
        )

    def _hand_out(self, entry: Entry) -> None:
        ring, entry.ring = entry.ring, None
        if ring is not None:
            ring()
        else:
            self.queue.offer(readied(entry, self._clock.monotonic()))

    # -- the lease -----------------------------------------------------------------------------

    @property
    def lease(self) -> Lease | None:
        """
        The right to consume it, while this process has it.
        """
        return self._tenure.lease

    def keep_lease(self) -> None:
        """
        Renew the lease if it is time, in whichever thread, while a turn may be under way.
        """
        with suppress(Exception):  # the next turn will meet the same, and say so
            self._tenure.renew(self._clock.monotonic())

    def _is_owner(self, now: float) -> bool:
        tenure = self._tenure
        if tenure.lease is not None:
            tenure.renew(now)
            return True
        if self.is_closing:
            return False
        if tenure.ask(now):
            self._open()
        elif tenure.is_waiting:
            self.state = "standby"
        return tenure.lease is not None

    def _open(self) -> None:
        store, name = self._store, self.name
        self._begin_anew(
            Books(
                store.progress.position(name).taken,
                [entry_of(each, self._epoch + 1) for each in store.progress.pending(name)],
                store.letters.held_keys(name),
            )
        )
        self._window, self.has_more = self.mode.workers, True
        is_stopped = self.mode.on_dead_letter == "stop" and self._has_letters()
        self.state, self.why = "stopped" if is_stopped else "consuming", None

    def _has_letters(self) -> bool:
        return bool(self._store.letters.query(Selection(subscription=self.name), limit=1))

    def _look_whether_to_go_on(self, now: float) -> None:
        """
        Go on once the letters are gone for which the subscription has stopped.
        """
        if self.state != "stopped" or self.is_closing or self.why is not None:
            return
        if now >= self._look_at or self._must_look:
            self._look_at, books = now + _LOOK, self._books
            # The letter may not be kept yet, or not be told of: then its event is in hand.
            if books.in_hand or books.has_news:
                return
            self._must_look = False
            if not self._has_letters():
                self.state = "consuming"

    def look_again(self) -> None:
        """
        Look in the next turn whether letters are gone, for they may be.
        """
        self._must_look = True

    def _has_to_look(self) -> bool:
        if not self._must_look or self.is_closing:
            return False
        if self.state == "stopped":
            return self.why is None
        return self.hands_out and bool(self._books.dead_keys) and not self.queue.is_paused

    # -- trouble, and the end ------------------------------------------------------------------

    def _fail(self, now: float) -> None:
        if not self._pause:
            logger().exception("a turn of %s failed; it goes on trying", self.name)
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause or _FIRST_PAUSE)
        self._try_at = now + self._pause

    def _recover(self) -> None:
        if self._pause:
            logger().info("%s goes on", self.name)
        self._pause = self._try_at = 0.0

    def _forget(self, state: State) -> None:
        self.queue.take_back()
        if counted := self._books.counted:
            self.delivery.uncount(counted)
        self._begin_anew(Books())
        self._tenure.lose()
        self.state = state

    def _begin_anew(self, books: Books) -> None:
        self._books = books
        self._epoch += 1
        self._told.clear()
        self._dead_end = self._seen_changes = None

    def go_on(self) -> None:
        """
        Consume again, though a letter or an unreadable event has stopped it.
        """
        if self.state == "stopped":
            self.state, self.why, self.has_more = "consuming", None, True
            self._dead_end = None
            self._wake()

    def crash(self) -> None:
        """
        Forget everything, and let somebody else consume.
        """
        self._tenure.give_back()
        self._forget("idle")
        self._pause = self._try_at = self._look_at = 0.0

    def reraise(self) -> None:
        """
        Raise, once, what has stopped the subscription.
        """
        if (error := self.why) is not None and not self._is_raised:
            self._is_raised = True
            raise error

    def stop_handing_out(self) -> None:
        """
        Let what is in hand be the last.
        """
        self.is_closing = True
        for job in self.queue.take_back():
            self.back(entry_of_job(job))

    def close(self) -> None:
        """
        Write down what is known, and give the lease back. Nobody takes a turn any more.
        """
        self._try_at, self.is_retiring = 0.0, False
        if self.lease is not None:
            self.turn()
        self._tenure.give_back()
        self._forget("closed")
