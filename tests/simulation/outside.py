"""Disks that lose what wasn't synced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from streamproc.tables.stores import MemoryStore, Meta

Write = tuple[Sequence[bytes], Sequence[bytes | None], Meta]


class Disk:
    """What a machine has of its stores, by table and partition."""

    def __init__(self) -> None:
        self.writes: dict[tuple[str, int], list[Write]] = {}
        #: How many of them would outlive a loss of power.
        self.synced: dict[tuple[str, int], int] = {}

    def lose_power(self, rng: Any) -> None:
        """Lose writes that weren't synced: the last ones of each store."""
        for place, writes in self.writes.items():
            del writes[rng.randint(self.synced.get(place, 0), len(writes)) :]


class SimStore(MemoryStore):
    """A store on a disk; before and after each write the worker may crash."""

    def __init__(self, disk: Disk, place: tuple[str, int], connection: Any) -> None:
        super().__init__()
        self._disk, self._place, self._connection = disk, place, connection
        for write in disk.writes.setdefault(place, []):
            super().write(*write)

    def write(self, keys: Sequence[bytes], values: Sequence[bytes | None], meta: Meta) -> None:
        self._connection.step("store")
        # The state goes on changing what it gave.
        meta = msgspec.json.decode(msgspec.json.encode(meta), type=Meta)
        writes = self._disk.writes[self._place]
        writes.append((list(keys), list(values), meta))
        if self._connection.world.happens(0.3):
            self._disk.synced[self._place] = len(writes)
        self._connection.world.trace("store", *self._place, len(keys))
        super().write(keys, values, meta)
        self._connection.step("stored")

    def clear(self) -> None:
        self._disk.writes[self._place] = []
        self._disk.synced.pop(self._place, None)
        super().clear()
