"""What a transactional sink keeps of each source partition, whatever its server is.

The server has, for each sink, source topic and partition, a *fence*: who claimed the
partition last (``owner``), the number of the last write, and for each reader the offset up to
which the results are there. A write is atomic and goes: look at the fence, and then write
results and fence, unless the fence was changed since the look. A :class:`Share` knows what
follows from what was seen.
"""

from __future__ import annotations

import abc
import asyncio
import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from typing_extensions import Self

from streamproc.errors import Fenced, SinkError
from streamproc.tables.place import Place


class Collector(Protocol):
    """Collects values and turns them into what is written.

    Attributes:
        count: Values collected.
        size: About their bytes.
    """

    count: int
    size: int

    def add(self, run: Any) -> list[SinkError]:
        """Collect the values of a run; return what was wrong with those that don't fit."""

    def take_alone(self) -> list[Any]:
        """Return what is to be written, and start afresh."""

    def fresh(self) -> Self:
        """Return a collector of the same kind with nothing in it."""


class Write:
    """The results of a partition in one checkpoint, and the offsets that they go up to."""

    def __init__(self, commands: list[Any], values: int, positions: Mapping[str, int]) -> None:
        self.commands = commands
        self.values = values
        self.positions = positions


class Fence(NamedTuple):
    """What the server has of a partition of a topic."""

    owner: str | None = None
    number: int = 0
    positions: Mapping[str, int] = {}


def new_owner() -> str:
    """Return what this process is called as an owner, unlike any other."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(6)}"


def topic_of(reader: str) -> str:
    """Return the topic of a reader ("topic@agent")."""
    return reader.partition("@")[0]


class Share:
    """The results of one source partition, on their way from the agent to the server.

    Attributes:
        partition: Its number, the same for all topics that it is read of.
        positions: By reader, the offset up to which the server has the results.
        collected: What came since the last cut.
        under_way: The write that was begun and isn't known to be applied.
        fences: By topic, the key of its fence.
        numbers: By fence, the number of the last write.
    """

    def __init__(self, partition: int, owner: str, prototype: Collector) -> None:
        self.partition = partition
        self.owner = owner
        self.positions: dict[str, int] = {}
        self.under_way: Write | None = None
        self.fences: dict[str, str] = {}
        self.numbers: dict[str, int] = {}
        self._prototype = prototype
        self.collected = prototype.fresh()
        self._cuts: list[Collector] = []

    def __repr__(self) -> str:
        return f"<Share of partition {self.partition}, fences {sorted(self.numbers)}>"

    @property
    def count(self) -> int:
        """Values that wait."""
        waiting = sum(each.count for each in self._cuts) + self.collected.count
        return waiting + (self.under_way.values if self.under_way else 0)

    @property
    def size(self) -> int:
        """About the bytes of what wasn't begun to be written."""
        return sum(each.size for each in self._cuts) + self.collected.size

    def on_claimed(self, fences: Mapping[str, tuple[str, Fence]]) -> None:
        """Take note of the fences, by topic, as the claim found them, with their keys.

        Records are read again from the last checkpoint, so what was not begun to be written
        is dropped. A write that was begun stays, unless it is applied or others had the
        partition since.
        """
        self.discard()
        found = dict(fences.values())
        lost = Fence()
        for key, number in self.numbers.items():
            if found.get(key, lost)[:2] != (self.owner, number):
                self.under_way = None
        self.fences = {topic: key for topic, (key, _) in fences.items()}
        self.numbers = {key: fence.number for key, fence in found.items()}
        self.positions = {
            reader: offset for fence in found.values() for reader, offset in fence.positions.items()
        }

    def expected(self) -> dict[str, int]:
        """By reader, the offset that the server has, or will have by what is under way."""
        return {**self.positions, **(self.under_way.positions if self.under_way else {})}

    # -- results

    @property
    def is_cut(self) -> bool:
        """True when something that was cut isn't known to be written."""
        return bool(self._cuts or self.under_way)

    def cut(self) -> None:
        """What was collected until now belongs together."""
        if self.collected.count:
            self._cuts.append(self.collected)
            self.collected = self._prototype.fresh()

    def begin(self, positions: Mapping[str, int]) -> None:
        """Begin the write of what was cut, unless there is nothing new.

        Offsets never go back: while records are read again, the server has later results.
        """
        ours = {
            reader: max(offset, self.positions.get(reader, 0))
            for reader, offset in positions.items()
            if topic_of(reader) in self.fences
        }
        if not self._cuts and all(self.positions.get(r) == offset for r, offset in ours.items()):
            return
        cuts, self._cuts = self._cuts, []
        values = sum(each.count for each in cuts)
        commands = [command for each in cuts for command in each.take_alone()]
        self.under_way = Write(commands, values, ours)

    def discard(self) -> None:
        """Drop what was not begun to be written."""
        self._cuts.clear()
        self.collected = self._prototype.fresh()

    # -- writes

    def is_applied(self, server: str, seen: Sequence[tuple[str | None, int]]) -> bool:
        """Tell whether ``server`` has what is under way, from the owner and number of each fence.

        Raises:
            Fenced: It is not ours to write.
        """
        ahead = set()
        for key, (owner, number) in zip(self.numbers, seen, strict=True):
            if owner is None:
                raise Fenced(
                    f"{server} has lost the claim of partition {self.partition} ({key} is gone): "
                    "it was emptied, restored from an older copy, or makes room by dropping keys"
                )
            if owner != self.owner:
                raise Fenced(f"partition {self.partition} was claimed by {owner!r} since ({key})")
            ahead.add(number - self.numbers[key])
        if ahead == {1}:
            return True
        if ahead == {0}:
            return False
        raise Fenced(
            f"{server} has lost writes of partition {self.partition} ({', '.join(self.numbers)}): "
            "it was restored to an earlier state"
        )

    def on_applied(self) -> Write:
        """Take note that the server has what was under way, and return it."""
        assert self.under_way is not None
        done, self.under_way = self.under_way, None
        self.numbers = {key: number + 1 for key, number in self.numbers.items()}
        self.positions.update(done.positions)
        return done


class ShareWriter(abc.ABC):
    """The shares of a worker, and the order in which they are claimed and written.

    Args:
        new_share: Makes the share of a partition.
        place: Where the results are: the server, without its login, and the sink's name.
    """

    def __init__(self, new_share: Callable[[int], Any], place: tuple[str, str]) -> None:
        self._new_share = new_share
        # Short: offsets keep it, whose metadata has a limit.
        self.results_id = hashlib.sha256(" ".join(place).encode()).hexdigest()[:12]
        self._shares: dict[int, Any] = {}
        self._lock = asyncio.Lock()
        #: Values that the server has.
        self.written = 0
        #: By partition and reader, the offset up to which the server has the results.
        self.claimed: dict[int, dict[str, int]] = {}

    @property
    def pending(self) -> int:
        """Values accepted and not yet written."""
        return sum(share.count for share in self._shares.values())

    @property
    def pending_bytes(self) -> int:
        """About the bytes of what waits for a checkpoint."""
        return sum(share.size for share in self._shares.values())

    @property
    def has_taken(self) -> bool:
        """True when something that was cut isn't written."""
        return any(share.is_cut for share in self._shares.values())

    def accept(self, sink: Any, place: Place | None, run: Any) -> list[SinkError]:
        """Collect the results of the record in hand; return what was wrong with some.

        Raises:
            SinkError: There is no record of a single partition, or nothing was claimed.
            Fenced: The partition isn't this worker's any more.
        """
        name = type(sink).__name__
        if place is None or place.partition < 0:
            raise SinkError(
                f"{name} can't write exactly once what isn't made of records of one source "
                "partition: write it from an agent with such records in hand, or use a sink that "
                "is not exactly_once"
            )
        if sink.is_replay(place):
            return []
        share = self._shares.get(place.partition)
        if share is None:
            if self.claimed:
                raise Fenced(f"partition {place.partition} isn't this worker's any more")
            raise SinkError(
                f"{sink!r} has claimed no partitions yet: name it as sink= of an agent or in a "
                "flow, so that it is open before records come"
            )
        place.wrote = True
        misfits: list[SinkError] = share.collected.add(run)
        return misfits

    def take(self, left_out: Collection[int]) -> None:
        """Cut: what was collected until now belongs together, but for some partitions."""
        for number, share in self._shares.items():
            if number not in left_out:
                share.cut()

    def discard(self) -> None:
        """Drop what isn't written, but for a write that was begun.

        Nobody knows whether the server has applied that one. It is brought to its end
        before the next one, and counts as done: its results aren't taken twice.
        """
        for share in self._shares.values():
            share.discard()
        self._note_claimed()

    def _note_claimed(self) -> None:
        self.claimed = {number: share.expected() for number, share in self._shares.items()}

    async def claim(self, partitions: Iterable[Any]) -> dict[int, dict[str, int]]:
        """Own the partitions (TPs) from now on, and no others."""
        topics: dict[int, list[str]] = {}
        for tp in sorted(partitions):
            topics.setdefault(tp.partition, []).append(tp.topic)
        async with self._lock:
            shares = {
                number: self._shares.get(number) or self._new_share(number) for number in topics
            }
            await self._claim_all([(share, topics[number]) for number, share in shares.items()])
            self._shares = shares
            self._note_claimed()
            return self.claimed

    async def commit(self, positions: Mapping[int, Mapping[str, int]]) -> None:
        """Write what was cut of these partitions, with the positions that it goes up to.

        Raises:
            Fenced: A partition was claimed by another worker since, or the server has lost
                the claim or writes.
            SinkError: The server refuses.
        """
        async with self._lock:
            shares = [share for number, share in self._shares.items() if number in positions]
            await self._settle(shares)  # left by a commit that was cancelled
            for share in shares:
                share.begin(positions[share.partition])
            await self._settle(shares)

    async def _settle(self, shares: list[Any]) -> None:
        """Bring what is under way to its end."""
        begun = [share for share in shares if share.under_way]
        try:
            if begun:
                await self._write_all(begun)
        finally:
            self._note_claimed()

    @abc.abstractmethod
    async def _claim_all(self, shares: list[tuple[Any, list[str]]]) -> None:
        """Claim shares of these topics, and tell them what was found; wait for the server."""

    @abc.abstractmethod
    async def _write_all(self, shares: list[Any]) -> None:
        """Write what is under way; wait for the server."""
