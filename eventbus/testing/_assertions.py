"""
What a test can assert of a bus that has recorded.

Law: an assertion reads the records and changes nothing. It returns what it found,
and its failure says what was recorded instead; a question that makes no sense is no
failure but an error of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

import attrs

from eventbus._abort import running_loop
from eventbus._deferred import open_block
from eventbus._envelope import Envelope
from eventbus._insight import explain
from eventbus._signature import event_types_of
from eventbus._subscription import Subscription
from eventbus.dead_letter import DeadLetter
from eventbus.testing._recorder import RecordedDelivery
from eventbus.testing._recording import RecordingBus
from eventbus.testing._report import Entry, counted, further, report
from eventbus.testing._roster import HandlerOrName
from eventbus.testing._story import Story, letter_differences
from eventbus.testing._wanted import Wanted, is_so_often, wanted

__all__ = ["AssertingBus"]

E = TypeVar("E")
Where = Callable[[E], object] | None


class AssertingBus(RecordingBus):
    """
    The part of `TestBus` that asserts.
    """

    # -- published ---------------------------------------------------------------------------

    @overload
    def assert_published(
        self, event_type: type[E], /, *, times: int, where: Where[E] = None, **fields: Any
    ) -> list[E]: ...

    @overload
    def assert_published(
        self, event_type: type[E], /, *, times: None = None, where: Where[E] = None, **fields: Any
    ) -> E: ...

    def assert_published(
        self,
        event_type: type[E],
        /,
        *,
        times: int | None = None,
        where: Where[E] = None,
        **fields: Any,
    ) -> E | list[E]:
        """
        Assert that such an event was published, at least once.

        Args:
            event_type: Its class; events of subclasses count.
            times: How often exactly.
            where: Called with an event; what it says no to does not count.
            fields: What the event's fields equal.

        Returns:
            The first such event; with *times*, the list of all of them.

        Raises:
            AssertionError: There was none, or not so many.
            TypeError: The class has no such field.
        """
        __tracebackhide__ = True
        asked = self._wanted(event_type, fields, where)
        found = [event for event in self.published if asked.matches(event)]
        if is_so_often(found, times):
            return found[0] if times is None else found
        what = f"{asked} was published" if found else f"no {asked} was published"
        raise AssertionError(self._published(f"{what}{counted(found, times)}.", asked))

    def assert_not_published(
        self, event_type: type[E], /, *, where: Where[E] = None, **fields: Any
    ) -> None:
        """
        Assert that no such event was published; see `assert_published`.
        """
        __tracebackhide__ = True
        asked = self._wanted(event_type, fields, where)
        found = [event for event in self.published if asked.matches(event)]
        if found:
            title = f"{asked} was published{counted(found, 0)}."
            raise AssertionError(self._published(title, asked))

    def assert_nothing_published(self) -> None:
        """
        Assert that no event was published at all.
        """
        __tracebackhide__ = True
        if count := len(self.published):
            title = "1 event was" if count == 1 else f"{count} events were"
            raise AssertionError(self._published(f"{title} published, expected none.", None))

    # -- delivered ---------------------------------------------------------------------------

    def assert_delivered(
        self,
        handler: HandlerOrName,
        event_type: Any = None,
        /,
        *,
        times: int | None = None,
        where: Where[Any] = None,
        **fields: Any,
    ) -> Any:
        """
        Assert that a handler took such an event, at least once, and succeeded.

        Args:
            handler: The handler, its subscription, or the subscription's name.
            event_type: The event's class. Default: whatever the handler is subscribed to.
            times: How often exactly.
            where: Called with an event; what it says no to does not count.
            fields: What the event's fields equal.

        Returns:
            The first such event; with *times*, the list of all of them.

        Raises:
            AssertionError: It took none, or not so many.
            SubscriptionNotFoundError: Nothing like that was ever subscribed.
            TypeError: The class has no such field.
        """
        __tracebackhide__ = True
        takers = self._roster.find(handler)
        asked = self._wanted(event_type, fields, where, takers)
        found = [taken.event for taken in self._taken(takers, asked)]
        if is_so_often(found, times):
            return found[0] if times is None else found
        title = f"{_names(takers)} took {'' if found else 'no '}{asked}{counted(found, times)}."
        entries = self._story().outcomes(takers, asked)
        raise AssertionError(self._reported(title, entries))

    def assert_not_delivered(
        self,
        handler: HandlerOrName,
        event_type: Any = None,
        /,
        *,
        where: Where[Any] = None,
        **fields: Any,
    ) -> None:
        """
        Assert that a handler took no such event; see `assert_delivered`.

        A handler that was called and failed has taken nothing.
        """
        __tracebackhide__ = True
        takers = self._roster.find(handler)
        asked = self._wanted(event_type, fields, where, takers)
        found = self._taken(takers, asked)
        if found:
            title = f"{_names(takers)} took {asked}{counted(found, 0)}."
            entries = self._story().deliveries(takers, asked)
            raise AssertionError(report(title, "Delivered", entries, nothing=""))

    # -- dead-lettered -----------------------------------------------------------------------

    @overload
    def assert_dead_lettered(
        self,
        target: type[Any] | HandlerOrName,
        /,
        *,
        error: type[BaseException] | str | None = None,
        times: int,
        where: Where[Any] = None,
        **fields: Any,
    ) -> list[DeadLetter]: ...

    @overload
    def assert_dead_lettered(
        self,
        target: type[Any] | HandlerOrName,
        /,
        *,
        error: type[BaseException] | str | None = None,
        times: None = None,
        where: Where[Any] = None,
        **fields: Any,
    ) -> DeadLetter: ...

    def assert_dead_lettered(
        self,
        target: type[Any] | HandlerOrName,
        /,
        *,
        error: type[BaseException] | str | None = None,
        times: int | None = None,
        where: Where[Any] = None,
        **fields: Any,
    ) -> DeadLetter | list[DeadLetter]:
        """
        Assert that there is such a dead letter now, at least one.

        Args:
            target: The event's class, or who gave up: the handler, its subscription, or
                the subscription's name.
            error: The class of the last exception, or its name.
            times: How many exactly.
            where: Called with the event; what it says no to does not count.
            fields: What the event's fields equal.

        Returns:
            The first such letter; with *times*, the list of all of them.

        Raises:
            AssertionError: There is none, or not so many.
            SubscriptionNotFoundError: Nothing like that was ever subscribed.
            TypeError: The class has no such field.
        """
        __tracebackhide__ = True
        is_class = isinstance(target, type) and not self._roster.knows(target)
        takers = None if is_class else self._roster.find(target)
        asked = self._wanted(target if is_class else None, fields, where, takers)
        missing = letter_differences(asked, takers, error)
        letters = list(self._furniture.dead_letters)
        found = [letter for letter in letters if missing(letter) == []]
        if is_so_often(found, times):
            return found[0] if times is None else found
        by = "" if takers is None else f" by {_names(takers)}"
        why = "" if error is None else f" for {getattr(error, '__qualname__', error)}"
        title = f"{'' if found else 'no '}{asked} was dead-lettered{by}{why}"
        story = attrs.evolve(self._story(), dead_letters=letters)
        nothing = "There are no dead letters."
        title = f"{title}{counted(found, times)}."
        text = report(title, "Dead letters", story.letters(missing), nothing=nothing)
        if len(found) > (times or 0):
            raise AssertionError(text)
        raise AssertionError(self._reported(text, self._undead(story, takers, asked)))

    # -- what they share ---------------------------------------------------------------------

    def _wanted(
        self,
        event_type: object,
        fields: Mapping[str, object],
        where: Where[Any],
        takers: Sequence[Subscription] | None = None,
    ) -> Wanted:
        event_types = event_types_of(event_type)
        if event_type is None and takers is not None:
            event_types = tuple(dict.fromkeys(each for one in takers for each in one.event_types))
        return wanted(event_type, event_types, fields, where, recorded=self.published)

    def _taken(self, takers: Sequence[Subscription], asked: Wanted) -> list[RecordedDelivery]:
        names = {each.name for each in takers}
        return [
            taken
            for taken in self.delivered
            if taken.subscription in names and asked.matches(taken.event)
        ]

    def _published(self, title: str, asked: Wanted | None) -> str:
        return self._reported(title, self._story().published(asked))

    def _undead(
        self, story: Story, takers: Sequence[Subscription] | None, asked: Wanted
    ) -> list[Entry]:
        """
        List what became of the events, dead letter or not.
        """
        if takers is None:
            entries = story.outcomes(self._roster.everybody(), asked, fitting=True)
        else:
            entries = story.outcomes(takers, asked)
        return [attrs.evolve(each, is_meant=False) for each in entries]

    def _reported(self, title: str, entries: Sequence[Entry]) -> str:
        text = report(title, "Published", entries, nothing="Nothing was published at all.")
        if due_later := 0 if self._postponed is None else len(self._postponed):
            are = "1 publish is" if due_later == 1 else f"{due_later} publishes are"
            text = further(text, f"{are} due later: advance the clock.")
        block = open_block(self)
        if waiting := 0 if block is None else block.waiting:
            wait = "1 publish waits" if waiting == 1 else f"{waiting} publishes wait"
            text = further(text, f"{wait} for the end of the deferred() block.")
        return text

    def _story(self) -> Story:
        return Story(self._recorder, self._why_not)

    def _why_not(self, subscription: Subscription, envelope: Envelope[Any]) -> str:
        """
        Say why a handler was not called for an event; without a record, it is a guess.
        """
        if (left_out := self._roster.why_left_out(subscription)) is not None:
            return left_out
        if (waits := self._why_not_yet(subscription, envelope)) is not None:
            return waits
        if not subscription.is_live:
            return "its subscription is cancelled"
        said = {e.subscription: e for e in explain(envelope.event, self._registry)}
        explanation = said[subscription.name]
        return "it was subscribed later" if explanation.called else explanation.reason

    def _why_not_yet(self, subscription: Subscription, envelope: Envelope[Any]) -> str | None:
        """
        Say for what an event waits that was accepted, or that it was given up on the way.
        """
        queue = self._queues.get(subscription)
        cure = "drain() waits for it" if self._is_manned else "settle() handles it"
        if not self._is_manned and running_loop() is not None:
            cure = "asettle() handles it"
        if queue is not None and (where := queue.find(envelope.id)) is not None:
            paused = ", which is paused: resume() the subscription"
            texts = {
                "waiting": "it waits in its queue" + (paused if queue.is_paused else f": {cure}"),
                "scheduled": "it waits for its next attempt, or for its key: advance the clock",
                "in hand": "its handler has not returned yet",
            }
            return texts[where]
        for letter in self._furniture.dead_letters:
            if (letter.subscription, letter.envelope.id) == (subscription.name, envelope.id):
                return f"it was given up, its dead letter says {letter.reason!r}"
        place = self._places().get(subscription) if subscription.is_durable else None
        if place is not None and envelope.offset is not None and place.offset < envelope.offset:
            return f"it waits in the log: {cure}"
        return None


def _names(takers: Sequence[Subscription]) -> str:
    return " and ".join(each.name for each in takers)
