"""From values to Redis commands: pure, with no connection in sight.

Each class collects values with ``add()`` and gives the commands for all of them with
``take()``. Values of one key are merged on the way (the last write wins, sums are summed,
members gathered), so a key has one place in a pipeline and its order holds. Works with
any client: ``for command in commands.take(): pipeline.execute_command(*command)``.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from streamproc.errors import ConfigurationError, SinkError
from streamproc.sinks.redis.resp import Command
from streamproc.sinks.redis.templates import Template
from streamproc.sinks.redis.values import Arg, Run, pick, scalar

if TYPE_CHECKING:
    from typing_extensions import Self

#: Arguments of one command at most, so that a single command never holds up Redis for long.
MAX_ARGUMENTS = 2_000
#: Rough bytes of RESP around an argument and of Python around an entry.
ARG_BYTES = 24
ENTRY_BYTES = 100

Entry = TypeVar("Entry")


class Commands(abc.ABC):
    """Collects values and turns them into commands.

    ``count`` is the number of values collected since the last ``take()``, ``size`` an
    upper estimate of their bytes.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size = 0

    def add(self, run: Run) -> list[SinkError]:
        """Collect the values of ``run``; return what was wrong with those that don't fit."""
        errors = []
        collect = self._collect
        for index, value in enumerate(run.values):
            try:
                collect(value, run, index)
            except SinkError as error:
                error.row = index
                errors.append(error)
        self.count += len(run.values) - len(errors)
        return errors

    def take(self) -> list[Command]:
        """Return the commands for all that was collected, and start afresh."""
        commands = list(self._emit_all())
        self.count = self.size = 0
        return commands

    def take_alone(self) -> list[Command]:
        """Like :meth:`take`, without relying on what the server may have forgotten (scripts)."""
        return self.take()

    def fresh(self) -> Self:
        """Return a collector of the same kind with nothing in it; this one has nothing either."""
        return copy.deepcopy(self)

    @property
    def name(self) -> str:
        """What it is called unless the user gives a name: the same after every start."""
        return type(self).__name__.removesuffix("Commands").lower()

    @property
    def key_templates(self) -> Sequence[Template]:
        """The templates of the keys that its commands are about."""
        return ()

    @abc.abstractmethod
    def _collect(self, value: Any, run: Run, index: int) -> None: ...

    @abc.abstractmethod
    def _emit_all(self) -> Iterator[Command]: ...


class KeyedCommands(Commands, Generic[Entry]):
    """Commands on keys named by a template: one entry a key; None with a key deletes it."""

    def __init__(self, key: str, *, ttl: float | timedelta | None = None) -> None:
        super().__init__()
        self.key = Template(key)
        self.ttl_ms = milliseconds(ttl)
        self._entries: dict[str, Entry] = {}
        self._deleted: set[str] = set()

    @property
    def name(self) -> str:
        return f"{super().name}:{self.key.text}"

    @property
    def key_templates(self) -> Sequence[Template]:
        return (self.key,)

    @abc.abstractmethod
    def _start(self) -> Entry:
        """Return an entry with nothing in it."""

    @abc.abstractmethod
    def _merge(self, entry: Entry, value: Any, run: Run, index: int) -> None:
        """Bring a value into the entry of its key and add its bytes to ``size``."""

    @abc.abstractmethod
    def _emit(self, key: str, entry: Entry) -> Iterator[Command]:
        """Give the commands of one key; none for an entry with nothing in it."""

    def _collect(self, value: Any, run: Run, index: int) -> None:
        key = self.key.render(value, run, index)
        if value is None:
            self._delete(key, run, index)
            return
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = self._start()
            self.size += ENTRY_BYTES + len(key)
        self._merge(entry, value, run, index)

    def _delete(self, key: str, run: Run, index: int) -> None:
        self._entries[key] = self._start()
        self._deleted.add(key)
        self.size += ENTRY_BYTES + len(key)

    def _emit_all(self) -> Iterator[Command]:
        entries, deleted = self._entries, self._deleted
        self._entries, self._deleted = {}, set()
        for key, entry in entries.items():
            if key in deleted:
                yield ("DEL", key)
            wrote = False
            for command in self._emit(key, entry):
                wrote = True
                yield command
            if wrote and self.ttl_ms is not None:
                yield ("PEXPIRE", key, self.ttl_ms)


def key_of(command: Command) -> Arg:
    """Return the key that orders a command among others."""
    keys = keys_of(command)
    return keys[0] if keys else ""


def keys_of(command: Command) -> Sequence[Arg]:
    """Return the keys (or the channel) that a command is about."""
    if command[0] in ("EVALSHA", "EVAL"):
        return command[3 : 3 + int(command[2])]
    return command[1:2]


def payload(value: Any, field: str | None = None) -> Arg:
    """Return a value (or one field of it) as one argument; raise :class:`SinkError` for None."""
    data = value if field is None else pick(value, field)
    if data is None:
        raise SinkError(f"{f'field {field!r}' if field else 'the value'} is None")
    return scalar(data)


def json_text(value: Any) -> bytes:
    """Return a value as JSON text, strings quoted."""
    data = scalar([value])  # as a list, since a bare string would stay as it is
    assert isinstance(data, bytes)
    return data[1:-1]


def length(arg: Arg) -> int:
    """Return about how many bytes an argument takes on the wire."""
    return len(arg) + ARG_BYTES if isinstance(arg, (str, bytes)) else ARG_BYTES


def chunks(args: Sequence[Arg], size: int) -> Iterator[Sequence[Arg]]:
    """Cut ``args`` into pieces of at most ``size`` (an even number)."""
    if 0 < len(args) <= size:
        yield args
        return
    for start in range(0, len(args), size):
        yield args[start : start + size]


def member_of(template: Template | None, value: Any, run: Run, index: int) -> Arg:
    return payload(value) if template is None else template.render(value, run, index)


def milliseconds(duration: float | timedelta | None) -> int | None:
    if duration is None:
        return None
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if seconds <= 0:
        raise ConfigurationError(f"a duration must be more than 0 seconds, not {duration}")
    return max(1, round(seconds * 1000))


def positive(name: str, count: int | None) -> int | None:
    if count is not None and count < 1:
        raise ConfigurationError(f"{name} must be at least 1, not {count}")
    return count
