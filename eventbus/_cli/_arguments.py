"""
What can be asked on the command line.

Law: arguments become values here; what they mean is the commands' affair.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

__all__ = ["parse"]


class _Commands(Protocol):
    """
    What `argparse` adds commands to.
    """

    def add_parser(
        self, name: str, *, help: str, description: str = ..., epilog: str = ...
    ) -> argparse.ArgumentParser:
        """
        Add one.
        """
        ...


_MOST = 2**63 - 1  # as far as SQLite counts
_CODES = "exit codes: 0 done, 1 a problem was found, 2 it cannot be asked so"


def parse(given: Sequence[str]) -> argparse.Namespace:
    """
    Return the arguments; ``command`` says which command they are for.

    Raises:
        SystemExit: They are none, or help was asked for.
    """
    parser = argparse.ArgumentParser(
        prog="python -m eventbus",
        description="Look at a store of events, and mend what needs mending.",
        epilog=_CODES,
    )
    parser.add_argument("store", metavar="STORE", help="the SQLite file")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_log(commands)
    _add_command(commands, "subscriptions", "show where each durable subscription stands")
    _add_dead(commands)
    _add_replay(commands)
    stats = _add_command(commands, "stats", "show what is in the file")
    stats.add_argument("--types", action="store_true", help="count events by name, too")
    trace = _add_command(commands, "trace", "show what led to what")
    trace.add_argument("id", metavar="ID", help="a correlation id, or the id of any event in it")
    _add_command(commands, "check", "look for damage in the whole file")
    arguments = parser.parse_args(given)
    for name, value in vars(arguments).items():
        if isinstance(value, str) and name != "store":  # a file may be called what it likes
            try:
                setattr(arguments, name, os.fsencode(value).decode())
            except UnicodeError:
                parser.error(f"{name}: {value!r} is no text in UTF-8")
    return arguments


def _add_command(
    commands: _Commands,
    name: str,
    what: str,
    group: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what, epilog=_CODES)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.set_defaults(command=f"{group} {name}".strip())
    return parser


def _add_log(commands: _Commands) -> None:
    group = commands.add_parser("log", help="look at the event log").add_subparsers(
        metavar="COMMAND", required=True
    )
    tail = _add_command(group, "tail", "show the latest events", "log")
    tail.add_argument("-n", type=_count, default=10, help="how many (default: 10)")
    tail.add_argument("-f", "--follow", action="store_true", help="go on until interrupted")
    _add_event_options(tail)


def _add_event_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--type", action="append", metavar="NAME", help="only events of this name; repeatable"
    )
    parser.add_argument("--key", help="only events of this key")


def _add_letter_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subscription", metavar="NAME", help="only letters of this one")
    parser.add_argument("--error", metavar="TYPE", help="only this error, qualified or simple")
    parser.add_argument("--reason", help="only letters that are there for this reason")
    _add_event_options(parser)


def _add_dead(commands: _Commands) -> None:
    group = commands.add_parser("dead", help="look at dead letters, and mend them").add_subparsers(
        metavar="COMMAND", required=True
    )
    each = _add_command(group, "list", "show dead letters, the oldest first", "dead")
    each.add_argument("-n", type=_count, help="at most so many")
    each.add_argument("--after", metavar="ID", help="only those behind this one")
    _add_letter_options(each)
    each = _add_command(group, "show", "show one dead letter with its whole story", "dead")
    each.add_argument("id", metavar="ID")
    each = _add_command(group, "redrive", "deliver dead letters again", "dead")
    _add_app(each)
    _add_which(each)
    each = _add_command(group, "discard", "throw dead letters away", "dead")
    _add_which(each)
    each = _add_command(group, "edit", "change what will be delivered of a dead letter", "dead")
    each.add_argument("id", metavar="ID")
    what = each.add_mutually_exclusive_group(required=True)
    what.add_argument("--payload", metavar="JSON", help="this; - reads it from stdin")
    what.add_argument("--original", action="store_true", help="what was published")


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", nargs="*", help="these")
    parser.add_argument("--all", action="store_true", help="all that the options leave")
    _add_letter_options(parser)


def _add_app(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--app",
        required=True,
        metavar="MODULE:BUS",
        help="where the application's bus is, or a function that returns it",
    )


def _add_replay(commands: _Commands) -> None:
    each = _add_command(commands, "replay", "deliver what a subscription has had once more")
    each.add_argument("subscription", metavar="SUBSCRIPTION")
    _add_app(each)
    place = "an offset, or an instant such as 2026-01-31T12:00Z"
    each.add_argument("--from", dest="from_", type=_place, default=0, help=f"first: {place}")
    each.add_argument("--until", type=_place, help=f"last offset, or before an instant: {place}")


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= _MOST:
        raise argparse.ArgumentTypeError(f"must be 1 or more, and at most {_MOST}")
    return number


def _place(text: str) -> int | datetime:
    if text.isdecimal():
        return min(int(text), _MOST)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither an offset nor an instant such as 2026-01-31T12:00Z"
        ) from None
    if instant.tzinfo is None:
        full = f"{text}T00:00" if instant.date().isoformat() == text else text
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone: {full}Z is in UTC")
    return instant
