"""The state of one partition of a table: a write-back layer over a store.

Updates go to a dict and leave a dirty mark. A checkpoint takes a :class:`Flush`, which
holds each dirty entry once, writes it to the changelog, and when that is acknowledged
to the store. Between checkpoints the store is as the last one left it, so what wasn't
checkpointed can be dropped.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from streamproc.tables.stores import Meta, Store

#: Key of the changelog record that ends a flush: up to which source offsets it goes.
POSITION_KEY = b"\x00position"


#: Age of a store in seconds at which it is rebuilt if its changelog has anything new:
#: compaction drops the record of a deletion after a day (Kafka's delete.retention.ms).
STALE_AFTER = 20 * 3600.0


class Position(msgspec.Struct, omit_defaults=True):
    """Value of the record that ends a flush; see :class:`~streamproc.tables.stores.Meta`."""

    positions: dict[str, int] = {}
    extra: dict[str, Any] = {}
    format: str = ""


encode_position = msgspec.json.Encoder().encode
decode_position = msgspec.json.Decoder(Position).decode


@dataclass(slots=True)
class Flush:
    """What a checkpoint writes of one partition: parallel keys and values, None deletes."""

    state: PartitionState
    keys: list[bytes]
    values: list[bytes | None]
    position: Position

    def write(self, changelog_offset: int) -> None:
        """Write to the store, once the changelog has it up to ``changelog_offset``."""
        self.state.write(self, changelog_offset)


class PartitionState(ABC):
    """State of one partition; subclasses say what the entries are.

    Attributes:
        partition: Its number.
        store: Where it is kept.
        positions: Offset of the next record whose update is missing, by reader.
        changelog_offset: The changelog record that follows what the store has.
    """

    def __init__(self, partition: int, store: Store) -> None:
        self.partition = partition
        self.store = store
        self.positions: dict[str, int] = dict(store.meta.positions)
        self.changelog_offset = store.meta.changelog_offset
        self._changelog_id = store.meta.changelog_id
        #: The changelog was made anew since the store was written.
        self.is_of_another = False
        #: The changelog has a position from which on torn flushes can be told.
        self.marked = store.meta.marked
        #: Keys whose changelog record is of a flush that never ended; written again.
        self._repairs: dict[bytes, None] = {}
        self._needs_mark = False
        written_at = store.meta.written_at
        #: The changelog may have forgotten deletions that the store doesn't know of.
        self.is_stale = bool(written_at) and time.time() - written_at > STALE_AFTER

    # -- for subclasses

    #: What entries look like; compared when a store of an earlier start is opened.
    format = ""

    @property
    @abstractmethod
    def is_dirty(self) -> bool:
        """True when something isn't in the store."""

    @abstractmethod
    def take_dirty(self) -> tuple[list[bytes], list[bytes | None]]:
        """Return the dirty entries, encoded, and mark them as being written."""

    @abstractmethod
    def on_written(self) -> None:
        """What was taken last is in the store: memory may be freed."""

    @abstractmethod
    def forget(self) -> None:
        """Forget all that isn't in the store, and read it anew."""

    @abstractmethod
    def check(self) -> None:
        """Read some entries.

        Raises:
            StoreError: They aren't what the table's types say.
        """

    @abstractmethod
    def on_applied(self, keys: Sequence[bytes]) -> None:
        """The store's entries of ``keys`` were changed from outside."""

    def extra(self) -> dict[str, Any]:
        """Return what is kept beside entries."""
        return {}

    @property
    def dirty_count(self) -> int:
        """About how many entries the next flush will have."""
        return int(self.is_dirty)

    @property
    def is_ahead(self) -> bool:
        """True when something of it would be lost if it were read from the store again."""
        return self.is_dirty or self.extra() != self.store.meta.extra

    # -- checkpoint

    def goes_up_to(self, topic: str) -> int:
        """Return the offset of ``topic`` up to which updates are in it; 0 if that isn't known."""
        offsets = (
            offset for reader, offset in self.positions.items() if reader.partition("@")[0] == topic
        )
        return max(offsets, default=0)

    def flush(self, positions: dict[str, int]) -> Flush | None:
        """Take what a checkpoint has to write; None if there's nothing new.

        Args:
            positions: How far each reader is.
        """
        merged = {**self.positions, **positions}
        if not (self.is_dirty or self.needs_repair or merged != self.positions):
            return None
        self.positions = merged
        self._needs_mark = False
        keys, values = self.take_dirty()
        if self._repairs:
            taken = set(keys)
            repairs = [key for key in self._repairs if key not in taken]
            self._repairs = {}
            keys, values = keys + repairs, values + self.store.get_many(repairs)
        return Flush(self, keys, values, Position(merged, self.extra(), self.format))

    def write(self, flush: Flush, changelog_offset: int) -> None:
        """Write a flush to the store, once the changelog has it up to ``changelog_offset``."""
        self.store.write(flush.keys, flush.values, self._meta(flush.position, changelog_offset))
        self.changelog_offset = changelog_offset
        self.marked = True
        self.on_written()

    def _meta(self, position: Position, changelog_offset: int, marked: bool = True) -> Meta:
        return Meta(
            position.positions,
            position.extra,
            changelog_offset,
            time.time(),
            position.format,
            marked,
            self._changelog_id,
        )

    # -- recovery

    def identify(self, changelog_id: str) -> None:
        """Know the changelog's id; empty if the broker doesn't tell."""
        if changelog_id:
            known, self._changelog_id = self._changelog_id, changelog_id
            self.is_of_another |= bool(known) and known != changelog_id

    def apply(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes | None],
        position: Position,
        changelog_offset: int,
        marked: bool = True,
    ) -> None:
        """Write entries that were read from the changelog.

        Args:
            keys: Encoded keys.
            values: Parallel to them; None deletes.
            position: How far the state goes with them.
            changelog_offset: The changelog record that follows.
            marked: The changelog has positions.
        """
        self.store.write(keys, values, self._meta(position, changelog_offset, marked))
        self.positions = dict(position.positions)
        self.changelog_offset = changelog_offset
        self.marked = marked
        self.is_stale = False
        self.on_applied(keys)

    @property
    def needs_repair(self) -> bool:
        """True when the changelog must be written to before anything else is."""
        return bool(self._repairs) or self._needs_mark

    def mark(self) -> None:
        """Write a position with the next flush, even if nothing is new."""
        self._needs_mark = True

    def repair(self, keys: Sequence[bytes]) -> None:
        """Write what the store has of ``keys`` to the changelog with the next flush."""
        self._repairs.update(dict.fromkeys(keys))

    def roll_back(self) -> None:
        """Forget what no checkpoint has written: it is processed again."""
        self.positions = dict(self.store.meta.positions)
        self.forget()

    def reset(self) -> None:
        """Delete everything: the state is rebuilt from the start of the changelog."""
        self.store.clear()
        self.positions = {}
        self.changelog_offset = 0
        self.marked = False
        self.is_stale = False
        self.is_of_another = False
        self._repairs = {}
        self.forget()

    def close(self) -> None:
        self.store.close()
