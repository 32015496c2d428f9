"""Operators without state: one synchronous function of a batch's rows each.

A record at which a user's function raises is rejected by itself: the batch is gone through
again one by one, and the others go on.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any

import msgspec

from streamproc.errors import AggregateError, ConfigurationError
from streamproc.streams.rows import Rows

Picker = str | Callable[[Any], Any]


@dataclass(slots=True)
class Rejected:
    """A record that an operator could not process."""

    stage: str
    error: BaseException
    key: Any
    value: Any
    origin: int | None


@dataclass(slots=True)
class Task:
    """One go of a graph over rows of a partition, and what is to be done after it.

    Attributes:
        partition: The partition.
        now: Seconds of the loop's clock, for silence.
        wall: Seconds since 1970, for processing time.
        quiet: When time passes: the sources that have nothing waiting in this partition.
        behind: When time passes: the upstream partitions from which records may still come,
            so that an input with nothing from one of them isn't idle.
        is_delayed: When time passes: whether the worker stood still, so that its silence says
            nothing.
        source: When time passes: whose partition it is.
        keeps_state: Whether state was changed, so that a checkpoint must wait for the end.
        waiting: Rows that wait for an asynchronous step, in order.
        emitted: Targets and what they get, in order.
        rejected: Records for the dead letters.
        late: Late rows, and what is to become of them.
    """

    partition: int
    now: float
    wall: float
    quiet: frozenset[Any] = frozenset()
    behind: frozenset[int] = frozenset()
    is_delayed: bool = False
    source: Any = None
    keeps_state: bool = False
    waiting: deque[Any] = field(default_factory=deque)
    emitted: list[tuple[Any, Rows]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    late: list[tuple[Any, Rows]] = field(default_factory=list)

    def reject(self, stage: str, error: BaseException, rows: Rows, row: int) -> None:
        """Note that a row can't be processed."""
        self.rejected.append(
            Rejected(stage, error, rows.keys[row], rows.values[row], rows.origin(row))
        )


class Step(ABC):
    """An operator: rows in, rows out.

    Attributes:
        name: What errors and pages call it.
        ticks: True when time alone may make it give rows (:meth:`tick`).
        ticks_busy: True when it wants to tick while some of its sources have records
            waiting, because it tells them apart (``task.quiet``).
        table: Where it keeps state, if it does.
    """

    name = ""
    ticks = False
    ticks_busy = False
    table: Any = None

    @abstractmethod
    def process(self, rows: Rows, task: Task) -> Rows:
        """Return what comes out of some rows."""

    def tick(self, task: Task) -> Rows | None:
        """Return what comes out when nothing comes in."""
        return None


class AsyncStep(Step):
    """An operator that has to wait: for a server, for example.

    Rows of a partition go through it in turn, those of one batch after those of another.
    """

    def process(self, rows: Rows, task: Task) -> Rows:
        raise NotImplementedError("an asynchronous step is run")

    @abstractmethod
    async def run(self, rows: Rows, task: Task) -> Rows:
        """Return what comes out of some rows."""


def isolate(
    step: str, rows: Rows, task: Task, call: Callable[[Any], Any]
) -> tuple[list[int], list[Any]]:
    """Call a function on each value; reject those at which it raises.

    Returns the rows that are left, and the results.
    """
    kept: list[int] = []
    results: list[Any] = []
    for row, value in enumerate(rows.values):
        try:
            result = call(value)
        except Exception as exc:  # noqa: BLE001 - user code may raise anything
            task.reject(step, exc, rows, row)
        else:
            kept.append(row)
            results.append(result)
    return kept, results


def picker(of: Picker, value_type: Any = None) -> Callable[[Any], Any]:
    """Return a function from a record to a field of it, by name or as it is given.

    Raises:
        ConfigurationError: It is neither a name nor a function, or records of that type
            have no such field.
    """
    if callable(of):
        return of
    if not isinstance(of, str):
        raise ConfigurationError(f"{of!r} is neither the name of a field nor a function")
    if isinstance(value_type, type) and issubclass(value_type, msgspec.Struct):
        name, fields = of.partition(".")[0], value_type.__struct_fields__
        if name not in fields and not hasattr(value_type, name):
            close = difflib.get_close_matches(name, fields, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(fields)}"
            raise ConfigurationError(f"{value_type.__name__} has no field {name!r}{hint}")
    by_attribute, by_item = attrgetter(of), itemgetter(of)

    def pick(value: Any) -> Any:
        return by_item(value) if isinstance(value, dict) else by_attribute(value)

    return pick


def applied(
    step: str, rows: Rows, task: Task, call: Callable[[Any], Any]
) -> tuple[Rows, list[Any]]:
    """Call a function on all values; return the rows at which it didn't raise, and the results."""
    try:
        return rows, list(map(call, rows.values))
    except Exception:  # noqa: BLE001 - looked at one by one
        kept, results = isolate(step, rows, task, call)
        return rows.pick(kept), results


class OfValues(Step):
    """A step that calls a user's function on each value."""

    def __init__(self, name: str, call: Callable[[Any], Any]) -> None:
        self.name = name
        self._call = call


class Map(OfValues):
    """Each value becomes ``call(value)``."""

    def process(self, rows: Rows, task: Task) -> Rows:
        rows, values = applied(self.name, rows, task, self._call)
        return rows.with_values(values)


class Filter(OfValues):
    """Rows stay for which ``call(value)`` is true."""

    def process(self, rows: Rows, task: Task) -> Rows:
        rows, mask = applied(self.name, rows, task, self._call)
        return rows if all(mask) else rows.keep(mask)


class Rekey(OfValues):
    """Each key becomes ``call(value)``; the partition stays."""

    def process(self, rows: Rows, task: Task) -> Rows:
        rows, keys = applied(self.name, rows, task, self._call)
        return rows.with_keys(keys)


class FlatMap(OfValues):
    """Each value becomes the values that ``call(value)`` gives."""

    def process(self, rows: Rows, task: Task) -> Rows:
        kept, lists = isolate(self.name, rows, task, lambda value: list(self._call(value)))
        repeated = [row for row, many in zip(kept, lists, strict=True) for _ in many]
        return rows.pick(repeated).with_values([value for many in lists for value in many])


class Peek(OfValues):
    """Calls ``call(value)``, once, and leaves rows as they are."""

    def process(self, rows: Rows, task: Task) -> Rows:
        kept, _ = isolate(self.name, rows, task, self._call)
        return rows if len(kept) == len(rows) else rows.pick(kept)


class Merge(Step):
    """Rows of several inputs go on together, each known by its number."""

    def __init__(self, name: str, input: int) -> None:
        self.name = name
        self._input = input

    def process(self, rows: Rows, task: Task) -> Rows:
        return Rows(rows.keys, rows.values, rows.times, rows.origins, self._input)


class Emit(Step):
    """Hands rows to a target: a sink, a topic, a table or a function."""

    def __init__(self, name: str, target: Any) -> None:
        self.name = name
        self.target = target

    def process(self, rows: Rows, task: Task) -> Rows:
        task.emitted.append((self.target, rows))
        return rows


def reject_failed(step: str, failed: dict[int, AggregateError], rows: Rows, task: Task) -> None:
    """Reject the rows that an aggregation could not take."""
    for row, error in failed.items():
        task.reject(step, error, rows, row)


def as_json(value: Any) -> bytes:
    """Return a value as JSON for a dead letter, whatever it is."""
    return msgspec.json.encode(value, enc_hook=repr)
