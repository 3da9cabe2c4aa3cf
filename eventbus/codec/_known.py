"""
Which class a stored event comes back as: classes by name and version.

Law: classes are known weakly, and told apart only where a log would mix them up. No
payload is looked at here, and nothing is decided about what cannot be found.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from weakref import ref

import attrs

from eventbus._event import declaration_of
from eventbus.codec._upcast import Source, Step, chain_from, checked_steps, steps_of
from eventbus.errors import DeclarationError

__all__ = ["KnownEvents", "Route"]


@attrs.frozen
class Route:
    """
    How stored events of one name and version are brought back.

    Attributes:
        event_type: The class.
        steps: The upcasters to be called before, in order.
    """

    event_type: type
    steps: tuple[Step, ...] = ()


class KnownEvents:
    """
    The classes one codec knows.

    Args:
        release: Called to let go of whatever keeps classes alive on the codec's side.
    """

    def __init__(self, release: Callable[[], object]) -> None:
        self._release = release
        self._by_source: dict[Source, ref[type]] = {}
        # A dict, because its keys can be listed while another thread adds one.
        self._classes: dict[ref[type], None] = {}

    def look_out_for(self, cls: type) -> None:
        """
        Find the classes derived from *cls* when an event asks for one of them.
        """
        if cls is not object:
            self._classes[ref(cls)] = None

    def claim(self, cls: type) -> None:
        """
        Let *cls* be the class of its name and version.

        Raises:
            DeclarationError: Another live class is, or an upcaster takes its events.
        """
        declared = declaration_of(cls)
        source = (declared.name, declared.version)
        if self._holder(source) is cls:
            return
        if self._holder(source) is not None:
            # Perhaps nobody but ourselves holds the other one any more.
            self._release()
            gc.collect()
        other = self._holder(source)
        if other is not None:
            raise DeclarationError(
                f"{_place(other)} and {_place(cls)} are both called {source[0]!r} version "
                f"{source[1]}: a log cannot tell them apart. Give one of them another name, "
                f"@event(name=...)"
            )
        self._refuse_taken(cls, source)
        self._by_source[source] = ref(cls)
        self._classes[ref(cls)] = None

    def route(self, source: Source) -> Route | None:
        """
        Find what events stored as *source* come back as, or ``None``.

        Raises:
            DeclarationError: There is a gap in the upcasters, or classes or upcasters
                cannot be told apart.
        """
        return self._own(source) or self._by_steps(source) or self._by_subclass(source)

    def names_of(self, cls: type) -> tuple[str, ...]:
        """
        Return the names events of *cls* may be stored by, the present one first.
        """
        names = [declaration_of(cls).name, *(step.source[0] for step in steps_of(cls))]
        return tuple(dict.fromkeys(names))

    def versions_of(self, name: str) -> list[int]:
        """
        Return the versions in which live classes are known by *name*, ascending.
        """
        return sorted(
            version
            for (each, version), held in list(self._by_source.items())
            if each == name and held() is not None
        )

    def check(self) -> None:
        """
        Refuse upcasters that cannot be followed.

        Raises:
            DeclarationError: Two take the same, one leads above the version of its class,
                there is a gap, or one takes the events of a class that is known.
        """
        takers: dict[Source, Step] = {}
        for cls in self._sorted():
            for source, step in checked_steps(cls).items():
                first = takers.setdefault(source, step)
                if first is not step:
                    raise DeclarationError(
                        f"two upcasters take {source[0]!r} version {source[1]}: {first} and {step}"
                    )
        for source, step in takers.items():
            holder = self._holder(source)
            if holder is not None:
                raise _taken(holder, step, source)

    # -- the ways of finding one ---------------------------------------------------------------

    def _own(self, source: Source) -> Route | None:
        cls = self._holder(source)
        return None if cls is None else Route(cls)

    def _by_steps(self, source: Source) -> Route | None:
        for cls in self._sorted():
            declared = declaration_of(cls)
            takes = any(step.source == source for step in steps_of(cls))
            is_older = declared.name == source[0] and source[1] < declared.version
            if takes or (is_older and steps_of(cls)):
                return Route(cls, chain_from(source, cls, checked_steps(cls)))
        return None

    def _by_subclass(self, source: Source) -> Route | None:
        found = self._derived(source)
        if len(found) > 1:
            found.clear()
            gc.collect()  # a class with slots is made anew, and leaves its first form behind
            found = self._derived(source)
        if not found:
            return None
        for cls in found:
            self.claim(cls)
        return Route(found[0])

    def _derived(self, source: Source) -> list[type]:
        found: dict[type, None] = {}
        for root in self._sorted():
            for cls in _below(root):
                declared = declaration_of(cls)
                if (declared.name, declared.version) == source:
                    found[cls] = None
        return list(found)

    def _refuse_taken(self, cls: type, source: Source) -> None:
        for other in self._sorted():
            for step in steps_of(other):
                if step.source == source and other is not cls:
                    raise _taken(cls, step, source)

    def _holder(self, source: Source) -> type | None:
        held = self._by_source.get(source)
        return None if held is None else held()

    def _sorted(self) -> list[type]:
        live: list[type] = []
        for held in list(self._classes):
            cls = held()
            if cls is None:
                self._classes.pop(held, None)
            else:
                live.append(cls)
        return sorted(live, key=_place)


def _below(root: type) -> Iterator[type]:
    derived: list[type] = type.__subclasses__(root)
    for cls in derived:
        yield cls
        yield from _below(cls)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _taken(cls: type, step: Step, source: Source) -> DeclarationError:
    return DeclarationError(
        f"the upcaster {step} takes {source[0]!r} version {source[1]}, and {_place(cls)} is the "
        f"class of just these events. Drop the upcaster or the class"
    )
