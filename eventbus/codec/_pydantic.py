"""
Pydantic models: written and read by pydantic itself, and held to the same promise.

Law: a model goes through its own serializers and validators. What they would not
bring back, such as a secret that is masked, is refused when it is written.
"""

from __future__ import annotations

import json
from typing import Any

from eventbus.codec._misfit import MisfitError, kind_of
from eventbus.codec._scalars import Reader, Writer, plain

__all__ = ["is_model", "model_hooks"]


def is_model(kind: Any) -> bool:
    """
    Tell whether *kind* is a pydantic model, without importing pydantic.
    """
    return (
        isinstance(kind, type)
        and hasattr(kind, "model_validate_json")
        and hasattr(kind, "model_dump")
    )


def model_hooks(cls: Any) -> tuple[Writer, Reader]:
    """
    Make the hooks of a pydantic model.
    """
    by_alias = cls.model_config.get("validate_by_alias", True)

    def write(value: Any) -> Any:
        if type(value) is not cls:
            raise MisfitError(f"expected {cls.__name__}, not {kind_of(value)}")
        data = plain(value.model_dump(mode="json", by_alias=by_alias, round_trip=True))
        twin = read(data, cls)
        if (vars(value), value.model_extra) != (vars(twin), twin.model_extra):
            raise _changed(value, twin)
        return data

    def read(data: Any, _: Any) -> Any:
        try:
            # As JSON, because a strict model takes text for a time from JSON alone.
            return cls.model_validate_json(json.dumps(data))
        except ValueError as error:
            raise _told_by_pydantic(error) from error

    return write, read


def _changed(value: Any, twin: Any) -> MisfitError:
    after = _fields(twin)
    names = [name for name, before in _fields(value).items() if before != after.get(name)]
    return MisfitError(
        "its model writes what does not come back as the same value",
        path=f".{names[0]}" if names else "",
    )


def _fields(model: Any) -> dict[str, Any]:
    return model.__dict__  # type: ignore[no-any-return]


def _told_by_pydantic(error: Any) -> MisfitError:
    first = error.errors()[0]
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    return MisfitError(first["msg"], path="".join(steps), cause=error)
