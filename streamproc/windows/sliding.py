"""Sliding windows: for each key and distinct event time, the last ``size`` up to it.

What is kept is panes: the aggregation of a key's records of one event time. The result of a
window is its panes merged in time order, when it is asked for; always from the first on,
so that it is the same to the last bit however the records came in batches.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from math import inf
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from streamproc.windows.operator import WindowOperator, pick
from streamproc.windows.state import (
    Accumulator,
    Entry,
    KeyedState,
    Output,
    Program,
    WindowResult,
)
from streamproc.windows.watermark import Watermark

if TYPE_CHECKING:
    from streamproc.windows.spec import Sliding

Pane = tuple[Any, int]


class SlidingOperator(WindowOperator):
    """Computes sliding windows.

    A record at t is in the windows that end with the key's event times from t to before
    t + size. It is late when the first of these, its own, is closed; it is in none then.
    """

    def __init__(
        self, spec: Sliding, program: Program, state: KeyedState, watermark: Watermark
    ) -> None:
        super().__init__(spec, program, watermark)
        self._spec = spec
        self._state = state
        self._size = spec.size
        # From a pane's time to the watermark at which its own window closes, and to that
        # at which no window needs it any more.
        self._closes = 1 + spec.grace
        self._frees = spec.size + spec.grace
        # The watermark up to which windows were closed.
        self._closed = self._now()

    def _add(
        self,
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        lowest: int,
        highest: int,
        input: int,
        output: Output,
    ) -> None:
        late = self.watermark.late_rows(self._spec, timestamps, input)
        rows: Sequence[int] | None = None
        if late:
            output.late = late
            refused = set(late)
            rows = [row for row in range(len(timestamps)) if row not in refused]
            if not rows:
                return
            keys, values = pick(keys, rows), pick(values, rows)
            timestamps = pick(timestamps, rows)
        state = self._state
        stored: dict[Any, dict[int, Accumulator]] = {}

        def stored_pane(pane: Pane) -> Accumulator | None:
            key, timestamp = pane
            panes = stored.get(key)
            if panes is None:
                panes = stored[key] = {time: acc for time, _, acc in state.get(key)}
            return panes.get(timestamp)

        changed: dict[Pane, Accumulator] = {}
        panes = list(zip(keys, timestamps, strict=True))
        self._aggregate(changed, panes, values, timestamps, stored_pane, output, rows)
        times: defaultdict[Any, list[int]] = defaultdict(list)
        for (key, timestamp), acc in changed.items():
            stored[key][timestamp] = acc
            times[key].append(timestamp)
        for key, changed_times in times.items():
            entries: list[Entry] = [
                (time, time, acc) for time, acc in sorted(stored[key].items(), key=itemgetter(0))
            ]
            self._put(key, entries)
            if self._updates:
                output.updates.extend(self._changed(key, entries, sorted(changed_times)))

    def _changed(
        self, key: Any, entries: Sequence[Entry], changed: Sequence[int]
    ) -> list[WindowResult]:
        """Return the windows that changed panes are in."""
        results = []
        for index in range(bisect_left(entries, changed[0], key=itemgetter(0)), len(entries)):
            time = entries[index][0]
            if changed[bisect_right(changed, time) - 1] > time - self._size:
                results.append(self._window(key, entries, index))
        return results

    def _close(self, output: Output) -> None:
        before, now = self._closed, self._now()
        if now == before:
            return
        self._closed = now
        for key in self._state.due(int(now)):
            entries = self._state.get(key)
            needed = len(entries)
            for index, (time, _, _) in enumerate(entries):
                if time + self._frees > now:
                    needed = min(needed, index)
                if not self._updates and before < time + self._closes <= now:
                    output.finals.append(self._window(key, entries, index))
            if needed < len(entries):
                self._put(key, list(entries[needed:]))
            else:
                self._state.delete(key)
        output.finals.sort(key=itemgetter(2))

    def _window(self, key: Any, entries: Sequence[Entry], index: int) -> WindowResult:
        """Return the result of the window that ends with one of the key's panes."""
        time = entries[index][0]
        first = index
        while first > 0 and entries[first - 1][0] > time - self._size:
            first -= 1
        result = entries[first][2]
        for _, _, acc in entries[first + 1 : index + 1]:
            result = self._program.merge(result, acc)
        return key, time - self._size + 1, time + 1, result

    def _put(self, key: Any, entries: list[Entry]) -> None:
        due = entries[0][0] + self._frees
        for time, _, _ in entries:
            if time + self._closes > self._closed:
                due = min(due, time + self._closes)
                break
        self._state.put(key, entries, due)

    def _now(self) -> float:
        current = self.watermark.current
        return -inf if current is None else current
