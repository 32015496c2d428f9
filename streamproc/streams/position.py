"""Where a stream's agent is, for tables; see :class:`~streamproc.tables.place.Place`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamproc.errors import DecodeError
from streamproc.kafka.progress import Delivery
from streamproc.records.times import EventTimes
from streamproc.tables.place import Place


class StreamPlace(Place):
    """Where a stream's agent is; see :class:`~streamproc.tables.place.Place`."""

    __slots__ = ("_stream", "_timed", "_times")

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._timed: Any = None
        self._times: Sequence[int | None] = ()

    def source(self) -> tuple[str, int] | None:
        stream = self._stream
        delivery = stream._delivery
        if delivery is None:
            return None
        return delivery.progress.reader, delivery.offsets[stream._row]

    def event_time(self) -> int | None:
        delivery = self._stream._delivery
        return None if delivery is None else self.event_times(delivery)[self._stream._row]

    def batch(self) -> Any:
        return self._stream._delivery

    def row(self) -> int:
        return int(self._stream._row)

    def event_times(self, batch: Any) -> Sequence[int | None]:
        if batch is not self._timed:
            # In one go: one by one it would cost ten times as much.
            self._times = self._all_times(batch)
            self._timed = batch
        return self._times

    def _all_times(self, delivery: Delivery) -> Sequence[int | None]:
        times = self._stream.channel.event_times
        if times is None:
            return delivery.timestamps
        try:
            found: list[int] = times(delivery.values, delivery.timestamps)
            return found
        except DecodeError:
            pairs = zip(delivery.values, delivery.timestamps, strict=True)
            return [_valid_time(times, value, timestamp) for value, timestamp in pairs]

    def value(self) -> Any:
        stream = self._stream
        return None if stream._delivery is None else stream._delivery.values[stream._row]


def _valid_time(times: EventTimes, value: Any, timestamp: int) -> int | None:
    try:
        return times([value], [timestamp])[0]
    except DecodeError:
        return None
