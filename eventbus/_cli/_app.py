"""
Commands that need the application: its bus calls its own handlers.

Law: the application is imported, asked, and closed. What it does is its own affair.
"""

from __future__ import annotations

import importlib
import logging
import os
from argparse import Namespace
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any

import attrs

from eventbus._cli._dead import meant
from eventbus._cli._output import HandlerFailedError, Output, UsageError
from eventbus.errors import DeadLetterNotFoundError, EventBusError
from eventbus.kept_letters import KeptLetter
from eventbus.sqlite import SQLiteStore

__all__ = ["redrive", "replay"]

_REDRIVEN = ("id", "subscription", "name", "key", "outcome", "error")


@contextmanager
def _bus(text: str, store: SQLiteStore) -> Generator[Any]:
    """
    Import the application's bus, and close it in the end.

    Raises:
        UsageError: There is none, or it has another store.
    """
    module, _, name = text.partition(":")
    if not module or not name:
        raise UsageError(f"--app is MODULE:BUS, such as shop.app:bus, not {text!r}")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        bus: Any = found if hasattr(found, "_redrive_each") else found()
    except Exception as error:
        raise UsageError(f"--app {text}: {type(error).__name__}: {error}") from error
    if isinstance(bus, Coroutine):
        bus.close()
        raise UsageError(f"--app {text} is an async function: name a plain one that returns a bus")
    if not hasattr(bus, "_redrive_each"):
        raise UsageError(f"--app {text} is {type(bus).__qualname__}, and no bus")
    path = getattr(bus._stand_in()._store, "path", None)
    if path is None or not os.path.samefile(path, store.path):
        bus.close()
        place = "no file" if path is None else path
        raise UsageError(f"--app {text} keeps its events in {place}, not in {store.path}")
    log = logging.getLogger("eventbus")
    if not log.hasHandlers():  # else Python would write each traceback to stderr, as it is
        log.addHandler(logging.NullHandler())
    try:
        yield bus
    finally:
        bus.close()


def redrive(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Deliver dead letters again, the oldest first; each to the handler that has failed.
    """
    letters = meant(store, arguments)
    with _bus(arguments.app, store) as bus:
        came = dict(bus._redrive_each([each.id for each in letters]))
    rows = [_row(each, *_outcome(came.get(each.id))) for each in letters]
    out.rows(_REDRIVEN, rows)
    return 1 if any(row["error"] for row in rows) else 0


def _outcome(came: Any) -> tuple[str, str | None]:
    """
    Return what came of a letter, and the error if that is a problem.
    """
    if came is None:
        return "held", "waits behind one that failed"
    if isinstance(came, DeadLetterNotFoundError):
        return "gone", None  # somebody else was quicker, or handles it by now
    error = came
    if not isinstance(came, EventBusError):
        error = next((each.exception for each in came.failures), None)
    if error is None:
        return "delivered", None
    return "failed", f"{type(error).__name__}: {error}"


def _row(letter: KeptLetter, outcome: str, error: str | None) -> dict[str, Any]:
    return {
        "id": letter.id,
        "subscription": letter.subscription,
        "name": letter.record.name,
        "key": letter.record.key,
        "outcome": outcome,
        "error": error,
    }


def replay(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Deliver once more what a subscription has had.
    """
    with _bus(arguments.app, store) as bus:
        try:
            done = bus.replay(arguments.subscription, from_=arguments.from_, until=arguments.until)
        except EventBusError:
            raise
        except Exception as error:
            notes = "; ".join(["", *getattr(error, "__notes__", [])])
            raise HandlerFailedError(f"{type(error).__name__}: {error}{notes}") from error
    out.facts(attrs.asdict(done))
    return 1 if done.unreadable else 0
