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

from collections.abc import Sequence
from typing import Any

from streamproc.sinks import shares
from streamproc.sinks.redis.resp import Command
from streamproc.sinks.shares import Fence, topic_of

OWNER, EPOCH, WRITE = "owner", "epoch", "write"


def hash_tag(partition: int) -> str:
    """Return the hash tag that keeps a partition's keys in one slot of a Redis Cluster."""
    return f"{{p{partition}}}"


def fence_of(reply: Sequence[bytes]) -> Fence:
    """Read what HGETALL gives of a fence."""
    texts = [text.decode() for text in reply]
    fields = dict(zip(texts[::2], texts[1::2], strict=True))
    positions = {name: int(value) for name, value in fields.items() if "@" in name}
    return Fence(fields.get(OWNER), int(fields.get(WRITE, 0)), positions)


class Share(shares.Share):
    """The results of one source partition, on their way from the agent to Redis."""

    def claim(self, fence: str) -> list[Command]:
        """Return the commands that make a partition ours, to be run if nobody else did since."""
        return [("HINCRBY", fence, EPOCH, 1), ("HSET", fence, OWNER, self.owner)]

    def look(self) -> list[Command]:
        """Return the commands that ask for the state of the fences."""
        asked: list[Command] = [("WATCH", *self.numbers)]
        return asked + [("HMGET", key, OWNER, WRITE) for key in self.numbers]

    def is_there(self, replies: Sequence[Any]) -> bool:
        """Tell from the replies to :meth:`look` whether Redis has what is under way.

        Raises:
            Fenced: It is not ours to write.
        """
        seen = [(owner and owner.decode(), int(number or 0)) for owner, number in replies[1:]]
        return self.is_applied("Redis", seen)

    def offsets(self) -> list[Command]:
        """Return the commands that note the write that is under way in the fences."""
        assert self.under_way is not None
        noted = []
        for topic, key in self.fences.items():
            command: list[Any] = ["HSET", key, WRITE, self.numbers[key] + 1]
            for reader, offset in self.under_way.positions.items():
                if topic_of(reader) == topic:
                    command += (reader, offset)
            noted.append(tuple(command))
        return noted
