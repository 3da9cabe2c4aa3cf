"""
tenacity's wait, stop and retry objects as a policy.

Law: the only file that knows tenacity, which is imported when a policy is made of its
objects, and not before. They see the call state `tenacity.Retrying` would show them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from eventbus.retry._checks import check_callable
from eventbus.retry._curve import Curve
from eventbus.retry._policy import Asked, Attempt, Composable

__all__ = ["from_tenacity"]


def from_tenacity(
    *,
    wait: Callable[[Any], float],
    stop: Callable[[Any], bool],
    retry: Callable[[Any], bool] | None = None,
) -> Composable:
    """
    Make a policy of tenacity's own objects: it decides as `tenacity.Retrying` would.

    Args:
        wait: Says the seconds to wait: ``tenacity.wait_random_exponential(max=30)``.
        stop: Says when to give up: ``tenacity.stop_after_attempt(5)``.
        retry: Says which exceptions are retried. ``None``: every one.

    Raises:
        ModuleNotFoundError: tenacity is not installed.
        TypeError: One of them cannot be called, or is a class.

    Each is given a ``RetryCallState`` with attempt number, outcome, start and outcome
    time and, for *stop*, the upcoming sleep. Its ``idle_for`` stays 0: an `Attempt` does
    not say how much of the time was waiting. Only sync objects are understood.

    .. versionadded:: 0.1
    """
    check_callable("from_tenacity", wait=wait, stop=stop)
    if retry is not None:
        check_callable("from_tenacity", retry=retry)
    import_module("tenacity")  # where it is missing, this is the time to say so
    return _Tenacious(Curve(_from_tenacity, wait=wait, stop=stop, retry=retry))


class _Tenacious(Asked):
    __slots__ = ()

    def __repr__(self) -> str:
        return repr(self.decide)


def _from_tenacity(
    attempt: Attempt, *, wait: Callable[[Any], float], stop: Any, retry: Any
) -> float | None:
    tenacity = import_module("tenacity")
    state = tenacity.RetryCallState(tenacity.Retrying(wait=wait, stop=stop), None, (), {})
    state.attempt_number = attempt.number
    state.start_time, state.outcome_timestamp = 0.0, attempt.elapsed
    state.outcome = tenacity.Future(attempt.number)
    state.outcome.set_exception(attempt.exception)

    # tenacity's own order: retry, wait, stop; TryAgain is retried whatever retry says.
    insists = isinstance(attempt.exception, tenacity.TryAgain)
    if retry is not None and not insists and not retry(state):
        return None
    state.upcoming_sleep = wait(state)
    return None if stop(state) else float(state.upcoming_sleep)
