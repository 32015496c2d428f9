"""Commands that put values into a collection under a key: hash, list, set, sorted set, stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from streamproc.errors import ConfigurationError, SinkError
from streamproc.sinks.redis.commands import (
    ARG_BYTES,
    ENTRY_BYTES,
    MAX_ARGUMENTS,
    KeyedCommands,
    chunks,
    length,
    member_of,
    payload,
    positive,
)
from streamproc.sinks.redis.resp import Command
from streamproc.sinks.redis.templates import Template
from streamproc.sinks.redis.values import Arg, Run, as_mapping, field_names, number, pick, scalar


class HashCommands(KeyedCommands[dict[str, Any]]):
    """HSET of the fields of each value; a field that is None is deleted.

    With ``field`` (a template) each value is one field of the hash instead: the field's
    name comes from the template, its data from ``value`` (default: the whole value).
    """

    def __init__(
        self,
        key: str,
        *,
        fields: Sequence[str] | None = None,
        field: str | None = None,
        value: str | None = None,
        ttl: float | timedelta | None = None,
    ) -> None:
        if field is not None and fields is not None:
            raise ConfigurationError("fields and field exclude each other; give one of them")
        if value is not None and field is None:
            raise ConfigurationError("value needs field: the template of the hash field's name")
        super().__init__(key, ttl=ttl)
        self._fields, self._value = fields, value
        self._field = Template(field) if field is not None else None

    def _start(self) -> dict[str, Any]:
        return {}

    def _merge(self, entry: dict[str, Any], value: Any, run: Run, index: int) -> None:
        if self._field is not None:
            name = self._field.render(value, run, index)
            data = payload(value, self._value)
            self.size += length(data) + len(name)
            entry[name] = data
            return
        if self._fields is None:
            mapping = as_mapping(value)
        else:
            mapping = {name: pick(value, name) for name in self._fields}
        size = 0
        for name, data in mapping.items():
            kind = type(data)
            if kind is float or kind is int:
                continue
            if data is not None and kind is not str:
                mapping[name] = data = scalar(data)
            if isinstance(data, (str, bytes)):
                size += len(data)
        self.size += size + ARG_BYTES * len(mapping)
        entry.update(mapping)

    def _delete(self, key: str, run: Run, index: int) -> None:
        if self._field is None:
            super()._delete(key, run, index)
            return
        name = self._field.render(None, run, index)
        self._entries.setdefault(key, {})[name] = None
        self.size += ENTRY_BYTES + len(name)

    def _emit(self, key: str, entry: dict[str, Any]) -> Iterator[Command]:
        gone: list[Arg] = []
        if None in entry.values():
            gone = [name for name, data in entry.items() if data is None]
            entry = {name: data for name, data in entry.items() if data is not None}
        args = [arg for item in entry.items() for arg in item]
        for part in chunks(args, MAX_ARGUMENTS):
            yield ("HSET", key, *part)
        for part in chunks(gone, MAX_ARGUMENTS):
            yield ("HDEL", key, *part)


class ListCommands(KeyedCommands[list[Arg]]):
    """RPUSH (or LPUSH) of every value, and LTRIM to the newest ``max_length``."""

    def __init__(
        self,
        key: str,
        *,
        value: str | None = None,
        left: bool = False,
        max_length: int | None = None,
        ttl: float | timedelta | None = None,
    ) -> None:
        super().__init__(key, ttl=ttl)
        self._value, self._left = value, left
        self._max_length = positive("max_length", max_length)

    def _start(self) -> list[Arg]:
        return []

    def _merge(self, entry: list[Arg], value: Any, run: Run, index: int) -> None:
        data = payload(value, self._value)
        self.size += length(data)
        entry.append(data)

    def _emit(self, key: str, entry: list[Arg]) -> Iterator[Command]:
        for part in chunks(entry, MAX_ARGUMENTS):
            yield ("LPUSH" if self._left else "RPUSH", key, *part)
        if entry and self._max_length is not None:
            kept = (0, self._max_length - 1) if self._left else (-self._max_length, -1)
            yield ("LTRIM", key, *kept)


class MemberCommands(KeyedCommands[dict[Arg, None]]):
    """SADD or PFADD: each member of a key once."""

    def __init__(
        self,
        command: str,
        key: str,
        *,
        member: str | None = None,
        ttl: float | timedelta | None = None,
    ) -> None:
        super().__init__(key, ttl=ttl)
        self._command = command
        self._member = Template(member) if member is not None else None

    @property
    def name(self) -> str:
        return f"{self._command.lower()}:{self.key.text}"

    def _start(self) -> dict[Arg, None]:
        return {}

    def _merge(self, entry: dict[Arg, None], value: Any, run: Run, index: int) -> None:
        member = member_of(self._member, value, run, index)
        self.size += length(member)
        entry[member] = None

    def _emit(self, key: str, entry: dict[Arg, None]) -> Iterator[Command]:
        for part in chunks(list(entry), MAX_ARGUMENTS):
            yield (self._command, key, *part)


class SortedSetCommands(KeyedCommands[dict[Arg, Any]]):
    """ZADD: a score for each member; the last, the greatest (gt), least (lt) or sum (incr)."""

    def __init__(
        self,
        key: str,
        *,
        score: str | float,
        member: str | None = None,
        gt: bool = False,
        lt: bool = False,
        incr: bool = False,
        ttl: float | timedelta | None = None,
    ) -> None:
        if gt + lt + incr > 1:
            raise ConfigurationError("gt, lt and incr exclude each other; give one of them")
        super().__init__(key, ttl=ttl)
        self._member = Template(member) if member is not None else None
        self._score, self._incr = score, incr
        self._options: tuple[Arg, ...] = ("GT",) if gt else ("LT",) if lt else ()
        self._choose = max if gt else min if lt else None

    def _start(self) -> dict[Arg, Any]:
        return {}

    def _merge(self, entry: dict[Arg, Any], value: Any, run: Run, index: int) -> None:
        member = member_of(self._member, value, run, index)
        score = number(value, self._score)
        if score != score:  # NaN
            raise SinkError(f"the score of member {member!r:.60} is not a number (NaN)")
        before = entry.get(member)
        if before is None:
            self.size += length(member) + ARG_BYTES
        elif self._incr:
            score = before + score
        elif self._choose is not None:
            score = self._choose(before, score)
        entry[member] = score

    def _emit(self, key: str, entry: dict[Arg, Any]) -> Iterator[Command]:
        if self._incr:
            for member, score in entry.items():
                yield ("ZINCRBY", key, score, member)
            return
        args: list[Arg] = []
        for member, score in entry.items():
            args += (score, member)
        for part in chunks(args, MAX_ARGUMENTS):
            yield ("ZADD", key, *self._options, *part)


class StreamCommands(KeyedCommands[list[list[Arg]]]):
    """XADD of every value's fields (a value without fields goes under the name "value")."""

    def __init__(
        self,
        key: str,
        *,
        fields: Sequence[str] | None = None,
        max_length: int | None = None,
        exact: bool = False,
        ttl: float | timedelta | None = None,
    ) -> None:
        super().__init__(key, ttl=ttl)
        self._fields = fields
        self._limit: tuple[Arg, ...] = ()
        if positive("max_length", max_length) is not None:
            self._limit = ("MAXLEN", "=" if exact else "~", max_length or 0)

    def _start(self) -> list[list[Arg]]:
        return []

    def _merge(self, entry: list[list[Arg]], value: Any, run: Run, index: int) -> None:
        if self._fields is not None:
            mapping = {name: pick(value, name) for name in self._fields}
        else:
            mapping = as_mapping(value) if field_names(value) else {"value": payload(value)}
        args: list[Arg] = []
        for name, data in mapping.items():
            if data is not None:
                args += (name, scalar(data))
        if not args:
            raise SinkError(f"a stream entry needs a field that is not None: {value!r:.60}")
        entry.append(args)
        self.size += sum(map(length, args))

    def _emit(self, key: str, entry: list[list[Arg]]) -> Iterator[Command]:
        for args in entry:
            yield ("XADD", key, *self._limit, "*", *args)
