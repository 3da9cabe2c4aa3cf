"""
Failures that reach the test: collected where they happen, raised by the outermost call.

Law: nothing is delivered differently for it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import Context, ContextVar

from eventbus._bus import EventBus
from eventbus._envelope import here
from eventbus._receipt import Failure, Receipt, raise_failures
from eventbus.instrumentation import Failed, Occurrence

__all__ = ["RaisingBus", "collect", "collecting", "go_on_collecting"]

# Where the outermost publish under way here collects what it has to raise.
_failures: ContextVar[list[Failure] | None] = ContextVar("eventbus_testing_failures", default=None)


class RaisingBus(EventBus):
    """
    The part of `TestBus` that raises what failed.
    """

    _raises_at_last = False

    @contextmanager
    def _raising_at_last(self, what: str) -> Generator[None]:
        """
        Raise the failures of everything within, unless a handler stands around it.

        A task that has outlived its handler, and a handler on a bus that is not one of
        ours, stand alone: nobody else would hear of what fails there.
        """
        around = here.get()
        is_nested = around is not None and not around.finished and _failures.get() is not None
        if is_nested or not self._raises_at_last:
            yield
            return
        failures: list[Failure] = []
        with collecting(failures):
            yield
        if failures:
            raise_failures(what, failures)


@contextmanager
def collecting(failures: list[Failure]) -> Generator[None]:
    """
    Let failures within be added to *failures*.
    """
    token = _failures.set(failures)
    try:
        yield
    finally:
        _failures.reset(token)


def go_on_collecting(context: Context) -> None:
    """
    Let what runs in *context* add its failures to those collected here.
    """
    context.run(_failures.set, _failures.get())


def collect(occurrence: Occurrence) -> None:
    """
    Observe: add a failure to those that are collected here, if they are.
    """
    failures = _failures.get()
    if failures is None or not isinstance(occurrence, Failed):
        return
    receipt: Receipt = here.get()
    if "redriven" not in (receipt.options or {}):  # a redrive returns its own failure
        failures.append(Failure(occurrence.subscription, occurrence.exception, occurrence.attempts))
