"""What window operators need from others: an aggregation, and a place for open windows.

Tables implement the two state protocols over their stores; ``memory.py`` has both in memory.
A state belongs to one operator, so to one partition.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamproc.errors import AggregateError

Key = Hashable
Accumulator = list[Any]
Missing = Callable[[Any], Accumulator]

WindowResult = tuple[Any, int, int, Accumulator]
"""Key, start and end (ms, half-open) of a window, and its accumulator."""

Entry = tuple[int, int, Accumulator]
"""A session of a key (first and last event time), or a pane of it (twice its event time)."""


@dataclass
class Output:
    """What a batch, or time passing, did to windows.

    Accumulators may be live ones: turn them into results (``program.result``) before the
    operator's next call.

    Attributes:
        finals: Windows that closed, in order of their ends (then as keys came, as far as
            the state kept that order). Empty with emit="updates".
        updates: With emit="updates": each window that the batch changed, once, as it is
            after the batch, also if the batch closed it. Nothing comes when a window
            closes: the last update is the final result.
        retracted: With emit="updates" of sessions: windows of earlier updates that grew or
            were merged into others, so that they no longer exist (key, start, end).
        late: Rows of the batch that were in no window, because all of theirs were closed.
        partly_late: Rows that some, but not all, of their windows missed (hopping only).
        failed: Rows that the program can't aggregate, and why (the error's own row counts
            from some row of the batch). Windows are as if these rows weren't there, but
            the time of a failed row counts: for the watermark, and for how far a session
            goes.
    """

    finals: list[WindowResult] = field(default_factory=list)
    updates: list[WindowResult] = field(default_factory=list)
    retracted: list[tuple[Any, int, int]] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    partly_late: list[int] = field(default_factory=list)
    failed: dict[int, AggregateError] = field(default_factory=dict)


class Program(Protocol):
    """An aggregation over accumulators, which are lists."""

    def new(self) -> Accumulator:
        """Return the accumulator of no records."""

    def update(
        self,
        states: dict[Any, Accumulator],
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        missing: Missing,
    ) -> None:
        """Add records, in order, to the accumulators of their keys.

        ``states[key]`` is set to ``missing(key)`` first for a key that isn't in it.

        Raises:
            AggregateError: ``row`` can't be added; those before it are, those after it
                aren't.
        """

    def merge(self, left: Accumulator, right: Accumulator) -> Accumulator:
        """Return both in one; ``left`` is before ``right`` in time.

        Neither changes; the result shares nothing with them that an update changes.
        """


class WindowState(Protocol):
    """Open tumbling or hopping windows, by start, and in each the accumulators by key."""

    def window(self, start: int) -> dict[Any, Accumulator]:
        """Return the accumulators that are in memory, opening the window if need be.

        The operator adds to it and changes accumulators in place, then says so by
        :meth:`mark`.
        """

    def missing(self, start: int, key: Any) -> Accumulator | None:
        """Return an accumulator that isn't in memory, or None if there is none at all."""

    def mark(self, start: int, keys: Sequence[Any]) -> None:
        """Note that these keys (some maybe several times) changed in a window."""

    def open_starts(self) -> Sequence[int]:
        """Return the starts of all open windows, in order."""

    def close(self, start: int) -> Iterable[tuple[Any, Accumulator]]:
        """Free a window, returning all that was in it, in memory or not.

        It is read to its end before any other call.
        """

    def drop(self, start: int) -> None:
        """Free a window without reading it."""


class KeyedState(Protocol):
    """Open sessions, or panes of sliding windows: a list for each key, and when it is due.

    The due times are an index, so that closing windows doesn't look at all keys. There is
    one for each key. An implementation stores it with the entries (or can compute it again
    from them), so that it survives recovery.
    """

    def get(self, key: Any) -> Sequence[Entry]:
        """Return the entries of a key; empty if it has none."""

    def put(self, key: Any, entries: list[Entry], due: int) -> None:
        """Replace the entries of a key, and when it is due, in ms of watermark."""

    def delete(self, key: Any) -> None:
        """Remove a key and its due time."""

    def due(self, watermark: int) -> Sequence[Any]:
        """Return the keys due at or before a watermark, in order of due time.

        They stay until :meth:`put` or :meth:`delete`. This is called once a batch: it must
        cost nothing to speak of when no key is due.
        """
