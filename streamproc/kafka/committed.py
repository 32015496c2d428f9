"""Offsets as they are committed, and what is noted with them in their metadata.

- The tables that go up to them. A later worker that finds a table's changelog empty knows by
  them whether the table is new or its changelog is lost.
- With exactly once, the readers that are ahead. The offset is that of the slowest reader of
  the partition; what others have sent beyond it was committed with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

__all__ = [
    "Committed",
    "OffsetAndMetadata",
    "Positions",
    "TopicPartition",
    "new_at",
    "positions_ahead",
    "read_committed_offset",
    "with_notes",
]

#: By partition, the offset up to which each reader is done; readers are ``topic@name``.
Positions = Mapping[int, Mapping[str, int]]

#: Bytes of metadata that a broker takes (offset.metadata.max.bytes).
MOST_BYTES = 4096


class Committed(NamedTuple):
    """An offset that the group has, the tables that go up to it, and readers beyond it."""

    offset: int
    tables: frozenset[str]
    ahead: dict[str, int]


def new_at(offset: int) -> Committed:
    """Return an offset with which nothing is noted."""
    return Committed(offset, frozenset(), {})


class _Notes(msgspec.Struct, omit_defaults=True):
    tables: list[str] = []
    ahead: dict[str, int] = {}


def with_notes(
    offsets: Mapping[TP, int],
    tables: Mapping[TP, Collection[str]],
    positions: Positions,
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return offsets as a client commits them."""
    return {
        TopicPartition(*tp): OffsetAndMetadata(
            offset,
            _written(sorted(tables.get(tp, ())), _ahead(tp, offset, positions)),
        )
        for tp, offset in offsets.items()
    }


def _ahead(tp: TP, offset: int, positions: Positions) -> dict[str, int]:
    prefix = f"{tp.topic}@"
    return {
        reader: position
        for reader, position in positions.get(tp.partition, {}).items()
        if position > offset and reader.startswith(prefix)
    }


def _written(tables: list[str], ahead: dict[str, int]) -> str:
    """Return notes of as many tables as the broker takes: their names only guard against loss."""
    if not (tables or ahead):
        return ""
    notes = msgspec.json.encode(_Notes(tables, ahead))
    if len(notes) > MOST_BYTES and tables:
        return _written(tables[:-1], ahead)
    return notes.decode()


def read_committed_offset(found: OffsetAndMetadata) -> Committed:
    """Return what was committed; another client's metadata notes nothing."""
    try:
        notes = msgspec.json.decode(found.metadata or "{}", type=_Notes)
    except msgspec.MsgspecError:
        notes = _Notes()
    return Committed(found.offset, frozenset(notes.tables), notes.ahead)


def positions_ahead(committed: Mapping[TP, Committed]) -> dict[int, dict[str, int]]:
    """Return how far the readers are that are ahead of what is committed."""
    positions: dict[int, dict[str, int]] = {}
    for tp, found in committed.items():
        positions.setdefault(tp.partition, {}).update(found.ahead)
    return positions
