"""A Redis that fails before or after it has done what it was asked, and a sink that uses it.

The sink is the real one, from its options to its transactions; only the connection is not.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from streamproc.sinks import RedisList
from streamproc.sinks.redis.link import Link, NodeChannels
from streamproc.sinks.redis.resp import Command, TransactionReplies

URL = "redis://simulated"


class Server:
    """What a Redis has, and the few commands that the sink needs."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.hashes: dict[str, dict[str, str]] = {}
        self.lists: dict[str, list[str]] = {}
        #: How often each key was changed.
        self.changes: dict[str, int] = {}
        #: Ids of results that a restore has lost.
        self.lost: set[int] = set()
        self._copy: Any = ({}, {})

    def run(self, command: Command) -> Any:
        """Run a command; return what a client makes of the reply."""
        name, key, *rest = map(_text, command)
        if name == "HGETALL":
            pairs = self.hashes.get(key, {}).items()
            return [text.encode() for pair in pairs for text in pair]
        if name == "HMGET":
            found = map(self.hashes.get(key, {}).get, rest)
            return [text if text is None else text.encode() for text in found]
        self.changes[key] = self.changes.get(key, 0) + 1
        if name == "RPUSH":
            self.world.trace("sink", key, *rest)
            self.lists.setdefault(key, []).extend(rest)
        elif name == "HSET":
            fields = dict(zip(rest[::2], rest[1::2], strict=True))
            self.hashes.setdefault(key, {}).update(fields)
            if "owner" in fields:
                self.world.trace("claim", key)
        elif name == "HINCRBY":
            fields = self.hashes.setdefault(key, {})
            fields[rest[0]] = str(int(fields.get(rest[0], 0)) + int(rest[1]))
        else:
            raise NotImplementedError(name)
        return None

    def results(self, partition: int) -> list[tuple[int, int]]:
        """Return the results of a partition: ids and totals."""
        found = map(json.loads, self.lists.get(f"results:{partition}", []))
        return [(each["id"], each["total"]) for each in found]

    def keep_copy(self) -> None:
        """Keep a copy, as a backup does."""
        self._copy = copy.deepcopy((self.hashes, self.lists))

    def restore(self) -> None:
        """Go back to the copy."""
        if self.world.is_over:
            return
        self.world.trace("restore")
        had = self._ids()
        self.hashes, self.lists = copy.deepcopy(self._copy)
        self.lost |= had - self._ids()
        for key in self.changes:
            self.changes[key] += 1

    def _ids(self) -> set[int]:
        return {json.loads(each)["id"] for texts in self.lists.values() for each in texts}


def _text(part: Any) -> str:
    return part.decode() if isinstance(part, bytes) else str(part)


class SimChannel:
    """A connection to the server; each request may fail, before or after it has its effect."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._watched: dict[str, int] = {}

    async def _exchange(self, act: Callable[[], Any]) -> Any:
        connection, world = self._connection, self._connection.world
        await connection.wait()
        connection.step("sink")
        if world.happens(0.03):
            self._watched = {}
            raise RedisConnectionError("lost before")
        result = act()
        await connection.wait()
        if world.happens(0.03):
            self._watched = {}
            raise RedisConnectionError("lost after")
        return result

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        return await self._exchange(lambda: [self._run(command) for command in commands])

    def _run(self, command: Command) -> Any:
        server = self._connection.world.server
        if command[0] == "WATCH":
            self._watched.update(
                {_text(key): server.changes.get(key, 0) for key in map(_text, command[1:])}
            )
        elif command[0] == "UNWATCH":
            self._watched = {}
        else:
            return server.run(command)
        return None

    async def transact(self, commands: Sequence[Command]) -> TransactionReplies:
        world = self._connection.world
        watched, self._watched = self._watched, {}

        def execute() -> TransactionReplies:
            replies = TransactionReplies(len(commands))
            changes = world.server.changes
            replies.applied = all(changes.get(key, 0) == at for key, at in watched.items())
            if replies.applied:
                for command in commands:
                    world.server.run(command)
            return replies

        if world.happens(0.02):
            # It was given up, and is applied yet.
            world.later(world.rng.random() * 3, execute)
            raise RedisConnectionError("given up")
        return await self._exchange(execute)


class SimNodes(NodeChannels):
    """The only node."""

    def __init__(self, connection: Any) -> None:
        super().__init__(None, is_cluster=False, timeout=1.0)
        self._connection_of_life = connection
        self._channel: SimChannel | None = None

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[Any]:
        channel = self._channel = self._channel or SimChannel(self._connection_of_life)
        try:
            yield channel
        except BaseException:
            self._channel = None
            raise


class SimLink(Link):
    """The real link, with its retries, over the simulated server."""

    def __init__(self, connection: Any) -> None:
        self._connection_of_life = connection
        super().__init__(URL, cluster=False, timeout=1.0)

    def _new_client(self, url: str) -> Any:
        return None

    def nodes(self) -> NodeChannels:
        return SimNodes(self._connection_of_life)


class SimSink(RedisList):
    """The sink of the simulated app: results of each source partition in a list."""

    def __init__(self) -> None:
        super().__init__("results:{partition}", exactly_once=True)

    async def open(self, app: Any) -> None:
        self._app = app
        self._exact = None
        self._link = SimLink(app.transport.connection)
        self._open_exactly(app, URL, self._link)
        self._ready = True

    async def close(self) -> None:
        self._link = self._exact = None
