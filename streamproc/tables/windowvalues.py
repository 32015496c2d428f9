"""State of a windowed table's partition: values by key and window, and the watermark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from math import inf
from typing import Any

from streamproc.errors import DecodeError, EncodeError, StoreError, TableError
from streamproc.tables.keyed import CHECKED_ENTRIES, MISSING, EntryCodec
from streamproc.tables.state import PartitionState
from streamproc.tables.stores import Store
from streamproc.tables.windowstate import _START, OpenWindows, WindowedState, _prefix
from streamproc.windows import Watermark, Window
from streamproc.windows.watermark import ClockWatermark

#: A key of a windowed table: the key, and bounds of the window in seconds.
WindowKey = tuple[Any, tuple[float, float]]


class _Values:
    """How values are encoded; an entry that is deleted is MISSING until its window closes."""

    def __init__(self, codec: EntryCodec) -> None:
        self._codec = codec

    def encode(self, value: Any) -> bytes | None:
        if value is MISSING:
            return None
        try:
            raw = self._codec.encode_value(value)
        except EncodeError as exc:
            raise TableError(
                f"Table {self._codec.table!r} can't keep the value {value!r:.100}: {exc}. Give "
                "the table a value_type that its values have."
            ) from exc
        return self._codec.null if raw is None else raw

    def decode(self, raw: bytes) -> Any:
        try:
            return None if raw == self._codec.null else self._codec.decode_value(raw)
        except DecodeError as exc:
            raise StoreError(
                f"Table {self._codec.table!r} has a value that its value type can't be read "
                f"from: {exc}. Give new fields a default, keep the types of the old ones, or "
                "give the table another name."
            ) from exc


class OpenValues(OpenWindows):
    """Values of open windows, one at a time, and which windows are over."""

    def __init__(self, store: Store, codec: EntryCodec, cache_bytes: int) -> None:
        values: Any = _Values(codec)
        super().__init__(store, codec, values, cache_bytes)
        self._due: list[int] | None = None
        self._planned: set[int] = set()

    def get(self, start: int, key: Any) -> Any:
        """Return the value of a key in a window, or MISSING."""
        try:
            return self._open[start][key]
        except KeyError:
            pass
        return self.missing(start, key) if start in self._stored else MISSING

    def missing(self, start: int, key: Any) -> Any:
        if start in self._whole:
            return MISSING
        raw = self._store.get(self._raw_key(start, key))
        return MISSING if raw is None else self._program.decode(raw)

    def _raw_key(self, start: int, key: Any) -> bytes:
        return _prefix(start) + self._codec.raw_key(key)

    def _key_of(self, raw: bytes) -> Any:
        return self._codec.key(raw[_START.size :])

    def set(self, start: int, key: Any, value: Any) -> None:
        """Set the value of a key in a window; MISSING deletes."""
        try:
            self._open[start][key] = value
        except KeyError:
            self._plan(start)
            self.window(start)[key] = value
        try:
            self._dirty[start][key] = None
        except KeyError:
            self._dirty[start] = {key: None}

    def _plan(self, start: int) -> None:
        due = self._heap
        if start not in self._planned:
            self._planned.add(start)
            heappush(due, start)

    @property
    def _heap(self) -> list[int]:
        """Starts of the open windows, the earliest first."""
        if self._due is None:
            self._due = self.open_starts()
            self._planned = set(self._due)
            heapify(self._due)
        return self._due

    def first(self) -> float:
        """Return the start of the earliest open window; infinity if there's none."""
        heap = self._heap
        return heap[0] if heap else inf

    def drop(self, start: int) -> None:
        heap = self._heap
        super().drop(start)
        self._planned.discard(start)
        while heap and heap[0] not in self._planned:
            heappop(heap)

    def entries(self, start: int) -> Iterator[tuple[Any, Any]]:
        return ((key, value) for key, value in super().entries(start) if value is not MISSING)

    def check(self) -> None:
        """Read some entries.

        Raises:
            StoreError: They aren't what the table's types say.
        """
        for raw_key, raw in islice(self._store.items(), CHECKED_ENTRIES):
            try:
                self._key_of(raw_key)
            except DecodeError as exc:
                raise StoreError(
                    f"Table {self._codec.table!r} has a key {raw_key!r:.100} that its key type "
                    f"can't be read from: {exc}. Keep the key type, or give the table another name."
                ) from exc
            self._program.decode(raw)


class WindowValues(PartitionState):
    """Values by key and window of one partition; by keys ``(key, (start, end))`` from outside.

    Args:
        partition: Its number.
        store: Where it is kept.
        codec: How keys and values are encoded.
        window: The windows.
        by_wall: Their time is that of the clock on the wall; None: as it was.
        cache_bytes: About how much memory unchanged entries may take.
    """

    def __init__(
        self,
        partition: int,
        store: Store,
        codec: EntryCodec,
        window: Window,
        by_wall: bool | None,
        cache_bytes: int,
    ) -> None:
        super().__init__(partition, store)
        self.codec = codec
        self.window = window
        self.format = f"windows {window.shape}"
        self._wanted_by_wall = by_wall
        self._cache_bytes = cache_bytes
        #: The watermark up to which windows are closed, or being closed.
        self.closed_to: float = -inf
        self.is_closing = False
        self.late_total = 0
        self._start_anew()

    def _start_anew(self) -> None:
        self.windows = OpenValues(self.store, self.codec, self._cache_bytes)
        self._watermark: Watermark | None = None
        self._inputs: dict[str, int] = {}
        self.closed_to = -inf

    # -- time

    @property
    def watermark(self) -> Watermark:
        """The watermark: of what was kept with the entries, and of what came since."""
        if self._watermark is None:
            extra = self.store.meta.extra
            if self._wanted_by_wall is None:
                self._wanted_by_wall = bool(extra.get("wall"))
            self._inputs = {name: row for row, name in enumerate(extra.get("inputs", ()))}
            self._watermark = self._make_watermark(extra.get("watermark"))
        return self._watermark

    def _make_watermark(self, plain: dict[str, Any] | None) -> Watermark:
        kind = ClockWatermark if self._wanted_by_wall else Watermark
        spec, inputs = self.window.spec, max(1, len(self._inputs))
        if plain is None:
            return kind(spec.out_of_orderness, spec.idle_timeout, inputs)
        return kind.from_plain(plain, spec.out_of_orderness, spec.idle_timeout, inputs)

    @property
    def by_wall(self) -> bool:
        """True when its time is that of the clock on the wall."""
        return isinstance(self.watermark, ClockWatermark)

    def follow(self, by_wall: bool) -> None:
        """Go on by the clock on the wall, or by records."""
        self._wanted_by_wall = by_wall
        if by_wall != self.by_wall:
            self._watermark = self._make_watermark(self.watermark.to_plain())

    @property
    def now(self) -> float:
        """The watermark in ms, or minus infinity."""
        current = self.watermark.current
        return -inf if current is None else current

    @property
    def inputs(self) -> dict[str, int]:
        """The topics whose records write to it, and their numbers in the watermark."""
        _ = self.watermark  # they are read with it
        return self._inputs

    def add_input(self, topic: str) -> int:
        """Return the number of a topic among the watermark's inputs; a new one if need be."""
        watermark = self.watermark
        number = self._inputs.get(topic)
        if number is None:
            number = self._inputs[topic] = len(self._inputs)
            if number:
                self._watermark = self._make_watermark(watermark.to_plain())
        return number

    def extra(self) -> dict[str, Any]:
        if self._watermark is None:
            return self.store.meta.extra
        kept = {"watermark": self._watermark.to_plain(), "inputs": list(self._inputs)}
        return {**kept, "wall": True} if self.by_wall else kept

    @property
    def has_due(self) -> bool:
        """True when a window is over."""
        grace = self.window.grace
        if grace is None:
            return False
        return self.windows.first() + self.window.length + grace <= self.now

    # -- entries, by their keys from outside

    def _parts(self, key: WindowKey) -> tuple[int, Any]:
        try:
            name, (start, end) = key
            begin = round(start * 1000)
        except (TypeError, ValueError):
            raise self._no_key(key) from None
        if round(end * 1000) - begin != self.window.length:
            raise self._no_key(key)
        return begin, name

    def _no_key(self, key: Any) -> TableError:
        return TableError(
            f"Table {self.codec.table!r} has windows, so that its keys are (key, (start, end)) "
            f"in seconds, {self.window.length / 1000:g} apart; {key!r} isn't one. Use the object "
            "that .tumbling() or .hopping() returned."
        )

    def _key(self, name: Any, start: int) -> WindowKey:
        return name, self.window.range_of(start)

    def get(self, key: WindowKey, default: Any = MISSING) -> Any:
        """Return the value of ``key``, or ``default``."""
        value = self.windows.get(*self._parts(key))
        return default if value is MISSING else value

    def get_many(self, keys: Iterable[WindowKey], default: Any = None) -> list[Any]:
        """Return the values of several keys."""
        return [self.get(key, default) for key in keys]

    def set(self, key: WindowKey, value: Any) -> None:
        """Set the value of ``key``."""
        self.windows.set(*self._parts(key), value)

    def set_many(self, keys: Sequence[WindowKey], values: Sequence[Any]) -> None:
        """Set the values of several keys."""
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def delete(self, key: WindowKey) -> None:
        """Delete ``key``, if it is there."""
        self.set(key, MISSING)

    def scan(self, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[WindowKey, Any]]:
        """Iterate over entries, the earliest windows first; bounds are of the keys in them."""
        raw_key = self.codec.raw_key
        for begin in self.windows.open_starts():
            for name, value in self.windows.entries(begin):
                if (start or end is not None) and not _is_between(raw_key(name), start, end):
                    continue
                yield self._key(name, begin), value

    def count(self) -> int:
        """Count the entries of all windows."""
        return sum(1 for _ in self.scan())

    def windows_of(self, key: Any) -> Iterator[tuple[int, int, Any]]:
        """Iterate over ``(start, end, value)`` of the windows of a key, in ms."""
        for start in self.windows.open_starts():
            value = self.windows.get(start, key)
            if value is not MISSING:
                yield start, start + self.window.length, value

    def scan_windows(self) -> Iterator[tuple[Any, int, int, Any]]:
        """Iterate over ``(key, start, end, value)`` of all windows, in ms."""
        for start in self.windows.open_starts():
            for name, value in self.windows.entries(start):
                yield name, start, start + self.window.length, value

    # -- checkpoint and recovery

    @property
    def is_dirty(self) -> bool:
        return self.windows.is_dirty

    def take_dirty(self) -> tuple[list[bytes], list[bytes | None]]:
        return self.windows.take_dirty()

    def on_written(self) -> None:
        self.windows.on_written()

    def forget(self) -> None:
        self._start_anew()

    def on_applied(self, keys: Sequence[bytes]) -> None:
        # Only a state that nobody writes to is applied to: there is nothing in memory.
        self._start_anew()

    def check(self) -> None:
        stored = self.store.meta
        if stored.marked and stored.format != self.format and not self.store.is_empty():
            raise StoreError(
                f"Table {self.codec.table!r} was kept with {stored.format or 'no windows'} and now "
                f"has {self.format} (ms). Give the table another name, or delete its changelog "
                "topic and local data to begin anew."
            )
        self.windows.check()


# Read from outside in the same way.
WindowedState.register(WindowValues)


def _is_between(raw: bytes, start: bytes, end: bytes | None) -> bool:
    return raw >= start and (end is None or raw < end)
