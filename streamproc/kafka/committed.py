"""Offsets as they are committed, and what is noted with them in their metadata.

- The tables and the transactional sinks that go up to them. A later worker that finds a table's
  changelog or a sink's server empty knows by them whether it is new or has lost what it had.
- With exactly once, the readers that are ahead. The offset is that of the slowest reader of
  the partition; what others have sent beyond it was committed with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

__all__ = [
    "Committed",
    "Notes",
    "OffsetAndMetadata",
    "Positions",
    "TopicPartition",
    "ahead_of",
    "positions_ahead",
    "read_committed_offset",
    "with_notes",
]

#: By partition, the offset up to which each reader is done; readers are ``topic@name``.
Positions = Mapping[int, Mapping[str, int]]

#: Bytes of metadata that a broker takes (offset.metadata.max.bytes).
MOST_BYTES = 4096


class Notes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an offset stands for: tables and sinks that go up to it, and readers beyond it."""

    ahead: dict[str, int] = {}
    sinks: list[str] = []
    tables: list[str] = []


class Committed(NamedTuple):
    """An offset that the group has."""

    offset: int
    notes: Notes = Notes()


def with_notes(
    offsets: Mapping[TP, int], notes: Mapping[TP, Notes]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return offsets as a client commits them."""
    return {
        TopicPartition(*tp): OffsetAndMetadata(offset, _written(notes.get(tp, Notes())))
        for tp, offset in offsets.items()
    }


def _written(notes: Notes) -> str:
    """Return as many names as the broker takes: they only guard against loss."""
    if notes == Notes():
        return ""
    written = msgspec.json.encode(notes)
    while len(written) > MOST_BYTES and (notes.sinks or notes.tables):
        if notes.tables:
            notes = Notes(notes.ahead, notes.sinks, notes.tables[:-1])
        else:
            notes = Notes(notes.ahead, notes.sinks[:-1])
        written = msgspec.json.encode(notes)
    return written.decode()


def read_committed_offset(found: OffsetAndMetadata) -> Committed:
    """Return what was committed; another client's metadata notes nothing."""
    try:
        notes = msgspec.json.decode(found.metadata or "{}", type=Notes)
    except msgspec.MsgspecError:
        notes = Notes()
    return Committed(found.offset, notes)


def ahead_of(tp: TP, offset: int, positions: Positions) -> dict[str, int]:
    """Return how far those readers of a partition are that are beyond ``offset``."""
    prefix = f"{tp.topic}@"
    return {
        reader: position
        for reader, position in positions.get(tp.partition, {}).items()
        if position > offset and reader.startswith(prefix)
    }


def positions_ahead(committed: Mapping[TP, Committed]) -> dict[int, dict[str, int]]:
    """Return how far the readers are that are beyond what is committed."""
    positions: dict[int, dict[str, int]] = {}
    for tp, found in committed.items():
        positions.setdefault(tp.partition, {}).update(found.notes.ahead)
    return positions
