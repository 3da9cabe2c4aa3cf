"""
Retry policies: what they answer, what they refuse, how they combine, compare and print.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from eventbus.retry import (
    Attempt,
    Composable,
    RetryPolicy,
    as_policy,
    checked_delay,
    exponential,
    fixed,
    from_tenacity,
    linear,
    no_retry,
    schedule,
)
from stable_ids import stable

LONGEST = 9_223_372_036  # seconds; what `time.sleep` takes

seconds = st.floats(0, LONGEST)
attempt_numbers = st.one_of(st.integers(1, 100), st.integers(1, 2**63 - 2))
chances = st.floats(0, 1, exclude_max=True)
jitters = st.sampled_from(["full", "equal", "additive", "none"])


def failed(number: int = 1, exception: Exception | None = None, elapsed: float = 0.0) -> Attempt:
    return Attempt(number, exception or RuntimeError("boom"), elapsed)


def delays(policy: RetryPolicy, exception: Exception | None = None) -> Iterator[float]:
    """
    Yield the delays of a handler that always fails at once, until the policy gives up.
    """
    number, elapsed = 1, 0.0
    while (delay := policy.next_delay(failed(number, exception, elapsed))) is not None:
        yield delay
        number, elapsed = number + 1, elapsed + delay


class FlakyError(Exception):
    pass


class VeryFlakyError(FlakyError):
    pass


def twice(attempt: Attempt) -> float | None:
    return 0.5 if attempt.number < 3 else None


POLICIES = [
    no_retry,
    fixed(delay=1),
    linear(initial=1, step=2),
    exponential(),
    schedule([0.1, 1, 10]),
    fixed(attempts=2, delay=0) | exponential(attempts=9, on=(OSError, FlakyError)),
    as_policy(twice),
]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=stable)

# Each kind, with the arguments it cannot do without.
KINDS: dict[str, Callable[..., Any]] = {
    "fixed": functools.partial(fixed, delay=1),
    "linear": functools.partial(linear, initial=1, step=1),
    "exponential": exponential,
    "schedule": functools.partial(schedule, [1, 1, 1, 1]),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


# ------------------------------------------------------------------------ attempts


def test_an_attempt_is_a_frozen_value():
    """
    An attempt compares by its facts and cannot be changed.
    """
    error = OSError()
    attempt = Attempt(number=2, exception=error, elapsed=1.5)
    assert Attempt(2, error, 1.5) == attempt
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        attempt.number = 3  # type: ignore[misc]


@pytest.mark.parametrize("attempts", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["fixed", "linear", "exponential"])
def test_attempts_count_the_first_call_too(kind: str, attempts: int):
    """
    With n attempts a handler that always fails is called n times, so there are n-1 delays.
    """
    assert attempts - 1 == len(list(delays(KINDS[kind](attempts=attempts))))


@pytest.mark.parametrize("kind", ["fixed", "linear", "exponential"])
def test_five_attempts_are_the_default(kind: str):
    """
    Without a number of attempts there are five.
    """
    assert 4 == len(list(delays(KINDS[kind]())))


@every_kind
def test_a_policy_has_no_memory(kind: str):
    """
    Attempts may come in any order and from many deliveries: only the attempt counts.
    """
    policy = KINDS[kind]()
    assert policy.next_delay(failed(9)) is None
    assert policy.next_delay(failed(1)) is not None
    assert policy.next_delay(failed(9)) is None


# -------------------------------------------------------------------------- delays


def test_no_retry_gives_up_at_once():
    """
    With `no_retry` there is no second attempt.
    """
    assert [] == list(delays(no_retry))


def test_no_retry_may_be_written_with_parentheses():
    """
    `no_retry()` is `no_retry`.
    """
    assert no_retry is no_retry()


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_there_is_one_no_retry(clone: Callable[[Any], Any]):
    """
    Copying or pickling `no_retry` returns the same value.
    """
    assert no_retry is clone(no_retry)


def test_fixed_delays_are_all_alike():
    """
    `fixed` waits the same before each attempt.
    """
    assert [2.5, 2.5] == list(delays(fixed(attempts=3, delay=2.5)))


def test_linear_delays_grow_by_a_step_up_to_the_maximum():
    """
    `linear` adds its step after each attempt and stops at the maximum.
    """
    policy = linear(attempts=6, initial=1, step=2, maximum=6)
    assert [1, 3, 5, 6, 6] == list(delays(policy))


def test_exponential_delays_multiply_up_to_the_maximum():
    """
    Without jitter the delays are d, 1.5d, 2.25d and so on, and never above the maximum.
    """
    policy = exponential(attempts=7, initial=2, multiplier=1.5, maximum=9, jitter="none")
    assert [2, 3, 4.5, 6.75, 9, 9] == list(delays(policy))


def test_exponential_doubles_from_a_tenth_of_a_second_by_default():
    """
    The default starts at 0.1 seconds and doubles.
    """
    assert [0.1, 0.2, 0.4, 0.8] == list(delays(exponential(jitter="none")))


def test_a_schedule_is_followed_to_its_end():
    """
    `schedule` waits its delays in their order, then gives up.
    """
    assert [0.1, 1, 10] == list(delays(schedule([0.1, 1, 10])))


def test_a_schedule_takes_any_iterable():
    """
    The delays of a schedule may come from a generator, and are read once.
    """
    policy = schedule(2**n for n in range(3))
    assert [1, 2, 4] == list(delays(policy))
    assert [1, 2, 4] == list(delays(policy))


@every_policy
def test_delays_are_floats(policy: RetryPolicy):
    """
    A policy made with whole numbers still answers in floats.
    """
    assert {float} >= {type(delay) for delay in delays(policy, FlakyError())}


@given(initial=seconds, step=seconds, number=attempt_numbers, data=st.data())
def test_linear_stays_between_initial_and_maximum(
    initial: float, step: float, number: int, data: st.DataObject
):
    """
    A linear delay is never below its initial one and never above its maximum.
    """
    maximum = data.draw(st.floats(initial, LONGEST))
    policy = linear(attempts=number + 1, initial=initial, step=step, maximum=maximum)
    delay = policy.next_delay(failed(number))
    assert delay is not None
    assert initial <= delay <= maximum


# -------------------------------------------------------------------------- jitter


@given(
    jitter=jitters,
    initial=seconds,
    multiplier=st.floats(1, sys.float_info.max),
    number=attempt_numbers,
    data=st.data(),
)
def test_each_delay_lies_in_the_interval_of_its_jitter(
    jitter: Any, initial: float, multiplier: float, number: int, data: st.DataObject
):
    """
    For any attempt and jitter mode the delay lies in the documented interval.
    """
    maximum = data.draw(st.floats(initial, LONGEST))
    spread = data.draw(st.none() | seconds) if jitter == "additive" else None
    policy = exponential(
        attempts=number + 1,
        initial=initial,
        maximum=maximum,
        multiplier=multiplier,
        jitter=jitter,
        spread=spread,
        random=lambda: data.draw(chances),
    )
    try:
        plain = min(maximum, initial * multiplier ** (number - 1))
    except OverflowError:
        plain = maximum if initial else 0.0
    most = min(maximum, plain + (initial if spread is None else spread))
    low, high = {
        "full": (0, plain),
        "equal": (plain / 2, plain),
        "additive": (plain, most),
        "none": (plain, plain),
    }[jitter]

    delay = policy.next_delay(failed(number))

    assert delay is not None
    assert low <= delay <= high
    assert delay <= maximum


@pytest.mark.parametrize(
    ("jitter", "low", "middle"),
    [("full", 0, 4), ("equal", 4, 6), ("additive", 8, 8.5), ("none", 8, 8)],
)
def test_jitter_reaches_over_its_interval(jitter: Any, low: float, middle: float):
    """
    The least chance draws the low end of the interval, an even one its middle.
    """

    def third_delay(chance: float) -> float | None:
        policy = exponential(initial=2, jitter=jitter, random=lambda: chance, **extra)
        return policy.next_delay(failed(3))

    extra: dict[str, Any] = {"spread": 1} if jitter == "additive" else {}
    assert low == third_delay(0)
    assert middle == third_delay(0.5)


def test_full_jitter_is_the_default():
    """
    Without a mode the delay is drawn from all of 0 to b.
    """
    assert exponential(jitter="full") == exponential()


def test_additive_jitter_spreads_by_the_initial_delay_by_default():
    """
    Without a spread additive jitter adds up to the initial delay.
    """
    policy = exponential(initial=2, jitter="additive", random=lambda: 0.5)
    assert 4 + 1 == policy.next_delay(failed(2))
    policy = exponential(initial=2, jitter="additive", spread=0, random=lambda: 0.5)
    assert 4 == policy.next_delay(failed(2))


def test_additive_jitter_stops_at_the_maximum():
    """
    Where the delay has reached the maximum nothing is added to it.
    """
    policy = exponential(initial=2, maximum=8, jitter="additive", spread=5, random=lambda: 0.5)
    assert 6 == policy.next_delay(failed(2))
    assert 8 == policy.next_delay(failed(3))


def test_the_source_of_chance_makes_a_run_repeatable():
    """
    Policies that draw from equally seeded sources answer alike, and unlike another seed.
    """

    def run(seed: int) -> list[float]:
        return list(delays(exponential(attempts=9, random=random.Random(seed).random)))

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_chance_comes_from_the_standard_library_by_default():
    """
    Seeding the standard library's generator makes the default jitter repeatable.
    """
    state = random.getstate()
    try:
        random.seed(7)
        expected = random.Random(7).random() * 0.1
        assert expected == exponential().next_delay(failed(1))
    finally:
        random.setstate(state)


@pytest.mark.parametrize("number", [1_100, 10**6, 2**62])
def test_late_attempts_do_not_overflow(number: int):
    """
    An attempt whose power no float can hold gets the maximum, and 0 stays 0.
    """
    policy = exponential(attempts=number + 1, jitter="none")
    assert 30 == policy.next_delay(failed(number))
    idle = exponential(attempts=number + 1, initial=0, jitter="none")
    assert 0 == idle.next_delay(failed(number))


def test_whole_numbers_do_not_grow_without_bounds():
    """
    With whole numbers for arguments a late attempt is computed no slower.
    """
    policy = exponential(attempts=10**12, initial=1, multiplier=3, maximum=60, jitter="none")
    assert 60 == policy.next_delay(failed(10**11))


# -------------------------------------------------------------------------- limits


@every_kind
def test_every_exception_is_retried_by_default(kind: str):
    """
    Without *on* any exception is retried.
    """
    assert 4 == len(list(delays(KINDS[kind](), KeyError())))


@every_kind
@pytest.mark.parametrize(
    "on",
    [FlakyError, (FlakyError, OSError), [OSError, FlakyError], {FlakyError}, iter([FlakyError])],
    ids=["type", "tuple", "list", "set", "iterator"],
)
def test_only_what_on_names_is_retried(kind: str, on: Any):
    """
    *on* takes one type or several, and subclasses count.
    """
    policy = KINDS[kind](on=copy.copy(on))
    assert 4 == len(list(delays(policy, FlakyError())))
    assert 4 == len(list(delays(policy, VeryFlakyError())))
    assert [] == list(delays(policy, ValueError()))


@every_kind
def test_give_up_on_ends_the_delivery_after_one_attempt(kind: str):
    """
    An exception declared as not retryable gets one attempt, and wins over *on*.
    """
    policy = KINDS[kind](on=FlakyError, give_up_on=(VeryFlakyError, KeyError))
    assert 4 == len(list(delays(policy, FlakyError())))
    assert [] == list(delays(policy, VeryFlakyError()))


@every_kind
@pytest.mark.parametrize(
    ("elapsed", "is_retried"), [(0, True), (9, True), (9.001, False), (10, False), (11, False)]
)
def test_no_attempt_starts_later_than_max_elapsed(kind: str, elapsed: float, is_retried: bool):
    """
    A policy gives up where the next attempt, delay included, would begin too late.
    """
    arguments = {"jitter": "none", "initial": 1} if kind == "exponential" else {}
    policy = KINDS[kind](**arguments, max_elapsed=10)
    assert is_retried == (policy.next_delay(failed(1, elapsed=elapsed)) is not None)


@given(jitter=jitters, limit=st.floats(0, 100), elapsed=st.floats(0, 200), number=st.integers(1, 9))
def test_max_elapsed_holds_with_jitter_too(jitter: Any, limit: float, elapsed: float, number: int):
    """
    Whatever jitter draws, the next attempt does not start after the limit.
    """
    policy = exponential(attempts=10, jitter=jitter, max_elapsed=limit)
    delay = policy.next_delay(failed(number, elapsed=elapsed))
    assert delay is None or elapsed + delay <= limit


def test_without_a_number_of_attempts_time_ends_the_retries():
    """
    With ``attempts=None`` a policy goes on until *max_elapsed*.
    """
    assert [3.0] * 33 == list(delays(fixed(attempts=None, delay=3, max_elapsed=100)))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("fixed", {}),
        ("linear", {}),
        ("exponential", {}),
        ("fixed", {"delay": 0, "max_elapsed": 10}),
        ("linear", {"initial": 0, "step": 0, "max_elapsed": 10}),
        ("linear", {"initial": 0, "step": 1, "maximum": 0, "max_elapsed": 10}),
        ("exponential", {"initial": 0, "max_elapsed": 10}),
    ],
)
def test_what_would_never_end_is_refused(kind: str, arguments: dict[str, Any]):
    """
    Without a number of attempts there must be a time limit, and a delay that leads to it.
    """
    with pytest.raises(ValueError) as refusal:
        KINDS[kind](attempts=None, **arguments)
    assert (
        f"{kind}: attempts=None would never end; give a number of attempts, "
        f"or max_elapsed= and a delay above 0"
    ) == str(refusal.value)


@pytest.mark.parametrize(
    "policy",
    [
        linear(attempts=None, initial=0, step=1, max_elapsed=10),
        exponential(attempts=None, initial=0, jitter="additive", spread=1, max_elapsed=10),
    ],
    ids=stable,
)
def test_a_first_delay_of_zero_may_come_to_an_end(policy: RetryPolicy):
    """
    Delays that begin at 0 but do not stay there need no number of attempts.
    """
    assert 10 >= sum(delays(policy))


# ------------------------------------------------------------------------ refusals

NOT_NUMBERS = ["1", None, True, [1], 1j]
NOT_SECONDS = [-1, -0.001, math.nan, math.inf, -math.inf, LONGEST + 1, 10**400]


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=stable)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("fixed", "delay"),
        ("linear", "initial"),
        ("linear", "step"),
        ("linear", "maximum"),
        ("exponential", "initial"),
        ("exponential", "maximum"),
        ("exponential", "multiplier"),
    ],
)
def test_what_is_no_number_is_refused(kind: str, name: str, value: object):
    """
    A parameter that is no number is refused by kind, name and value.
    """
    with pytest.raises(TypeError) as refusal:
        KINDS[kind](**{name: value})
    assert str(refusal.value).startswith(f"{kind}: {name}={value!r} must be a ")


@pytest.mark.parametrize("value", NOT_SECONDS, ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("fixed", "delay"),
        ("fixed", "max_elapsed"),
        ("linear", "initial"),
        ("linear", "step"),
        ("linear", "maximum"),
        ("linear", "max_elapsed"),
        ("exponential", "initial"),
        ("exponential", "maximum"),
        ("exponential", "max_elapsed"),
        ("schedule", "max_elapsed"),
    ],
)
def test_what_nobody_can_wait_is_refused(kind: str, name: str, value: float):
    """
    Seconds are refused below 0, above what `time.sleep` takes, and where they are no number.
    """
    with pytest.raises(ValueError) as refusal:
        KINDS[kind](**{name: value})
    assert f"{kind}: {name}={value!r} must be a number of seconds from 0 to {LONGEST}" == str(
        refusal.value
    )


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        ("fixed", {"attempts": 0}, ValueError, "attempts=0 must be a whole number from 1 up"),
        ("linear", {"attempts": -1}, ValueError, "attempts=-1 must be a whole number from 1 up"),
        ("fixed", {"attempts": 2.0}, TypeError, "attempts=2.0 must be a whole number from 1 up"),
        ("fixed", {"attempts": True}, TypeError, "attempts=True must be a whole number from 1 up"),
        ("exponential", {"multiplier": 0.5}, ValueError, "multiplier=0.5 must be a finite number"),
        ("exponential", {"multiplier": math.inf}, ValueError, "multiplier=inf must be a finite"),
        ("exponential", {"multiplier": math.nan}, ValueError, "multiplier=nan must be a finite"),
        (
            "exponential",
            {"initial": 5, "maximum": 4},
            ValueError,
            "initial=5 is above maximum=4, which is 30.0 unless given",
        ),
        (
            "linear",
            {"initial": 5, "maximum": 4},
            ValueError,
            "initial=5 is above maximum=4, which is 30.0 unless given",
        ),
        ("exponential", {"initial": 60}, ValueError, "initial=60 is above maximum=30.0, which is"),
        ("linear", {"maximum": -1}, ValueError, "maximum=-1 must be a number of seconds from 0"),
        ("exponential", {"maximum": "9"}, TypeError, "maximum='9' must be a number of seconds"),
        (
            "exponential",
            {"jitter": "half"},
            ValueError,
            "jitter='half' must be one of full, equal, additive, none",
        ),
        ("exponential", {"jitter": None}, ValueError, "jitter=None must be one of full"),
        ("exponential", {"jitter": ["full"]}, ValueError, "jitter=['full'] must be one of full"),
        ("exponential", {"spread": 1}, ValueError, "spread=1 needs jitter='additive'"),
        (
            "exponential",
            {"jitter": "additive", "spread": -1},
            ValueError,
            "spread=-1 must be a number of seconds from 0",
        ),
        ("exponential", {"random": 0.5}, TypeError, "random=0.5 must be callable"),
        (
            "exponential",
            {"random": random.Random},
            TypeError,
            "random=<class 'random.Random'> is a class; call it: Random(...)",
        ),
        ("fixed", {"max_elapsed": "1"}, TypeError, "max_elapsed='1' must be a number of seconds"),
        ("fixed", {"on": ()}, ValueError, "on=() retries nothing; say no_retry instead"),
        ("fixed", {"on": "OSError"}, TypeError, "on='O' must be one or more subclasses of Exce"),
        ("linear", {"on": OSError()}, TypeError, "on=OSError() must be one or more subclasses of"),
        (
            "schedule",
            {"on": None},
            TypeError,
            "on=None must be one or more subclasses of Exception",
        ),
        (
            "exponential",
            {"on": KeyboardInterrupt},
            TypeError,
            "on=<class 'KeyboardInterrupt'> must be one or more subclasses of Exception; "
            "nothing else reaches a policy",
        ),
        (
            "exponential",
            {"give_up_on": [OSError, 5]},
            TypeError,
            "give_up_on=5 must be one or more subclasses of Exception",
        ),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(
    kind: str, arguments: dict[str, Any], error: type[Exception], message: str
):
    """
    A refusal names the policy, the parameter, its value and what is allowed.
    """
    with pytest.raises(error) as refusal:
        KINDS[kind](**arguments)
    assert str(refusal.value).startswith(f"{kind}: {message}")


@pytest.mark.parametrize(
    ("given_delays", "error", "message"),
    [
        ([], ValueError, "schedule: delays is empty; for a single attempt say no_retry"),
        (5, TypeError, "schedule: delays=5 must be several, as in a list"),
        ([1, -1], ValueError, "schedule: delays[1]=-1 must be a number of seconds from 0 to"),
        ([1, True], TypeError, "schedule: delays[1]=True must be a number of seconds from 0 to"),
        ("1", TypeError, "schedule: delays[0]='1' must be a number of seconds from 0 to"),
    ],
    ids=str,
)
def test_bad_schedules_are_refused_by_place(
    given_delays: Any, error: type[Exception], message: str
):
    """
    A schedule with a bad delay says which one it is.
    """
    with pytest.raises(error) as refusal:
        schedule(given_delays)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("make", [fixed, linear, exponential])
def test_arguments_are_named(make: Callable[..., Any]):
    """
    What a number means is written where it is given: arguments are keyword-only.
    """
    with pytest.raises(TypeError):
        make(5, 1)


# ---------------------------------------------------------------- what is a policy


@every_policy
def test_a_policy_passes_as_it_is(policy: RetryPolicy):
    """
    `as_policy` returns a policy unchanged.
    """
    assert policy is as_policy(policy)


def test_any_object_with_next_delay_is_a_policy():
    """
    A user's class needs no base class to be a policy.
    """

    class Stubborn:
        def next_delay(self, attempt: Attempt) -> float | None:
            return 1.0

    stubborn = Stubborn()
    assert stubborn is as_policy(stubborn)


class Every:
    def __call__(self, attempt: Attempt) -> float | None:
        return twice(attempt)

    def method(self, attempt: Attempt, extra: int = 0) -> float | None:
        return twice(attempt)


@pytest.mark.parametrize(
    "function",
    [
        twice,
        lambda attempt: 0.5 if attempt.number < 3 else None,
        Every(),
        Every().method,
        functools.partial(twice),
    ],
    ids=["function", "lambda", "object", "method", "partial"],
)
def test_a_plain_callable_is_a_policy(function: Any):
    """
    Anything that can be called with an attempt decides like a policy.
    """
    assert [0.5, 0.5] == list(delays(as_policy(function)))


def test_a_builtin_that_hides_its_signature_is_believed():
    """
    A callable whose signature cannot be read is taken as it is.
    """
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(max)
    assert "as_policy(<built-in function max>)" == repr(as_policy(max))


async def eventually(attempt: Attempt) -> float | None:
    return 1.0


class Asynchronous:
    async def __call__(self, attempt: Attempt) -> float | None:
        return 1.0


class AsynchronousPolicy:
    async def next_delay(self, attempt: Attempt) -> float | None:
        return 1.0


class Misshapen:
    next_delay = 5


CURE = "give exponential(attempts=5), schedule([0.1, 1]) or a callable of an Attempt"
ASYNC = "it is async, and a policy decides without waiting; make it a plain def"
ARITY = "it must take one positional argument, the Attempt"
TENACITY = "tenacity's objects are adapted by from_tenacity(wait=..., stop=...)"


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        (3, CURE),
        (None, CURE),
        (True, CURE),
        ([0.1, 1], CURE),
        ("exponential", CURE),
        (Misshapen(), CURE),
        (Every, "it is a class; call it: Every(...)"),
        (Composable, "it is a class; call it: Composable(...)"),
        (exponential, ARITY),
        (fixed, ARITY),
        (linear, ARITY),
        (lambda: 1.0, ARITY),
        (lambda number, exception: 1.0, ARITY),
        (eventually, ASYNC),
        (functools.partial(eventually), ASYNC),
        (Asynchronous(), ASYNC),
        (AsynchronousPolicy(), ASYNC),
        (tenacity.wait_fixed(1), TENACITY),
        (tenacity.stop_after_attempt(3), TENACITY),
        (tenacity.Retrying(), TENACITY),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_is_no_policy_is_refused_with_the_cure(value: Any, cure: str):
    """
    Something else in the place of a policy is refused, and the message says what to write.
    """
    with pytest.raises(TypeError) as refusal:
        as_policy(value)
    assert f"{value!r} is no retry policy: {cure}" == str(refusal.value)


# --------------------------------------------------------------------- composition


def test_the_second_policy_is_asked_where_the_first_gives_up():
    """
    ``a | b`` goes on with b after a's last attempt, and both count the same attempts.
    """
    policy = fixed(attempts=3, delay=0) | fixed(attempts=5, delay=60)
    assert [0, 0, 60, 60] == list(delays(policy))


def test_policies_are_chosen_by_exception():
    """
    With *on*, each of several policies answers for its own exceptions.
    """
    policy = fixed(delay=1, on=TimeoutError) | fixed(delay=2, on=(FlakyError, KeyError))
    assert 1 == policy.next_delay(failed(1, TimeoutError()))
    assert 2 == policy.next_delay(failed(1, KeyError()))
    assert policy.next_delay(failed(1, ValueError())) is None


def test_each_policy_keeps_its_own_limits():
    """
    What the first policy gives up on may still be retried by the second.
    """
    policy = fixed(delay=1, give_up_on=KeyError, max_elapsed=5) | fixed(delay=2, on=KeyError)
    assert 2 == policy.next_delay(failed(1, KeyError(), elapsed=50))
    assert policy.next_delay(failed(1, ValueError(), elapsed=50)) is None


def test_a_callable_stands_on_either_side():
    """
    A plain callable combines with a policy from the left and from the right.
    """
    once = fixed(attempts=2, delay=7)
    assert [7, 0.5] == list(delays(once | twice))
    assert [0.5, 0.5] == list(delays(twice | once))


def test_no_retry_changes_nothing():
    """
    `no_retry` on either side of a policy leaves its answers as they are.
    """
    policy = schedule([1, 2])
    assert [1, 2] == list(delays(no_retry | policy)) == list(delays(policy | no_retry))


@given(st.lists(st.sampled_from([*POLICIES[:3], POLICIES[4]]), min_size=3, max_size=3))
def test_it_does_not_matter_how_three_are_bracketed(three: list[Any]):
    """
    ``(a | b) | c`` and ``a | (b | c)`` answer alike.
    """
    a, b, c = three
    assert list(delays((a | b) | c)) == list(delays(a | (b | c)))


def test_what_is_no_policy_does_not_combine():
    """
    ``|`` refuses what `as_policy` refuses.
    """
    with pytest.raises(TypeError, match="3 is no retry policy"):
        fixed(delay=1) | 3  # type: ignore[operator]
    with pytest.raises(TypeError, match="3 is no retry policy"):
        3 | fixed(delay=1)  # type: ignore[operator]


def test_a_policy_of_ones_own_can_learn_to_combine():
    """
    A user's policy that inherits from `Composable` takes ``|``.
    """

    class Once(Composable):
        def next_delay(self, attempt: Attempt) -> float | None:
            return 3.0 if attempt.number == 1 else None

    assert [3, 1] == list(delays(Once() | fixed(attempts=3, delay=1)))


def test_a_composable_must_decide():
    """
    A subclass of `Composable` without `next_delay` says so when asked.
    """

    class Undecided(Composable):
        pass

    with pytest.raises(NotImplementedError, match=r"Undecided has no next_delay\(\)"):
        Undecided().next_delay(failed())


@pytest.mark.parametrize(
    ("policy", "attempts", "max_elapsed"),
    [
        (no_retry, 1, None),
        (fixed(attempts=3, delay=1, max_elapsed=9), 3, 9),
        (schedule([1, 2]), 3, None),
        (fixed(attempts=3, delay=1) | fixed(attempts=5, delay=1), 5, None),
        (
            fixed(attempts=None, delay=1, max_elapsed=8) | fixed(delay=1, max_elapsed=7),
            None,
            8,
        ),
        (fixed(delay=1, max_elapsed=8) | as_policy(twice), None, None),
    ],
    ids=stable,
)
def test_the_limits_can_be_read(policy: Any, attempts: int | None, max_elapsed: float | None):
    """
    A policy tells its limits, a combined one the wider of both; ``None`` where there is none.
    """
    assert (attempts, max_elapsed) == (policy.attempts, policy.max_elapsed)


# --------------------------------------------------------------------------- values


@every_policy
def test_policies_survive_pickling(policy: RetryPolicy):
    """
    A pickled policy comes back equal, and hashes alike.
    """
    again = pickle.loads(pickle.dumps(policy))
    assert policy == again
    assert hash(policy) == hash(again)


def test_policies_made_alike_are_equal():
    """
    Policies compare by what was given, whatever the order of exception types.
    """
    policy = exponential(on=(OSError, KeyError), give_up_on=[TimeoutError, FlakyError])
    alike = exponential(on=[KeyError, OSError], give_up_on=(FlakyError, TimeoutError))
    assert policy == alike
    assert 1 == len({policy, alike})


@pytest.mark.parametrize(
    "other",
    [
        fixed(attempts=4, delay=1),
        fixed(delay=2),
        fixed(delay=1, on=OSError),
        fixed(delay=1, give_up_on=OSError),
        fixed(delay=1, max_elapsed=9),
        linear(initial=1, step=0, maximum=1),
        schedule([1, 1, 1, 1]),
        fixed(delay=1) | fixed(delay=1),
        no_retry,
        5,
    ],
    ids=stable,
)
def test_policies_made_differently_differ(other: object):
    """
    A single other argument, or another kind, makes another policy.
    """
    assert fixed(delay=1) != other


def test_a_curve_equals_nothing_but_a_curve():
    """
    What a shipped policy is made of does not equal something else.
    """
    assert fixed(delay=1).curve != functools.partial(twice)


def test_the_source_of_chance_is_part_of_the_value():
    """
    Policies that draw from different sources differ.
    """
    assert exponential(random=random.Random(7).random) != exponential()


def test_a_policy_with_a_seeded_source_survives_pickling():
    """
    A pickled policy draws on from where its source of chance was.
    """
    policy = exponential(random=random.Random(7).random)
    again = pickle.loads(pickle.dumps(policy))
    assert list(delays(policy)) == list(delays(again))


@every_policy
def test_policies_cannot_be_changed(policy: Any):
    """
    A policy is frozen: what one subscription was given no other can alter.
    """
    with pytest.raises(AttributeError):
        policy.attempts = 99


@pytest.mark.parametrize(
    "written",
    [
        "no_retry",
        "fixed(attempts=3, delay=1.5)",
        "fixed(attempts=None, delay=1, max_elapsed=60)",
        "linear(attempts=5, initial=1, step=2, maximum=30.0)",
        "exponential(attempts=5, initial=0.1, maximum=30.0, multiplier=2.0, jitter='full')",
        "exponential(attempts=5, initial=0.1, maximum=30.0, multiplier=2.0, jitter='additive', "
        "spread=1, on=(TimeoutError, ConnectionError), give_up_on=(KeyError,), max_elapsed=9)",
        "schedule(delays=(0.1, 1, 10))",
        "schedule(delays=(0.1,), on=(OSError,))",
        "fixed(attempts=3, delay=0) | schedule(delays=(1, 2)) | no_retry",
    ],
)
def test_a_policy_prints_as_it_is_written(written: str):
    """
    What a policy prints makes an equal policy, and says no more than what matters.
    """
    names = {"no_retry": no_retry, "fixed": fixed, "linear": linear}
    names |= {"exponential": exponential, "schedule": schedule}
    assert written == repr(eval(written, names))


def test_an_adapted_callable_prints_what_it_adapts():
    """
    The policy a function is names the function.
    """
    assert f"as_policy({twice!r})" == repr(as_policy(twice))


# ------------------------------------------------------------------------- tenacity


@given(number=st.integers(1, 60), elapsed=st.floats(0, 1000))
def test_tenacity_waits_and_stops_as_it_says(number: int, elapsed: float):
    """
    A tenacity wait and stop answer here what they answer there.
    """
    policy = from_tenacity(
        wait=tenacity.wait_exponential(multiplier=0.5, max=20) + tenacity.wait_fixed(1),
        stop=tenacity.stop_after_attempt(50) | tenacity.stop_after_delay(900),
    )
    is_over = number >= 50 or elapsed >= 900
    expected = None if is_over else 1 + min(20, 0.5 * 2 ** (number - 1))
    assert expected == policy.next_delay(failed(number, elapsed=elapsed))


def test_tenacity_sees_the_elapsed_time_exactly():
    """
    A limit that is reached to the very second is reached.
    """
    policy = from_tenacity(wait=tenacity.wait_none(), stop=tenacity.stop_after_delay(0.3))
    assert policy.next_delay(failed(elapsed=0.3)) is None
    assert 0 == policy.next_delay(failed(elapsed=math.nextafter(0.3, 0)))


def test_tenacity_sees_the_sleep_to_come():
    """
    A stop that asks whether the next attempt would be too late knows the wait.
    """

    def stop_before_ten(state: Any) -> bool:
        return state.seconds_since_start + state.upcoming_sleep >= 10

    policy = from_tenacity(wait=tenacity.wait_fixed(4), stop=stop_before_ten)
    assert 4 == policy.next_delay(failed(elapsed=5))
    assert policy.next_delay(failed(elapsed=6)) is None


def test_tenacity_sees_the_exception():
    """
    Wait and retry objects that look at the exception find the handler's.
    """
    policy = from_tenacity(
        wait=lambda state: float(str(state.outcome.exception())),
        stop=tenacity.stop_never,
        retry=tenacity.retry_if_exception_type(FlakyError),
    )
    assert 7.5 == policy.next_delay(failed(1, FlakyError("7.5")))
    assert policy.next_delay(failed(1, KeyError("7.5"))) is None


def test_tenacity_retries_every_exception_by_default():
    """
    Without a retry object each exception is retried.
    """
    policy = from_tenacity(wait=tenacity.wait_fixed(1), stop=tenacity.stop_never)
    assert 1 == policy.next_delay(failed(1, KeyError()))


def test_tenacitys_try_again_is_retried_whatever_retry_says():
    """
    `tenacity.TryAgain` means another attempt, as it does in tenacity, until stop says no.
    """
    policy = from_tenacity(
        wait=tenacity.wait_fixed(1),
        stop=tenacity.stop_after_attempt(2),
        retry=tenacity.retry_never,
    )
    assert [1] == list(delays(policy, tenacity.TryAgain()))
    assert [] == list(delays(policy, KeyError()))


def test_plain_functions_stand_in_for_tenacitys_objects():
    """
    Whatever takes a call state will do: the objects are called, never inspected.
    """
    seen: list[Any] = []

    def wait(state: tenacity.RetryCallState) -> int:
        seen.append((state.attempt_number, state.seconds_since_start, state.idle_for, state.args))
        return 2

    def stop(state: tenacity.RetryCallState) -> bool:
        return state.retry_object.wait is not wait or state.attempt_number >= 3

    policy = from_tenacity(wait=wait, stop=stop)
    assert "[2.0, 2.0]" == repr(list(delays(policy)))
    assert [(1, 0, 0, ()), (2, 2, 0, ()), (3, 4, 0, ())] == seen


def test_tenacity_policies_are_values_too():
    """
    Policies of the same tenacity objects are equal, print them, pickle and combine.
    """
    wait, stop = tenacity.wait_fixed(1), tenacity.stop_after_attempt(2)
    policy = from_tenacity(wait=wait, stop=stop)
    assert from_tenacity(wait=wait, stop=stop) == policy
    assert from_tenacity(wait=tenacity.wait_fixed(1), stop=stop) != policy
    assert f"from_tenacity(wait={wait!r}, stop={stop!r})" == repr(policy)
    assert [1] == list(delays(pickle.loads(pickle.dumps(policy))))
    assert [1, 5] == list(delays(policy | fixed(attempts=3, delay=5)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wait": 3}, "from_tenacity: wait=3 must be callable"),
        ({"stop": None}, "from_tenacity: stop=None must be callable"),
        ({"retry": "never"}, "from_tenacity: retry='never' must be callable"),
        (
            {"stop": tenacity.stop_after_attempt},
            "from_tenacity: stop=<class 'tenacity.stop.stop_after_attempt'> is a class; "
            "call it: stop_after_attempt(...)",
        ),
    ],
    ids=str,
)
def test_what_tenacity_does_not_make_is_refused(arguments: dict[str, Any], message: str):
    """
    What cannot be called, or is a class that still has to be, is refused by name.
    """
    good: dict[str, Any] = {"wait": tenacity.wait_none(), "stop": tenacity.stop_never}
    with pytest.raises(TypeError) as refusal:
        from_tenacity(**good | arguments)
    assert message == str(refusal.value)


def test_a_missing_tenacity_is_told_when_the_policy_is_made(monkeypatch: pytest.MonkeyPatch):
    """
    Without tenacity a policy of its objects is refused at once, not after the first failure.
    """
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(ModuleNotFoundError, match="tenacity"):
        from_tenacity(wait=lambda state: 1, stop=lambda state: False)


# ------------------------------------------------------------------- checked answers


def test_a_good_answer_passes_the_check():
    """
    A checked answer is a float, or ``None``.
    """
    policy = as_policy(lambda attempt: None if attempt.number > 2 else attempt.number - 1)
    assert "0.0" == repr(checked_delay(policy, failed(1)))
    assert "1.0" == repr(checked_delay(policy, failed(2)))
    assert checked_delay(policy, failed(3)) is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        *((value, TypeError) for value in NOT_NUMBERS if value is not None),
        *((value, ValueError) for value in NOT_SECONDS),
    ],
    ids=lambda value: repr(value)[:9],
)
def test_a_bad_answer_is_told_with_its_policy(answer: Any, error: type[Exception]):
    """
    A policy that answers with what is no delay is named, with the attempt and the answer.
    """

    def wrong(attempt: Attempt) -> float | None:
        return answer

    with pytest.raises(error) as refusal:
        checked_delay(as_policy(wrong), failed(3))
    assert (
        f"as_policy({wrong!r}) after attempt 3: delay={answer!r} must be "
        f"a number of seconds from 0 to {LONGEST}"
    ) == str(refusal.value)


def test_a_policy_that_raises_is_not_hidden():
    """
    What a policy raises passes through the check.
    """

    def broken(attempt: Attempt) -> float | None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        checked_delay(as_policy(broken), failed())


# ---------------------------------------------------------------------------- costs


def test_tenacity_and_dataclasses_are_not_imported():
    """
    Importing the policies imports nothing that only some of them need.
    """
    code = (
        "import sys; before = set(sys.modules); import eventbus.retry; "
        "print({'tenacity', 'dataclasses'} & (set(sys.modules) - before))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "set()" == child.stdout.strip()
