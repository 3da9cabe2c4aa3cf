"""
The keys of publishers: who has one, since when it counts as used, and when it is free again.

Law: of no colour: asks the store of keys and decides. A key counts as used from when its
event is stored, or, where none is stored, from when its publish begins. Where the log has
the keys as well, both are one commit: whatever dies has used its key, or stored nothing. A
key is unique to its event's class, and to its declared name where the event is logged: then
another module, and another process, may have that class under another path. A publish that
waits for the end of a block, or for its moment, uses none yet: its key is set aside in this
process alone, so that nothing is left of it where the process dies.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import attrs

from eventbus._abort import running_loop
from eventbus._beside import beside
from eventbus._furniture import Furniture
from eventbus._logger import logger
from eventbus._receipt import KnownId, Receipt, free_key, lender
from eventbus.errors import StoreError
from eventbus.idempotency import Claim, HasId, IdempotencyStore
from eventbus.instrumentation import Duplicate

__all__ = ["PublisherKeys"]

T = TypeVar("T")


@attrs.frozen
class _Asked:
    """
    What is asked for one publish, and where.
    """

    keys: IdempotencyStore
    scope: str
    key: str
    known: KnownId
    now: float
    is_joined: bool

    def of(self, claim: Callable[..., T]) -> T:
        """
        Ask it by calling *claim*.
        """
        return claim(self.scope, self.key, source=self.known, now=self.now)


class PublisherKeys:
    """
    The publishers' keys of one bus.

    Args:
        furniture: What to work with.

    Attributes:
        duplicates: How many events a publisher's key turned away.
        has_log: Events are logged, but those that are declared otherwise.
    """

    def __init__(self, furniture: Furniture) -> None:
        self.duplicates = 0
        self.has_log = False
        self._furniture = furniture
        # By scope, key, and the block they wait in; `None` for those that are due later.
        self._aside: dict[tuple[str, str, object], Receipt] = {}

    def set_aside(self, receipt: Receipt, among: object = None) -> bool:
        """
        Note the key of a publish that waits, if it has one; ``False`` for a duplicate.

        Args:
            receipt: The publish; what was set aside for it elsewhere is so no more.
            among: The outermost of the blocks it waits in, whose publishes meet the key.
                What is due later, whatever becomes of a block, is met by all publishes.
        """
        options = receipt.options
        if options is None or (key := options.get("idempotency_key")) is None:
            return True
        if (free := options.pop("free", None)) is not None:
            free()
        scope = self._scope(receipt)
        name = (scope, key, among)
        first: HasId = self._aside.setdefault(name, receipt)
        if first is receipt:
            options["free"] = partial(self._aside.pop, name, None)
            first = self._aside.get((scope, key, None), receipt)
        if first is not receipt:
            return self._turned_away(receipt, key, first.id)
        keys, _ = self._keys_for(receipt)
        # Not every store can tell without a claim: then it is found out when that is due.
        look: Callable[..., Claim | None] | None = beside(keys, "claim", "look")
        if look is None:
            return True
        try:
            claim = look(scope, key, now=self._furniture.clock.monotonic())
        except BaseException:
            options.pop("free")()
            raise
        return claim is None or self._turned_away(receipt, key, claim.event_id)

    def claim(self, receipt: Receipt, *, is_stored_next: bool) -> bool:
        """
        Hold the key of a publish, if it has one; ``False`` for a duplicate.

        The key counts as used from now on, or, where the event is stored next, from then
        on: what dies in between has used no key. A failing handler frees it again.
        """
        with self._asking(receipt) as asked:
            if asked is None:
                return not receipt.duplicate
            keys, claim = asked.keys, asked.of(asked.keys.claim)
        if not self._is_granted(receipt, claim):
            return False
        if not self._is_kept_later(receipt, claim, asked, is_stored_next=is_stored_next):
            with _or_free(receipt):
                keys.complete(claim, now=asked.now)
        return True

    async def aclaim(self, receipt: Receipt, *, is_stored_next: bool) -> bool:
        """
        Do as `claim`, while the event loop goes on, if the store of keys has ways for that.
        """
        keys: Any = self._keys_for(receipt)[0]
        aclaim, acomplete = beside(keys, "claim", "aclaim"), beside(keys, "complete", "acomplete")
        if aclaim is None or acomplete is None:
            return self.claim(receipt, is_stored_next=is_stored_next)
        with self._asking(receipt) as asked:
            if asked is None:
                return not receipt.duplicate
            claim = await asked.of(aclaim)
        if not self._is_granted(receipt, claim):
            return False
        if not self._is_kept_later(receipt, claim, asked, is_stored_next=is_stored_next):
            with _or_free(receipt):
                await acomplete(claim, now=asked.now)
        return True

    @contextmanager
    def _asking(self, receipt: Receipt) -> Generator[_Asked | None]:
        """
        Yield what is to be asked for; ``None``: nothing, or it is known to be a duplicate.
        """
        options, clock = receipt.options, self._furniture.clock
        if options is None or (key := options.get("idempotency_key")) is None:
            yield None
            return
        put_back = options.pop("free", None)
        try:
            scope = self._scope(receipt)
            first = self._aside.get((scope, key, None), receipt)
            if first is not receipt:
                self._turned_away(receipt, key, first.id)
                yield None
                return
            sealed = receipt.sealed
            known = KnownId(clock.new_id() if sealed is None else sealed.id)
            keys, is_joined = self._keys_for(receipt)
            yield _Asked(keys, scope, key, known, clock.monotonic(), is_joined)
        finally:
            if put_back is not None:
                put_back()

    def _is_granted(self, receipt: Receipt, claim: Claim) -> bool:
        assert receipt.options is not None  # there is a key
        key = receipt.options["idempotency_key"]
        return claim.state == "granted" or self._turned_away(receipt, key, claim.event_id)

    def _is_kept_later(
        self, receipt: Receipt, claim: Claim, asked: _Asked, *, is_stored_next: bool
    ) -> bool:
        """
        Note how the key is freed; whether it counts as used when its event is stored.
        """
        options, name = receipt.options, receipt.route.name
        assert options is not None  # there is a key
        given = options.get("connection")
        free = partial(self._free, given, lender(receipt), claim, name)
        options.update(id=asked.known.id, free=free)
        if is_stored_next and not asked.is_joined and given is None:
            options["keep"] = partial(self._keep, claim, name)
            return True
        return False

    def _scope(self, receipt: Receipt) -> str:
        """
        Name what a publisher's key is unique in: where none is logged, names may be shared.
        """
        declaration = receipt.route.declaration
        if self.has_log and declaration.logged:
            return f"publish {declaration.name}"
        happened: object = receipt.event
        return f"publish {type(happened).__module__}.{type(happened).__qualname__}"

    def _keys_for(self, receipt: Receipt) -> tuple[IdempotencyStore, bool]:
        """
        Return the store of keys, as part of the transaction that the event joins, if it can.
        """
        connection = (receipt.options or {}).get("connection")
        return self._keys_within(connection, lender(receipt))

    def _keys_within(self, given: Any, of: Receipt | None) -> tuple[IdempotencyStore, bool]:
        keys = self._furniture.idempotency
        connection = given if given is not None or of is None else of.connection
        join: Callable[[Any], IdempotencyStore] | None = beside(keys, "claim", "on")
        return (keys, False) if connection is None or join is None else (join(connection), True)

    def _turned_away(self, receipt: Receipt, key: str, first_id: str | None) -> bool:
        options, route = receipt.options, receipt.route
        assert options is not None  # there is a key
        if (free := options.pop("free", None)) is not None:
            free()
        options["id"] = first_id
        receipt.duplicate, receipt.duplicate_of = True, first_id
        receipt.missed, receipt.finished = len(route), True
        receipt.unqueued = route.queued + route.durable
        self.duplicates += 1
        if self._furniture.observers:
            self._furniture.notify(
                Duplicate(envelope=receipt.envelope, subscription=None, key=key, first_id=first_id)
            )
        return False

    def _keep(self, claim: Claim, name: str, on: Any = None) -> None:
        """
        Count the key as used; given the connection that stores its event, or else neither is.
        """
        now = self._furniture.clock.monotonic()
        if on is not None:
            keys, _ = self._keys_within(on, None)
            if not keys.complete(claim, now=now):
                raise StoreError(
                    f"{name} came so late that its idempotency key is another's by now: nothing "
                    f"was stored. Publish it again to learn whether it is a duplicate."
                )
            return
        try:
            self._furniture.idempotency.complete(claim, now=now)
        except Exception:
            logger().exception("the idempotency key of one %s is not recorded", name)

    def _free(self, given: Any, of: Receipt | None, claim: Claim, name: str) -> None:
        keys: Any = self._keys_within(given, of)[0]
        later = beside(keys, "release", "release_later")
        try:
            (keys.release if later is None or running_loop() is None else later)(claim)
        except Exception:
            logger().exception("the idempotency key of one %s is not released", name)


@contextmanager
def _or_free(receipt: Receipt) -> Generator[None]:
    """
    Free the key if the block raises.
    """
    try:
        yield
    except BaseException:
        free_key(receipt)
        raise
