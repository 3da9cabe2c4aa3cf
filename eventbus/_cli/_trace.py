"""
The command that shows what led to what.

Law: it tells what the store knows: events and their causes, letters, deliveries that are
not finished, and those that have succeeded where the subscription keeps a history.
"""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import attrs

from eventbus._cli._fates import Holders, fate_of
from eventbus._cli._output import Output, at, plain, told
from eventbus._cli._reading import row_of
from eventbus.errors import EventBusError
from eventbus.event_log import Record
from eventbus.kept_letters import HELD, Selection
from eventbus.sqlite import SQLiteStore

__all__ = ["trace"]

Node = dict[str, Any]

_END, _FORK = ("╰─ ", "   "), ("├─ ", "│  ")
_DEEPEST = 40  # so deep the drawing goes to the right; what is deeper says so

_STATES = {
    "dead": ("✗", "dead letter"),
    "handled": ("✓", "handled"),
    "pending": ("…", "not finished"),
}
_HELD_MARK = "⏸"


def trace(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Show the causation tree of one correlation id.
    """
    records = store.log.correlated(arguments.id)
    if not records and (record := store.log.get(arguments.id)) is not None:
        records = store.log.correlated(record.correlation_id)
    if not records:
        raise EventBusError(f"nothing in the log has the correlation id or the id {arguments.id!r}")
    deliveries = _deliveries(store, records)
    for branch in _tree(records, deliveries):
        if out.is_json:
            out.line({**branch.facts, "deliveries": branch.deliveries})
        else:
            for line in branch.drawn():
                out.text(line)
    return 0


def _deliveries(store: SQLiteStore, records: list[Record]) -> dict[str, list[Node]]:
    """
    Return by event id what became of its deliveries, as far as that is known.
    """
    found: dict[str, list[Node]] = defaultdict(list)
    names = {record.name for record in records}
    ids = {record.id for record in records}
    holders = Holders(store.letters)
    for letter in store.letters.query(Selection(names=names)):
        if letter.record.id in ids:
            facts: Node = {
                "reason": letter.reason,
                "behind": holders.behind(letter),
                "letter_id": letter.id,
                "attempts": letter.attempts,
            }
            found[letter.record.id].append(
                _delivery(letter.subscription, "dead", letter.failures, facts)
            )
    by_offset = {record.offset: record.id for record in records}
    for position in store.progress.positions():
        for each in store.progress.pending(position.name, after=records[0].offset - 1):
            if each.offset in by_offset:
                facts = {"attempts": each.attempts, "due": at(each.due)}
                found[by_offset[each.offset]].append(
                    _delivery(position.name, "pending", each.story, facts)
                )
    for record in records:
        for name, handled in store.progress.handled(record.offset).items():
            facts = {
                "attempts": handled.attempts,
                "time": at(handled.time),
                "seconds": round(handled.seconds, 6),
            }
            found[record.id].append(_delivery(name, "handled", "", facts))
    return found


def _delivery(subscription: str, state: str, story: str, facts: Node) -> Node:
    failures = [
        {name: each.get(name) for name in ("number", "time", "error_type", "message")}
        for each in told(story)
    ]
    return {"subscription": subscription, "state": state, **facts, "failures": failures}


def _tree(records: list[Record], deliveries: dict[str, list[Node]]) -> list[_Branch]:
    """
    Return the events in the order in which they are shown: each above its effects.
    """
    branches = {record.id: _Branch({**row_of(record)}, deliveries[record.id]) for record in records}
    roots: list[_Branch] = []
    for record in records:
        branch, cause = branches[record.id], branches.get(record.causation_id or "")
        seconds = (record.time - records[0].time).total_seconds()
        branch.facts["seconds"] = round(seconds, 6)
        # What was pruned, or never logged, can be a cause, too: its effects are roots here.
        branch.facts["parent"] = None if cause is None else record.causation_id
        (roots if cause is None else cause.effects).append(branch)
    # No recursion, here and below: a story may be longer than the stack is deep.
    ordered, left = list[_Branch](), roots[::-1]
    while left:
        ordered.append(branch := left.pop())
        branch.grow()
        left += branch.effects[::-1]
    return ordered


@attrs.define(eq=False)
class _Branch:
    """
    One event of the tree, and how it hangs on the one above.
    """

    facts: Node
    deliveries: list[Node]
    effects: list[_Branch] = attrs.field(factory=list["_Branch"])
    first: str = ""
    rest: str = ""
    depth: int = 0

    def grow(self) -> None:
        """
        Tell the effects where they stand.
        """
        for each in self.effects:
            each.depth = self.depth + 1
            branch, trunk = _END if each is self.effects[-1] else _FORK
            each.first, each.rest = self.rest + branch, self.rest + trunk
            if each.depth > _DEEPEST:
                each.first, each.rest = f"⋯ {each.depth} deep: ", "   "

    def drawn(self) -> Iterator[str]:
        """
        Draw it, with its deliveries.
        """
        facts = self.facts
        key = "" if facts["key"] is None else f"  {facts['key']}"
        title = f"{facts['name']}{key}  #{facts['offset']}  +{facts['seconds']:.3f} s"
        yield plain(f"{self.first}{title}")
        for each in self.deliveries:
            is_last = each is self.deliveries[-1] and not self.effects
            branch, trunk = _END if is_last else _FORK
            yield from _drawn_delivery(each, self.rest + branch, self.rest + trunk)


def _drawn_delivery(each: Node, first: str, rest: str) -> Iterator[str]:
    mark, how = _STATES[each["state"]]
    if (reason := each.get("reason")) is not None:
        mark, how = _HELD_MARK if reason == HELD else mark, fate_of(reason, each["behind"])
    if reason in (None, "failed") or each["attempts"]:
        how += f", {each['attempts']} attempt{'s' * (each['attempts'] != 1)}"
    detail = each.get("letter_id") or (f"due {each['due']}" if each.get("due") else "")
    if each["state"] == "handled":
        detail = f"in {each['seconds']:.3f} s"
    yield plain(f"{first}{mark} {each['subscription']}: {how}  {detail}".rstrip())
    for failure in each["failures"]:
        yield plain(f"{rest}   {failure['number']}: {failure['error_type']}: {failure['message']}")
