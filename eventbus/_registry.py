"""
The subscriptions of a bus: unique by name, found by event class.

Law: membership, matching and order are decided here. What asks an abstract base
class, or shows a handler, may run user code and runs outside the lock.
"""

from __future__ import annotations

import itertools
import threading
import types
from abc import ABCMeta
from collections.abc import Callable, Iterator

from eventbus._fork import renewed
from eventbus._subscription import Subscription, spelled
from eventbus.errors import DuplicateNameError

__all__ = ["Registry"]


def _nobody(_: Subscription) -> None:
    """
    Nobody has compiled anything yet.
    """


class Registry:
    """
    The subscriptions of a bus.

    Attributes:
        lock: Held while it changes. Reentrant, for the garbage collector may run in any
            line of ours: the end of a weakly held handler then cancels, in this thread.
            What is iterated over under it is therefore copied first.
        version: Another one after each change.
        on_change: Called with the subscription, under the lock, when it has come or gone.
    """

    def __init__(self) -> None:
        self.lock = renewed(threading.RLock())
        self.version = 0
        self.on_change: Callable[[Subscription], None] = _nobody
        self._by_name: dict[str, Subscription] = {}
        self._by_type: dict[type, dict[Subscription, None]] = {}
        self._abstract: dict[type, None] = {}
        self._versions = itertools.count(1)
        self._sequence = itertools.count(1)

    def add(self, subscription: Subscription) -> None:
        """
        Take *subscription* in, after all others.

        Raises:
            DuplicateNameError: Its name is taken.
        """
        with self.lock:
            first = self._by_name.setdefault(subscription.name, subscription)
            if first is subscription:
                subscription.sequence = next(self._sequence)
                for event_type in subscription.event_types:
                    self._by_type.setdefault(event_type, {})[subscription] = None
                    if isinstance(event_type, ABCMeta):
                        self._abstract[event_type] = None
                self.changed(subscription)
                return
        raise DuplicateNameError(
            f"a subscription named {first.name!r} exists: {first.handler!r} for "
            f"{spelled(first.event_types)}. {_cure(first, subscription)}",
            name=first.name,
            first=first,
        )

    def remove(self, subscription: Subscription) -> None:
        """
        Let go of *subscription*; do nothing if that has happened.
        """
        with self.lock:
            if self._by_name.get(subscription.name) is not subscription:
                return
            subscription.is_live = False
            del self._by_name[subscription.name]
            for event_type in subscription.event_types:
                others = self._by_type[event_type]
                others.pop(subscription, None)
                if not others:  # else a class made at run time would live as long as the bus
                    del self._by_type[event_type]
                    self._abstract.pop(event_type, None)
            self.changed(subscription)

    def changed(self, subscription: Subscription | None = None) -> None:
        """
        Note a change, of a subscription or of all there are. Called under the lock.
        """
        self.version = next(self._versions)
        if subscription is not None:
            self.on_change(subscription)

    def named(self, name: str) -> Subscription | None:
        """
        Return the subscription of that name, if there is one.
        """
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[Subscription]:
        with self.lock:
            return iter(tuple(self._by_name.values()))

    def matching(self, event_type: type) -> tuple[Subscription, ...]:
        """
        Return the subscriptions for events of a class, each once, in calling order.

        An abstract base class is asked when a route is compiled: a class has to be
        registered with it before the first event of that class is published.
        """
        with self.lock:
            abstract = list(self._abstract)
        mro = event_type.__mro__
        virtual = [each for each in abstract if each not in mro and issubclass(event_type, each)]
        found: set[Subscription] = set()
        with self.lock:
            for each in (*mro, *virtual):
                found.update(list(self._by_type.get(each, ())))
        return tuple(sorted(found, key=lambda each: (-each.options.priority, each.sequence)))


def _cure(first: Subscription, second: Subscription) -> str:
    """
    Return what to do about a name that is taken.
    """
    handler, other = first.handler, second.handler
    is_method = isinstance(handler, types.MethodType)
    is_same = handler == other if is_method else handler is other
    if is_same and first.event_types == second.event_types:
        return (
            "It is this very handler: perhaps what it stands in is included, or run, twice. If it "
            "is to be called twice, give it another name with name=."
        )
    if _is_anew(handler, other):
        return (
            f"The two handlers are of one module and name. If their code was run again, as a "
            f"notebook's cell is, cancel the one before: [each.cancel() for each in "
            f"bus.subscriptions if each.name == {first.name!r}]. If they are two, give the new "
            f"one a name of its own with name=."
        )
    if is_method:
        return "For another instance, subscribe its method with a name of its own, name=."
    return (
        "Give the new one a name of its own with name=, or subscribe one handler to several "
        "events at once with a union: A | B."
    )


def _is_anew(handler: object, other: object) -> bool:
    """
    Whether two functions, or methods, are of one name, as after a reload.
    """
    first, second = (getattr(each, "__func__", each) for each in (handler, other))
    if not (isinstance(first, types.FunctionType) and isinstance(second, types.FunctionType)):
        return False
    names = [(each.__module__, each.__qualname__) for each in (first, second)]
    return first is not second and names[0] == names[1]
