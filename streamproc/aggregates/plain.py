"""Values of the user's kept in a state: how they are stored, and restored as what they were."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from types import GenericAlias
from typing import Any

import msgspec

from streamproc.aggregates.parts import Number, Plain, Scope
from streamproc.errors import DecodeError, EncodeError

#: What MessagePack gives back as it was.
SCALARS = frozenset({int, float, str, bytes, bool})
PLAIN = SCALARS | {list, dict, type(None)}


def stored(scope: Scope, slot: str, declared: Any) -> Plain:
    """Return how a slot with one value is stored and read.

    Args:
        scope: Where the functions go.
        slot: The slot's expression.
        declared: The value's type, or None: only plain values can be stored then.
    """
    if declared is Number:
        return slot, slot
    if declared is None or declared is Any:
        return f"{scope.bind(storable, 'storable')}({slot})", slot
    restore = f"{scope.bind(partial(restored, declared), 'restored')}({slot})"
    if isinstance(declared, type) and declared in SCALARS:
        # Mostly it is right already, and a look at it costs less.
        restore = f"{slot} if {slot}.__class__ is {declared.__name__} else {restore}"
    return slot, restore


def stored_list(scope: Scope, slot: str, declared: Any) -> Plain:
    """Return how a slot with a list of values is stored and read; see :func:`stored`."""
    if declared is None or declared is Any:
        return f"list(map({scope.bind(storable, 'storable')}, {slot}))", slot
    restore = scope.bind(partial(restored, GenericAlias(list, (declared,))), "restored")
    return slot, f"{restore}({slot})"


def readable(declared: Any) -> bool:
    """Return whether values of a type can be restored."""
    if declared is None or declared is object:
        return False
    try:
        msgspec.msgpack.Decoder(declared)
    except TypeError:
        return False
    return True


def storable(value: Any) -> Any:
    """Return the value if it comes back from MessagePack as it was.

    Raises:
        EncodeError: It would come back as another type.
    """
    if value.__class__ in PLAIN or (isinstance(value, datetime) and value.tzinfo is not None):
        return value
    name = type(value).__qualname__
    raise EncodeError(
        f"{value!r} is kept in a state and would come back as plain data, not as {name}; "
        f"say what it is: type={name}"
    )


def restored(declared: Any, value: Any) -> Any:
    """Return a value of the type, from plain data; None (no value yet) stays None.

    Raises:
        DecodeError: The data doesn't fit the type.
    """
    if value is None:
        return None
    try:
        return msgspec.convert(value, declared)
    except msgspec.ValidationError as exc:
        raise DecodeError(f"a stored value no longer fits {declared!r}: {exc}") from exc
