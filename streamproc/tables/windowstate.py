"""Windows of one partition, kept like the entries of any table.

Both kinds are what the window operators of :mod:`streamproc.windows` need, over a store.
A window lives in memory from its first record on; a window that closes before a checkpoint
ever sees it is never written anywhere.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from streamproc.aggregates import Program
from streamproc.errors import StoreError
from streamproc.tables.keyed import ENTRY_OVERHEAD, MISSING, EntryCodec, KeyedState
from streamproc.tables.state import PartitionState
from streamproc.tables.stores import Store
from streamproc.windows import Sliding, WindowOperator, WindowSpec
from streamproc.windows.memory import DueIndex
from streamproc.windows.state import Accumulator, Entry, Output

#: Starts sort as bytes, those before 1970 too.
_START = struct.Struct(">Q")
_SHIFT = 1 << 63
_WATERMARK = "watermark"


def _shape(spec: WindowSpec) -> str:
    """Return what of a specification stored windows depend on."""
    sizes = {name: getattr(spec, name, None) for name in ("size", "step", "offset", "gap")}
    text = " ".join(f"{name}={size}" for name, size in sizes.items() if size is not None)
    return f"{type(spec).__name__} {text}"


def _prefix(start: int) -> bytes:
    return _START.pack(start + _SHIFT)


class WindowedState(PartitionState):
    """What states of all kinds of windows share: the operator, and its watermark.

    Args:
        partition: Its number.
        store: Where it is kept.
        codec: How keys are encoded.
        spec: The windows.
        program: What is aggregated in them.
        cache_bytes: About how much memory unchanged windows may take.
        inputs: How many inputs the watermark has.
    """

    def __init__(
        self,
        partition: int,
        store: Store,
        codec: EntryCodec,
        spec: Any,
        program: Program,
        cache_bytes: int,
        inputs: int = 1,
    ) -> None:
        super().__init__(partition, store)
        self.codec = codec
        self.spec: Any = spec
        self.program = program
        self.inputs = inputs
        self.cache_bytes = cache_bytes
        self.format = f"{_shape(spec)} {program.fingerprint}"
        self._operator: WindowOperator | None = None
        #: Records that were too late, since the start.
        self.late_total = 0

    @property
    def operator(self) -> WindowOperator:
        """What computes the windows, going on where the state is."""
        if self._operator is None:
            plain = self.store.meta.extra.get(_WATERMARK)
            watermark = self.spec.watermark(inputs=self.inputs, plain=plain)
            self._operator = self.spec.operator(self.program, self.windows, watermark)
        operator: WindowOperator = self._operator
        return operator

    @property
    def windows(self) -> Any:
        """The state as the operator sees it."""
        return self

    def extra(self) -> dict[str, Any]:
        if self._operator is None:
            return self.store.meta.extra
        return {_WATERMARK: self._operator.watermark.to_plain()}

    def tick(self, now: float) -> Output:
        """Let time pass without records."""
        return self.operator.tick(now)

    def check(self) -> None:
        stored = self.store.meta.format
        if stored and stored != self.format:
            raise StoreError(
                f"Table {self.codec.table!r}, partition {self.partition}, holds windows of another "
                "kind or with other aggregations than the app has now. Give the table another "
                "name (name=...), or delete its changelog topic and local data to begin anew."
            )

    def forget(self) -> None:
        self._operator = None

    @abstractmethod
    def windows_of(self, key: Any) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Iterate over ``(start, end, result)`` of the open windows of a key."""

    @abstractmethod
    def scan_windows(self) -> Iterator[tuple[Any, int, int, dict[str, Any]]]:
        """Iterate over ``(key, start, end, result)`` of all open windows."""


class OpenWindows:
    """Open tumbling or hopping windows: a dict of accumulators by key for each start."""

    def __init__(self, store: Store, codec: EntryCodec, program: Program, cache_bytes: int) -> None:
        self._store = store
        self._codec = codec
        self._program = program
        self._cache_bytes = cache_bytes
        self._open: dict[int, dict[Any, Accumulator]] = {}
        self._dirty: dict[int, dict[Any, None]] = {}
        #: Raw keys on their way to the store.
        self._in_flight: dict[int, list[bytes]] = {}
        #: Windows of which nothing is in the store alone.
        self._whole: set[int] = set()
        self._tombstones: list[bytes] = []
        self._mean_size = float(ENTRY_OVERHEAD)
        self._known_starts: set[int] | None = None

    # -- what the operator needs

    def window(self, start: int) -> dict[Any, Accumulator]:
        window = self._open.get(start)
        if window is None:
            window = self._open[start] = {}
            if start not in self._stored:
                self._whole.add(start)
        return window

    def missing(self, start: int, key: Any) -> Accumulator | None:
        if start in self._whole:
            return None
        raw = self._store.get(_prefix(start) + self._codec.raw_key(key))
        return None if raw is None else self._program.decode(raw)

    def mark(self, start: int, keys: Sequence[Any]) -> None:
        marks = dict.fromkeys(keys)
        try:
            self._dirty[start].update(marks)
        except KeyError:
            self._dirty[start] = marks

    def open_starts(self) -> list[int]:
        return sorted(self._stored.union(self._open))

    def close(self, start: int) -> list[tuple[Any, Accumulator]]:
        entries = list(self.entries(start))
        self.drop(start)
        return entries

    def drop(self, start: int) -> None:
        """Free a window, in memory at once and in the store with the next checkpoint."""
        self._open.pop(start, None)
        self._dirty.pop(start, None)
        self._whole.discard(start)
        if start in self._stored:
            self._stored.discard(start)
            written = [raw for raw, _ in self._raw_entries(start)]
            self._tombstones += dict.fromkeys(written + self._in_flight.pop(start, []))

    # -- memory and store

    @property
    def _stored(self) -> set[int]:
        """Starts of windows that the store has entries of."""
        if self._known_starts is None:
            self._known_starts = set(self._starts_in_store())
        return self._known_starts

    def _starts_in_store(self) -> Iterator[int]:
        found = next(self._store.items(), None)
        while found is not None:
            (shifted,) = _START.unpack_from(found[0])
            yield shifted - _SHIFT
            found = next(self._store.items(_START.pack(shifted + 1)), None)

    def _raw_entries(self, start: int) -> Iterator[tuple[bytes, bytes]]:
        return self._store.items(_prefix(start), _prefix(start + 1))

    def entries(self, start: int) -> Iterator[tuple[Any, Accumulator]]:
        """Iterate over all that is in a window, in memory or not."""
        window = self._open.get(start, {})
        if start not in self._whole:
            for raw_key, raw in self._raw_entries(start):
                key = self._codec.key(raw_key[_START.size :])
                if key not in window:
                    yield key, self._program.decode(raw)
        yield from list(window.items())

    def accumulator(self, start: int, key: Any) -> Accumulator | None:
        """Return what a window has of a key, in memory or not."""
        acc = self._open.get(start, {}).get(key)
        return self.missing(start, key) if acc is None else acc

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty or self._tombstones)

    def take_dirty(self) -> tuple[list[bytes], list[bytes | None]]:
        dirty, self._dirty = self._dirty, {}
        keys, self._tombstones = self._tombstones, []
        values: list[bytes | None] = [None] * len(keys)
        raw_key, encode = self._codec.raw_key, self._program.encode
        for start, changed in dirty.items():
            prefix, window = _prefix(start), self._open[start]
            raw_keys = [prefix + raw_key(key) for key in changed]
            keys += raw_keys
            values += [encode(window[key]) for key in changed]
            self._in_flight[start] = raw_keys
            self._stored.add(start)
        if dirty:
            size = sum(map(len, keys)) + sum(map(len, filter(None, values)))
            self._mean_size = size / len(keys) + ENTRY_OVERHEAD
        return keys, values

    def on_written(self) -> None:
        """What was taken is in the store: free what is too much, the earliest windows first."""
        self._in_flight = {}
        entries = sum(map(len, self._open.values()))
        limit = self._cache_bytes / self._mean_size
        for start in sorted(self._open):
            if entries <= limit:
                return
            window, dirty = self._open[start], self._dirty.get(start, {})
            entries -= len(window)
            self._open[start] = {key: window[key] for key in dirty}
            self._whole.discard(start)


class AlignedWindows(WindowedState):
    """Tumbling or hopping windows of one partition."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._windows = self._fresh()

    def _fresh(self) -> OpenWindows:
        return OpenWindows(self.store, self.codec, self.program, self.cache_bytes)

    @property
    def windows(self) -> OpenWindows:
        return self._windows

    @property
    def is_dirty(self) -> bool:
        return self._windows.is_dirty

    def take_dirty(self) -> tuple[list[bytes], list[bytes | None]]:
        return self._windows.take_dirty()

    def on_written(self) -> None:
        self._windows.on_written()

    def on_applied(self, keys: Sequence[bytes]) -> None:
        # Only a state that nobody writes to is applied to: there is nothing in memory.
        self.forget()

    def forget(self) -> None:
        super().forget()
        self._windows = self._fresh()

    def windows_of(self, key: Any) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Iterate over ``(start, end, result)`` of the open windows of a key."""
        for start in self._windows.open_starts():
            acc = self._windows.accumulator(start, key)
            if acc is not None:
                window = start, start + self.spec.size
                yield *window, self.program.result(acc, window)

    def scan_windows(self) -> Iterator[tuple[Any, int, int, dict[str, Any]]]:
        for start in self._windows.open_starts():
            window = start, start + self.spec.size
            for key, acc in self._windows.entries(start):
                yield key, *window, self.program.result(acc, window)

    def count(self) -> int:
        """Count the entries of all open windows."""
        windows = self._windows
        return sum(1 for start in windows.open_starts() for _ in windows.entries(start))


class KeyedWindows(WindowedState):
    """Sessions, or panes of sliding windows: a list for each key, and when it is due."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        codec = EntryCodec(
            self.codec.table,
            self.codec.encode_key,
            self.codec.decode_key,
            self._encode,
            self._decode,
            self.codec.null,
        )
        self.entries = KeyedState(self.partition, self.store, codec, self.cache_bytes)
        self._known_index: DueIndex | None = None
        #: Keys that are in no store and no flush: they may go without a trace.
        self._unwritten: set[Any] = set()

    @property
    def _index(self) -> DueIndex:
        if self._known_index is None:
            decode_key = self.codec.key
            self._known_index = DueIndex(
                (decode_key(raw_key), msgspec.msgpack.decode(raw)[0])
                for raw_key, raw in self.store.items()
            )
        return self._known_index

    def _encode(self, value: tuple[list[Entry], int]) -> bytes:
        entries, due = value
        encode = self.program.encode
        return msgspec.msgpack.encode(
            (due, [(first, last, encode(acc)) for first, last, acc in entries])
        )

    def _decode(self, raw: bytes) -> tuple[list[Entry], int]:
        due, entries = msgspec.msgpack.decode(raw)
        decode = self.program.decode
        return [(first, last, decode(acc)) for first, last, acc in entries], due

    # -- what the operator needs

    def get(self, key: Any) -> Sequence[Entry]:
        value = self.entries.get(key)
        if value is not MISSING:
            return value[0]  # type: ignore[no-any-return]
        if key not in self.entries.dirty:
            self._unwritten.add(key)
        return ()

    def put(self, key: Any, entries: list[Entry], due: int) -> None:
        self.entries.set(key, (entries, due))
        self._index.set(key, due)

    def delete(self, key: Any) -> None:
        if key in self._unwritten:
            self._unwritten.discard(key)
            del self.entries.cache[key], self.entries.dirty[key]
        else:
            self.entries.delete(key)
        self._index.remove(key)

    def due(self, watermark: int) -> list[Any]:
        return self._index.due(watermark)

    # -- checkpoint and recovery

    @property
    def is_dirty(self) -> bool:
        return self.entries.is_dirty

    def take_dirty(self) -> tuple[list[bytes], list[bytes | None]]:
        self._unwritten.clear()
        return self.entries.take_dirty()

    def on_written(self) -> None:
        self.entries.on_written()

    def forget(self) -> None:
        super().forget()
        self.entries.forget()
        self._unwritten.clear()
        self._known_index = None

    def on_applied(self, keys: Sequence[bytes]) -> None:
        self._operator = None
        self.entries.on_applied(keys)
        self._known_index = None

    # -- reading

    def _results(self, entries: Sequence[Entry]) -> Iterator[tuple[int, int, dict[str, Any]]]:
        for row, (first, last, acc) in enumerate(entries):
            if isinstance(self.spec, Sliding):
                window = last - self.spec.size + 1, last + 1
                for _, earlier, pane in reversed(entries[:row]):
                    if earlier >= window[0]:
                        acc = self.program.merge(pane, acc)
            else:
                window = first, last + self.spec.gap
            yield *window, self.program.result(acc, window)

    def windows_of(self, key: Any) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Iterate over ``(start, end, result)`` of the open windows of a key."""
        value = self.entries.get(key)
        return self._results(() if value is MISSING else value[0])

    def scan_windows(self) -> Iterator[tuple[Any, int, int, dict[str, Any]]]:
        for key, (entries, _) in self.entries.scan():
            for start, end, result in self._results(entries):
                yield key, start, end, result

    def count(self) -> int:
        """Count the keys with an open window."""
        return self.entries.count()
