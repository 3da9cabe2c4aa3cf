"""
What the tests of signals and forks run in a process of its own.

Law: says what it does on its standard output, one JSON value a line; the first word on
its command line names which of these programs is to run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eventbus import BusClosedError, EventBus, Queued, event

NAMES = ("threads", "tasks")

_slow = threading.Event()


@event
class Fact:
    number: int


class Program:
    """
    A bus with a queue of either colour, whose handlers count and now and then fail.
    """

    def __init__(self) -> None:
        self.bus = EventBus(name="child", errors="collect")
        self.handled: dict[str, list[int]] = {name: [] for name in NAMES}
        self.failed: dict[str, int] = dict.fromkeys(NAMES, 0)
        self.accepted = 0
        self.begun = threading.Event()
        self.bus.subscribe(Fact, self.take, name="threads", delivery=Queued(capacity=20))
        self.bus.subscribe(Fact, self.atake, name="tasks", delivery=Queued(capacity=20, workers=4))

    def take(self, event: Fact) -> None:
        _slow.wait(0.0002)
        self._count("threads", event)

    async def atake(self, event: Fact) -> None:
        await asyncio.sleep(0.0002)
        self._count("tasks", event)

    def _count(self, name: str, event: Fact) -> None:
        if event.number % 50 == 49:
            self.failed[name] += 1
            raise ValueError(event.number)
        self.handled[name].append(event.number)
        if len(self.handled[name]) == 20:
            self.begun.set()

    def publish(self, *, most: int = 10**9) -> None:
        for number in range(most):
            try:
                self.accepted += self.bus.publish(Fact(number=number)) is not None
            except BusClosedError:
                return

    async def apublish(self) -> None:
        for number in range(10**9):
            try:
                self.accepted += (await self.bus.apublish(Fact(number=number))) is not None
            except BusClosedError:
                return

    def account(self, **more: object) -> None:
        """
        Say what the bus has counted, and what the handlers have.
        """
        report, stats = self.bus.close(), self.bus.stats().subscriptions
        counted = {
            name: {
                "published": stats[name].published,
                "delivered": stats[name].delivered,
                "failed": stats[name].failed,
                "missed": stats[name].missed,
                "undelivered": stats[name].undelivered,
                "left": report.left.get(name, 0),
                "handled": len(self.handled[name]),
                "handler_failed": self.failed[name],
            }
            for name in NAMES
        }
        say(accepted=self.accepted, counted=counted, **more)


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


@contextmanager
def accounting(program: Program) -> Iterator[None]:
    """
    Account for everything, whatever ends the block; and let that pass.
    """
    try:
        yield
    except BaseException as error:
        program.account(ended_by=type(error).__name__)
        raise


def on_sigterm(number: int, frame: object) -> None:
    raise SystemExit(143)


def waits(program: Program) -> None:
    """
    Wait in the main thread while another one publishes.
    """
    with accounting(program), program.bus:
        thread = threading.Thread(target=program.publish)
        thread.start()
        program.begun.wait()
        say(running=True)
        while thread.is_alive():
            thread.join(0.1)  # a signal from just before a wait without end is only seen after it


def publishes(program: Program) -> None:
    """
    Publish in the main thread.
    """
    with accounting(program), program.bus:
        threading.Thread(target=lambda: program.begun.wait() and say(running=True)).start()
        program.publish()


def awaits(program: Program) -> None:
    """
    Publish in a task of the main thread's event loop, where the async handlers run, too.
    """

    async def main() -> None:
        async with program.bus:
            threading.Thread(target=lambda: program.begun.wait() and say(running=True)).start()
            await program.apublish()

    with accounting(program):
        asyncio.run(main())


def forgets(program: Program) -> None:
    """
    End without closing the bus, in the middle of a handler.
    """
    stuck, at_it = threading.Event(), threading.Barrier(3)

    def never(event: Fact) -> None:
        at_it.wait()
        stuck.wait()

    async def anever(event: Fact) -> None:
        at_it.wait()
        await asyncio.Event().wait()

    for name, handler in (("never", never), ("anever", anever)):
        program.bus.subscribe(Fact, handler, name=name, delivery=Queued(capacity=20))
    for subscription in program.bus.subscriptions[:2]:
        subscription.cancel()
    program.publish(most=15)
    at_it.wait()
    say(running=True)


def forks(program: Program) -> None:
    """
    Fork while threads publish: the child handles what it publishes, and the parent goes on.
    """
    thread = threading.Thread(target=program.publish)
    thread.start()
    program.begun.wait()
    child = os.fork()
    if child == 0:
        program.handled = {name: [] for name in NAMES}
        depths = [each.depth for each in program.bus.stats().subscriptions.values()]
        program.publish(most=40)
        report = program.bus.drain(20.0)
        say(child=True, depths=depths, ok=report.ok, handled=program.handled)
        program.bus.close(20.0)
        os._exit(0 if report.ok else 1)
    _, status = os.waitpid(child, 0)
    before = {name: len(program.handled[name]) for name in NAMES}
    say(child=False, exit=os.waitstatus_to_exitcode(status), before=before)
    program.bus.close()
    thread.join()
    program.account()


PROGRAMS: dict[str, Callable[[Program], None]] = {
    "waits": waits,
    "publishes": publishes,
    "awaits": awaits,
    "forgets": forgets,
    "forks": forks,
}


def main(name: str) -> Any:
    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    PROGRAMS[name](Program())


if __name__ == "__main__":
    main(sys.argv[1])
