"""
Dead letters in a store: the protocol of `eventbus.dead_letter` on kept letters.

Law: letters are decoded when somebody looks at them, and not before. Of an exception
its texts are kept; the original payload is never changed, whatever replaces a letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, Unpack, cast

import attrs

from eventbus._beside import beside
from eventbus._logger import logger
from eventbus._records import legible, record_of
from eventbus.codec import Codec
from eventbus.dead_letter import AttemptFailure, DeadLetter, Filters, matcher
from eventbus.errors import DeadLetterNotFoundError
from eventbus.event_log import check_limit
from eventbus.kept_letters import KeptLetter, KeptLetters, Selection

__all__ = ["StoredDeadLetters", "failures_from_json", "failures_to_json", "read_letter"]

_PAGE = 100  # letters read at once while looking for those that match


class StoredDeadLetters:
    """
    Keeps dead letters in a store; see `eventbus.DeadLetters`.

    Args:
        letters: Where they are kept.
        codec: What writes and reads their events.

    Attributes:
        on_removed: Called with the subscription of letters that were taken out here.

    .. versionadded:: 0.1
    """

    def __init__(self, letters: KeptLetters, codec: Codec) -> None:
        self._letters = letters
        self._codec = codec
        self.on_removed: Callable[[str], object] = _nothing

    def add(self, letter: DeadLetter) -> bool:
        """
        Keep a letter, or raise `ValueError`: one of its id is kept already.
        """
        self._letters.add(self._made(letter))
        return True

    def add_all(self, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        """
        Keep letters, by one transaction where the store can; return those that can be kept.

        One whose event cannot be encoded is logged, and hinders none of the others.
        """
        made = dict[str, KeptLetter]()
        told = list(letters)
        for each in told:
            try:
                made[each.id] = self._made(each)
            except Exception:
                text = "the dead letter of %s for event %s could not be kept"
                logger().exception(text, each.subscription, each.envelope.id)
        add_all = beside(self._letters, "add", "add_all")
        if add_all is not None:
            add_all(list(made.values()))
        else:
            for kept in made.values():
                self._letters.add(kept)
        return [each for each in told if each.id in made]

    def _made(self, letter: DeadLetter) -> KeptLetter:
        kept = KeptLetter(
            id=letter.id,
            subscription=letter.subscription,
            record=record_of(letter.envelope, self._codec),
            first_failure=letter.first_failure,
            last_failure=letter.last_failure,
        )
        return _retold(kept, letter)

    def get(self, id: str) -> DeadLetter:
        """
        Return the letter of that id.
        """
        return read_letter(self._letters.get(id), self._codec)

    def query(
        self, *, limit: int | None = None, after: str | None = None, **filters: Unpack[Filters]
    ) -> tuple[DeadLetter, ...]:
        """
        Return the letters that meet the filters, first arrival first, at most *limit*.
        """
        check_limit(limit)
        found = list[DeadLetter]()
        for letter in self._matching(after, filters):
            found.append(letter)
            if len(found) == limit:
                break
        return tuple(found)

    def _matching(self, after: str | None, filters: Filters) -> Iterator[DeadLetter]:
        matches, selection = matcher(**filters), _selection(filters)
        # By places, and not by ids: a letter may be gone before the page behind it is read.
        place = 0 if after is None else self._letters.get(after).place
        while page := self._letters.query(selection, limit=_PAGE, after=place):
            letters = [read_letter(each, self._codec) for each in page]
            yield from filter(matches, letters)
            if len(page) < _PAGE:
                return
            place = page[-1].place

    def count(self, **filters: Unpack[Filters]) -> int:
        """
        Return how many letters meet the filters.
        """
        error = filters.get("error")
        if filters.get("event_type") is None and (error is None or isinstance(error, str)):
            matcher(**filters)  # which refuses what is no filter
            return self._letters.count(attrs.evolve(_selection(filters), error=error))
        return sum(1 for _ in self._matching(None, filters))

    def replace(self, letter: DeadLetter) -> None:
        """
        Put *letter* in the place of the one with its id, which keeps its payload.
        """
        self._letters.replace(_retold(self._letters.get(letter.id), letter))

    def claim(self, id: str, *, owner: str, ttl: float, now: float) -> bool:
        """
        Ask for the right to redrive a letter; of all who ask, one gets it.
        """
        return self._letters.claim(id, owner=owner, ttl=ttl, now=now)

    async def aclaim(self, id: str, *, owner: str, ttl: float, now: float) -> bool:
        """
        Do as `claim`, while the event loop goes on, where the letters have ways for that.
        """
        aclaim = beside(self._letters, "claim", "aclaim")
        if aclaim is None:
            return self._letters.claim(id, owner=owner, ttl=ttl, now=now)
        is_theirs: bool = await aclaim(id, owner=owner, ttl=ttl, now=now)
        return is_theirs

    async def aremove(self, id: str) -> DeadLetter:
        """
        Do as `remove`, in the same way.
        """
        aremove = beside(self._letters, "remove", "aremove")
        if aremove is None:
            return self.remove(id)
        kept: KeptLetter = await aremove(id)
        self.on_removed(kept.subscription)
        return read_letter(kept, self._codec)

    def remove(self, id: str) -> DeadLetter:
        """
        Take the letter of that id out and return it.
        """
        kept = self._letters.remove(id)
        self.on_removed(kept.subscription)
        return read_letter(kept, self._codec)

    def discard(self, **filters: Unpack[Filters]) -> int:
        """
        Throw away the letters that meet the filters, all if none is given; count them.
        """
        discarded, subscriptions = 0, set[str]()
        try:
            for letter in self.query(**filters):
                with suppress(DeadLetterNotFoundError):  # somebody else was quicker
                    self._letters.remove(letter.id)
                    discarded += 1
                    subscriptions.add(letter.subscription)
        finally:
            for each in subscriptions:
                self.on_removed(each)
        return discarded

    def __len__(self) -> int:
        return self._letters.count()

    def __iter__(self) -> Iterator[DeadLetter]:
        return iter(self.query())


def _nothing(subscription: str) -> None: ...


def _selection(filters: Filters) -> Selection:
    """
    Return what a store can tell of letters without decoding them.
    """
    return Selection(
        subscription=filters.get("subscription"),
        key=filters.get("key"),
        reason=filters.get("reason"),
        since=filters.get("since"),
        before=filters.get("until"),
    )


def _retold(kept: KeptLetter, letter: DeadLetter) -> KeptLetter:
    return attrs.evolve(
        kept,
        subscription=letter.subscription,
        reason=letter.reason,
        attempts=letter.attempts,
        failures=failures_to_json(letter.failures),
        error_type=letter.error_type,
        first_failure=letter.first_failure,
        last_failure=letter.last_failure,
        idempotency_key=letter.idempotency_key,
        redrives=letter.redrives,
    )


def read_letter(kept: KeptLetter, codec: Codec) -> DeadLetter:
    """
    Decode a kept letter; an event that cannot be read is an `Unreadable`.
    """
    return DeadLetter(
        id=kept.id,
        envelope=legible(kept.record, codec, payload=kept.edited),
        subscription=kept.subscription,
        reason=cast(Any, kept.reason),
        attempts=kept.attempts,
        failures=failures_from_json(kept.failures),
        first_failure=kept.first_failure,
        last_failure=kept.last_failure,
        idempotency_key=kept.idempotency_key,
        redrives=kept.redrives,
    )


def failures_to_json(failures: tuple[AttemptFailure, ...]) -> str:
    """
    Write stories down: texts and times, no exceptions.
    """
    import json  # late: for start-up time

    return json.dumps(
        [
            {
                "number": each.number,
                "error_type": each.error_type,
                "message": each.message,
                "traceback": each.traceback,
                "time": each.time.isoformat(),
            }
            for each in failures
        ]
    )


def failures_from_json(text: str) -> tuple[AttemptFailure, ...]:
    """
    Read stories again.
    """
    import json  # late: for start-up time

    stories: list[dict[str, Any]] = json.loads(text)
    return tuple(
        AttemptFailure(
            number=each["number"],
            error_type=each["error_type"],
            message=each["message"],
            traceback=each["traceback"],
            time=datetime.fromisoformat(each["time"]),
        )
        for each in stories
    )
