"""Values as bytes that say what they are, where no type is declared.

Plain data, tuples, sets and records come back as what they were; other objects need a
declared type.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from faust.models.base import registry

from streamproc.errors import DecodeError, EncodeError
from streamproc.records.codecs import get_codec
from streamproc.records.record import Record

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]

_TUPLE, _SET, _RECORD = 1, 2, 3
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, datetime})
_encode = msgspec.msgpack.Encoder().encode


def pack(value: Any) -> bytes:
    """Encode a value.

    Raises:
        EncodeError: It is, or holds, an object of another kind.
    """
    try:
        return _encode(value if type(value) in _PLAIN else _plain(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise EncodeError(f"{value!r:.200} can't be kept without its type: {exc}") from exc


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [_plain(item) for item in value]
    if kind is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    if kind is tuple:
        return msgspec.msgpack.Ext(_TUPLE, _encode([_plain(item) for item in value]))
    if kind is set or kind is frozenset:
        return msgspec.msgpack.Ext(_SET, _encode([_plain(item) for item in value]))
    namespace = getattr(getattr(kind, "_options", None), "namespace", None)
    if isinstance(value, Record) and registry.get(namespace) is kind:
        return msgspec.msgpack.Ext(_RECORD, _encode([namespace, value.to_representation()]))
    raise TypeError(f"{kind.__name__} is neither plain data nor a named record; declare value_type")


def unpack(raw: bytes) -> Any:
    """Return the value that :func:`pack` encoded.

    Raises:
        DecodeError: These are other bytes, or a record's class isn't there any more.
    """
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, KeyError, ValueError) as exc:
        raise DecodeError(str(exc)) from exc


def _revive(code: int, data: memoryview) -> Any:
    content = _decode(bytes(data))
    if code == _TUPLE:
        return tuple(content)
    if code == _SET:
        return set(content)
    namespace, fields = content
    return registry[namespace].from_data(fields)


_decode = msgspec.msgpack.Decoder(ext_hook=_revive, strict=True).decode


def value_codec(declared: Any) -> tuple[Encode, Decode]:
    """Return functions to bytes and back for values of a declared type (None: any).

    Raises:
        ConfigurationError: Values of that type can't be decoded.
    """
    if declared is None or declared is Any:
        return pack, unpack
    codec = get_codec("json")
    encode = codec.encoder(declared)

    def encode_value(value: Any) -> bytes:
        raw = encode(value)
        return b"null" if raw is None else raw

    return encode_value, codec.decoder(declared)
