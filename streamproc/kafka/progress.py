"""What of each partition is fetched, handed out, and done: the offset to commit.

For each partition and each channel that reads it there is one :class:`Progress`. It
keeps the backlog (fetched, not yet handed out) and the deliveries in flight (handed
out, not yet done), and from them derives the offset up to which everything is done.
Gaps between offsets need no special care: a delivery knows the offset that follows it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import Any

from faust.types import TP

from streamproc.kafka.fetch import Headers, RawBatch


class Delivery:
    """A run of records handed to one stream, and how much of it is done.

    ``keys`` and ``values`` hold what was decoded; ``raw_keys`` and ``raw_values`` the
    bytes. All sequences are parallel. ``cursor`` is the index of the first record not
    done; records done out of order (manual acks, concurrency) are kept apart, and
    ``handed`` counts the records given to actors that share the delivery.
    """

    __slots__ = (
        "_acked",
        "_released",
        "cursor",
        "handed",
        "headers",
        "keys",
        "next_offset",
        "offsets",
        "progress",
        "raw_keys",
        "raw_values",
        "size",
        "timestamp_type",
        "timestamps",
        "values",
    )

    def __init__(self, progress: Progress, raw: RawBatch) -> None:
        self.progress = progress
        self.offsets = raw.offsets
        self.timestamps = raw.timestamps
        self.raw_keys = raw.keys
        self.raw_values = raw.values
        self.keys: list[Any] = raw.keys
        self.values: list[Any] = raw.values
        self.headers: list[Headers] | None = raw.headers
        self.timestamp_type = raw.timestamp_type
        self.next_offset = raw.next_offset
        self.size = raw.size
        self.cursor = 0
        self.handed = 0
        self._acked: set[int] | None = None
        self._released = False

    def __len__(self) -> int:
        return len(self.offsets)

    def keep(self, rows: list[int]) -> None:
        """Leave only the records at ``rows``; the others count as done."""

        def pick(column: list[Any]) -> list[Any]:
            return [column[row] for row in rows]

        self.offsets, self.timestamps = pick(self.offsets), pick(self.timestamps)
        self.raw_keys, self.raw_values = pick(self.raw_keys), pick(self.raw_values)
        self.keys, self.values = pick(self.keys), pick(self.values)
        if self.headers is not None:
            self.headers = pick(self.headers)

    def ack(self, row: int) -> None:
        """Mark one record as done, in any order."""
        acked = self._acked
        if acked is None:
            acked = self._acked = set()
        acked.add(row)
        cursor = self.cursor
        while cursor in acked:
            acked.discard(cursor)
            cursor += 1
        self.cursor = cursor
        if cursor >= len(self.offsets):
            self.complete()

    def complete(self) -> None:
        """Mark all records as done."""
        self.cursor = len(self.offsets)
        self.progress.on_complete(self)

    def release(self) -> None:
        """Give back what has not been begun: the partition is revoked."""
        self._released = True

    @property
    def done(self) -> bool:
        return self.cursor >= len(self.offsets)

    @property
    def settled(self) -> bool:
        """True when nobody works on any of the records."""
        return self.done or (self._released and self.cursor >= self.handed)


class Progress:
    """Backlog and deliveries of one partition for one channel.

    ``closed`` is set when the partition is revoked: what is in flight then may finish,
    but no further record is started and nothing of it is committed by us again.
    """

    __slots__ = (
        "_backlog",
        "_in_flight",
        "_position",
        "_taken",
        "closed",
        "cuts",
        "held_bytes",
        "queued",
        "reader",
        "tp",
    )

    def __init__(self, tp: TP, position: int | None = None, reader: str = "") -> None:
        self.tp = tp
        #: Names topic and reader, for the position that tables keep.
        self.reader = f"{tp.topic}@{reader}"
        self.closed = False
        self.queued = False
        self.held_bytes = 0
        #: Offsets that no delivery goes over, in order.
        self.cuts: list[int] = []
        self._backlog: deque[RawBatch] = deque()
        # How many records of the backlog's first run are handed out.
        self._taken = 0
        self._in_flight: deque[Delivery] = deque()
        self._position = position

    def start_at(self, offset: int) -> None:
        """Pass over records before ``offset``: all their results are durable already."""
        self._position = max(offset, self._position or 0)

    def go_back_to(self, offset: int) -> None:
        """Take records from ``offset`` on, whatever is durable of them."""
        if self._position is not None:
            self._position = min(offset, self._position)

    def add(self, raw: RawBatch) -> None:
        """Append a fetched run to the backlog, without what is before the position."""
        position = self._position
        if position is not None and raw.offsets and raw.offsets[0] < position:
            raw = _part(raw, bisect_left(raw.offsets, position), len(raw))
            if not raw.offsets:
                return
        self.held_bytes += raw.size
        for cut in self.cuts:
            if raw.offsets and raw.offsets[0] < cut <= raw.offsets[-1]:
                row = bisect_left(raw.offsets, cut)
                self._backlog.append(_part(raw, 0, row))
                raw = _part(raw, row, len(raw))
        self._backlog.append(raw)

    def take(self, max_records: int) -> Delivery:
        """Hand out up to ``max_records`` from the backlog, which must not be empty."""
        backlog = self._backlog
        raw = backlog[0]
        if self._taken or len(raw) > max_records:
            raw = self._take_part(raw, max_records)
        else:
            parts = [backlog.popleft()]
            count = len(raw)
            while backlog and count + len(backlog[0]) <= max_records:
                if self.cuts and self._is_cut(parts[-1]):
                    break
                count += len(backlog[0])
                parts.append(backlog.popleft())
            if len(parts) > 1:
                raw = _concat(parts)
        delivery = Delivery(self, raw)
        self._in_flight.append(delivery)
        return delivery

    def _is_cut(self, last: RawBatch) -> bool:
        """True when a cut is between ``last`` and the run that follows it."""
        # A cut may be in the gap that control records leave, behind which the next offset is.
        ends = last.offsets[-1] + 1 if last.offsets else last.next_offset
        begins = self._backlog[0].next_offset
        if self._backlog[0].offsets:
            begins = self._backlog[0].offsets[0]
        return any(ends <= cut <= begins for cut in self.cuts)

    def _take_part(self, raw: RawBatch, max_records: int) -> RawBatch:
        begin = self._taken
        end = begin + max_records
        if end < len(raw):
            self._taken = end
        else:
            end = len(raw)
            self._taken = 0
            self._backlog.popleft()
        return _part(raw, begin, end)

    def undone(self) -> int | None:
        """Return the offset of the first record fetched and not done, or None if there is none."""
        self._drop_done()
        if self._in_flight:
            first = self._in_flight[0]
            return first.offsets[first.cursor]
        for raw in self._backlog:
            if raw.offsets:
                return raw.offsets[self._taken]
        return None

    @property
    def has_backlog(self) -> bool:
        return bool(self._backlog)

    @property
    def idle(self) -> bool:
        """True when nothing that was handed out is still to be done."""
        return all(delivery.settled for delivery in self._in_flight)

    def on_complete(self, delivery: Delivery) -> None:
        self.held_bytes -= delivery.size
        delivery.size = 0
        self._drop_done()  # at once, not at the next commit: it holds decoded records

    def committable(self) -> int | None:
        """Return the offset up to which all records are done, or None if none is yet."""
        self._drop_done()
        first = self._in_flight[0] if self._in_flight else None
        if first is not None and first.cursor:
            return first.offsets[first.cursor]
        return self._position

    def _drop_done(self) -> None:
        in_flight = self._in_flight
        while in_flight and in_flight[0].done:
            self._position = in_flight.popleft().next_offset

    def close(self) -> None:
        """Stop: drop the backlog; deliveries in flight end at their next record."""
        self.closed = True
        self._backlog.clear()
        self._taken = 0
        self.held_bytes = 0


def _part(raw: RawBatch, begin: int, end: int) -> RawBatch:
    return RawBatch(
        raw.topic,
        raw.partition,
        raw.offsets[begin:end],
        raw.timestamps[begin:end],
        raw.keys[begin:end],
        raw.values[begin:end],
        raw.headers[begin:end] if raw.headers is not None else None,
        raw.offsets[end] if end < len(raw) else raw.next_offset,
        raw.high_watermark,
        raw.timestamp_type,
        # Shares that add up to the whole.
        raw.size * end // len(raw) - raw.size * begin // len(raw),
    )


def _concat(parts: list[RawBatch]) -> RawBatch:
    def joined(name: str) -> list[Any]:
        return [item for part in parts for item in getattr(part, name)]

    headers = None
    if any(part.headers is not None for part in parts):
        headers = [item for part in parts for item in (part.headers or [()] * len(part))]
    last = parts[-1]
    return RawBatch(
        last.topic,
        last.partition,
        joined("offsets"),
        joined("timestamps"),
        joined("keys"),
        joined("values"),
        headers,
        last.next_offset,
        last.high_watermark,
        last.timestamp_type,
        sum(part.size for part in parts),
    )
