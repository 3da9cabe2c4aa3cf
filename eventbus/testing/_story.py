"""
What became of each event, entry by entry: the lists below a failed assertion.

Law: reads the records and words them. What no record says, why a handler was never
called for example, is asked of the bus through one function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import TypeAlias

import attrs

from eventbus._envelope import Envelope
from eventbus._subscription import Subscription
from eventbus.dead_letter import DeadLetter, matcher
from eventbus.instrumentation import Duplicate, Failed
from eventbus.testing._fields import shown
from eventbus.testing._recorder import Outcome, RecordedDelivery, Recorder
from eventbus.testing._report import Entry, times_in_words
from eventbus.testing._wanted import Wanted

__all__ = ["Story", "letter_differences"]

# How alike an event is to what was asked for: an event of its class, less its differences.
_SAME_CLASS = 100

# Which subscription, and which event by its id.
Delivery: TypeAlias = tuple[str | None, str]


@attrs.frozen
class Story:
    """
    What a recorder has to tell.

    Attributes:
        recorder: The records.
        why_not: Says why a subscription's handler was not called for an event.
        dead_letters: Those there are, where that is known.
    """

    recorder: Recorder
    why_not: Callable[[Subscription, Envelope[object]], str]
    dead_letters: Sequence[DeadLetter] | None = None

    def published(self, asked: Wanted | None) -> list[Entry]:
        """
        List the events published, with the differences of those of the right class.
        """
        return [
            _entry(envelope.event, asked, depth=depth) for envelope, depth in self.recorder.depths()
        ]

    def outcomes(
        self, takers: Collection[Subscription], asked: Wanted, *, fitting: bool = False
    ) -> list[Entry]:
        """
        List the events published, and what became of those of the right class.

        Args:
            takers: In whose hands.
            asked: The right class, and what else was asked for.
            fitting: Leave out, event by event, who is subscribed to others only.
        """
        entries: list[Entry] = []
        recorded: dict[Delivery, list[Outcome]] = {}
        for each in tuple(self.recorder.outcomes):
            recorded.setdefault((each.subscription, each.envelope.id), []).append(each)
        for envelope, depth in self.recorder.depths():
            entry = _entry(envelope.event, asked, depth=depth)
            if isinstance(envelope.event, asked.event_types):
                found = [
                    (each, *self._outcome(each, envelope, recorded))
                    for each in takers
                    if isinstance(envelope.event, each.event_types) or not fitting
                ]
                prefix = fitting or len(takers) > 1
                lines = [f"{each.name}: {text}" if prefix else text for each, _, text in found]
                is_taken = any(taken for _, taken, _ in found)
                entry = attrs.evolve(
                    entry,
                    is_meant=entry.is_meant and is_taken,
                    notes=[*entry.notes, *lines],
                )
            entries.append(entry)
        return entries

    def _outcome(
        self,
        subscription: Subscription,
        envelope: Envelope[object],
        recorded: Mapping[Delivery, Sequence[Outcome]],
    ) -> tuple[bool, str]:
        meant = (subscription.name, envelope.id)
        if not (outcomes := recorded.get(meant)):
            so_far = self._last_attempt(subscription, envelope) or "not called"
            return False, f"✗ {so_far}: {self.why_not(subscription, envelope)}"
        told = [
            text + f" {times_in_words(count)}" * (count > 1)
            for text, alike in groupby(map(_told, outcomes))
            if (count := len([*alike]))
        ]
        if isinstance(outcomes[-1], Failed) and self._is_discarded(meant):
            told[-1] += "; its dead letter is discarded"
        is_taken = any(isinstance(each, RecordedDelivery) for each in outcomes)
        return is_taken, ", then ".join(told)

    def _is_discarded(self, meant: Delivery) -> bool:
        """
        Tell whether the dead letter of a delivery that failed is known to be no more.
        """
        if self.dead_letters is None:
            return False
        return all((each.subscription, each.envelope.id) != meant for each in self.dead_letters)

    def _last_attempt(self, subscription: Subscription, envelope: Envelope[object]) -> str | None:
        """
        Tell of the last attempt, if there was one and another was to follow it.
        """
        for each in reversed(self.recorder.retries):
            if each.subscription == subscription.name and each.envelope.id == envelope.id:
                return f"attempt {each.attempt} failed with {shown(each.exception)}"
        return None

    def deliveries(self, takers: Iterable[Subscription], asked: Wanted) -> list[Entry]:
        """
        List what the handlers of *takers* took, with the differences.
        """
        names = {each.name for each in takers}
        return [
            _entry(taken.event, asked, text=f"{taken.subscription} took {shown(taken.event)}")
            for taken in self.recorder.delivered
            if taken.subscription in names
        ]

    def letters(self, differences: Callable[[DeadLetter], list[str] | None]) -> list[Entry]:
        """
        List dead letters, with what tells them from those asked for.
        """
        return [
            Entry(
                text=shown(letter.event),
                is_meant=(missed := differences(letter)) == [],
                notes=[*(f"✗ {line}" for line in missed or ()), _fate(letter)],
                likeness=_likeness(missed),
            )
            for letter in self.dead_letters or ()
        ]


def letter_differences(
    asked: Wanted, takers: Sequence[Subscription] | None, error: type[BaseException] | str | None
) -> Callable[[DeadLetter], list[str] | None]:
    """
    Return what says by what a dead letter misses: nothing, or ``None`` for one of others.
    """
    names = None if takers is None else {each.name for each in takers}
    is_for = matcher(error=error)

    def differences(letter: DeadLetter) -> list[str] | None:
        missed = asked.differences(letter.event)
        if missed is None or (names is not None and letter.subscription not in names):
            return None
        if not is_for(letter):
            expected = getattr(error, "__qualname__", error)
            missed.append(f"error: expected {expected}, was {letter.error_type}")
        return missed

    return differences


def _told(outcome: Outcome) -> str:
    match outcome:
        case Failed():
            return f"✗ failed{after(outcome.attempts)}: {shown(outcome.exception)}"
        case Duplicate():
            return f"✗ not called: a duplicate, of key {outcome.key!r}"
        case _:
            return "✓ delivered"


def _entry(
    event: object, asked: Wanted | None, *, depth: int = 0, text: str | None = None
) -> Entry:
    missed = None if asked is None else asked.differences(event)
    notes = [f"✗ {line}" for line in missed or ()]
    if asked is not None and missed is None and (line := asked.namesake(event)):
        notes = [f"✗ {line}"]
    return Entry(
        text=text or shown(event),
        depth=depth,
        is_meant=missed == [],
        notes=notes,
        likeness=_likeness(missed),
    )


def _likeness(missed: list[str] | None) -> int:
    return 0 if missed is None else _SAME_CLASS - len(missed)


def _fate(letter: DeadLetter) -> str:
    text = f"{letter.subscription} gave up{after(letter.attempts)}: {letter.error_type}"
    return f"{text}: {letter.message}" if letter.message else text


def after(attempts: int) -> str:
    """
    Say after how many attempts, where there was more than one.
    """
    return f" after {attempts} attempts" if attempts > 1 else ""
