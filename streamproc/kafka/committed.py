"""Offsets as they are committed: with the names of the tables that go up to them.

The names stand in the offsets' metadata. A later worker that finds a table's changelog
empty knows by them whether the table is new or its changelog is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

__all__ = [
    "Committed",
    "OffsetAndMetadata",
    "TopicPartition",
    "read_committed_offset",
    "with_tables",
]

PREFIX = "tables:"
#: Bytes of metadata that a broker takes (offset.metadata.max.bytes).
MOST_BYTES = 4096


class Committed(NamedTuple):
    """An offset that the group has, and the tables whose state goes up to it."""

    offset: int
    tables: frozenset[str]


def with_tables(
    offsets: Mapping[TP, int], tables: Mapping[TP, Collection[str]]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return offsets as a client commits them."""
    return {
        TopicPartition(*tp): OffsetAndMetadata(offset, _note(tables.get(tp, ())))
        for tp, offset in offsets.items()
    }


def _note(tables: Collection[str]) -> str:
    note = ""
    for name in sorted(tables):
        longer = f"{note},{name}" if note else PREFIX + name
        if len(longer.encode()) > MOST_BYTES:
            break
        note = longer
    return note


def read_committed_offset(found: OffsetAndMetadata) -> Committed:
    """Return what was committed; another client's metadata names no tables."""
    note = found.metadata or ""
    names = note.removeprefix(PREFIX).split(",") if note.startswith(PREFIX) else ()
    return Committed(found.offset, frozenset(names))
