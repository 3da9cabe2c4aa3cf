"""
Projections: state built from events, in memory or in tables, kept up and built anew.

Law: the state is a function of the log, and its position moves together with it. Whoever
reads tables sees them before an event or after it, and whoever reads anything the old
state or the new one, never one half built. Nothing here calls a handler of a bus.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from eventbus._clock import Clock, SystemClock
from eventbus._folding import SLOT, Declared, Folder, declared_of
from eventbus._following import Follower
from eventbus._playback import Replayed, Sieve, untold
from eventbus._records import envelope_of
from eventbus._signature import name_of
from eventbus._tenure import Watch
from eventbus.codec import Codec
from eventbus.errors import (
    DeclarationError,
    DecodeError,
    ProjectionError,
    SubscriptionBusyError,
)
from eventbus.event_log import Record
from eventbus.progress import Step
from eventbus.replay import LEASE, Keeper
from eventbus.store import Store

if TYPE_CHECKING:
    from eventbus._scratch import Scratch

__all__ = ["Projection", "projection"]

C = TypeVar("C", bound=type)
P = TypeVar("P")

_BATCH = 200  # records in one transaction, during which nobody else can write
_LOOK = 0.05  # seconds after which to see whether another process has brought it on

# What its position is kept under begins so, and no subscription's name does.
_PLACE = "projection:"


def projection(
    *, name: str | None = None, version: int = 1, tables: str = "", partial: bool = False
) -> Callable[[C], C]:
    """
    Declare a class whose methods, marked with `eventbus.on`, build state from events.

    Args:
        name: What it is known by in the store. Default: its module and qualified name.
        version: Raise it when the class would build another state from the same events:
            then it is built anew, from the first event on.
        tables: SQL that makes its tables, where its state is kept in tables: those of the
            store's file. Methods with a parameter annotated ``sqlite3.Connection`` write
            to them. Without, the state is in the attributes of the instance.
        partial: It makes sense when it is built from the rest of a log whose beginning was
            pruned. Without, that is a `ProjectionError`, and the old state stays.

    Raises:
        DeclarationError: What is decorated is no class, or an argument is none.

    .. versionadded:: 0.1
    """
    if isinstance(version, bool) or version < 1:
        raise DeclarationError(f"@projection: version counts from 1, {version!r} is none")

    def declare(cls: C) -> C:
        if not isinstance(cls, type):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DeclarationError(f"@projection declares classes, not {cls!r}")
        called = name or name_of(cls)
        setattr(cls, SLOT, Declared(name=called, version=version, tables=tables, partial=partial))
        return cls

    return declare


class Projection(Generic[P]):
    """
    One projection of one log: its state, how far it is, and what brings it on.

    `catch_up` takes in what is new, and returns. In a ``with`` block it goes on by itself,
    in a thread of its own, which ends with the block.

    Args:
        make: The class that was decorated, or what makes an instance of it.
        store: Where the log, the position and the tables are.
        codec: What reads the events.
        unreadable: What an event of its own that cannot be read does: ``"raise"`` stops
            there, ``"skip"`` leaves it out.
        progress: Told how far it has come while it is built anew.
        clock: Where the time comes from that leases end at.

    Attributes:
        name: What it is known by in the store.
        version: The version of what it builds.
        state: The instance. Ask for it each time: built anew, it is another one.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        make: Callable[[], P],
        *,
        store: Store,
        codec: Codec,
        unreadable: Literal["raise", "skip"] = "raise",
        progress: Callable[[Replayed], object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.state = make()
        declared = declared_of(self.state)
        self.name, self.version, self._script = declared.name, declared.version, declared.tables
        self._place, self._is_partial = _PLACE + declared.name, declared.partial
        self._make, self._store, self._codec = make, store, codec
        self._skips = unreadable == "skip"
        self._tell = progress or untold
        self._clock = clock or SystemClock()
        self._folder = Folder(self.state)
        types = self._folder.event_types
        self._sieve = Sieve(codec, types, unknown=object in types)
        self._offset = 0
        self._is_sound = False  # in memory: whether the state is that of the offset
        self._is_known = False  # in tables: whether they are its own
        self._busy = threading.Lock()  # never waited for
        self._follower: Follower | None = None
        self._watch = Watch(self._place, LEASE, store.progress, self._clock)

    @property
    def position(self) -> int:
        """
        The offset up to which everything has been taken in.
        """
        if not self._script:
            return self._offset
        return self._store.progress.open(self._place, start="origin").offset

    @property
    def lag(self) -> int:
        """
        How many offsets it is behind the log's end.
        """
        return self._store.log.last_offset() - self.position

    def catch_up(self) -> int:
        """
        Take in what is new; return how far it has come.

        Where nothing is there yet, or something of another version, it is built anew.

        Raises:
            SubscriptionBusyError: Somebody else is bringing it on, here or elsewhere.
            ProjectionError: It would have to be built from a log whose beginning was pruned, or
                go on behind what was pruned, or has other tables in the file than its class makes.
            Exception: What a method raises. Nothing of the event is kept.
        """
        with self._alone_in_turns() as advance:
            return advance()

    def rebuild(self) -> int:
        """
        Build the state anew from the first event, then put it in the old one's place.

        Raises:
            SubscriptionBusyError: Somebody is bringing it on, here or elsewhere.
            ProjectionError: The log's beginning was pruned. The old state stays.
            Exception: What a method raises. The old state stays.
        """
        with self._alone():
            if not self._script:
                return self._build_in_memory()
            with self._held() as keeper:
                return self._build_tables(keeper)

    def wait(self, *, timeout: float = 5.0) -> bool:
        """
        Wait until what is in the log now is taken in; see to it, if nobody else does.

        Args:
            timeout: In seconds.

        Returns:
            Whether that is so.
        """
        last, end = self._store.log.last_offset(), time.monotonic() + timeout
        while self.position < last:
            left = end - time.monotonic()
            if left <= 0:
                return False
            if self._follower is None:
                self.catch_up()
            else:
                self._follower.wait_for_turn(min(left, _LOOK))
        return True

    # -- one turn ----------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Generator[None]:
        if not self._busy.acquire(blocking=False):
            raise SubscriptionBusyError(
                f"{self.name} is being brought on by another thread of this process; wait() "
                f"waits for that",
                subscription=self.name,
            )
        try:
            yield
        finally:
            self._busy.release()

    @contextmanager
    def _turns_on(self) -> Generator[Callable[[], int]]:
        """
        Yield what takes in what is new, again and again.
        """
        if not self._script:
            yield self._fold_in_memory
            return
        with self._held() as keeper:
            with self._store.progress.transaction(keeper.lease) as transaction:
                version, owned = _tables().version_in(transaction.connection, self.name)
            if version != self.version:
                self._build_tables(keeper)
            elif not self._is_known:
                _tables().check_same(self.name, self._script, owned)
            self._is_known = True
            yield functools.partial(self._fold_into_tables, keeper)

    @contextmanager
    def _held(self) -> Generator[Keeper]:
        self._store.progress.open(self._place, start="origin")
        watch = None if self._follower is None else self._watch  # which asks every second
        with Keeper.of(self._store.progress, self._place, clock=self._clock, watch=watch) as keeper:
            yield keeper

    def _check_whole(self) -> None:
        """
        Refuse to build from a log whose beginning is gone.
        """
        first = next(iter(self._store.log.read(limit=1)), None)
        if first is not None and first.offset > 1 and not self._is_partial:
            raise ProjectionError(
                f"{self.name} cannot be built: what came before offset {first.offset} was pruned "
                f"from the log. What was built before stays. Go on with the version= it has, or "
                f"declare it with @projection(partial=True) if a state made of the rest is meant",
                projection=self.name,
            )

    def _fold(self, folder: Folder, record: Record, connection: Any = None) -> None:
        if not self._sieve.lets_through(record):
            return
        try:
            envelope = envelope_of(record, self._codec)
        except DecodeError:
            if self._skips:
                return
            raise
        folder.fold(envelope, connection)

    # -- in memory ---------------------------------------------------------------------------

    def _fold_in_memory(self) -> int:
        if not self._is_sound:
            return self._build_in_memory()
        for record in self._store.log.read(after=self._offset):
            if record.offset > self._offset + 1 and self._is_first(record):
                self._refuse_hole(record)
                return self._build_in_memory()
            self._is_sound = False
            self._fold(self._folder, record)
            self._offset, self._is_sound = record.offset, True
        return self._offset

    def _is_first(self, record: Record) -> bool:
        first = next(iter(self._store.log.read(limit=1)), None)
        return first is not None and first.offset >= record.offset

    def _refuse_hole(self, record: Record) -> None:
        """
        Refuse to go on behind what was pruned, unless a state made of the rest is meant.
        """
        if not self._is_partial:
            raise ProjectionError(
                f"{self.name} cannot go on: what came between offset {self._offset} and "
                f"{record.offset} was pruned from the log before it was taken in. The state stays "
                f"as it was. Let it catch up before the log is pruned, or keep it in tables "
                f"(tables=), which prune() waits for",
                projection=self.name,
            )

    def _build_in_memory(self) -> int:
        self._check_whole()
        folder, offset = Folder(self._make()), 0
        for record in self._store.log.read():
            self._fold(folder, record)
            offset = record.offset
            if offset % _BATCH == 0:
                self._report(offset)
        self._check_whole()  # else somebody may have pruned what was not read yet
        self._folder, self.state = folder, folder.state
        self._offset, self._is_sound = offset, True
        self._report(offset)
        return offset

    def _report(self, offset: int) -> None:
        last = max(offset, self._store.log.last_offset())
        self._tell(Replayed(subscription=self.name, done=offset, total=last, offset=offset))

    # -- in tables ---------------------------------------------------------------------------

    def _fold_into_tables(self, keeper: Keeper) -> int:
        keeper.renew()  # also where nothing has come for as long as the lease is
        log, progress = self._store.log, self._store.progress
        taken = progress.position(self._place).taken
        while records := list(log.read(after=taken, limit=_BATCH)):
            keeper.renew()
            with progress.transaction(keeper.lease) as transaction:
                for record in records:
                    self._fold(self._folder, record, transaction.connection)
                taken = records[-1].offset
                transaction.advance(Step(taken=taken))
        return taken

    def _build_tables(self, keeper: Keeper) -> int:
        self._check_whole()
        folder = Folder(self._make())
        rooms = _tables()
        with rooms.Scratch(self.name, self._script) as scratch:
            offset = self._fill(scratch, folder, 0, keeper)
            with self._store.progress.transaction(keeper.lease) as transaction:
                # Nobody else can append now: these are the last ones.
                offset = self._fill(scratch, folder, offset, None)
                self._check_whole()  # nor prune
                _, owned = rooms.version_in(transaction.connection, self.name)
                made = scratch.swap_into(transaction.connection, owned)
                rooms.note_version(transaction.connection, self.name, self.version, made)
                transaction.advance(Step(taken=offset))
        self._folder, self.state = folder, folder.state
        self._report(offset)
        return offset

    def _fill(self, scratch: Scratch, folder: Folder, offset: int, keeper: Keeper | None) -> int:
        while records := list(self._store.log.read(after=offset, limit=_BATCH)):
            for record in records:
                self._fold(folder, record, scratch.connection)
            offset = records[-1].offset
            if keeper is not None:
                keeper.renew()
                self._report(offset)
        return offset

    # -- going on by itself ------------------------------------------------------------------

    @property
    def error(self) -> Exception | None:
        """
        What keeps it from going on by itself; ``None`` while nothing does.
        """
        return None if self._follower is None else self._follower.error

    @contextmanager
    def _alone_in_turns(self) -> Generator[Callable[[], int]]:
        with self._alone(), self._turns_on() as advance:
            yield advance

    def __enter__(self) -> Self:
        self._follower = Follower(self.name, self._store.log, self._alone_in_turns)
        try:
            with suppress(SubscriptionBusyError):  # in another process: this one stands by
                self.catch_up()
        except BaseException:
            self._follower = None
            raise
        self._follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._follower is not None:
            self._follower.end()
            self._follower = None


def _tables() -> Any:
    from eventbus import _scratch  # late: it loads sqlite3

    return _scratch
