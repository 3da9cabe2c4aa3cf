"""
The libraries that turn plain data into JSON and back.

Law: whichever is chosen, the same data is written so that each reads it equally: in
UTF-8, without spaces, and never with ``NaN`` or ``Infinity``. No type is known here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from json import encoder
from typing import Any

__all__ = ["Read", "Write", "library"]

Write = Callable[[Any], bytes]
Read = Callable[[bytes], Any]


def library(name: str) -> tuple[Write, Read]:
    """
    Return what writes and reads JSON with ``"stdlib"`` or ``"msgspec"``.
    """
    if name == "stdlib":
        return _stdlib_writer(), _stdlib_reader()
    if name != "msgspec":
        raise ValueError(f"json must be 'stdlib' or 'msgspec', not {name!r}")
    try:
        import msgspec  # is asked for by name, and not needed otherwise
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "JSONCodec(json='msgspec') needs msgspec: pip install eventbus[msgspec]"
        ) from error
    return msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


def _stdlib_writer() -> Write:
    make: Any = getattr(encoder, "c_make_encoder", None)
    if make is None:  # a Python without the accelerator
        encode = json.JSONEncoder(
            ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
        ).encode
        return lambda data: encode(data).encode()
    # `JSONEncoder.encode` makes this one anew for each call, which takes as long as most
    # events do. The arguments: markers, default, text, indent, separators of keys and
    # items, sort_keys, skipkeys, allow_nan.
    quick = make(
        None, _refuse_object, encoder.encode_basestring, None, ":", ",", False, False, False
    )
    return lambda data: "".join(quick(data, 0)).encode()


def _stdlib_reader() -> Read:
    decoder: Any = json.JSONDecoder(parse_constant=_refuse_constant)
    scan, decode = decoder.scan_once, decoder.decode

    def read(payload: bytes) -> Any:
        text = payload.decode()
        if text[:1] == "{":  # what has nothing around it needs no search for spaces
            data, end = scan(text, 0)
            if end == len(text):
                return data
        return decode(text)

    return read


def _refuse_object(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
