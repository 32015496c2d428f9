"""Faust's serializer registry, taught what our records do (faust-streaming 0.15.3).

Faust refuses a tombstone where a model is declared; here it is None, as in a batch.
"""

from __future__ import annotations

from typing import Any

from faust.exceptions import KeyDecodeError, ValueDecodeError
from faust.serializers.registry import Registry as FaustRegistry

from streamproc.errors import DecodeError
from streamproc.records.codecs import decode, encode
from streamproc.records.pickles import disarm_pickle
from streamproc.records.record import Record

disarm_pickle()


def is_record(declared: Any) -> bool:
    return isinstance(declared, type) and issubclass(declared, Record)


class Registry(FaustRegistry):  # type: ignore[misc]
    """Serializes single keys and values, ours and Faust's."""

    def loads_key(self, typ: Any, key: bytes | None, *, serializer: Any = None) -> Any:
        if not is_record(typ) or key is None:
            return super().loads_key(None if key is None else typ, key, serializer=serializer)
        try:
            return decode(serializer or self.key_serializer or "raw", typ, key)
        except DecodeError as exc:
            raise KeyDecodeError(str(exc)) from exc

    def loads_value(self, typ: Any, value: bytes | None, *, serializer: Any = None) -> Any:
        if not is_record(typ) or value is None:
            return super().loads_value(None if value is None else typ, value, serializer=serializer)
        try:
            return decode(serializer or self.value_serializer or "json", typ, value)
        except DecodeError as exc:
            raise ValueDecodeError(str(exc)) from exc

    def dumps_key(self, typ: Any, key: Any, *, serializer: Any = None, **options: Any) -> Any:
        if isinstance(key, Record):
            chosen = key._options.serializer or serializer or self.key_serializer or "raw"
            return encode(chosen, key)
        return super().dumps_key(typ, key, serializer=serializer, **options)

    def dumps_value(self, typ: Any, value: Any, *, serializer: Any = None, **options: Any) -> Any:
        if isinstance(value, Record):
            chosen = value._options.serializer or serializer or self.value_serializer or "json"
            return encode(chosen, value)
        return super().dumps_value(typ, value, serializer=serializer, **options)
