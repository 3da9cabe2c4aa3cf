"""
Comparing what is written with what will be read, where a constructor does more than store.

Law: an instance is written only if what its constructor makes of the written fields, its
twin, is written as the same. Only classes whose constructors may change what they are
given are compared; who they are is not decided here.
"""

from __future__ import annotations

from threading import local
from typing import Any

from eventbus.codec._misfit import MisfitError, told
from eventbus.codec._scalars import Reader, Writer

__all__ = ["twin_writer"]


class _UnderWay(local):
    """
    Whether this thread is writing a twin: what is within it is compared with it.
    """

    is_twin: bool = False


_under_way = _UnderWay()


def twin_writer(cls: type, names: dict[str, str], write: Writer, read: Reader) -> Writer:
    """
    Make of the hook that writes instances of *cls* one that compares their twins.

    Args:
        cls: The class.
        names: Its fields, as they are called in JSON and as the class calls them.
        write: The hook that writes an instance.
        read: The hook that makes the twin, by the constructor.
    """

    def write_what_comes_back(value: Any) -> Any:
        data = write(value)
        if _under_way.is_twin:
            return data
        _under_way.is_twin = True
        try:
            twin, after = made_again(value)
        finally:
            _under_way.is_twin = False
        if data != after:
            for key, name in names.items():
                if data[key] != after[key]:
                    compare(name, getattr(value, name), getattr(twin, name))
        return data

    def made_again(value: Any) -> tuple[Any, Any]:
        try:
            # Of a writing of its own: a constructor may change the list it is given.
            twin = read(write(value), cls)
            return twin, write(twin)
        except Exception as error:
            misfit = told(error)
            raise MisfitError(
                f"the constructor of {cls.__name__} would not take it when it is read: "
                f"{misfit.reason}",
                path=misfit.path,
                cause=misfit.cause or misfit,
            ) from error

    def compare(name: str, before: Any, after: Any) -> None:
        if before != after:  # a set may come back in another order, and still be equal
            raise MisfitError(
                f"the constructor of {cls.__name__} would make {after!r:.100} of {before!r:.100} "
                f"when it is read. Let it leave alone what it has made",
                path=f".{name}",
            )

    return write_what_comes_back
