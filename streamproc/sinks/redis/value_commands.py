"""Commands that treat a value as a whole: SET, INCRBY, PUBLISH, JSON.SET, TS.ADD, EVALSHA."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from streamproc.errors import ConfigurationError, SinkError
from streamproc.sinks.redis.commands import (
    ARG_BYTES,
    ENTRY_BYTES,
    Commands,
    KeyedCommands,
    json_text,
    length,
    milliseconds,
    payload,
)
from streamproc.sinks.redis.resp import Command
from streamproc.sinks.redis.templates import Template
from streamproc.sinks.redis.values import Arg, Run, number, pick


class StringCommands(KeyedCommands[list[Arg]]):
    """SET key value, the last of a key (with ``nx`` the first)."""

    def __init__(
        self,
        key: str,
        *,
        value: str | None = None,
        ttl: float | timedelta | None = None,
        nx: bool = False,
        keepttl: bool = False,
    ) -> None:
        if ttl is not None and keepttl:
            raise ConfigurationError("ttl and keepttl exclude each other; give one of them")
        super().__init__(key)
        self._value, self._nx = value, nx
        self._options: list[Arg] = ["NX"] if nx else []
        if ttl is not None:
            self._options += ["PX", milliseconds(ttl) or 1]
        elif keepttl:
            self._options.append("KEEPTTL")

    def _start(self) -> list[Arg]:
        return []

    def _merge(self, entry: list[Arg], value: Any, run: Run, index: int) -> None:
        data = payload(value, self._value)
        if not (self._nx and entry):
            entry[:] = [data]
            self.size += length(data)

    def _emit(self, key: str, entry: list[Arg]) -> Iterator[Command]:
        if entry:
            yield ("SET", key, entry[0], *self._options)


class CounterCommands(KeyedCommands[dict[str, Any]]):
    """INCRBY, or HINCRBY with ``field``; FLOAT forms when a sum is a float. Sums first."""

    def __init__(
        self,
        key: str,
        *,
        amount: str | float = 1,
        field: str | None = None,
        ttl: float | timedelta | None = None,
    ) -> None:
        super().__init__(key, ttl=ttl)
        self._amount = amount
        self._field = Template(field) if field is not None else None

    def _start(self) -> dict[str, Any]:
        return {}

    def _merge(self, entry: dict[str, Any], value: Any, run: Run, index: int) -> None:
        name = self._field.render(value, run, index) if self._field is not None else ""
        amount = number(value, self._amount)
        if name in entry:
            entry[name] += amount
        else:
            entry[name] = amount
            self.size += len(name) + ARG_BYTES

    def _emit(self, key: str, entry: dict[str, Any]) -> Iterator[Command]:
        for name, amount in entry.items():
            form = "BYFLOAT" if type(amount) is float else "BY"
            if self._field is None:
                yield (f"INCR{form}", key, amount)
            else:
                yield (f"HINCR{form}", key, name, amount)


class JSONCommands(KeyedCommands[list[Arg]]):
    """JSON.SET of the last value of a key, at ``path``."""

    def __init__(
        self,
        key: str,
        *,
        path: str = "$",
        value: str | None = None,
        ttl: float | timedelta | None = None,
    ) -> None:
        super().__init__(key, ttl=ttl)
        self._path, self._value = path, value

    def _start(self) -> list[Arg]:
        return []

    def _merge(self, entry: list[Arg], value: Any, run: Run, index: int) -> None:
        data = json_text(value if self._value is None else pick(value, self._value))
        entry[:] = [data]
        self.size += len(data)

    def _emit(self, key: str, entry: list[Arg]) -> Iterator[Command]:
        if entry:
            yield ("JSON.SET", key, self._path, entry[0])


class TimeSeriesCommands(KeyedCommands[list[tuple[int, Any]]]):
    """TS.ADD of every value at its time in ms (a field, or else the record's timestamp)."""

    def __init__(
        self,
        key: str,
        *,
        value: str,
        timestamp: str | None = None,
        retention: float | timedelta | None = None,
        on_duplicate: str = "LAST",
        labels: dict[str, str] | None = None,
        ttl: float | timedelta | None = None,
    ) -> None:
        super().__init__(key, ttl=ttl)
        self._value, self._timestamp = value, timestamp
        self._options: list[Arg] = []
        if retention is not None:
            self._options += ["RETENTION", milliseconds(retention) or 0]
        self._options += ["ON_DUPLICATE", on_duplicate.upper()]
        if labels:
            self._options += ["LABELS", *(part for item in labels.items() for part in item)]

    def _start(self) -> list[tuple[int, Any]]:
        return []

    def _merge(self, entry: list[tuple[int, Any]], value: Any, run: Run, index: int) -> None:
        ms = run.timestamp_ms(index)
        if self._timestamp is not None:
            ms = int(number(value, self._timestamp) * 1000)
        if ms is None:
            raise SinkError(
                "no time for TS.ADD: give timestamp= the name of the field that holds it "
                "(datetime, or seconds since 1970), or write whole batches"
            )
        entry.append((ms, number(value, self._value)))
        self.size += ENTRY_BYTES

    def _emit(self, key: str, entry: list[tuple[int, Any]]) -> Iterator[Command]:
        for ms, sample in entry:
            yield ("TS.ADD", key, ms, sample, *self._options)


class PublishCommands(Commands):
    """PUBLISH of every value, in order; a tombstone is an empty message."""

    def __init__(self, channel: str, *, value: str | None = None) -> None:
        super().__init__()
        self.channel, self._value = Template(channel), value
        self._messages: list[Command] = []

    @property
    def name(self) -> str:
        return f"{super().name}:{self.channel.text}"

    def _collect(self, value: Any, run: Run, index: int) -> None:
        channel = self.channel.render(value, run, index)
        data = b"" if value is None else payload(value, self._value)
        self._messages.append(("PUBLISH", channel, data))
        self.size += ENTRY_BYTES + len(channel) + length(data)

    def _emit_all(self) -> Iterator[Command]:
        messages, self._messages = self._messages, []
        return iter(messages)


class ScriptCommands(Commands):
    """EVALSHA of a Lua script for every value, in order."""

    def __init__(self, script: str, *, keys: Sequence[str], args: Sequence[str] = ()) -> None:
        super().__init__()
        self.script = script
        self.sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._keys, self._args = [Template(key) for key in keys], args
        self._calls: list[Command] = []

    @property
    def name(self) -> str:
        return ":".join([super().name, self.sha[:8], *(key.text for key in self._keys)])

    @property
    def key_templates(self) -> Sequence[Template]:
        return self._keys

    def take_alone(self) -> list[Command]:
        commands = self.take()
        if commands:
            commands[0] = ("EVAL", self.script, *commands[0][2:])  # the server knows it by then
        return commands

    def _collect(self, value: Any, run: Run, index: int) -> None:
        keys = [key.render(value, run, index) for key in self._keys]
        args = [payload(value, name) for name in self._args]
        self._calls.append(("EVALSHA", self.sha, len(keys), *keys, *args))
        self.size += ENTRY_BYTES + sum(map(length, keys)) + sum(map(length, args))

    def _emit_all(self) -> Iterator[Command]:
        calls, self._calls = self._calls, []
        return iter(calls)
