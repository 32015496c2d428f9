"""One Redis server as seen by all sinks of an app: connections, waiting while it is away.

redis-py connects (URL forms, TLS, authentication, cluster routing). Pipelines of a
single server then go over its connection packed by ``resp``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from redis import exceptions
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streamproc.errors import ConfigurationError, Fenced, SinkError, SinkUnavailable
from streamproc.records.secrets import register_url
from streamproc.sinks.circuit import Circuit
from streamproc.sinks.redis.resp import (
    Command,
    Replies,
    TransactionReplies,
    ValueReplies,
    encode,
    pack,
)
from streamproc.sinks.redis.tls import check_files, tls_fault

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
_READ_BYTES = 1 << 16
#: Commands packed at a time: a long transaction takes longer than a server may be silent.
_PIECE = 2_000

#: Error replies that end by themselves; anything else is refused for good.
_PASSING = (
    "LOADING", "BUSY ", "READONLY", "MASTERDOWN", "OOM", "MISCONF", "NOREPLICAS",
    "TRYAGAIN", "CLUSTERDOWN", "ERR max number of clients",
)  # fmt: skip
#: Error replies about the connection, to every command alike.
_LOGIN = ("NOAUTH", "WRONGPASS")
_CLUSTER = ("MOVED ", "ASK ")
_NO_DATABASE = ("Invalid Database", "DB index is out of range")

#: Codes that redis-py takes off the error replies it has an exception type for.
_CODES = {
    exceptions.ReadOnlyError: "READONLY",
    exceptions.MasterDownError: "MASTERDOWN",  # before ClusterDownError, which it is a kind of
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.NoScriptError: "NOSCRIPT",
    exceptions.NoPermissionError: "NOPERM",
}
#: What a connection ends with (asyncio's own TimeoutError is another one before Python 3.11).
_LOST = (OSError, EOFError, asyncio.TimeoutError, RedisConnectionError, RedisTimeoutError)

T = TypeVar("T")


class ConnectionRefused(SinkError):
    """The server answers but not to us: a wrong login, or a cluster taken for one server."""


def is_passing(reply: str) -> bool:
    """Return whether an error reply says that the same command may succeed later."""
    return reply.startswith(_PASSING)


def reply_of(error: Exception) -> str:
    """Return the server's error reply that redis-py made ``error`` of, with its code again."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), "")
    return f"{code} {error}".lstrip()


def shown_url(url: str) -> str:
    """Return ``url`` without user, password and options, fit for logs and errors."""
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{scheme}://..."
    if "@" in url and "@" not in parts.netloc:
        # A login with an unescaped "/", "?" or "#": any part may be the password's.
        return f"{scheme}://..."
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def refused(url: str, reason: str) -> ConnectionRefused:
    """Say what to do about a server that does not take our commands at all."""
    if reason.startswith(_CLUSTER):
        return ConnectionRefused(
            f"Redis at {url} is a cluster ({reason}); use redis+cluster:// in the URL, "
            "or cluster=True"
        )
    if fault := tls_fault(reason):
        return ConnectionRefused(f"Redis at {url} {fault.problem} ({reason}); {fault.advice}")
    if reason.startswith(_NO_DATABASE):
        return ConnectionRefused(
            f"Redis at {url} has no such database; the number at the end of the URL must be "
            "below the server's `databases` (16 unless set)"
        )
    return ConnectionRefused(
        f"Redis at {url} refused the login ({reason}); set redis_username and redis_password "
        "(STREAMPROC_REDIS_USERNAME, STREAMPROC_REDIS_PASSWORD), or put both into the URL, "
        "redis://user:password@host:port/0 (from the environment, not from the code)"
    )


class Link:
    """What all sinks of an app share for one Redis URL.

    ``state`` is "connected" or "away"; ``retries`` counts attempts that had to be repeated;
    ``circuit`` spares a server that keeps failing.
    """

    def __init__(self, url: str, *, cluster: bool, timeout: float) -> None:
        register_url(url)
        self.url = shown_url(url)
        self.retries = 0
        self.circuit = Circuit(f"Redis at {self.url}")
        self._timeout = timeout
        self.is_cluster = cluster or url.startswith(("redis+cluster://", "rediss+cluster://"))
        self._away: set[object] = set()
        self._away_since = 0.0
        self.client: Any = self._new_client(url)

    def __repr__(self) -> str:
        return f"<Link {self.url} {self.state}>"

    @property
    def state(self) -> str:
        return "away" if self._away else "connected"

    def channel(self) -> Channel | ClusterChannel:
        """Return a way of sending pipelines, in order, for one sink."""
        if self.is_cluster:
            return ClusterChannel(self.client)
        return Channel(self.client.connection_pool.make_connection(), self._timeout)

    def nodes(self) -> NodeChannels:
        """Return a way of sending to the node that has a key, for one sink."""
        return NodeChannels(self.client, is_cluster=self.is_cluster, timeout=self._timeout)

    async def attempt(self, request: Callable[[], Awaitable[T]]) -> T:
        """Run ``request`` once; raise :class:`SinkUnavailable` or what retrying can't mend."""
        try:
            return await request()
        except (AuthenticationError, AuthorizationError) as error:
            raise refused(self.url, str(error)) from None
        except _LOST as error:
            reason = str(error) or type(error).__name__
            if reason.startswith(_NO_DATABASE) or tls_fault(reason):
                raise refused(self.url, reason) from None
            raise SinkUnavailable(f"Redis at {self.url} is away: {reason}") from error
        except exceptions.RedisClusterException as error:
            raise SinkUnavailable(f"Redis Cluster at {self.url} is away: {error}") from error
        except ResponseError as error:
            reply = reply_of(error)
            if is_passing(reply):
                raise SinkUnavailable(f"Redis at {self.url} is away: {reply}") from error
            if reply.startswith(_LOGIN + _CLUSTER + _NO_DATABASE):
                raise refused(self.url, reply) from None
            raise SinkError(f"Redis at {self.url} refused: {reply}") from error

    async def persist(
        self, who: object, request: Callable[[], Awaitable[T]], waiting: Callable[[], int]
    ) -> T:
        """Run ``request`` again and again, with back-off and jitter, until Redis answers.

        ``who`` is the sink that asks and ``waiting`` the number of its values that wait;
        the first failure and the end of it are logged, once for all sinks of the link.
        """
        circuit = self.circuit
        for attempt in itertools.count():
            try:
                async with circuit.turn():
                    result = await self.attempt(request)
            except SinkUnavailable as error:
                self.retries += 1
                if attempt == 0 and circuit.is_closed:
                    continue  # an idle connection that was closed, most likely: no news yet
                circuit.on_failure()
                self.is_away(who, error, waiting())
            except (SinkError, Fenced):
                circuit.on_success()
                self.forget(who)  # the server answers, if not as hoped
                raise
            else:
                circuit.on_success()
                self.is_back(who, waiting())
                return result
            if circuit.is_closed:
                await asyncio.sleep(circuit.delay)
        raise AssertionError("unreachable")

    def forget(self, who: object) -> None:
        """Take ``who`` off the list of those that are not served."""
        self._away.discard(who)

    def is_away(self, who: object, error: SinkUnavailable, waiting: int) -> None:
        """Note, and log if it is news, that the server does not serve ``who``."""
        if not self._away:
            self._away_since = time.monotonic()
            log.warning("%s; %d values wait", error, waiting)
        self._away.add(who)

    def is_back(self, who: object, waiting: int) -> None:
        """Note, and log if it is news, that the server serves ``who`` again."""
        if who not in self._away:
            return
        self._away.remove(who)
        if not self._away:
            seconds = time.monotonic() - self._away_since
            log.warning(  # as loud as the bad news
                "Redis at %s is back after %.1f s, %d values are being written",
                self.url,
                seconds,
                waiting,
            )

    def _new_client(self, url: str) -> Any:
        options: dict[str, Any] = {
            "protocol": 2,  # what Replies understands; nothing of RESP3 is needed for writes
            "socket_timeout": self._timeout,
            "socket_connect_timeout": CONNECT_TIMEOUT,
        }
        try:
            plain = url.replace("+cluster", "", 1)
            check_files(plain)
            if self.is_cluster:
                return RedisCluster.from_url(plain, **options)
            # Retrying is persist()'s work: it knows what waits and says so.
            return Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        except (ValueError, TypeError, RedisError) as error:
            # What urllib says about a URL may quote a piece of the password.
            reason = "write special characters of the login as %XX" if "@" in url else error
            raise ConfigurationError(
                f"Redis URL {self.url} is not usable ({reason}); it looks like "
                "redis://host:6379/0, rediss:// for TLS, unix:///path or redis+cluster://host:6379"
            ) from None

    async def close(self) -> None:
        """Close the shared client."""
        await self.client.aclose()


class Channel:
    """Pipelines over one connection of its own to a single Redis server."""

    def __init__(self, connection: AbstractConnection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    async def request(self, commands: Sequence[Command]) -> dict[int, str]:
        """Send ``commands`` and read all replies; return the errors by index of the command."""
        replies = Replies(len(commands))
        await self._exchange(commands, replies, lambda: replies.errors)
        return replies.errors

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send ``commands`` and return what they answer; raise the first error among it."""
        replies = ValueReplies(len(commands))
        await self._exchange(commands, replies, lambda: replies.errors)
        for error in replies.errors.values():
            raise ResponseError(error)
        return replies.values

    async def transact(self, commands: Sequence[Command]) -> TransactionReplies:
        """Run ``commands`` between MULTI and EXEC."""
        replies = TransactionReplies(len(commands))
        await self._exchange((("MULTI",), *commands, ("EXEC",)), replies, lambda: replies.refused)
        return replies

    async def _exchange(
        self,
        commands: Sequence[Command],
        replies: Replies | TransactionReplies,
        errors: Callable[[], dict[int, str]],
    ) -> None:
        connection = self._connection
        if not connection.is_connected:
            await connection.connect()  # type: ignore[no-untyped-call]
        # The streams under redis-py's connection (checked with 5.2 to 8.1; a test holds them):
        # read_response() costs 5 µs a reply, and all that is wanted is whether it is an error.
        reader, writer = connection._reader, connection._writer
        assert reader is not None
        assert writer is not None
        try:
            for begin in range(0, len(commands), _PIECE):
                if writer.is_closing():  # uvloop's raises a RuntimeError then
                    raise RedisConnectionError("the connection was lost")
                writer.write(pack(commands[begin : begin + _PIECE]))
                await asyncio.wait_for(writer.drain(), self._timeout)
            while not replies.complete:
                data = await asyncio.wait_for(reader.read(_READ_BYTES), self._timeout)
                if not data:
                    raise RedisConnectionError("the server closed the connection")
                replies.feed(data)
            for reply in errors().values():
                if reply.startswith(_LOGIN + _CLUSTER):
                    raise ResponseError(reply)
        except BaseException:
            # Replies still under way would be taken for those of the next request, and
            # commands still in the buffer would overtake those that are sent again.
            writer.transport.abort()
            await connection.disconnect(nowait=True)
            raise

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)


class ClusterChannel:
    """Pipelines through redis-py's cluster client, which knows which node has which key."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def request(self, commands: Sequence[Command]) -> dict[int, str]:
        """Send ``commands`` to their nodes; return the errors by index of the command."""
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(command[0], *map(encode, command[1:]))
        replies = await pipeline.execute(raise_on_error=False)
        failed = {i: reply for i, reply in enumerate(replies) if isinstance(reply, Exception)}
        for error in failed.values():
            if isinstance(error, (RedisConnectionError, RedisTimeoutError)):
                raise error
        return {index: reply_of(error) for index, error in failed.items()}

    async def close(self) -> None:
        """Nothing of its own to close."""


class NodeChannels:
    """A connection to each node of a cluster, or the one to a single server.

    Unlike a pipeline of redis-py's cluster client, what goes over one is a conversation with
    one node: it can watch keys.
    """

    def __init__(self, client: Any, *, is_cluster: bool, timeout: float) -> None:
        self.is_cluster = is_cluster
        self._client = client
        self._timeout = timeout
        self._channels: dict[str, Channel] = {}
        #: Whether it is known which node has which key.
        self._knows = False

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[Channel]:
        """Give the connection to the node of ``key``; closed when its use fails."""
        node = await self._node(key) if self.is_cluster else None
        name = node.name if node else ""
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel(self._connection(node), self._timeout)
        try:
            yield channel
        except BaseException as error:
            self._knows = False
            await channel.close()
            moved = isinstance(error, ResponseError) and str(error).startswith(_CLUSTER)
            if self.is_cluster and moved:
                raise RedisConnectionError(f"its keys are moving: {error}") from error
            raise

    async def _node(self, key: str) -> Any:
        if not self._knows:
            # The client follows the slots to where they are now.
            await self._client.exists(key)
            self._knows = True
        return self._client.get_node_from_key(key)

    def _connection(self, node: Any) -> Any:
        if node is None:
            return self._client.connection_pool.make_connection()
        # Checked with redis-py 5.2 to 8.1; a test holds it.
        options = {**node.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        return node.connection_class(**options)

    async def close(self) -> None:
        """Disconnect."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


_links: dict[tuple[Any, ...], tuple[Link, Any, list[object]]] = {}


def share_link(who: object, app: Any, url: str, *, cluster: bool, timeout: float) -> Link:
    """Return the link of ``app`` to ``url``, made at the first call."""
    place = (id(app), asyncio.get_running_loop(), url, cluster, timeout)
    if place not in _links:
        # The app is kept so that its id stays its own.
        _links[place] = (Link(url, cluster=cluster, timeout=timeout), app, [])
    link, _, users = _links[place]
    users.append(who)
    return link


#: Which sink of an app has a name, by app and URL.
_names: dict[tuple[int, str, str], object] = {}


def reserve_name(who: object, app: Any, url: str, name: str) -> None:
    """Let nobody else of ``app`` have ``name`` at ``url``, until the link is released."""
    if _names.setdefault((id(app), url, name), who) is not who:
        raise ConfigurationError(
            f"two exactly-once sinks of the app are called {name!r}, so Redis couldn't tell the "
            'offsets of one from those of the other; give each a name of its own: name="...", the '
            "same at every start"
        )


async def release_link(who: object, link: Link) -> None:
    """Give up the use of a link and of a name; the last one closes it."""
    for reserved in [key for key, owner in _names.items() if owner is who]:
        del _names[reserved]
    for place, (shared, _, users) in list(_links.items()):
        if shared is link and who in users:
            users.remove(who)
            link.forget(who)
            if not users:
                del _links[place]
                await link.close()
