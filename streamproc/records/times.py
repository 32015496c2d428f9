"""Event times: from what a record carries to milliseconds since 1970."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta, timezone
from math import floor, isfinite
from operator import attrgetter
from typing import Any

import msgspec

from streamproc.errors import DecodeError
from streamproc.records.fields import plain_type

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MILLISECOND = timedelta(milliseconds=1)


class EventTimes:
    """Event times of records, in milliseconds, by a field of theirs.

    The type says the unit: an ``int`` is milliseconds, a ``float`` seconds, a ``str``
    ISO 8601, a ``date`` its midnight in UTC; a ``datetime`` or ``str`` without a zone is
    UTC. What is finer than a millisecond is cut off.

    Args:
        field: Name of the field.
        declared: Its type, if known; it makes the conversion faster.
    """

    def __init__(self, field: str, declared: Any = None) -> None:
        self.field = field
        self._get = attrgetter(field)
        self._is_datetime = declared is datetime

    @classmethod
    def of(cls, declared: Any) -> EventTimes | None:
        """Return those of a record class that declares an event time, else None."""
        options = getattr(declared, "_options", None)
        field = getattr(options, "event_time", None)
        if options is None or not field:
            return None
        return cls(field, plain_type(options.fields[field]))

    def __call__(self, values: Iterable[Any], timestamps: Sequence[int] | None = None) -> list[int]:
        """Return the event time of each value.

        Args:
            values: Records.
            timestamps: Kafka's timestamps, parallel to ``values``: the event time of a
                value or field that is None.

        Raises:
            DecodeError: A value has no time and there are no timestamps.
        """
        values = list(values)
        try:
            times = list(map(self._get, values))
            if self._is_datetime:
                return [(time - EPOCH) // MILLISECOND for time in times]
            if set(map(type, times)) == {int}:
                return times
        except (AttributeError, TypeError):
            # A tombstone, a missing time or one without a zone: one by one, below.
            times = [getattr(value, self.field, None) for value in values]
        if timestamps is None:
            return [milliseconds(time) for time in times]
        return [
            timestamp if time is None else milliseconds(time)
            for time, timestamp in zip(times, timestamps, strict=True)
        ]


def milliseconds(time: Any) -> int:
    """Return one event time (see :class:`EventTimes`) in milliseconds since 1970.

    Raises:
        DecodeError: It isn't a time.
    """
    if isinstance(time, int) and not isinstance(time, bool):
        return time
    if isinstance(time, float) and isfinite(time):
        # A float of today's seconds is exact to 0.0003 ms; 1.001 must not become 1.000.
        return floor(time * 1000 + 0.001)
    if isinstance(time, str):
        time = parse(time)
    if isinstance(time, datetime):
        if time.tzinfo is None:
            time = time.replace(tzinfo=timezone.utc)
        return int((time - EPOCH) // MILLISECOND)
    if isinstance(time, date):
        return milliseconds(datetime(time.year, time.month, time.day))
    raise DecodeError(f"{time!r} is not a time")


def parse(text: str) -> datetime:
    """Return the time that an ISO 8601 text means.

    Raises:
        DecodeError: It means none.
    """
    try:
        return msgspec.convert(text, type=datetime)
    except msgspec.ValidationError:
        pass
    try:
        # Also without seconds or a time; Python 3.10 doesn't know the Z.
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as exc:
        raise DecodeError(f"{text!r} is not a time") from exc
