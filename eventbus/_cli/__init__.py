"""
``python -m eventbus``: look at a store from outside, and mend what needs mending.

Law: a command takes a store, its arguments and a place to write to, and returns an exit
code. What goes wrong is one line on stderr. Commands that only read open the file
read-only; none of them puts a user's text into SQL.

=========  =======================================================================
exit code  meaning
=========  =======================================================================
0          done, and nothing was wrong
1          a problem was found: damage, a failure, nothing by that id
2          it cannot be asked so: the arguments, a missing file, an ``--app``
=========  =======================================================================
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TextIO

from eventbus._cli._app import redrive, replay
from eventbus._cli._arguments import parse
from eventbus._cli._dead import discard, edit, list_letters, show
from eventbus._cli._output import HandlerFailedError, Output, UsageError, plain
from eventbus._cli._reading import check, stats, subscriptions, tail
from eventbus._cli._trace import trace
from eventbus.errors import EventBusError
from eventbus.sqlite import SQLiteStore

__all__ = ["main"]

Command = Callable[..., int]

_READING: dict[str, Command] = {
    "log tail": tail,
    "subscriptions": subscriptions,
    "dead list": list_letters,
    "dead show": show,
    "dead redrive": redrive,  # the application's own bus does the writing
    "replay": replay,
    "stats": stats,
    "trace": trace,
    "check": check,
}
_WRITING: dict[str, Command] = {"dead discard": discard, "dead edit": edit}


def main(given: Sequence[str], *, sleep: Callable[[float], None] = time.sleep) -> int:
    """
    Run one command and return its exit code.

    Args:
        given: What stands behind ``python -m eventbus``.
        sleep: Called between two looks at a log that is followed.
    """
    arguments = parse(given)
    command = _READING.get(arguments.command) or _WRITING[arguments.command]
    stream: TextIO = sys.stdout
    if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
        reconfigure(errors="backslashreplace")  # a terminal may not know every character
    out = Output(stream, is_json=arguments.json, sleep=sleep)
    try:
        if not os.path.exists(arguments.store):
            raise UsageError(f"there is no file {arguments.store}")
        # First: what is no store is not made one by a command that was meant for another.
        with closing(SQLiteStore(arguments.store, read_only=True)) as store:
            code = command(store, arguments, out) if arguments.command in _READING else 0
        if arguments.command in _WRITING:
            with closing(SQLiteStore(arguments.store)) as store:
                code = command(store, arguments, out)
        stream.flush()
        return code
    except UsageError as error:
        return _say(str(error), code=2)
    except (EventBusError, HandlerFailedError) as error:
        return _say(str(error), code=1)
    except BrokenPipeError:
        # Whoever read has read enough. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _say(message: str, *, code: int) -> int:
    print("eventbus:", plain(" ".join(message.split())), file=sys.stderr)  # noqa: T201 - its purpose
    return code
