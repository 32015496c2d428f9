"""Exactly once: results and source offsets go to Redis in one atomic write.

What is said to the server, and why it is safe, is in :mod:`streamproc.sinks.redis.fence`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from redis.crc import key_slot
from redis.exceptions import ResponseError

from streamproc.errors import SinkError, SinkUnavailable
from streamproc.sinks.redis.commands import Commands, keys_of
from streamproc.sinks.redis.failures import Failures, explain
from streamproc.sinks.redis.fence import Share, fence_of, hash_tag
from streamproc.sinks.redis.link import Channel, Link, is_passing
from streamproc.sinks.redis.resp import Command, TransactionReplies, encode
from streamproc.sinks.redis.templates import Template
from streamproc.sinks.shares import ShareWriter, Write, new_owner

log = logging.getLogger(__name__)

T = TypeVar("T")

_ABORTED = "EXECABORT Transaction discarded because of: "


class ExactWriter(ShareWriter):
    """Keeps the results of each source partition apart, and writes them with the offsets.

    On a single server the partitions of a checkpoint share a transaction; on a cluster each
    has its own, on the node of its slot.

    Args:
        sink: Whose results they are.
        link: The server.
        prototype: Makes commands of values; stays empty.
        prefix: What its fences are called, but for topic and partition: app and sink.
    """

    def __init__(
        self, sink: object, link: Link, prototype: Commands, *, prefix: tuple[str, str]
    ) -> None:
        new_share = partial(Share, owner=new_owner(), prototype=prototype)
        super().__init__(new_share, (link.url, prefix[1]))
        self._sink = sink
        self._link = link
        self._app_id, self._name = prefix
        self._nodes = link.nodes()
        self.failures = Failures()

    async def close(self) -> None:
        """Release connections."""
        await self._nodes.close()

    def _fence(self, topic: str, partition: int) -> str:
        return f"streamproc:{hash_tag(partition)}:{self._app_id}:{topic}:{self._name}"

    async def _persist(self, request: Callable[[], Awaitable[None]]) -> None:
        await self._link.persist(self._sink, request, lambda: self.pending)

    async def _claim_all(self, shares: list[tuple[Share, list[str]]]) -> None:
        claims = [
            (share, {topic: self._fence(topic, share.partition) for topic in topics})
            for share, topics in shares
        ]
        for group in self._groups(claims):
            await self._persist(partial(self._claim, group))

    async def _write_all(self, shares: list[Share]) -> None:
        for group in self._groups(shares):
            for share in group:
                if self._nodes.is_cluster and share.under_way:
                    self._drop_misplaced(share, share.under_way)
            await self._persist(partial(self._attempt, group))

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
        fence = dict(zip(keys, map(fence_of, found), strict=True))
        for share, fences in claims:
            share.on_claimed({topic: (key, fence[key]) for topic, key in fences.items()})

    async def _attempt(self, group: list[Share]) -> None:
        async with self._nodes.of(next(iter(group[0].numbers))) as channel:
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
            if share.is_there(replies[:count]):
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
