"""
What a drain or a close waits for, and what it comes to.

Law: looks at queues and counts; it neither waits nor ends anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import attrs

from eventbus._intake import Intake
from eventbus._job import Latch
from eventbus.dead_letter import DeadLetter

__all__ = ["LATER", "DrainReport", "Ending", "first_busy", "still_pending"]

# What the report calls publishes that are due later, or being published.
LATER = "delayed publishes"
_WORDS = {"idle": "not started", "standby": "consumed elsewhere"}


@attrs.frozen(kw_only=True)
class DrainReport:
    """
    What was not handled when a drain or a close ended.

    Attributes:
        left: How many events, by subscription. After `EventBus.close` they are given up,
            and kept as dead letters with reason ``undelivered``.
        running: How many of them a handler was still at.
        states: What the durable subscriptions among them did, where it was not to consume:
            ``idle`` where the bus was not started, ``standby`` or ``stopped``.
        in_log: How many events durable subscriptions have before them in the log after
            `EventBus.close`. They are not lost: whoever consumes the subscription next
            handles them.

    .. versionadded:: 0.1
    """

    left: Mapping[str, int]
    running: Mapping[str, int]
    states: Mapping[str, str] = attrs.field(factory=dict[str, str])
    in_log: Mapping[str, int] = attrs.field(factory=dict[str, int])

    @property
    def ok(self) -> bool:
        """
        Whether all that was accepted has been handled, but for what is safe in the log.
        """
        return not self.left

    def __str__(self) -> str:
        told = [f"{count} of {name}{self._remark_on(name)}" for name, count in self.left.items()]
        later = self.in_log.items()
        told += [f"{count} of {name} (in the log, for later)" for name, count in later]
        return ", ".join(told) or "all handled"

    def _remark_on(self, name: str) -> str:
        if (running := self.running.get(name)) is not None:
            return f" ({running} running)"
        state = self.states.get(name, "")
        return f" ({_WORDS.get(state, state)})" if state else ""


class Ending(Latch):
    """
    The end of a bus, and what was not handled by then.

    Attributes:
        loop: Where it is waited for, if it is awaited.
        before: How many events each queue had given up before; ``None`` until all of them
            are closed.
        running: How many of those given up a handler was still at.
        unpublished: How many publishes were to come later.
        letters: What is given up, and not kept yet.
        report: What it came to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop: object = None
        self.before: dict[Intake, int] | None = None
        self.running: dict[Intake, int] = {}
        self.unpublished = 0
        self.letters: list[DeadLetter] = []
        self.report: DrainReport | None = None

    def account(self, in_log: Mapping[str, int]) -> DrainReport:
        """
        Return what was given up, now that nothing more will be, and what the log has.
        """
        before = self.before or {}
        left = [(each.name, each.depth().undelivered - was) for each, was in before.items()]
        report = _report(
            [*left, (LATER, self.unpublished)],
            [(each.name, count) for each, count in self.running.items()],
        )
        return attrs.evolve(report, in_log=dict(in_log))


def still_pending(queues: Iterable[Intake]) -> DrainReport:
    """
    Return what the queues hold, for the report of a drain.
    """
    depths = [(queue, queue.depth()) for queue in queues]
    report = _report(
        [(queue.name, depth.pending + queue.unread) for queue, depth in depths],
        [(queue.name, depth.in_flight) for queue, depth in depths],
    )
    states = {queue.name: queue.state for queue, _ in depths}
    kept = {name: state for name, state in states.items() if state and name in report.left}
    return attrs.evolve(report, states=kept)


def _report(left: Iterable[tuple[str, int]], running: Iterable[tuple[str, int]]) -> DrainReport:
    return DrainReport(left=_summed(left), running=_summed(running))


def _summed(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for name, count in counts:
        if count:
            total[name] = total.get(name, 0) + count
    return total


def first_busy(all_queues: Callable[[], list[Intake]]) -> Intake | None:
    """
    Return a queue that is to be waited for; ``None`` once all are idle at the same time.

    What one of them handles may fill another that was looked at before. So all are looked
    at twice; and if no worker has begun to work meanwhile, none was at work in between.
    """
    while True:
        queues = all_queues()
        spells = [each.spells for each in queues]
        for queue in (*queues, *queues):
            if queue.is_busy and not queue.is_paused:
                return queue
        if spells == [each.spells for each in all_queues()]:
            return None
