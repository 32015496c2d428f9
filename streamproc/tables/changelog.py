"""Changelogs: flushes of a table's partition as records, and records as state again.

A flush is the dirty entries and, as its last record, a :class:`Position`. State is
rebuilt from whole flushes only. Records after the last position are of a flush that
never ended: their updates are made again from the source, so they are not applied, and
their keys are written once more, that a later rebuild doesn't meet them.

The flushes of several tables belong to one checkpoint, and a crash may leave some of
them written and others not. So the last flush of each is held back until all are read,
and undone if another table doesn't have it. What is written again after that goes out
before any new flush does, so that the tables of a partition are never more than one
checkpoint apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from streamproc.kafka.fetch import RawBatch
from streamproc.tables.state import (
    POSITION_KEY,
    Flush,
    PartitionState,
    Position,
    decode_position,
    encode_position,
)

#: Records without any position after which a changelog counts as one of plain Faust.
UNMARKED_LIMIT = 50_000

#: More records than a flush has. Compaction takes positions away, so that the records
#: before the next one can be many more than one flush; those are applied at once.
LARGEST_FLUSH = 1_000_000

Keys = list[bytes]
Values = list[bytes | None]


def records_of(flush: Flush) -> tuple[Keys, Values]:
    """Return keys and values of the records that a flush is written as."""
    return [*flush.keys, POSITION_KEY], [*flush.values, encode_position(flush.position)]


class _Held(NamedTuple):
    keys: Keys
    values: Values
    position: Position
    end: int


class Applier:
    """Applies the changelog of one partition to its state, flush by flush.

    Args:
        state: Where to.
        whole: Wait for the end of each flush; False for changelogs that several write
            to or that are the topic of somebody else.
    """

    def __init__(self, state: PartitionState, whole: bool = True) -> None:
        self.state = state
        self.whole = whole
        self.records = 0
        self.bytes = 0
        #: The changelog record that is read next.
        self.read_to = state.changelog_offset
        #: Records since the last position, and where in them each run begins.
        self._keys: Keys = []
        self._values: Values = []
        self._runs: list[tuple[int, int]] = []
        self._held: _Held | None = None
        #: True if the changelog has positions: what follows the last one isn't whole.
        self.is_marked = state.marked

    def reset(self) -> None:
        """Delete the state: it is rebuilt from the start of the changelog."""
        self.state.reset()
        self.read_to = 0
        self._keys, self._values, self._runs = [], [], []
        self._held = None
        self.is_marked = False

    @property
    def begin(self) -> int:
        """Where to read the changelog from: from its start if the state is of another."""
        return 0 if self.state.is_of_another else self.read_to

    @property
    def positions(self) -> dict[str, int]:
        """How far each reader is, by the last whole flush."""
        return self._held.position.positions if self._held else self.state.positions

    def apply(self, raw: RawBatch) -> None:
        """Apply a run of records as far as flushes end in it."""
        self.records += len(raw)
        self.bytes += raw.size
        self.read_to = raw.next_offset
        keys, values = _with_keys(raw)
        if not self.whole:
            self._write_all(keys, values, raw.next_offset)
            return
        if POSITION_KEY in keys:
            self.is_marked = True
            keys, values = self._end_flushes(keys, values, raw)
        if not keys:
            return
        self._runs.append((len(self._keys), raw.offsets[0]))
        self._keys += keys
        self._values += values
        count = len(self._keys)
        if not self.is_marked and count > UNMARKED_LIMIT:
            self._write_unmarked(raw.next_offset)
        elif count > LARGEST_FLUSH + LARGEST_FLUSH // 2:
            self._write_early(count - LARGEST_FLUSH)

    def _write_all(self, keys: Keys, values: Values, end: int) -> None:
        keys, values = _without_positions(keys, values)
        self.state.apply(keys, values, Position(), end)

    def _end_flushes(self, keys: Keys, values: Values, raw: RawBatch) -> tuple[Keys, Values]:
        """End the flushes that end in a run, and return what comes after them."""
        begin = 0
        last = _last_position(keys, len(keys))
        before = _last_position(keys, last)
        if before >= 0:
            # All but the last flush of this run can go at once.
            self._end_flush(keys[:before], values[:before], values[before], raw, before)
            begin = before + 1
        self._end_flush(keys[begin:last], values[begin:last], values[last], raw, last)
        return keys[last + 1 :], values[last + 1 :]

    def _end_flush(
        self, keys: Keys, values: Values, position: bytes | None, raw: RawBatch, row: int
    ) -> None:
        self._write_held()
        self._held = _Held(
            self._keys + keys,
            self._values + values,
            decode_position(position or b"{}"),
            raw.offsets[row] + 1,
        )
        self._keys, self._values, self._runs = [], [], []

    def _write_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            keys, values = _without_positions(held.keys, held.values)
            self.state.apply(keys, values, held.position, held.end)

    def _write_unmarked(self, end: int) -> None:
        keys, values = self._keys, self._values
        self._keys, self._values, self._runs = [], [], []
        self.state.apply(keys, values, Position(self.state.positions), end, marked=False)

    def _write_early(self, at_most: int) -> None:
        """Write records that are older than one flush can be: theirs did end."""
        row, offset = max(run for run in self._runs if run[0] <= at_most)
        self._write_held()
        meta = self.state.store.meta
        position = Position(meta.positions, meta.extra, meta.format)
        self.state.apply(self._keys[:row], self._values[:row], position, offset)
        self._keys, self._values = self._keys[row:], self._values[row:]
        self._runs = [(begin - row, first) for begin, first in self._runs if begin >= row]

    def finish(self, end: int, common: dict[str, int]) -> None:
        """The changelog is read to its ``end``; this worker writes to it from now on.

        Args:
            end: Offset of its end.
            common: The positions that all tables of the partition have reached. A last
                flush that goes further is undone.
        """
        if not self.is_marked:
            self._write_unmarked(end)
        held = self._held
        if held and any(
            offset > common.get(reader, offset)
            for reader, offset in held.position.positions.items()
        ):
            self._held = None
            self.state.repair([key for key in held.keys if key != POSITION_KEY])
        self._write_held()
        if self._keys:
            self.state.repair(self._keys)
            self._keys, self._values, self._runs = [], [], []
        if not self.state.marked:
            self.state.mark()
        self.state.changelog_offset = end
        self.state.is_stale = False


def common_positions(appliers: Iterable[Applier]) -> dict[str, int]:
    """Return the offset of each reader that all tables of a partition have reached.

    A table that has a changelog and doesn't know a reader is before its first flush; a
    table that is new says nothing.
    """
    known = [applier.positions for applier in appliers if applier.is_marked]
    readers = {reader for positions in known for reader in positions}
    return {reader: min(positions.get(reader, -1) for positions in known) for reader in readers}


def _with_keys(raw: RawBatch) -> tuple[Keys, Values]:
    if None not in raw.keys:
        return raw.keys, raw.values  # type: ignore[return-value]
    # Only a topic of somebody else has records without a key, which say nothing here.
    rows = [row for row, key in enumerate(raw.keys) if key is not None]
    return [raw.keys[row] or b"" for row in rows], [raw.values[row] for row in rows]


def _without_positions(keys: Keys, values: Values) -> tuple[Keys, Values]:
    if POSITION_KEY not in keys:
        return keys, values
    rows = [row for row, key in enumerate(keys) if key != POSITION_KEY]
    return [keys[row] for row in rows], [values[row] for row in rows]


def _last_position(keys: Keys, end: int) -> int:
    """Return the last row before ``end`` that ends a flush, or -1."""
    try:
        return end - 1 - keys[end - 1 :: -1].index(POSITION_KEY) if end else -1
    except ValueError:
        return -1
