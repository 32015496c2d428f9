"""The fence: what Redis knows of who writes the results of a source partition, and how far.

For each sink, source topic and partition there is a hash:

- ``owner``: who claimed the partition last; nobody else may write its results,
- ``epoch``: how often it was claimed,
- ``write``: the number of the last write,
- ``topic@agent``, one a reader: the offset up to which the results are there.

A write is one transaction on one connection::

    WATCH fence;  HMGET fence owner write      still ours? written already?
    MULTI;  the results...;  HSET fence write n topic@agent offset;  EXEC

Each attempt begins with looking, so a lost answer needs no guess: the number says
whether the write was applied. EXEC does nothing when the fence was changed since the look,
so a write that was given up can't be applied late, after it was sent again. A claim goes
the same way: one that is late takes nothing from who claimed since.

Here is no connection in sight; :mod:`streamproc.sinks.redis.exact` sends the commands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from streamproc.errors import Fenced
from streamproc.sinks.redis.commands import Commands
from streamproc.sinks.redis.resp import Command

OWNER, EPOCH, WRITE = "owner", "epoch", "write"


def hash_tag(partition: int) -> str:
    """Return the hash tag that keeps a partition's keys in one slot of a Redis Cluster."""
    return f"{{p{partition}}}"


class Write:
    """The results of a partition in one checkpoint, and the offsets that they go up to."""

    def __init__(self, commands: list[Command], values: int, positions: Mapping[str, int]) -> None:
        self.commands = commands
        self.values = values
        self.positions = positions


class Share:
    """The results of one source partition, on their way from the agent to the server.

    Attributes:
        partition: Its number, the same for all topics that it is read of.
        positions: By reader, the offset up to which the server has the results.
        collected: What came since the last cut.
        under_way: The write that was begun and isn't known to be applied.
    """

    def __init__(self, partition: int, owner: str, prototype: Commands) -> None:
        self.partition = partition
        self.positions: dict[str, int] = {}
        self.under_way: Write | None = None
        self._owner = owner
        self._prototype = prototype
        self.collected = prototype.fresh()
        self._cuts: list[Commands] = []
        #: By topic, its fence; by fence, the number of the last write.
        self._fences: dict[str, str] = {}
        self._numbers: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Share of partition {self.partition}, fences {sorted(self._numbers)}>"

    @property
    def fences(self) -> Collection[str]:
        """The keys of its fences."""
        return self._numbers

    @property
    def count(self) -> int:
        """Values that wait."""
        waiting = sum(each.count for each in self._cuts) + self.collected.count
        return waiting + (self.under_way.values if self.under_way else 0)

    @property
    def size(self) -> int:
        """About the bytes of what wasn't begun to be written."""
        return sum(each.size for each in self._cuts) + self.collected.size

    # -- claims

    def claim(self, fence: str) -> list[Command]:
        """Return the commands that make a partition ours, to be run if nobody else did since."""
        return [("HINCRBY", fence, EPOCH, 1), ("HSET", fence, OWNER, self._owner)]

    def on_claimed(self, fences: Mapping[str, tuple[str, Mapping[str, str]]]) -> None:
        """Take note of the fences, by topic, as the claim found them: key and fields.

        Records are read again from the last checkpoint, so what was not begun to be written
        is dropped. A write that was begun stays, unless it is applied or others had the
        partition since.
        """
        self.discard()
        numbers = {key: int(found.get(WRITE, 0)) for key, found in fences.values()}
        owners = {key: found.get(OWNER) for key, found in fences.values()}
        if any(
            owners.get(key) != self._owner or numbers[key] != number
            for key, number in self._numbers.items()
        ):
            self.under_way = None
        self._fences = {topic: key for topic, (key, _) in fences.items()}
        self._numbers = numbers
        self.positions = {
            name: int(value)
            for _, found in fences.values()
            for name, value in found.items()
            if "@" in name
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
            if reader.partition("@")[0] in self._fences
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

    def look(self) -> list[Command]:
        """Return the commands that ask for the state of the fences."""
        asked: list[Command] = [("WATCH", *self._numbers)]
        return asked + [("HMGET", key, OWNER, WRITE) for key in self._numbers]

    def is_applied(self, replies: Sequence[Any]) -> bool:
        """Tell from the replies to :meth:`look` whether the server has what is under way.

        Raises:
            Fenced: It is not ours to write.
        """
        seen = []
        for key, (owner, number) in zip(self._numbers, replies[1:], strict=True):
            if owner is None:
                raise Fenced(
                    f"Redis has lost the claim of partition {self.partition} ({key} is gone): it "
                    "was emptied, restored from a snapshot, or is set to evict keys"
                )
            if owner.decode() != self._owner:
                raise Fenced(
                    f"partition {self.partition} was claimed by {owner.decode()!r} since ({key})"
                )
            seen.append(int(number or 0) - self._numbers[key])
        if set(seen) == {1}:
            return True
        if set(seen) == {0}:
            return False
        raise Fenced(
            f"Redis has lost writes of partition {self.partition} ({', '.join(self._numbers)}): "
            "it was restored to an earlier state"
        )

    def offsets(self) -> list[Command]:
        """Return the commands that note the write that is under way in the fences."""
        assert self.under_way is not None
        noted = []
        for topic, key in self._fences.items():
            command: list[Any] = ["HSET", key, WRITE, self._numbers[key] + 1]
            for reader, offset in self.under_way.positions.items():
                if reader.partition("@")[0] == topic:
                    command += (reader, offset)
            noted.append(tuple(command))
        return noted

    def on_applied(self) -> Write:
        """Take note that the server has what was under way, and return it."""
        assert self.under_way is not None
        done, self.under_way = self.under_way, None
        self._numbers = {key: number + 1 for key, number in self._numbers.items()}
        self.positions.update(done.positions)
        return done
