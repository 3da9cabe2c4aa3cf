"""
How what was given up on is delivered again.

Law: a redrive is no publish: it goes to one subscription, with the envelope the event
had. What follows from an attempt is decided where it always is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Unpack, cast

from eventbus._abort import running_loop
from eventbus._beside import beside
from eventbus._delivery import Delivery
from eventbus._dispatch import adispatch, dispatch
from eventbus._envelope import here
from eventbus._mode import Durable
from eventbus._owner import owner
from eventbus._publisher import refuse_loop
from eventbus._receipt import Receipt
from eventbus._route import Route
from eventbus._running import Running
from eventbus._subscription import spelled
from eventbus._unreadable import Unreadable
from eventbus.dead_letter import DeadLetter, DeadLetters, Filters
from eventbus.errors import (
    DeadLetterBusyError,
    DeadLetterNotFoundError,
    DecodeError,
    EventBusError,
    StoreCorruptError,
    SubscriptionNotFoundError,
)

__all__ = ["Redriving"]

# Seconds for which nobody else redrives a letter of which nothing more is heard.
_TTL = 300.0


class Redriving(Running):
    """
    The part of `eventbus.EventBus` that redrives dead letters.
    """

    @property
    def dead_letters(self) -> DeadLetters:
        """
        The deliveries that were given up on: query, count, discard.
        """
        return self._stand_in()._furniture.dead_letters

    def redrive(self, letter: DeadLetter | str, /) -> Receipt:
        """
        Deliver a dead letter again, to the handler that failed and to no other.

        Its retry policy starts anew, its key is not in the way, and its filter is asked
        only if it has never let the event pass. Success removes the letter, and so does a
        filter that says no; another failure is added to its story.

        Args:
            letter: The letter or its id.

        Returns:
            What came of it; on every bus, failures are returned and not raised.

        Raises:
            DeadLetterNotFoundError: There is no such letter (any more).
            DeadLetterBusyError: Somebody else redrives it; or it is held, and waits behind an
                earlier event of its key.
            DecodeError, StoreCorruptError: Its event still cannot be read. It stays.
            SubscriptionNotFoundError: Nothing is subscribed by the letter's name, or
                something that takes no such events.
            RunningLoopError: The handler is async and a loop runs in this thread.
        """
        return self._redrive(letter, None)

    async def aredrive(self, letter: DeadLetter | str, /) -> Receipt:
        """
        Deliver a dead letter again, awaiting an async handler; see `redrive`.
        """
        return await self._aredrive(letter, None)

    def redrive_all(self, **filters: Unpack[Filters]) -> list[Receipt]:
        """
        Redrive each dead letter that matches *filters*, the oldest first.

        Of a key that later events wait for, none is delivered before one that failed. A
        letter is passed by if its event cannot be read, if it waits behind one that is not
        meant, and if somebody else redrives or discards it meanwhile.

        Raises:
            SubscriptionNotFoundError: See `redrive`; letters before it are redriven.
        """
        stand_in = self._stand_in()
        batch = stand_in._batch_of(stand_in.dead_letters.query(**filters))
        for letter in batch:
            with batch.passing_by():
                batch.came_of(self._redrive(letter, batch.claimant))
        return batch.receipts

    async def aredrive_all(self, **filters: Unpack[Filters]) -> list[Receipt]:
        """
        Redrive each dead letter that matches *filters*; see `redrive_all`.
        """
        stand_in = self._stand_in()
        batch = stand_in._batch_of(stand_in.dead_letters.query(**filters))
        for letter in batch:
            with batch.passing_by():
                batch.came_of(await self._aredrive(letter, batch.claimant))
        return batch.receipts

    def _redrive_each(self, ids: Iterable[str]) -> Iterator[tuple[str, Receipt | EventBusError]]:
        """
        Redrive some letters, in this order, and yield what came of each.

        Those are left out that wait behind one of their key that failed.
        """
        letters = list[DeadLetter]()
        for id in ids:
            try:
                letters.append(self.dead_letters.get(id))
            except DeadLetterNotFoundError as error:
                yield id, error
        for letter in (batch := self._batch_of(letters)):
            came: Receipt | EventBusError
            with batch.passing_by():
                try:
                    batch.came_of(came := self._redrive(letter, batch.claimant))
                except DeadLetterNotFoundError as error:
                    came = error
                    raise
                except EventBusError as error:
                    came = error
            yield letter.id, came

    def _redrive(self, letter: DeadLetter | str, claimant: str | None) -> Receipt:
        if (stand_in := self._stand_in()) is not self:
            return stand_in._redrive(letter, claimant)
        delivery, receipt, route, found = self._readied(letter)
        if running_loop() is not None:
            refuse_loop(route)
        claimant = claimant or self._claimant()
        with self._claimed(found, claimant, self._claim(found, claimant)), _within(receipt):
            dispatch(receipt, route, iter(delivery.again(found)[:1]))
        if self._is_over(receipt):
            with suppress(DeadLetterNotFoundError):  # discarded meanwhile
                self.dead_letters.remove(found.id)
        return receipt

    async def _aredrive(self, letter: DeadLetter | str, claimant: str | None) -> Receipt:
        if (stand_in := self._stand_in()) is not self:
            return await stand_in._aredrive(letter, claimant)
        delivery, receipt, route, found = self._readied(letter)
        claimant = claimant or self._claimant()
        is_ours = await self._aclaim(found, claimant)
        with self._claimed(found, claimant, is_ours), _within(receipt):
            await adispatch(receipt, route, iter(delivery.again(found)[1:]))
        if self._is_over(receipt):
            with suppress(DeadLetterNotFoundError):  # discarded meanwhile
                await self._aremove(found)
        return receipt

    def _batch_of(self, letters: Iterable[DeadLetter]) -> _Batch:
        held = [(each, self._held_by(each)) for each in letters]
        return _Batch(held, self._claim, self._claimant())

    def _held_by(self, letter: DeadLetter) -> object:
        """
        Return what later events wait for while there is *letter*; ``None`` if they do not.
        """
        subscription = self._registry.named(letter.subscription)
        mode = None if subscription is None else subscription.options.delivery
        holds = isinstance(mode, Durable) and mode.on_dead_letter == "hold_key"
        key = letter.envelope.key
        return (letter.subscription, key) if holds and key is not None else None

    def _readied(self, letter: DeadLetter | str) -> tuple[Delivery, Receipt, Route, DeadLetter]:
        if not isinstance(given := cast(object, letter), str | DeadLetter):
            raise TypeError(f"a dead letter is redriven, or the id of one, and not {given!r}")
        letter = self.dead_letters.get(letter if isinstance(letter, str) else letter.id)
        event: object = letter.event
        if isinstance(event, Unreadable):
            raise event.error
        self._routes.refuse_if_closed(type(event))
        subscription = self._registry.named(letter.subscription)
        if subscription is None or subscription.handler is None:
            raise SubscriptionNotFoundError(
                f"dead letter {letter.id} belongs to {letter.subscription!r}, which is not "
                f"subscribed here. Subscribe a handler by that name= first, or discard it.",
                subscription=letter.subscription,
            )
        if not isinstance(event, subscription.event_types):
            raise SubscriptionNotFoundError(
                f"dead letter {letter.id} belongs to {letter.subscription!r}, which is subscribed "
                f"to {spelled(subscription.event_types)} here, and its event is of "
                f"{type(event).__qualname__}. Subscribe a handler of it by that name= first, or "
                f"discard it.",
                subscription=letter.subscription,
            )
        self._refuse_if_behind(letter)
        route = self._routes.alone(letter.event, subscription)
        receipt = self._publisher.redriving(letter, route)
        return self._delivery(subscription), receipt, route, letter

    def _refuse_if_behind(self, letter: DeadLetter) -> None:
        """
        Refuse to redrive what waits behind an earlier event of its key.
        """
        held, offset = self._held_by(letter), letter.envelope.offset
        if held is None or offset is None:
            return
        name, key = letter.subscription, letter.envelope.key
        for first in self.dead_letters.query(subscription=name, key=key, limit=1):
            if first.id != letter.id and (first.envelope.offset or offset) < offset:
                raise DeadLetterBusyError(
                    f"dead letter {letter.id} of {name} waits behind {first.id}, of an earlier "
                    f"event of key {key!r}: redrive or discard that first",
                    letter_id=letter.id,
                )

    def _claimant(self) -> str:
        return f"{owner()} {self._furniture.clock.new_id()}"

    @contextmanager
    def _claimed(self, letter: DeadLetter, claimant: str, is_ours: bool) -> Generator[None]:
        if not is_ours:
            raise DeadLetterBusyError(
                f"dead letter {letter.id} is being redriven, or is about to be delivered again",
                letter_id=letter.id,
            )
        try:
            yield
        except BaseException:  # nothing came of it: others may try at once
            with suppress(DeadLetterNotFoundError):
                self._claim(letter, claimant, ttl=0)
            raise

    def _claim(self, letter: DeadLetter, claimant: str, ttl: float = _TTL) -> bool:
        """
        Keep others from redriving a letter meanwhile, where several processes could.
        """
        claim = getattr(self.dead_letters, "claim", None)
        now = self._furniture.clock.time()
        return claim is None or claim(letter.id, owner=claimant, ttl=ttl, now=now)

    async def _aclaim(self, letter: DeadLetter, claimant: str) -> bool:
        """
        Do as `_claim`, while the event loop goes on, where the store of letters can.
        """
        aclaim = beside(self.dead_letters, "claim", "aclaim")
        if aclaim is None:
            return self._claim(letter, claimant)
        now = self._furniture.clock.time()
        is_ours: bool = await aclaim(letter.id, owner=claimant, ttl=_TTL, now=now)
        return is_ours

    async def _aremove(self, letter: DeadLetter) -> None:
        aremove = beside(self.dead_letters, "remove", "aremove")
        if aremove is None:
            self.dead_letters.remove(letter.id)
        else:
            await aremove(letter.id)

    def _is_over(self, receipt: Receipt) -> bool:
        """
        Whether its letter is to be taken out: it went well, and its transaction did not do so.

        Raises:
            DeadLetterNotFoundError: It had gone before that transaction began.
        """
        facts = receipt.options or {}
        if facts.get("is_gone"):
            raise receipt.failures[-1].exception
        return receipt.ok and not facts.get("is_at_rest")


@contextmanager
def _within(receipt: Receipt) -> Generator[None]:
    """
    Let what is published meanwhile be caused by what is redriven.
    """
    token = here.set(receipt)
    try:
        yield
    finally:
        here.reset(token)
        receipt.finished = True


class _Batch:
    """
    The letters that one call redrives, and what came of them.

    Of a key that later events wait for, the next letter is claimed before this one is
    removed: else the key would be free in between, and its consumer take up the rest.
    """

    def __init__(
        self,
        letters: list[tuple[DeadLetter, object]],
        claim: Callable[[DeadLetter, str, float], bool],
        claimant: str,
    ) -> None:
        self.receipts = list[Receipt]()
        self.claimant = claimant
        self._letters = letters
        self._claim = claim
        self._goes_on = True

    def __iter__(self) -> Iterator[DeadLetter]:
        left, behind = set[object](), _next_of_key(self._letters)
        for letter, key in self._letters:
            if key in left:
                continue
            following = behind.get(letter.id)
            is_claimed = following is not None and self._ask(following, _TTL)
            self._goes_on = False
            try:
                yield letter
            finally:
                if key is not None and not self._goes_on:
                    left.add(key)
                    if following is not None and is_claimed:
                        self._ask(following, 0.0)

    def _ask(self, letter: DeadLetter, ttl: float) -> bool:
        with suppress(DeadLetterNotFoundError):
            return self._claim(letter, self.claimant, ttl)
        return False

    @contextmanager
    def passing_by(self) -> Generator[None]:
        """
        Go on to the next letter if this one cannot be read, or somebody else was quicker.
        """
        try:
            yield
        except (DeadLetterBusyError, DecodeError, StoreCorruptError):
            pass
        except DeadLetterNotFoundError:
            self._goes_on = True

    def came_of(self, receipt: Receipt) -> None:
        """
        Note what came of the present letter.
        """
        self.receipts.append(receipt)
        self._goes_on = receipt.ok


def _next_of_key(letters: list[tuple[DeadLetter, object]]) -> dict[str, DeadLetter]:
    """
    Return, by the id of each letter, the next one of the same key.
    """
    last, following = dict[object, DeadLetter](), dict[str, DeadLetter]()
    for letter, key in letters:
        if key is not None:
            if key in last:
                following[last[key].id] = letter
            last[key] = letter
    return following
