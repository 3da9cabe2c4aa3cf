"""
Who is meant by a handler or by a subscription's name.

Law: remembers every subscription a test bus ever had, so that an assertion can
still name one that is cancelled or used up. It decides nothing about delivery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TypeAlias

from eventbus._subscription import Subscription
from eventbus.errors import SubscriptionNotFoundError
from eventbus.testing._fields import shown

__all__ = ["HandlerOrName", "Roster", "several"]

HandlerOrName: TypeAlias = Callable[..., object] | Subscription | str


class Roster:
    """
    The subscriptions of a test bus, those that are gone included.
    """

    def __init__(self, known: Iterable[Subscription] = ()) -> None:
        self._by_name = {each.name: each for each in known}
        self._left_out: dict[str, str] = {}

    def remember(self, subscription: Subscription) -> None:
        """
        Know *subscription* from now on, whatever becomes of it.
        """
        self._by_name[subscription.name] = subscription
        self._left_out.pop(subscription.name, None)

    def leave_out(self, subscription: Subscription, why: str) -> None:
        """
        Know *subscription* as one that is not subscribed here.
        """
        self._by_name[subscription.name] = subscription
        self._left_out[subscription.name] = why

    def why_left_out(self, subscription: Subscription) -> str | None:
        """
        Return why *subscription* is not subscribed here, if it never was.
        """
        return self._left_out.get(subscription.name)

    def left_out(self) -> list[tuple[str, str]]:
        """
        Return the names of those that are not subscribed here, and why.
        """
        return [*self._left_out.items()]

    def named(self, name: str) -> Subscription:
        """
        Return the latest subscription of that name.
        """
        return self._by_name[name]

    def find(self, target: HandlerOrName) -> tuple[Subscription, ...]:
        """
        Return the subscriptions *target* stands for, at least one.

        Args:
            target: A subscription, its name, or a handler; a function stands for the
                methods bound to it as well.

        Raises:
            SubscriptionNotFoundError: There is none.
        """
        found = tuple(each for each in self._by_name.values() if _is_meant(each, target))
        if not found:
            raise SubscriptionNotFoundError(self._unknown(target))
        return found

    def everybody(self) -> tuple[Subscription, ...]:
        """
        Return the latest subscription of each name.
        """
        return tuple(self._by_name.values())

    def knows(self, target: HandlerOrName) -> bool:
        """
        Tell whether *target* is or was subscribed.
        """
        return any(_is_meant(each, target) for each in self._by_name.values())

    def names(self, targets: Iterable[HandlerOrName]) -> set[str]:
        """
        Return the names of the subscriptions *targets* stand for.
        """
        return {each.name for target in targets for each in self.find(target)}

    def _unknown(self, target: HandlerOrName) -> str:
        title = f"nothing is subscribed as {shown(target)}."
        if callable(target):
            title = f"{shown(target)} is not subscribed."
        if not self._by_name:
            return f"{title} Nothing else is, either: subscribe it first."
        near = get_close_matches(str(target), self._by_name, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = "\n".join(f"  {name}" for name in sorted(self._by_name))
        return f"{title}{hint} Known are:\n{known}"


def _is_meant(subscription: Subscription, target: HandlerOrName) -> bool:
    if isinstance(target, Subscription):
        return subscription.name == target.name
    if isinstance(target, str):
        return subscription.name == target
    handler = subscription.handler
    function: object = getattr(handler, "__func__", None)
    return handler is not None and (handler == target or function is target)


def several(targets: Iterable[HandlerOrName] | HandlerOrName) -> list[HandlerOrName]:
    """
    Return *targets* as a list; a single one stands for a list of one.
    """
    if isinstance(targets, str | Subscription) or callable(targets):
        return [targets]
    return list(targets)
