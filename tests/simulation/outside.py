"""Disks that lose what wasn't synced, and a sink with its server."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from streamproc.errors import Fenced, SinkError
from streamproc.sinks.base import TransactionalSink
from streamproc.tables.place import current_place
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
    """A store on a disk; each write is a point where the worker may crash."""

    def __init__(self, disk: Disk, place: tuple[str, int], connection: Any) -> None:
        super().__init__()
        self._disk, self._place, self._connection = disk, place, connection
        for write in disk.writes.setdefault(place, []):
            super().write(*write)

    def write(self, keys: Sequence[bytes], values: Sequence[bytes | None], meta: Meta) -> None:
        self._connection.point("store")
        # The state goes on changing what it gave.
        meta = msgspec.json.decode(msgspec.json.encode(meta), type=Meta)
        writes = self._disk.writes[self._place]
        writes.append((list(keys), list(values), meta))
        if self._connection.world.happens(0.3):
            self._disk.synced[self._place] = len(writes)
        super().write(keys, values, meta)

    def clear(self) -> None:
        self._disk.writes[self._place] = []
        self._disk.synced.pop(self._place, None)
        super().clear()


class Results:
    """What a sink's server has of one source partition."""

    def __init__(self) -> None:
        self.owner = 0
        self.commits = 0
        self.positions: dict[str, int] = {}
        self.values: list[Any] = []

    def copy(self) -> Results:
        twin = Results()
        twin.owner, twin.commits = self.owner, self.commits
        twin.positions, twin.values = dict(self.positions), list(self.values)
        return twin


class Server:
    """The server of a transactional sink; its requests are atomic for each partition."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.partitions: dict[int, Results] = {}
        #: Ids of values that a restore has lost.
        self.lost: set[int] = set()
        self._copy: dict[int, Results] = {}
        self._owners = 0

    def keep_copy(self) -> None:
        """Keep a copy, as a backup does."""
        self._copy = {part: results.copy() for part, results in self.partitions.items()}

    def restore(self) -> None:
        """Go back to the copy."""
        if self.world.is_over:
            return
        self.world.trace("restore")
        had = self._ids()
        self.partitions = {part: results.copy() for part, results in self._copy.items()}
        self.lost |= had - self._ids()

    def _ids(self) -> set[int]:
        return {value[0] for results in self.partitions.values() for value in results.values}

    def claim(self, partition: int) -> tuple[int, dict[str, int]]:
        """Make the caller the owner; return the token that proves it, and the positions."""
        results = self.partitions.setdefault(partition, Results())
        self._owners += 1
        results.owner, results.commits = self._owners, 0
        self.world.trace("claim", partition, results.owner)
        return results.owner, dict(results.positions)

    def commit(
        self,
        partition: int,
        owner: int,
        number: int,
        values: Sequence[Any],
        positions: Mapping[str, int],
    ) -> None:
        """Add values and set positions at once; the same ``number`` again is no news.

        Raises:
            Fenced: Somebody else has claimed the partition.
        """
        results = self.partitions.get(partition)
        if results is None or results.owner != owner:
            raise Fenced(f"Partition {partition} was claimed by another worker")
        if number == results.commits:
            return
        results.commits = number
        results.values += values
        results.positions.update(positions)
        self.world.trace("sink", partition, owner, *values)


class SimSink(TransactionalSink):
    """A sink over the server; an example of what the contract asks for."""

    is_full = False

    def __init__(self) -> None:
        self.connection: Any = None
        self._reset()

    def _reset(self) -> None:
        self.claimed: dict[int, dict[str, int]] = {}
        self._owners: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._written: dict[int, list[Any]] = {}
        self._taken: dict[int, list[Any]] = {}

    async def open(self, app: Any) -> None:
        self.connection = app.transport.connection
        self._reset()

    async def write(self, values: Sequence[Any]) -> None:
        place = current_place.get()
        if place is None or place.partition < 0:
            raise SinkError("Results of no single partition")
        if not self.is_replay(place):
            self._written.setdefault(place.partition, []).extend(values)
            place.wrote = True

    async def flush(self) -> None:
        """The checkpoint commits it."""

    async def check(self) -> str:
        return "it answers"

    async def claim(self, partitions: Collection[Any]) -> Mapping[int, Mapping[str, int]]:
        self._reset()
        for partition in sorted({tp.partition for tp in partitions}):
            await self.connection.wait()
            self.connection.point("claim")
            owner, positions = self.connection.world.server.claim(partition)
            await self.connection.wait()
            self._owners[partition], self.claimed[partition] = owner, positions
        return self.claimed

    @property
    def has_taken(self) -> bool:
        return any(self._taken.values())

    def take(self, left_out: Collection[int] = ()) -> None:
        for partition in list(self._written):
            if partition not in left_out:
                values = self._written.pop(partition)
                self._taken.setdefault(partition, []).extend(values)

    async def commit(self, positions: Mapping[int, Mapping[str, int]]) -> None:
        for partition in sorted(self._owners):
            values, known = self._taken.get(partition, []), positions.get(partition, {})
            claimed = self.claimed[partition]
            ahead = {name: at for name, at in known.items() if at > claimed.get(name, 0)}
            if values or ahead:
                await self._commit(partition, values, ahead)
            self._taken.pop(partition, None)

    async def _commit(self, partition: int, values: list[Any], ahead: dict[str, int]) -> None:
        world = self.connection.world
        number = self._numbers.get(partition, 0) + 1
        while True:
            # It fails before or after the server has done it, and is tried again.
            await self.connection.wait()
            self.connection.point("sink")
            if not world.happens(0.05):
                owner = self._owners[partition]
                world.server.commit(partition, owner, number, values, ahead)
                await self.connection.wait()
                if not world.happens(0.05):
                    break
        self._numbers[partition] = number
        self.claimed[partition] = {**self.claimed[partition], **ahead}

    def discard(self) -> None:
        self._written.clear()
        self._taken.clear()
