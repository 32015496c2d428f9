"""What a sink is given, seen in one way: values with what is known about their records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec

from streamproc.errors import SinkError

#: One argument of a Redis command.
Arg = str | bytes | int | float

#: Names a template may use that come from the record and not from its value.
METADATA = frozenset({"key", "timestamp", "topic", "partition", "offset"})

_SCALARS = (str, bytes, int, float)


class Run:
    """A run of values in order, with the keys, times and places of their records if known."""

    __slots__ = ("_keys", "_offsets", "_timestamps", "_topic", "partition", "values")

    def __init__(self, values: Sequence[Any], keys: Sequence[Any] | None = None) -> None:
        self.values = values
        self._keys = keys
        self._timestamps: Sequence[int] | None = None
        self._offsets: Sequence[int] | None = None
        self._topic: str | None = None
        self.partition: int | None = None

    @classmethod
    def of(cls, values: Any, partition: int | None = None) -> Run:
        """See a batch, a list of values or a list of (key, value) pairs as a run.

        Args:
            values: What was written.
            partition: Source partition of the records it was made of, if known.
        """
        run = cls._of(values)
        if run.partition is None:
            run.partition = partition
        return run

    @classmethod
    def _of(cls, values: Any) -> Run:
        if isinstance(values, (str, bytes, Mapping, msgspec.Struct)):
            raise SinkError(
                f"a list of values is written, not a single {type(values).__name__}: write([value])"
            )
        if hasattr(values, "timestamps"):  # a Batch, known by its shape: this needs no Kafka
            run = cls(values.values, values.keys)
            run._timestamps, run._offsets = values.timestamps, values.offsets
            run._topic, run.partition = values.topic, values.partition
            return run
        if tuple not in set(map(type, values)):
            return cls(values)
        pairs = [v if type(v) is tuple and len(v) == 2 else (None, v) for v in values]
        return cls([value for _, value in pairs], [key for key, _ in pairs])

    def slices(self, size: int) -> list[Run]:
        """Cut into runs of at most ``size`` values."""
        if len(self.values) <= size:
            return [self]
        return [self._slice(slice(i, i + size)) for i in range(0, len(self.values), size)]

    def _slice(self, part: slice) -> Run:
        run = Run(self.values[part], self._keys and self._keys[part])
        run._timestamps = self._timestamps and self._timestamps[part]
        run._offsets = self._offsets and self._offsets[part]
        run._topic, run.partition = self._topic, self.partition
        return run

    def key(self, index: int) -> Any:
        """Return the record's key, bytes as text (undecodable ones survive the way back)."""
        key = self._keys[index] if self._keys else None
        return key.decode(errors="surrogateescape") if type(key) is bytes else key

    def timestamp_ms(self, index: int) -> int | None:
        """Return the record's time in milliseconds, if known."""
        return self._timestamps[index] if self._timestamps else None

    def metadata(self, name: str, index: int) -> Any:
        """Return what is known under one of the names in METADATA, or None."""
        if name == "timestamp":
            ms = self.timestamp_ms(index)
            return None if ms is None else datetime.fromtimestamp(ms / 1000, timezone.utc)
        if name == "offset":
            return self._offsets[index] if self._offsets else None
        if name == "key":
            return self.key(index)
        return {"topic": self._topic, "partition": self.partition}.get(name)

    def metadata_names(self, index: int) -> set[str]:
        """Return the names in METADATA that are known for this value."""
        return {name for name in METADATA if self.metadata(name, index) is not None}


def field_names(value: Any) -> Sequence[str]:
    """Return the names of the fields of a Record, dict, dataclass or faust.Record."""
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if isinstance(value, Mapping):
        return [str(name) for name in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    if hasattr(value, "asdict"):
        return list(value.asdict())
    return ()


def as_mapping(value: Any) -> dict[str, Any]:
    """Return a new dict of the fields of ``value``; raise :class:`SinkError` if it has none."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "asdict"):
        fields: dict[str, Any] = value.asdict()
        return fields
    raise SinkError(f"a Record or dict is needed here, not {type(value).__name__} {value!r:.60}")


def pick(value: Any, name: str) -> Any:
    """Return the field ``name`` of a value; the name "value" is a plain value itself."""
    try:
        if isinstance(value, msgspec.Struct):
            return getattr(value, name)
        return value[name] if isinstance(value, Mapping) else getattr(value, name)
    except (KeyError, AttributeError):
        if name == "value" and not field_names(value):
            return value
        available = ", ".join(field_names(value)) or "none"
        raise SinkError(
            f"{type(value).__name__} has no field {name!r}; its fields: {available}"
        ) from None


def number(value: Any, source: str | float) -> int | float:
    """Return ``source`` if it is a number, else the numeric field of that name."""
    if not isinstance(source, str):
        return source
    found = pick(value, source)
    if isinstance(found, datetime):
        return found.timestamp()
    try:
        return found if type(found) in (int, float) else _to_number(found)
    except (TypeError, ValueError):
        raise SinkError(f"field {source!r} is not a number: {found!r:.60}") from None


def _to_number(found: Any) -> int | float:
    try:
        return found.__index__()  # type: ignore[no-any-return]
    except AttributeError:
        return float(found)


def scalar(value: Any) -> Arg:
    """Return a value as one Redis argument: numbers and text plain, the rest as JSON.

    ``bool`` becomes 1 or 0, dates ISO 8601, enums their value, so that
    ``msgspec.convert(hash, Reading, strict=False)`` reads a hash back.
    """
    kind = type(value)
    if kind in _SCALARS:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return int(value)
    try:
        plain = msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=_foreign)
        if type(plain) in _SCALARS:
            return plain  # type: ignore[no-any-return]
        return msgspec.json.encode(value, enc_hook=_foreign)
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:
        raise SinkError(f"{kind.__name__} {value!r:.60} cannot be written: {error}") from None


def _foreign(value: Any) -> Any:
    """Encode what msgspec doesn't know: faust.Record, and numpy scalars by ``item()``."""
    for method in ("asdict", "item"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise NotImplementedError(f"no JSON form of {type(value).__name__}")
