"""Reading data as Faust does: what a record class accepts after a strict reading failed.

Off the hot path: a strict reading by msgspec comes first, and most records end there.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from streamproc.errors import DecodeError
from streamproc.records.fields import plain_type
from streamproc.records.times import parse


def parse_dates(options: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Return ``data`` with dates read by the class's own ``date_parser``."""
    parsed = dict(data)
    for info in options.infos:
        value = data.get(info.encode_name)
        if isinstance(value, str) and plain_type(info.type) is datetime:
            try:
                parsed[info.encode_name] = options.date_parser(value)
            except (ValueError, TypeError, OverflowError) as exc:
                raise DecodeError(f"{info.encode_name}: {exc}") from exc
    return parsed


def loosened(options: Any, data: Any) -> dict[str, Any] | None:
    """Return ``data`` as Faust would take it, or None if that changes nothing.

    A null for a field with a default means the default. With ``coerce``, values are
    turned into the field's type by Python's own rules (``str(5)``, ``int("5")``). Dates
    may leave out the seconds or the time.
    """
    if not isinstance(data, dict):
        return None
    loose = dict(data)
    for info in options.infos:
        name = info.encode_name
        if name not in data:
            continue
        value = data[name]
        if value is None:
            if not info.required:
                del loose[name]
            continue
        declared = plain_type(info.type)
        if declared is datetime and isinstance(value, str):
            loose[name] = _or_same(parse, value)
        elif options.coerce and type(value) is not declared:
            coerce = COERCIONS.get(declared)
            if coerce is not None:
                loose[name] = _or_same(coerce, value)
    return None if loose == data and _same_types(loose, data) else loose


def coerced(options: Any, record: Any) -> None:
    """Coerce the fields of a record made in Python, in place."""
    values = {info.encode_name: getattr(record, info.name) for info in options.infos}
    loose = loosened(options, values)
    if loose is None:
        return
    for info in options.infos:
        if loose.get(info.encode_name) is not values[info.encode_name]:
            value = loose.get(info.encode_name, options.defaults.get(info.name))
            setattr(record, info.name, value)


def _same_types(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(type(one[name]) is type(other[name]) for name in one)


def _or_same(convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except (ValueError, TypeError, OverflowError, InvalidOperation):
        return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return b64decode(value, validate=True)
    except binascii.Error:
        return bytes(value, "utf-8")


def _decimal(value: Any) -> Decimal:
    return Decimal(str(value))


COERCIONS: dict[Any, Callable[[Any], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: bool,
    bytes: _bytes,
    Decimal: _decimal,
}
