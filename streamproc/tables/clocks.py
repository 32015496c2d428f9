"""Whose time it is: what a windowed table takes the time of its writes from.

All times are in ms since 1970.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from faust.streams import current_event
from faust.types import FieldDescriptorT

from streamproc.errors import ConfigurationError, DecodeError, TableError
from streamproc.records.times import EventTimes, milliseconds
from streamproc.tables.place import Place


class Clock:
    """Tells times of records.

    Attributes:
        follows_records: True when each record has a time by it, so that the records of a
            partition move its watermark; else writes alone do.
        is_wall: True when it is the clock on the wall.
    """

    follows_records = False
    is_wall = False

    def times(self, place: Place, batch: Any) -> Sequence[int | None] | None:
        """Return the time of each record of a batch (None where it has no valid one)."""
        return None

    def time(self, event: Any) -> int:
        """Return the time of a Faust event, or of the record in hand if None.

        Raises:
            TableError: No record is in hand.
            DecodeError: The record has no valid time.
        """
        raise NotImplementedError


class RecordClock(Clock):
    """The event time that the record's type declares, else Kafka's timestamp."""

    follows_records = True

    def times(self, place: Place, batch: Any) -> Sequence[int | None]:
        return place.event_times(batch)

    def time(self, event: Any) -> int:
        event = _event(event)
        declared: Any = type(event.value)
        times = _event_times(declared)
        timestamp = int(event.message.timestamp * 1000 + 0.5)
        if times is None:
            return timestamp
        (found,) = times([event.value], [timestamp])
        return int(found)


class WallClock(Clock):
    """The time that it is."""

    is_wall = True

    def time(self, event: Any) -> int:
        return int(time.time() * 1000)


RECORD_CLOCK, WALL_CLOCK = RecordClock(), WallClock()


class FieldClock(Clock):
    """A field of the record, in Faust's units: numbers are seconds.

    A field that its type declares as the event time keeps the units that has (an int is
    ms). A record in which it is None has Kafka's timestamp.

    Args:
        field: The field, as ``Model.field``.
    """

    follows_records = True

    def __init__(self, field: FieldDescriptorT[Any]) -> None:
        self._get = field.getattr
        options = getattr(field.model, "_options", None)
        self._is_declared = getattr(options, "event_time", None) == field.field

    def _time(self, value: Any, timestamp: int) -> int:
        found = None if value is None else self._get(value)
        if found is None:
            return timestamp
        if isinstance(found, int) and not isinstance(found, bool) and not self._is_declared:
            return found * 1000
        return milliseconds(found)

    def times(self, place: Place, batch: Any) -> Sequence[int | None]:
        pairs = zip(batch.values, batch.timestamps, strict=True)
        return [self._valid_time(value, timestamp) for value, timestamp in pairs]

    def _valid_time(self, value: Any, timestamp: int) -> int | None:
        try:
            return self._time(value, timestamp)
        except (DecodeError, AttributeError):
            return None

    def time(self, event: Any) -> int:
        event = _event(event)
        return self._time(event.value, round(event.message.timestamp * 1000))


class FunctionClock(Clock):
    """What a function of the event returns: seconds, a datetime, or ISO 8601 text."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def time(self, event: Any) -> int:
        found = self._function(current_event() if event is None else event)
        return round(found * 1000) if isinstance(found, int | float) else milliseconds(found)


class FixedClock(Clock):
    """One time for all."""

    def __init__(self, time: int) -> None:
        self._time = time

    def time(self, event: Any) -> int:
        return self._time


def clock_of(relative_to: Any) -> Clock:
    """Return the clock that an argument of ``relative_to()`` means.

    Raises:
        ConfigurationError: It means none.
    """
    if relative_to is None:
        return RECORD_CLOCK
    if isinstance(relative_to, Clock):
        return relative_to
    if isinstance(relative_to, datetime):
        return FixedClock(milliseconds(relative_to))
    if isinstance(relative_to, int | float):
        return FixedClock(round(relative_to * 1000))
    if isinstance(relative_to, FieldDescriptorT):
        return FieldClock(relative_to)
    if callable(relative_to):
        return FunctionClock(relative_to)
    raise ConfigurationError(
        f"A table can't be relative to {relative_to!r}: give a field (Model.field), a time, or a "
        "function of the event"
    )


def _event(event: Any) -> Any:
    event = current_event() if event is None else event
    if event is None:
        raise TableError(
            "No record is in hand here, so there is no time to choose a window by: use .now(), "
            ".relative_to_now(), or give the event"
        )
    return event


@lru_cache(maxsize=256)
def _event_times(declared: Any) -> EventTimes | None:
    return EventTimes.of(declared)
