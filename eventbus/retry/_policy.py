"""
What a policy is, what counts as one, and how two make a third.

Law: nothing here computes a delay. A policy is anything that answers an `Attempt`;
what is no policy is refused by `as_policy`, when somebody subscribes with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import attrs

from eventbus.retry._checks import SECONDS, check

__all__ = [
    "Asked",
    "Attempt",
    "Composable",
    "PolicyLike",
    "RetryPolicy",
    "as_policy",
    "checked_delay",
    "no_retry",
]


@attrs.frozen
class Attempt:
    """
    One failed call of a handler, as a policy sees it.

    Attributes:
        number: Which call it was; starts at 1, the first call included.
        exception: What the handler raised.
        elapsed: Seconds since the first attempt began, waits included, monotonic.

    .. versionadded:: 0.1
    """

    number: int
    exception: Exception
    elapsed: float


@runtime_checkable
class RetryPolicy(Protocol):
    """
    What decides about the next attempt: anything with this one method.

    .. versionadded:: 0.1
    """

    def next_delay(self, attempt: Attempt) -> float | None:
        """
        Decide what follows a failed attempt.

        Args:
            attempt: The failure. ``number`` starts at 1; ``elapsed`` is in seconds.

        Returns:
            Seconds to wait before the next attempt, 0 or more, or ``None`` to give up.

        Raises:
            Nothing. A policy that raises is a bug and ends the delivery.
        """
        ...


PolicyLike: TypeAlias = RetryPolicy | Callable[[Attempt], float | None]
"""
A policy, or a plain callable that is one: from an `Attempt` to seconds or ``None``.

.. versionadded:: 0.1
"""


class Composable:
    """
    A policy that takes ``|``, as every shipped one does; inherit it to teach yours.

    ``a | b`` asks *a* and, where *a* gives up, *b*. Each keeps its own limits, and both
    count the same attempts. A plain callable may stand on either side.

    A policy that has ``attempts`` or ``max_elapsed`` says by them how long a handler may
    go on asking for more with `RetryAfter`; without them it may go on for ever.

    .. versionadded:: 0.1
    """

    __slots__ = ()

    def next_delay(self, attempt: Attempt) -> float | None:
        """
        Decide what follows a failed attempt; see `RetryPolicy.next_delay`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no next_delay()")

    def __or__(self, other: PolicyLike) -> Composable:
        return _Either(self, as_policy(other))

    def __ror__(self, other: PolicyLike) -> Composable:
        return _Either(as_policy(other), self)


@attrs.frozen(repr=False)
class _Either(Composable):
    first: RetryPolicy
    second: RetryPolicy

    @property
    def attempts(self) -> Any:
        return _later(self.first, self.second, "attempts")

    @property
    def max_elapsed(self) -> Any:
        return _later(self.first, self.second, "max_elapsed")

    def __repr__(self) -> str:
        return f"{self.first!r} | {self.second!r}"

    def next_delay(self, attempt: Attempt) -> float | None:
        delay = self.first.next_delay(attempt)
        return self.second.next_delay(attempt) if delay is None else delay


def _later(first: RetryPolicy, second: RetryPolicy, limit: str) -> Any:
    ends = [getattr(policy, limit, None) for policy in (first, second)]
    known = [end for end in ends if end is not None]
    return max(known) if len(known) == len(ends) else None


@attrs.frozen(repr=False)
class Asked(Composable):
    """
    The policy a plain callable is.
    """

    decide: Callable[[Attempt], float | None]

    def __repr__(self) -> str:
        return f"as_policy({self.decide!r})"

    def next_delay(self, attempt: Attempt) -> float | None:
        """
        Return what the callable says.
        """
        return self.decide(attempt)


class _NoRetry(Composable):
    __slots__ = ()
    attempts: Final = 1
    max_elapsed: Final = None

    def __call__(self) -> _NoRetry:
        """
        Return itself, for the hand that writes the parentheses its neighbours have.
        """
        return self

    def __repr__(self) -> str:
        return "no_retry"

    def __reduce__(self) -> str:
        return "no_retry"  # a copy or an unpickled one is this very value

    def next_delay(self, attempt: Attempt) -> None:
        """
        Give up.
        """


no_retry: Final = _NoRetry()
"""
One attempt, and no second one. A value; ``no_retry()`` is the same one.

.. versionadded:: 0.1
"""


def as_policy(policy: PolicyLike) -> RetryPolicy:
    """
    Return *policy* itself, or the policy a plain callable is.

    Raises:
        TypeError: It is neither; the message names the cure.

    .. versionadded:: 0.1
    """
    if obstacle := _obstacle(policy):
        raise TypeError(f"{policy!r} is no retry policy: {obstacle}")
    return policy if isinstance(policy, RetryPolicy) else Asked(policy)


def _obstacle(policy: Any) -> str | None:
    """
    Say why *policy* cannot be asked, or ``None``.
    """
    if isinstance(policy, type):
        return f"it is a class; call it: {policy.__name__}(...)"
    if any(cls.__module__.partition(".")[0] == "tenacity" for cls in type(policy).__mro__):
        return "tenacity's objects are adapted by from_tenacity(wait=..., stop=...)"
    decide = getattr(policy, "next_delay", policy)
    if not callable(decide):
        return "give exponential(attempts=5), schedule([0.1, 1]) or a callable of an Attempt"
    if inspect.iscoroutinefunction(decide) or inspect.iscoroutinefunction(type(decide).__call__):
        return "it is async, and a policy decides without waiting; make it a plain def"
    try:
        inspect.signature(decide).bind("attempt")
    except TypeError:
        return "it must take one positional argument, the Attempt"
    except ValueError:  # a builtin that hides its signature
        return None
    return None


def checked_delay(policy: RetryPolicy, attempt: Attempt) -> float | None:
    """
    Ask *policy*, and refuse an answer that is neither a delay nor ``None``.

    Raises:
        TypeError: It answered with something other than a number or ``None``.
        ValueError: It answered with a number of seconds that nobody can wait.

    .. versionadded:: 0.1
    """
    delay = policy.next_delay(attempt)
    if delay is None:
        return None
    check(f"{policy!r} after attempt {attempt.number}", SECONDS, delay=delay)
    return float(delay)
