"""The Redis sinks, one class for each kind of value in Redis.

In all of them ``key`` (and ``member``, ``field``, ``channel``) is a template such as
``"stats:{sensor_id}"``, while ``value``, ``amount``, ``score``, ``timestamp``, ``fields`` and
``args`` name fields of the value. ``ttl`` is in seconds (or a timedelta). A value None
with a key (a tombstone) deletes the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from streamproc.errors import ConfigurationError
from streamproc.sinks.redis.collection_commands import (
    HashCommands,
    ListCommands,
    MemberCommands,
    SortedSetCommands,
    StreamCommands,
)
from streamproc.sinks.redis.resp import Command
from streamproc.sinks.redis.sink import RedisOptions, RedisSink
from streamproc.sinks.redis.value_commands import (
    CounterCommands,
    JSONCommands,
    PublishCommands,
    ScriptCommands,
    StringCommands,
    TimeSeriesCommands,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RedisString(RedisSink):
    """SET: the whole value (Records and dicts as JSON), or the field named by ``value``.

    ``nx`` writes only keys that don't exist; ``keepttl`` keeps a key's time to live.
    """

    def __init__(
        self,
        key: str,
        *,
        value: str | None = None,
        ttl: float | timedelta | None = None,
        nx: bool = False,
        keepttl: bool = False,
        **options: Unpack[RedisOptions],
    ) -> None:
        commands = StringCommands(key, value=value, ttl=ttl, nx=nx, keepttl=keepttl)
        super().__init__(commands, **options)


class RedisHash(RedisSink):
    """HSET of a value's fields (all, or those in ``fields``); a field that is None is removed.

    With ``field`` (a template) each value becomes one field of the hash: its name from the
    template, its data the field named by ``value``, or the whole value.
    """

    def __init__(
        self,
        key: str,
        *,
        fields: Sequence[str] | None = None,
        field: str | None = None,
        value: str | None = None,
        ttl: float | timedelta | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        commands = HashCommands(key, fields=fields, field=field, value=value, ttl=ttl)
        super().__init__(commands, **options)


class RedisCounter(RedisSink):
    """INCRBY (HINCRBY with ``field``) of ``amount``: a number or the name of a field.

    Amounts are summed before they are sent; sums of floats use the FLOAT commands. After a
    lost connection a sum may be added twice (at least once).
    """

    def __init__(
        self,
        key: str,
        *,
        amount: str | float = 1,
        field: str | None = None,
        ttl: float | timedelta | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        super().__init__(CounterCommands(key, amount=amount, field=field, ttl=ttl), **options)


class RedisList(RedisSink):
    """RPUSH (LPUSH with ``left``), cut to the newest ``max_length`` by LTRIM."""

    def __init__(
        self,
        key: str,
        *,
        value: str | None = None,
        left: bool = False,
        max_length: int | None = None,
        ttl: float | timedelta | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        commands = ListCommands(key, value=value, left=left, max_length=max_length, ttl=ttl)
        super().__init__(commands, **options)


class RedisSet(RedisSink):
    """SADD of ``member`` (a template; default: the whole value)."""

    def __init__(
        self,
        key: str,
        *,
        member: str | None = None,
        ttl: float | timedelta | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        super().__init__(MemberCommands("SADD", key, member=member, ttl=ttl), **options)


class RedisHyperLogLog(RedisSink):
    """PFADD of ``member`` (a template; default: the whole value): counts distinct members."""

    def __init__(
        self,
        key: str,
        *,
        member: str | None = None,
        ttl: float | timedelta | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        super().__init__(MemberCommands("PFADD", key, member=member, ttl=ttl), **options)


class RedisSortedSet(RedisSink):
    """ZADD of ``member`` (a template) with ``score`` (a number or the name of a field).

    ``gt`` keeps the greatest score of a member, ``lt`` the least, ``incr`` adds them up.
    """

    def __init__(
        self,
        key: str,
        *,
        score: str | float,
        member: str | None = None,
        gt: bool = False,
        lt: bool = False,
        incr: bool = False,
        ttl: float | timedelta | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        commands = SortedSetCommands(
            key, score=score, member=member, gt=gt, lt=lt, incr=incr, ttl=ttl
        )
        super().__init__(commands, **options)


class RedisStream(RedisSink):
    """XADD of a value's fields (all, or those in ``fields``).

    ``max_length`` trims the stream to about that many entries, to exactly that with ``exact``.
    """

    def __init__(
        self,
        key: str,
        *,
        fields: Sequence[str] | None = None,
        max_length: int | None = None,
        exact: bool = False,
        ttl: float | timedelta | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        commands = StreamCommands(key, fields=fields, max_length=max_length, exact=exact, ttl=ttl)
        super().__init__(commands, **options)


class RedisPublish(RedisSink):
    """PUBLISH of each value (or its field named by ``value``) to the channels of a template."""

    def __init__(
        self, channel: str, *, value: str | None = None, **options: Unpack[RedisOptions]
    ) -> None:
        super().__init__(PublishCommands(channel, value=value), **options)


class RedisJSON(RedisSink):
    """JSON.SET of the value (or its field named by ``value``) at ``path``; needs RedisJSON."""

    def __init__(
        self,
        key: str,
        *,
        path: str = "$",
        value: str | None = None,
        ttl: float | timedelta | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        super().__init__(JSONCommands(key, path=path, value=value, ttl=ttl), **options)

    async def _prepare(self, client: Any) -> None:
        await super()._prepare(client)
        await _require_command(client, "JSON.SET", "RedisJSON")


class RedisTimeSeries(RedisSink):
    """TS.ADD of the number named by ``value``; needs RedisTimeSeries.

    The time is the field named by ``timestamp`` (a datetime, or seconds since 1970), or else
    that of the record. ``retention`` is in seconds; ``on_duplicate`` is BLOCK, FIRST, LAST,
    MIN, MAX or SUM; ``labels`` are fixed.
    """

    def __init__(
        self,
        key: str,
        *,
        value: str,
        timestamp: str | None = None,
        retention: float | timedelta | None = None,
        on_duplicate: str = "LAST",
        labels: dict[str, str] | None = None,
        ttl: float | timedelta | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        commands = TimeSeriesCommands(
            key,
            value=value,
            timestamp=timestamp,
            retention=retention,
            on_duplicate=on_duplicate,
            labels=labels,
            ttl=ttl,
        )
        super().__init__(commands, **options)

    async def _prepare(self, client: Any) -> None:
        await super()._prepare(client)
        await _require_command(client, "TS.ADD", "RedisTimeSeries")


class RedisScript(RedisSink):
    """A Lua script for each value, with KEYS from templates and ARGV from named fields.

    ``args`` may name "value" for a plain value itself. The script runs at least once a value.
    """

    def __init__(
        self,
        script: str,
        *,
        keys: Sequence[str],
        args: Sequence[str] = (),
        **options: Unpack[RedisOptions],
    ) -> None:
        self._script = ScriptCommands(script, keys=keys, args=args)
        super().__init__(self._script, **options)

    async def _prepare(self, client: Any) -> None:
        await super()._prepare(client)
        try:
            await client.script_load(self._script.script)
        except ResponseError as error:
            if "compiling" not in str(error):
                raise
            raise ConfigurationError(f"the Lua script does not compile: {error}") from None

    def _mend(self, command: Command, error: str) -> Command | None:
        # A server that was restarted has forgotten the script; EVAL teaches it again.
        if error.startswith("NOSCRIPT"):
            return ("EVAL", self._script.script, *command[2:])
        return None


async def _require_command(client: Any, command: str, module: str) -> None:
    # As one word, since redis-py's reading of COMMAND's reply fails on an unknown command.
    known = await client.execute_command("COMMAND INFO", command)
    if known == [None]:
        raise ConfigurationError(
            f"this Redis server has no {command}; it needs the module {module} "
            "(in Redis 8, in Redis Stack, or loaded by loadmodule)"
        )
