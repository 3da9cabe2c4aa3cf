"""
The books of one durable subscription, and what the store is to be told of them next.

Law: keeps account and decides on order; nothing here waits, reads, writes or calls. All of
it belongs to one thread at a time. What is told stays in the next step until the store has
it, so a write that fails loses nothing.

The life of an entry::

    fresh ──► begun ──► in hand ──► done, dead
    (read)      ▲          │
                │          ▼
    pending ────┴─────── asleep (the next attempt is not due)
    (in the store, and waits for its turn,
     or behind one of its key that sleeps or is tried again)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter

from eventbus._behind import Behind, merged
from eventbus._entry import Entry
from eventbus.kept_letters import KeptLetter
from eventbus.progress import Advance, Handled, Retry, Step

__all__ = ["Books"]


class Books:
    """
    What one consumer knows.

    Args:
        taken: How far the store has looked at the log.
        pending: What was taken and is not finished.
        dead_keys: The keys whose later events wait behind a letter.

    Attributes:
        position: Everything up to here has been read.
        dead_keys: As given, and those that were added since; perhaps too many, never too few.
        in_hand: What was begun and is not over, by offset.
        fresh: What was read and is not in the store.
        pendings: What is in the store, and waits for its turn; before anything fresh.
        begin: What is to be begun with the next step.
    """

    def __init__(
        self,
        taken: int = 0,
        pending: Iterable[Entry] = (),
        dead_keys: Iterable[str] = (),
    ) -> None:
        self.position = self._taken = taken
        self.dead_keys = set(dead_keys)
        self.in_hand: dict[int, Entry] = {}
        self.fresh: deque[Entry] = deque()
        self.pendings: deque[Entry] = deque(pending)
        self.begin: list[Entry] = []
        self._alone: int | None = None  # the recovered one that is under way
        self._asleep: dict[int, Entry] = {}
        self._behind = Behind()
        self._done: list[int] = []
        self._untried: list[int] = []
        self._handled: list[Handled] = []
        self._retry: list[Retry] = []
        self._waiting: list[int] = []
        # Letters wait until the store has their deliveries: now, or with the step after.
        self._dead: list[KeptLetter] = []
        self._next_dead: list[KeptLetter] = []
        self._hold: list[tuple[Entry, KeptLetter]] = []
        self._next_hold: list[tuple[Entry, KeptLetter]] = []

    # -- what is next --------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """
        Whether everything that was read is over, and the store knows it.
        """
        return not (
            self.in_hand
            or self.fresh
            or self.pendings
            or self._asleep
            or not self._behind.is_empty
            or self.has_news
        )

    @property
    def has_news(self) -> bool:
        """
        Whether the store is to be told more than how far the log was read.
        """
        return bool(
            self._done
            or self._untried
            or self._retry
            or self._waiting
            or self._dead
            or self._next_dead
            or self._hold
            or self._next_hold
            or self.begin
        )

    @property
    def unsaved(self) -> int:
        """
        How much further the log was looked at than the store knows.
        """
        return self._looked_at() - self._taken

    @property
    def counted(self) -> int:
        """
        How many of those that were counted are not over.
        """
        under_way = [*self.in_hand.values(), *self._asleep.values(), *self.begin]
        return self.aside + sum(each.is_counted and not each.is_over for each in under_way)

    @property
    def aside(self) -> int:
        """
        How many of those that were counted wait for their turn.
        """
        waiting = [*self.fresh, *self.pendings]
        return len(self._behind) + sum(each.is_counted for each in waiting)

    @property
    def waits(self) -> bool:
        """
        Whether something that the store knows waits for nothing but its turn.
        """
        return bool(self.pendings or self._behind.next_line)

    @property
    def under_way(self) -> int:
        """
        How many are begun, or about to be.
        """
        return len(self.in_hand) + len(self.begin)

    def keys_in_hand(self) -> set[str | None]:
        """
        Return the keys of events that are begun, or about to be.

        What was held behind a letter, and comes before them, is not to be begun after them.
        """
        under_way = [*self.in_hand.values(), *self.begin]
        return {each.record.key for each in under_way if each.record is not None}

    def next(self) -> Entry | None:
        """
        Take out what is next; ``None`` if nothing is, or it has to wait.

        What was begun by a process that is gone may be what has ended it: it is handled
        alone.
        """
        line = self._behind.next_line
        waits = self.pendings or line or self.fresh
        if not waits or self._alone is not None:
            return None
        if waits[0].is_recovered:
            if self.under_way:
                return None
            self._alone = waits[0].offset
        entry = waits.popleft()
        if waits is line:
            self._behind.move_on()
        return entry

    def is_behind(self, entry: Entry) -> bool:
        """
        Whether the entry has to wait behind one of its key; it is put there.
        """
        if entry.key is None or not self._behind.is_in_the_way_of(entry):
            return False
        self._not_yet(entry)
        self._set_aside(entry)
        self._behind.add(entry.key, [entry])
        return True

    def _not_yet(self, entry: Entry) -> None:
        # It was to be handled alone, and still is, but not now: others may go on.
        if self._alone == entry.offset:
            self._alone = None

    def _set_aside(self, entry: Entry) -> None:
        # It will be read again: what waits long takes no more room than it must.
        self._make_pending(entry)
        entry.receipt = entry.record = None

    def _make_pending(self, entry: Entry) -> None:
        if not entry.is_pending:
            entry.is_pending = True
            self._waiting.append(entry.offset)

    def put_to_sleep(self, entry: Entry) -> None:
        """
        Note that nothing of the entry's key is to be begun until it is over.
        """
        self._leave(entry)
        self._asleep[entry.offset] = entry
        self._behind.close(entry)

    def _leave(self, entry: Entry) -> None:
        self.in_hand.pop(entry.offset, None)
        if self._alone == entry.offset:
            self._alone = None
            entry.is_recovered = False

    def _wait_again(self, entries: Sequence[Entry]) -> None:
        """
        Let entries that the store knows wait for their turn, in the order of the log.
        """
        self.pendings = merged(self.pendings, entries)

    # -- what came of it -----------------------------------------------------------------------

    def done(self, entry: Entry) -> None:
        """
        Note that an entry is finished.
        """
        self.finished(entry)
        self._done.append(entry.offset)
        if entry.handled is not None:
            self._handled.append(entry.handled)

    def finished(self, entry: Entry) -> None:
        """
        Note that an entry is finished, and the store knows it.
        """
        self._leave(entry)
        self._asleep.pop(entry.offset, None)
        self._behind.open(entry)

    def retry(self, entry: Entry, held: Iterable[Entry]) -> None:
        """
        Note that an attempt failed and another one follows; *held* were to come after it.
        """
        assert entry.due is not None
        self._retry.append(Retry(offset=entry.offset, due=entry.due, story=entry.story))
        self.put_to_sleep(entry)
        taken = [*held]
        for each in taken:
            self._take_back(each)
        if entry.key is not None:
            self._behind.add(entry.key, taken)
        # Those chosen in this turn, and not begun, come after them.
        self.begin = [
            each for each in self.begin if each.key != entry.key or not self.is_behind(each)
        ]

    def take_up(self, keys: Collection[str], entries: Sequence[Entry]) -> None:
        """
        Note that no letter holds *keys* any more, and that *entries* are in the store.
        """
        self.dead_keys.difference_update(keys)
        self._wait_again(entries)

    def put_back(self, entry: Entry) -> None:
        """
        Let an entry, just taken out, be the next one again.
        """
        self._not_yet(entry)
        if not entry.is_pending:
            self.fresh.appendleft(entry)
        elif self.pendings and self.pendings[0].offset < entry.offset:
            self._wait_again([entry])  # it had fallen asleep meanwhile
        else:
            self.pendings.appendleft(entry)

    def take_back(self, entry: Entry) -> None:
        """
        Note that an entry was begun, and never handed to its handler.
        """
        self._take_back(entry)
        self._wait_again([entry])

    def _take_back(self, entry: Entry) -> None:
        self.finished(entry)
        if entry.is_begun:
            self._untried.append(entry.offset)
            entry.number -= 1
        entry.is_begun = entry.is_over = False
        self._set_aside(entry)

    def awake(self, entry: Entry) -> None:
        """
        Note that an entry goes on whose attempt was begun before it fell asleep.
        """
        self._asleep.pop(entry.offset, None)
        self.in_hand[entry.offset] = entry

    def ask(self, entry: Entry) -> None:
        """
        Note that an entry's next attempt is to be begun, now that it is due.
        """
        self._asleep.pop(entry.offset, None)
        entry.due = None
        self.begin.append(entry)

    def put_off(self) -> None:
        """
        Begin nothing: what was about to be waits for its turn again.
        """
        begin, self.begin = self.begin, []
        for entry in reversed(begin):
            self.put_back(entry)

    def dead(self, entry: Entry, letter: KeptLetter) -> None:
        """
        Note that an entry was given up on.
        """
        self.finished(entry)
        if letter.holds_key and letter.record.key is not None:
            self.dead_keys.add(letter.record.key)
        (self._dead if self._is_in_store(entry) else self._next_dead).append(letter)

    def hold(self, entry: Entry, letter: KeptLetter) -> None:
        """
        Note that an entry is to be kept as a letter while an earlier one holds its key.
        """
        self.finished(entry)
        (self._hold if self._is_in_store(entry) else self._next_hold).append((entry, letter))

    def _is_in_store(self, entry: Entry) -> bool:
        if entry.is_pending and entry.offset not in self._waiting:
            return True
        self._make_pending(entry)
        return False

    # -- what the store is told ----------------------------------------------------------------

    def step(self) -> Step:
        """
        Return what the store is to be told.
        """
        return Step(
            done=tuple(self._done),
            untried=tuple(self._untried),
            retry=tuple(self._retry),
            dead=tuple(self._dead),
            hold=tuple(letter for _, letter in self._hold),
            taken=self._looked_at(),
            waiting=tuple(self._waiting),
            begin=tuple(each.offset for each in self.begin),
            handled=tuple(self._handled),
        )

    def _looked_at(self) -> int:
        return self.fresh[0].offset - 1 if self.fresh else self.position

    def kept(self, advance: Advance) -> list[tuple[Entry, KeptLetter]]:
        """
        Return what the store has kept behind other letters; asked before it is `written`.
        """
        return [(entry, letter) for entry, letter in self._hold if entry.offset in advance.held]

    def written(self, advance: Advance) -> list[Entry]:
        """
        Note that the store has the step; return what was begun with it.
        """
        self._taken = self._looked_at()
        begun, self.begin = self.begin, []
        for entry in begun:
            entry.number = advance.attempts[entry.offset]
            entry.is_pending = entry.is_begun = True
            self.in_hand[entry.offset] = entry
        free = [each for each in self._hold if each[0].offset not in advance.held]
        self._done, self._untried, self._retry, self._waiting = [], [], [], []
        self._handled = []
        self._dead, self._next_dead = self._next_dead, []
        self._hold, self._next_hold = self._next_hold, []
        self._take_up(free)
        return begun

    def _take_up(self, free: Iterable[tuple[Entry, KeptLetter]]) -> None:
        """
        Let go on what was to be kept, but the letters that held its keys are gone.
        """
        freed = {letter.record.key for _, letter in free}
        freed -= {letter.record.key for letter in self._dead if letter.holds_key}
        freed -= self.keys_in_hand()
        # What comes after it, and was to be kept with the step after, goes on behind it.
        late = [each for each in self._hold if each[1].record.key in freed]
        self._hold = [each for each in self._hold if each[1].record.key not in freed]
        entries = [entry for entry, _ in (*free, *late)]
        for entry in entries:
            self._take_back(entry)
        self._wait_again(sorted(entries, key=attrgetter("offset")))
        self.dead_keys -= freed
