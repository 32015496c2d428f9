"""Window states in memory: what the operators are tested with, and tables without a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any

from streamproc.windows.state import Accumulator, Entry


class MemoryWindows:
    """Open tumbling or hopping windows (a ``WindowState``).

    Attributes:
        windows: Accumulators by start and key.
    """

    def __init__(self, windows: Mapping[int, dict[Any, Accumulator]] | None = None) -> None:
        self.windows = dict(windows or {})

    def window(self, start: int) -> dict[Any, Accumulator]:
        """Return the accumulators of a window by key, opening it if need be."""
        window = self.windows.get(start)
        if window is None:
            window = self.windows[start] = {}
        return window

    def missing(self, start: int, key: Any) -> Accumulator | None:
        """Return None: all there is, is in memory."""
        return None

    def mark(self, start: int, keys: Sequence[Any]) -> None:
        """Do nothing: there is no store to write to."""

    def open_starts(self) -> list[int]:
        """Return the starts of all open windows, in order."""
        return sorted(self.windows)

    def close(self, start: int) -> Iterable[tuple[Any, Accumulator]]:
        """Free a window, returning what was in it."""
        return self.windows.pop(start).items()

    def drop(self, start: int) -> None:
        """Free a window."""
        del self.windows[start]


class MemoryKeys:
    """Open sessions or panes (a ``KeyedState``).

    Attributes:
        entries: Entries by key.
        index: When each key is due.
    """

    def __init__(self, stored: Mapping[Any, tuple[list[Entry], int]] | None = None) -> None:
        stored = stored or {}
        self.entries: dict[Any, list[Entry]] = {key: list(one[0]) for key, one in stored.items()}
        self.index = DueIndex((key, due) for key, (_, due) in stored.items())

    def get(self, key: Any) -> Sequence[Entry]:
        """Return the entries of a key; empty if it has none."""
        return self.entries.get(key, ())

    def put(self, key: Any, entries: list[Entry], due: int) -> None:
        """Replace the entries of a key, and when it is due."""
        self.entries[key] = entries
        self.index.set(key, due)

    def delete(self, key: Any) -> None:
        """Remove a key and its due time."""
        del self.entries[key]
        self.index.remove(key)

    def due(self, watermark: int) -> list[Any]:
        """Return the keys due at or before a watermark, in order of due time."""
        return self.index.due(watermark)

    def stored(self) -> dict[Any, tuple[list[Entry], int]]:
        """Return everything, for another ``MemoryKeys`` to begin with."""
        dues = self.index.dues
        return {key: (list(entries), dues[key]) for key, entries in self.entries.items()}


class DueIndex:
    """Keys by when they are due: a heap that is right when it is looked at.

    A due time that moves later (each record of a session does that) costs one dict store:
    the heap still has the earlier time, and is put right when that one comes up. One that
    moves earlier leaves a dead entry behind; when there are more dead than live ones, the
    heap is made anew. So it holds at most a little over two entries a key.

    Args:
        dues: What is in it from the start, as (key, due).
    """

    def __init__(self, dues: Iterable[tuple[Any, int]] = ()) -> None:
        self.dues: dict[Any, int] = dict(dues)
        self._serial = count()
        self._rebuild()

    def __len__(self) -> int:
        return len(self.dues)

    def set(self, key: Any, due: int) -> None:
        """Set when a key is due."""
        self.dues[key] = due
        planned = self._planned.get(key)
        if planned is None or due < planned:
            self._plan(key, due)
            if len(self._heap) > 2 * len(self.dues) + 64:
                self._rebuild()

    def remove(self, key: Any) -> None:
        """Forget a key."""
        del self.dues[key]
        del self._planned[key]
        if len(self._heap) > 2 * len(self.dues) + 64:
            self._rebuild()

    @property
    def next_due(self) -> float:
        """A time before which no key is due."""
        return self._heap[0][0] if self._heap else inf

    def due(self, watermark: int) -> list[Any]:
        """Return the keys due at or before a watermark, in order; they stay in the index."""
        heap = self._heap
        if not heap or heap[0][0] > watermark:
            return []
        found: list[tuple[int, int, Any]] = []
        while heap and heap[0][0] <= watermark:
            planned, serial, key = heappop(heap)
            if self._planned.get(key) != planned:
                continue
            due = self.dues[key]
            if due > planned:
                self._plan(key, due)
                continue
            # Planned no more, so that a dead entry doesn't find the same key twice.
            del self._planned[key]
            found.append((due, serial, key))
        for due, serial, key in found:
            self._planned[key] = due
            heappush(heap, (due, serial, key))
        return [key for _, _, key in found]

    def _plan(self, key: Any, due: int) -> None:
        self._planned[key] = due
        heappush(self._heap, (due, next(self._serial), key))

    def _rebuild(self) -> None:
        self._planned = dict(self.dues)
        self._heap = [(due, next(self._serial), key) for key, due in self.dues.items()]
        heapify(self._heap)
