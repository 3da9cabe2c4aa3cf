"""
The shipped delays: fixed, linear, exponential, or listed one by one.

Law: a curve says the delay after an attempt, `Backoff` whether there is another one.
Both are pure, but for jitter; and where that draws from can be given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from random import random as chance
from typing import Final, Literal, TypeAlias

import attrs

from eventbus.retry._checks import (
    COUNT,
    FACTOR,
    SECONDS,
    ExceptionTypes,
    as_tuple,
    check,
    check_callable,
    exception_types,
)
from eventbus.retry._curve import Curve, written
from eventbus.retry._policy import Attempt, Composable

__all__ = ["Backoff", "exponential", "fixed", "linear", "schedule"]

Jitter: TypeAlias = Literal["full", "equal", "additive", "none"]

# The interval a delay is drawn from: (delay without jitter, spread) -> (low, high).
INTERVALS: Final[dict[str, Callable[[float, float], tuple[float, float]]]] = {
    "full": lambda delay, spread: (0.0, delay),
    "equal": lambda delay, spread: (delay / 2, delay),
    "additive": lambda delay, spread: (delay, delay + spread),
    "none": lambda delay, spread: (delay, delay),
}


@attrs.frozen(repr=False)
class Backoff(Composable):
    """
    A shipped policy: delays along a curve, within limits.

    `fixed`, `linear`, `exponential` and `schedule` make it and say what the limits mean.
    Two that were made alike are equal, and each prints as it was made.

    .. versionadded:: 0.1
    """

    curve: Curve[float]
    attempts: int | None
    on: tuple[type[Exception], ...] = attrs.field(eq=frozenset)
    give_up_on: tuple[type[Exception], ...] = attrs.field(eq=frozenset)
    max_elapsed: float | None

    def next_delay(self, attempt: Attempt) -> float | None:
        """
        Return the seconds to the next attempt, or ``None`` where a limit is reached.
        """
        if self.attempts is not None and attempt.number >= self.attempts:
            return None
        if isinstance(attempt.exception, self.give_up_on):
            return None
        if not isinstance(attempt.exception, self.on):
            return None
        delay = self.curve(attempt.number)
        if self.max_elapsed is not None and attempt.elapsed + delay > self.max_elapsed:
            return None
        return delay

    def __repr__(self) -> str:
        attempts = {} if self.curve.func is _schedule else {"attempts": self.attempts}
        limits = {"on": self.on, "give_up_on": self.give_up_on, "max_elapsed": self.max_elapsed}
        given = {**self.curve.keywords, **limits}
        said = {name: value for name, value in given.items() if value not in _UNSAID}
        return written(self.curve.name, {**attempts, **said})


_UNSAID: Final = (None, (), (Exception,))


def fixed(
    *,
    attempts: int | None = 5,
    delay: float,
    on: ExceptionTypes = Exception,
    give_up_on: ExceptionTypes = (),
    max_elapsed: float | None = None,
) -> Backoff:
    """
    Wait the same *delay* after each attempt.

    Args:
        attempts: Calls of the handler at most, the first one included. ``None``: no
            limit but *max_elapsed*, which must then be given, with a delay above 0.
        delay: Seconds between two attempts, 0 or more.
        on: The exception type or types that are retried; others end the delivery.
        give_up_on: The type or types that are not retried; wins over *on*.
        max_elapsed: No attempt starts later than this many seconds after the first
            one began: where the delay would pass it, the policy gives up at once.

    .. versionadded:: 0.1
    """
    check("fixed", SECONDS, delay=delay)
    curve = Curve(_fixed, delay=delay)
    return _limited(curve, attempts, on, give_up_on, max_elapsed, longest=delay)


def linear(
    *,
    attempts: int | None = 5,
    initial: float,
    step: float,
    maximum: float = 30.0,
    on: ExceptionTypes = Exception,
    give_up_on: ExceptionTypes = (),
    max_elapsed: float | None = None,
) -> Backoff:
    """
    Wait *initial* seconds, then *step* more after each attempt, up to *maximum*.

    Args:
        attempts: As for `fixed`.
        initial: Seconds after the first attempt, 0 or more.
        step: Seconds added after each further attempt, 0 or more.
        maximum: Seconds no delay goes above, at least *initial*.
        on: As for `fixed`.
        give_up_on: As for `fixed`.
        max_elapsed: As for `fixed`.

    .. versionadded:: 0.1
    """
    check("linear", SECONDS, initial=initial, step=step)
    _check_maximum("linear", initial, maximum)
    curve = Curve(_linear, initial=initial, step=step, maximum=maximum)
    longest = min(maximum, initial + step)
    return _limited(curve, attempts, on, give_up_on, max_elapsed, longest=longest)


def exponential(
    *,
    attempts: int | None = 5,
    initial: float = 0.1,
    maximum: float = 30.0,
    multiplier: float = 2.0,
    jitter: Jitter = "full",
    spread: float | None = None,
    random: Callable[[], float] | None = None,
    on: ExceptionTypes = Exception,
    give_up_on: ExceptionTypes = (),
    max_elapsed: float | None = None,
) -> Backoff:
    """
    Wait *initial* seconds, then *multiplier* times as long after each attempt.

    Let b be ``initial * multiplier ** (n - 1)`` after attempt n, or *maximum* if that is
    less. The delay is drawn evenly from an interval that *jitter* names:

    ==============  =====================================================
    ``"full"``      from 0 to b (the default)
    ``"equal"``     from b / 2 to b
    ``"additive"``  from b to b + *spread*, or to *maximum* if that is less
    ``"none"``      b itself
    ==============  =====================================================

    Args:
        attempts: As for `fixed`.
        initial: Seconds after the first attempt, before jitter; 0 or more.
        maximum: Seconds no delay goes above, jitter included; at least *initial*.
        multiplier: How much longer each delay is than the one before, 1 or more.
        jitter: One of the four. It keeps callers that failed together from coming
            back together; full jitter costs the called one least.
        spread: Seconds, for additive jitter only; *initial* unless given.
        random: Draws from [0, 1), as ``random.Random(7).random`` does, for a run that
            can be repeated. Default: the one of the standard library.
        on: As for `fixed`.
        give_up_on: As for `fixed`.
        max_elapsed: As for `fixed`.

    Source:
        The modes: M. Brooker, "Exponential Backoff And Jitter", AWS, 2015.

    .. versionadded:: 0.1
    """
    check("exponential", SECONDS, initial=initial)
    _check_maximum("exponential", initial, maximum)
    check("exponential", FACTOR, multiplier=multiplier)
    _check_jitter(jitter, spread, random)
    numbers = {"initial": initial, "maximum": maximum, "multiplier": multiplier}
    curve = Curve(_exponential, **numbers, jitter=jitter, spread=spread, random=random)
    longest = min(maximum, initial + (spread or 0.0))
    return _limited(curve, attempts, on, give_up_on, max_elapsed, longest=longest)


def schedule(
    delays: Iterable[float],
    *,
    on: ExceptionTypes = Exception,
    give_up_on: ExceptionTypes = (),
    max_elapsed: float | None = None,
) -> Backoff:
    """
    Wait the given *delays*, one after the other, then give up.

    Args:
        delays: Seconds, 0 or more each. There is one attempt more than delays.
        on: As for `fixed`.
        give_up_on: As for `fixed`.
        max_elapsed: As for `fixed`.

    .. versionadded:: 0.1
    """
    listed = as_tuple("schedule", "delays", delays)
    for number, delay in enumerate(listed):
        check("schedule", SECONDS, **{f"delays[{number}]": delay})
    if not listed:
        raise ValueError("schedule: delays is empty; for a single attempt say no_retry")
    curve = Curve(_schedule, delays=listed)
    return _limited(curve, len(listed) + 1, on, give_up_on, max_elapsed, longest=max(listed))


def _check_maximum(owner: str, initial: float, maximum: float) -> None:
    check(owner, SECONDS, maximum=maximum)
    if initial > maximum:
        raise ValueError(
            f"{owner}: initial={initial!r} is above maximum={maximum!r}, which is 30.0 unless given"
        )


def _check_jitter(jitter: object, spread: float | None, random: Callable[[], float] | None) -> None:
    if jitter not in tuple(INTERVALS):
        raise ValueError(f"exponential: jitter={jitter!r} must be one of {', '.join(INTERVALS)}")
    if spread is not None:
        check("exponential", SECONDS, spread=spread)
        if jitter != "additive":
            raise ValueError(f"exponential: spread={spread!r} needs jitter='additive'")
    if random is not None:
        check_callable("exponential", random=random)


def _limited(
    curve: Curve[float],
    attempts: int | None,
    on: ExceptionTypes,
    give_up_on: ExceptionTypes,
    max_elapsed: float | None,
    *,
    longest: float,
) -> Backoff:
    """
    Put limits around *curve*, and refuse those that cannot work.

    Without a number of attempts it is time that ends the retries; where no delay is
    above 0, on a clock that only waiting moves, that time never comes.
    """
    if attempts is not None:
        check(curve.name, COUNT, attempts=attempts)
    if max_elapsed is not None:
        check(curve.name, SECONDS, max_elapsed=max_elapsed)
    if attempts is None and (max_elapsed is None or not longest):
        raise ValueError(
            f"{curve.name}: attempts=None would never end; give a number of attempts, "
            f"or max_elapsed= and a delay above 0"
        )
    retried = exception_types(curve.name, "on", on)
    given_up = exception_types(curve.name, "give_up_on", give_up_on)
    if not retried:
        raise ValueError(f"{curve.name}: on={on!r} retries nothing; say no_retry instead")
    return Backoff(curve, attempts, retried, given_up, max_elapsed)


def _fixed(number: int, *, delay: float) -> float:
    return float(delay)


def _linear(number: int, *, initial: float, step: float, maximum: float) -> float:
    return float(min(maximum, initial + step * (number - 1)))


def _exponential(
    number: int,
    *,
    initial: float,
    maximum: float,
    multiplier: float,
    jitter: str,
    spread: float | None,
    random: Callable[[], float] | None,
) -> float:
    delay = min(maximum, _grown(initial, multiplier, number))
    low, high = INTERVALS[jitter](delay, initial if spread is None else spread)
    return low + (min(high, maximum) - low) * (random or chance)()


def _grown(initial: float, multiplier: float, number: int) -> float:
    try:
        return initial * float(multiplier) ** (number - 1)
    except OverflowError:
        return inf if initial else 0.0  # 0 stays 0, however often it is multiplied


def _schedule(number: int, *, delays: tuple[float, ...]) -> float:
    return float(delays[number - 1])
