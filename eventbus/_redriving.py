"""
How what was given up on is delivered again.

Law: a redrive is no publish: it goes to one subscription, with the envelope the event
had. What follows from an attempt is decided where it always is.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Unpack

from eventbus._attempt import running_loop
from eventbus._delivery import Delivery
from eventbus._dispatch import adispatch, dispatch
from eventbus._envelope import here
from eventbus._mode import Durable
from eventbus._owner import owner
from eventbus._publisher import refuse_loop
from eventbus._receipt import Receipt
from eventbus._route import Route
from eventbus._running import Running
from eventbus.dead_letter import DeadLetter, DeadLetters, Filters
from eventbus.errors import DeadLetterBusyError, DeadLetterNotFoundError, SubscriptionNotFoundError

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

        Its retry policy starts anew, its filter is not asked and its key is not in the
        way. Success removes the letter; another failure is added to its story.

        Args:
            letter: The letter or its id.

        Returns:
            What came of it; on every bus, failures are returned and not raised.

        Raises:
            DeadLetterNotFoundError: There is no such letter (any more).
            SubscriptionNotFoundError: Nothing is subscribed by the letter's name.
            RunningLoopError: The handler is async and a loop runs in this thread.
        """
        delivery, receipt, route, found = self._stand_in()._redriven(letter)
        if running_loop() is not None:
            refuse_loop(route)
        token = here.set(receipt)
        try:
            dispatch(receipt, route, iter([delivery.deliver]))
        finally:
            here.reset(token)
            receipt.finished = True
        return self._laid_to_rest(receipt, found)

    async def aredrive(self, letter: DeadLetter | str, /) -> Receipt:
        """
        Deliver a dead letter again, awaiting an async handler; see `redrive`.
        """
        delivery, receipt, route, found = self._stand_in()._redriven(letter)
        token = here.set(receipt)
        try:
            await adispatch(receipt, route, iter([delivery.adeliver]))
        finally:
            here.reset(token)
            receipt.finished = True
        return self._laid_to_rest(receipt, found)

    def redrive_all(self, **filters: Unpack[Filters]) -> list[Receipt]:
        """
        Redrive each dead letter that matches *filters*, the oldest first.

        Of a key that later events wait for, none is delivered after one that failed.

        Raises:
            SubscriptionNotFoundError: See `redrive`; letters before it are redriven.
        """
        receipts, failed = list[Receipt](), set[object]()
        for letter in self.dead_letters.query(**filters):
            if (held := self._stand_in()._held_by(letter)) not in failed:
                receipts.append(self.redrive(letter))
                failed |= set() if receipts[-1].ok or held is None else {held}
        return receipts

    async def aredrive_all(self, **filters: Unpack[Filters]) -> list[Receipt]:
        """
        Redrive each dead letter that matches *filters*; see `redrive_all`.
        """
        receipts, failed = list[Receipt](), set[object]()
        for letter in self.dead_letters.query(**filters):
            if (held := self._stand_in()._held_by(letter)) not in failed:
                receipts.append(await self.aredrive(letter))
                failed |= set() if receipts[-1].ok or held is None else {held}
        return receipts

    def _held_by(self, letter: DeadLetter) -> object:
        """
        Return what later events wait for while there is *letter*; ``None`` if they do not.
        """
        subscription = self._registry.named(letter.subscription)
        mode = None if subscription is None else subscription.options.delivery
        holds = isinstance(mode, Durable) and mode.on_dead_letter == "hold_key"
        key = letter.envelope.key
        return (letter.subscription, key) if holds and key is not None else None

    def _redriven(self, letter: DeadLetter | str) -> tuple[Delivery, Receipt, Route, DeadLetter]:
        letter = self.dead_letters.get(letter if isinstance(letter, str) else letter.id)
        event: object = letter.event
        self._routes.refuse_if_closed(type(event))
        subscription = self._registry.named(letter.subscription)
        if subscription is None or subscription.handler is None:
            raise SubscriptionNotFoundError(
                f"dead letter {letter.id} belongs to {letter.subscription!r}, which is not "
                f"subscribed here. Subscribe a handler by that name= first, or discard it.",
                subscription=letter.subscription,
            )
        self._claim(letter)
        route = self._routes.alone(letter.event, subscription)
        receipt = self._publisher.redriving(letter, route)
        return self._delivery(subscription), receipt, route, letter

    def _claim(self, letter: DeadLetter) -> None:
        """
        Keep others from redriving a letter meanwhile, where several processes could.
        """
        claim = getattr(self.dead_letters, "claim", None)
        time, mine = self._furniture.clock.time(), f"{owner()} {self._furniture.clock.new_id()}"
        if claim is not None and not claim(letter.id, owner=mine, ttl=_TTL, now=time):
            raise DeadLetterBusyError(
                f"dead letter {letter.id} is being redriven, or is about to be delivered again",
                letter_id=letter.id,
            )

    def _laid_to_rest(self, receipt: Receipt, letter: DeadLetter) -> Receipt:
        if receipt.ok:
            with suppress(DeadLetterNotFoundError):  # discarded meanwhile
                self.dead_letters.remove(letter.id)
        return receipt
