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
        state = self.state
        state.store.write(self.keys, self.values, _meta(self.position, changelog_offset))
        state.changelog_offset = changelog_offset
        state.on_written()


def _meta(position: Position, changelog_offset: int) -> Meta:
    return Meta(position.positions, position.extra, changelog_offset, time.time(), position.format)


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
        #: Keys whose changelog record is of a flush that never ended; written again.
        self._repairs: dict[bytes, None] = {}

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

    # -- checkpoint

    def flush(self, positions: dict[str, int]) -> Flush | None:
        """Take what a checkpoint has to write; None if there's nothing new.

        Args:
            positions: How far each reader is.
        """
        merged = {**self.positions, **positions}
        if not (self.is_dirty or self._repairs or merged != self.positions):
            return None
        self.positions = merged
        keys, values = self.take_dirty()
        if self._repairs:
            repairs = [key for key in self._repairs if key not in set(keys)]
            self._repairs = {}
            keys, values = keys + repairs, values + self.store.get_many(repairs)
        return Flush(self, keys, values, Position(merged, self.extra(), self.format))

    # -- recovery

    def apply(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes | None],
        position: Position,
        changelog_offset: int,
    ) -> None:
        """Write entries that were read from the changelog."""
        self.store.write(keys, values, _meta(position, changelog_offset))
        self.positions = dict(position.positions)
        self.changelog_offset = changelog_offset
        self.on_applied(keys)

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
        self.forget()

    def close(self) -> None:
        self.store.close()
