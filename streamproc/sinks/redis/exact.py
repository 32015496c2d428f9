"""Exactly once: results and source offsets go to Redis in one atomic write.

What is said to the server, and why it is safe, is in :mod:`streamproc.sinks.redis.fence`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from redis.crc import key_slot
from redis.exceptions import ResponseError

from streamproc.errors import SinkError, SinkUnavailable
from streamproc.sinks.redis.commands import Commands, keys_of
from streamproc.sinks.redis.failures import Failures, explain
from streamproc.sinks.redis.fence import Share, Write, hash_tag
from streamproc.sinks.redis.link import Channel, Link, is_passing
from streamproc.sinks.redis.resp import Command, TransactionReplies, encode
from streamproc.sinks.redis.templates import Template
from streamproc.sinks.redis.values import Run

log = logging.getLogger(__name__)

T = TypeVar("T")

_ABORTED = "EXECABORT Transaction discarded because of: "


class ExactWriter:
    """Keeps the results of each source partition apart, and writes them with the offsets.

    On a single server the partitions of a checkpoint share a transaction; on a cluster each
    has its own, on the node of its slot.

    Args:
        link: The server.
        prototype: Makes commands of values; stays empty.
        prefix: What its fences are called, but for topic and partition: app and sink.
        owner: Who writes: no other process and no other sink is called the same.
    """

    def __init__(
        self, link: Link, prototype: Commands, *, prefix: tuple[str, str], owner: str
    ) -> None:
        self._link = link
        self._prototype = prototype
        self._app_id, self._name = prefix
        self._owner = owner
        self._nodes = link.nodes()
        self._shares: dict[int, Share] = {}
        self._lock = asyncio.Lock()
        self.failures = Failures()
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

    def add(self, partition: int, run: Run) -> list[SinkError]:
        """Collect the results of a partition that is claimed; return those that don't fit."""
        return self._shares[partition].collected.add(run)

    @property
    def has_taken(self) -> bool:
        """True when something that was cut isn't written."""
        return any(share.is_cut for share in self._shares.values())

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

    async def close(self) -> None:
        """Release connections."""
        await self._nodes.close()

    # -- claims

    async def claim(self, who: object, partitions: Collection[Any]) -> dict[int, dict[str, int]]:
        """Own the partitions (TPs) from now on, and no others."""
        topics: dict[int, list[str]] = {}
        for tp in sorted(partitions):
            topics.setdefault(tp.partition, []).append(tp.topic)
        async with self._lock:
            shares = {number: self._shares.get(number) or self._share(number) for number in topics}
            claims = [
                (share, {topic: self._fence(topic, number) for topic in topics[number]})
                for number, share in shares.items()
            ]
            for group in self._groups(claims):
                request = partial(self._claim, group)
                await self._link.persist(who, request, lambda: self.pending)
            self._shares = shares
            self._note_claimed()
            return self.claimed

    def _share(self, partition: int) -> Share:
        return Share(partition, self._owner, self._prototype)

    def _fence(self, topic: str, partition: int) -> str:
        return f"streamproc:{hash_tag(partition)}:{self._app_id}:{topic}:{self._name}"

    def _groups(self, shares: list[T]) -> list[list[T]]:
        """Return what may be in one transaction."""
        if self._nodes.is_cluster:
            return [[each] for each in shares]
        return [shares] if shares else []

    async def _claim(self, claims: list[tuple[Share, dict[str, str]]]) -> None:
        keys = [key for _, fences in claims for key in fences.values()]
        async with self._nodes.of(keys[0]) as channel:
            while True:
                looks: list[Command] = [("HGETALL", key) for key in keys]
                _, *found = await channel.ask([("WATCH", *keys), *looks])
                commands = [
                    command
                    for share, fences in claims
                    for key in fences.values()
                    for command in share.claim(key)
                ]
                replies = await channel.transact(commands)
                if replies.applied:
                    break
                for reason in [*replies.refused.values(), replies.failure]:
                    if reason:
                        raise ResponseError(reason)
        fields = dict(zip(keys, map(_fields, found), strict=True))
        for share, fences in claims:
            share.on_claimed({topic: (key, fields[key]) for topic, key in fences.items()})

    # -- writes

    async def commit(self, who: object, positions: Mapping[int, Mapping[str, int]]) -> None:
        """Write what was cut of these partitions, with the positions that it goes up to.

        Raises:
            Fenced: A partition was claimed by another worker since, or the server has lost
                the claim or writes.
            SinkError: The server refuses.
        """
        async with self._lock:
            shares = [share for number, share in self._shares.items() if number in positions]
            await self._settle(who, shares)  # left by a commit that was cancelled
            for share in shares:
                share.begin(positions[share.partition])
                if self._nodes.is_cluster and share.under_way:
                    self._drop_misplaced(share, share.under_way)
            await self._settle(who, shares)

    async def _settle(self, who: object, shares: list[Share]) -> None:
        """Bring what is under way to its end."""
        begun = [share for share in shares if share.under_way]
        try:
            for group in self._groups(begun):
                request = partial(self._attempt, group)
                await self._link.persist(who, request, lambda: self.pending)
        finally:
            self._note_claimed()

    async def _attempt(self, group: list[Share]) -> None:
        async with self._nodes.of(next(iter(group[0].fences))) as channel:
            while begun := await self._look(channel, group):
                commands: list[Command] = []
                for share, write in begun:
                    commands += [*write.commands, *share.offsets()]
                replies = await channel.transact(commands)
                if replies.applied:
                    for index, error in replies.errors.items():
                        self.failures.add(explain(commands[index], error), commands[index])
                    for share, _ in begun:
                        self.written += share.on_applied().values
                    return
                if replies.refused or replies.failure:
                    self._drop_refused(begun, replies)

    async def _look(self, channel: Channel, group: list[Share]) -> list[tuple[Share, Write]]:
        """Return what the server doesn't have yet of what is under way; watch its fences."""
        begun = [share for share in group if share.under_way]
        commands = [command for share in begun for command in share.look()]
        replies = await channel.ask(commands) if commands else []
        missing = []
        for share in begun:
            count = len(share.fences) + 1
            if share.is_applied(replies[:count]):
                self.written += share.on_applied().values
            elif share.under_way:
                missing.append((share, share.under_way))
            replies = replies[count:]
        if commands and not missing:
            await channel.ask([("UNWATCH",)])
        return missing

    def _drop_misplaced(self, share: Share, write: Write) -> None:
        """Leave out commands on keys of other slots, which no transaction can reach too."""
        tag = hash_tag(share.partition)
        slot = key_slot(tag.encode())
        kept = []
        for command in write.commands:
            keys = () if command[0] == "PUBLISH" else keys_of(command)
            if all(key_slot(encode(key)) == slot for key in keys):
                kept.append(command)
            else:
                self.failures.add(
                    f"{command[0]!s} {keys[0]!r}: on a cluster exactly once needs keys with the "
                    f"hash tag {tag}, from a template such as '{{{{p{{partition}}}}}}:n:{{key}}'",
                    command,
                )
        write.commands = kept

    def _drop_refused(
        self, begun: Sequence[tuple[Share, Write]], replies: TransactionReplies
    ) -> None:
        """Leave out commands that were not accepted: because of them none was run.

        Raises:
            SinkUnavailable: Trying again may help.
            SinkError: What notes the offsets was refused.
        """
        reasons = list(replies.refused.values()) or [replies.failure.removeprefix(_ABORTED)]
        passing = [reason for reason in reasons if is_passing(reason)]
        if passing:
            raise SinkUnavailable(f"Redis at {self._link.url} refuses writes: {passing[0]}")
        index = 0
        dropped = False
        for share, write in begun:
            kept = []
            for command in write.commands:
                if (error := replies.refused.get(index)) is None:
                    kept.append(command)
                else:
                    dropped = True
                    self.failures.add(explain(command, error), command)
                index += 1
            write.commands = kept
            index += len(share.fences)
        if not dropped:
            raise SinkError(
                f"Redis at {self._link.url} refuses the notes of an exactly-once sink: "
                f"{reasons[0]}; the user needs HSET, HMGET, HGETALL, HINCRBY, WATCH, UNWATCH, "
                "MULTI and EXEC on keys streamproc:*"
            )


def _fields(reply: list[bytes]) -> dict[str, str]:
    texts = [text.decode() for text in reply]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def stray_key(commands: Commands) -> Template | None:
    """Return a key that isn't in the slot of its source partition on a Redis Cluster."""
    return next((key for key in commands.key_templates if not key.is_of_partition), None)


async def warn_of_eviction(link: Link) -> None:
    """Warn of a server that may throw the offsets away to make room."""
    if link.is_cluster:
        return
    try:
        memory = await link.client.info("memory")
    except ResponseError:
        return  # not for this user to know
    policy = memory.get("maxmemory_policy", "")
    if memory.get("maxmemory") and policy.startswith("allkeys"):
        log.warning(
            "Redis at %s evicts any key when memory is short (maxmemory-policy %s), the offsets of "
            "exactly-once sinks too; use noeviction or one of the volatile policies",
            link.url,
            policy,
        )
