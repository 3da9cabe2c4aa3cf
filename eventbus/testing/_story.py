"""
What became of each event, entry by entry: the lists below a failed assertion.

Law: reads the records and words them. What no record says, why a handler was never
called for example, is asked of the bus through one function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import attrs

from eventbus._envelope import Envelope
from eventbus._subscription import Subscription
from eventbus.dead_letter import DeadLetter
from eventbus.testing._fields import shown
from eventbus.testing._recorder import Recorder
from eventbus.testing._report import Entry, times_in_words
from eventbus.testing._wanted import Wanted

__all__ = ["Story"]

# How alike an event is to what was asked for: an event of its class, less its differences.
_SAME_CLASS = 100


@attrs.frozen
class Story:
    """
    What a recorder has to tell.

    Attributes:
        recorder: The records.
        why_not: Says why a subscription's handler was not called for an event.
    """

    recorder: Recorder
    why_not: Callable[[Subscription, Envelope[object]], str]

    def published(self, asked: Wanted | None) -> list[Entry]:
        """
        List the events published, with the differences of those of the right class.
        """
        return [
            _entry(envelope.event, asked, depth=depth) for envelope, depth in self.recorder.depths()
        ]

    def outcomes(self, takers: Collection[Subscription], asked: Wanted) -> list[Entry]:
        """
        List the events published, and what became of those of the right class.
        """
        entries: list[Entry] = []
        for envelope, depth in self.recorder.depths():
            entry = _entry(envelope.event, asked, depth=depth)
            if isinstance(envelope.event, asked.event_types):
                found = [(each, *self._outcome(each, envelope)) for each in takers]
                prefix = len(takers) > 1
                lines = [f"{each.name}: {text}" if prefix else text for each, _, text in found]
                is_taken = any(taken for _, taken, _ in found)
                entry = attrs.evolve(
                    entry,
                    is_meant=entry.is_meant and is_taken,
                    notes=[*entry.notes, *lines],
                )
            entries.append(entry)
        return entries

    def _outcome(self, subscription: Subscription, envelope: Envelope[object]) -> tuple[bool, str]:
        name, told = subscription.name, list[str]()
        taken = sum(
            each.subscription == name and each.envelope.id == envelope.id
            for each in self.recorder.delivered
        )
        if taken:
            told.append("✓ delivered" + f" {times_in_words(taken)}" * (taken > 1))
        for failed in self.recorder.failures:
            if failed.subscription == name and failed.envelope.id == envelope.id:
                told.append(f"✗ failed{after(failed.attempts)}: {shown(failed.exception)}")
        for duplicate in self.recorder.duplicates:
            if duplicate.subscription == name and duplicate.envelope.id == envelope.id:
                told.append(f"✗ not called: a duplicate, of key {duplicate.key!r}")
        if not told:
            so_far = self._last_attempt(subscription, envelope) or "not called"
            told.append(f"✗ {so_far}: {self.why_not(subscription, envelope)}")
        return taken > 0, ", then ".join(told)

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

    def letters(
        self, letters: Iterable[DeadLetter], differences: Callable[[DeadLetter], list[str] | None]
    ) -> list[Entry]:
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
            for letter in letters
        ]


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
