"""
Pydantic models: written and read by pydantic itself, and held to the same promise.

Law: a model goes through its own serializers and validators. What they would not
bring back, such as a secret that is masked, is refused when it is written.
"""

from __future__ import annotations

import json
from typing import Any

from eventbus.codec._misfit import MisfitError, kind_of, type_of, within
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
    options = {
        "mode": "json",
        "by_alias": cls.model_config.get("validate_by_alias", True),
        "round_trip": True,
    }

    def write(value: Any) -> Any:
        if type(value) is not cls:
            raise MisfitError(f"expected {cls.__name__}, not {kind_of(value)}")
        try:
            dumped = value.model_dump(**options)
        except Exception as error:
            raise _unwritable(value, options, error) from error
        data = _plain_fields(dumped)
        twin = read(data, cls)
        if _held_by(value) != _held_by(twin):
            raise _changed(value, twin)
        return data

    def read(data: Any, _: Any) -> Any:
        try:
            # As JSON, because a strict model takes text for a time from JSON alone.
            return cls.model_validate_json(json.dumps(data))
        except ValueError as error:
            raise _told_by_pydantic(error) from error

    return write, read


def _plain_fields(data: Any) -> Any:
    if type_of(data) is not dict:  # of a root model
        return plain(data)
    made: dict[str, Any] = {}
    key = ""
    try:
        for key, each in data.items():
            made[key] = plain(each)
    except Exception as error:
        raise within(f".{key}", error) from None
    return made


def _unwritable(value: Any, options: dict[str, Any], error: Exception) -> Exception:
    """
    Find the field that pydantic did not write; where none is at fault, the model is.
    """

    def fails(*names: str) -> bool:
        try:
            value.model_dump(include=set(names), **options)
        except Exception:
            return True
        return False

    names: list[str] = list(type_of(value).model_fields)
    at_fault = [] if fails() else [name for name in names if fails(name)]
    return within(f".{at_fault[0]}", error) if at_fault else error


def _changed(value: Any, twin: Any) -> MisfitError:
    before, after = _held_by(value), _held_by(twin)
    names = [name for name in before if before[name] != after.get(name, value)]
    return MisfitError(
        "its model writes what does not come back as the same value",
        path=f".{names[0]}" if names else "",
    )


def _held_by(model: Any) -> dict[str, Any]:
    """
    Return all that pydantic compares: fields, extra values and private attributes.

    What else a model keeps are properties that it has worked out from them.
    """
    fields = type_of(model).model_fields
    return {
        **{name: each for name, each in model.__dict__.items() if name in fields},
        **(model.__pydantic_extra__ or {}),
        **(model.__pydantic_private__ or {}),
    }


def _told_by_pydantic(error: Any) -> MisfitError:
    first = error.errors()[0]
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    return MisfitError(first["msg"], path="".join(steps), cause=error)
