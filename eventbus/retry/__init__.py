"""
Retry policies as values: from a failed attempt to a delay, or to giving up.

Law: a policy decides, and does nothing else. No clock, no sleep, no state: time is
read from the `Attempt`, and whoever delivers does the waiting. What a handler says
by raising `GiveUp` or `RetryAfter` is heard there too, not here.

============================================  =======================================
`no_retry`                                    one attempt, and no second one
`fixed`, `linear`, `exponential`, `schedule`  the shipped delays, within their limits
``a | b``                                     what *a* says, or *b* where *a* gives up
`as_policy`, `from_tenacity`                  policies made of something else
============================================  =======================================
"""

from __future__ import annotations

from eventbus.retry._backoff import Backoff, exponential, fixed, linear, schedule
from eventbus.retry._policy import (
    Attempt,
    Composable,
    PolicyLike,
    RetryPolicy,
    as_policy,
    checked_delay,
    no_retry,
)
from eventbus.retry._tenacity import from_tenacity

__all__ = [
    "Attempt",
    "Backoff",
    "Composable",
    "PolicyLike",
    "RetryPolicy",
    "as_policy",
    "checked_delay",
    "exponential",
    "fixed",
    "from_tenacity",
    "linear",
    "no_retry",
    "schedule",
]
