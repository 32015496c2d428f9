"""Every Redis sink on a real server: what was written is read back."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis
import redis.asyncio

from streamproc.dev.process import ChildProcess
from streamproc.dev.servers import RedisServer
from streamproc.errors import ConfigurationError, SinkError
from streamproc.sinks import (
    RedisCounter,
    RedisHash,
    RedisHyperLogLog,
    RedisJSON,
    RedisList,
    RedisPublish,
    RedisScript,
    RedisSet,
    RedisSink,
    RedisSortedSet,
    RedisStream,
    RedisString,
    RedisTimeSeries,
)
from streamproc.sinks.redis.collection_commands import HashCommands
from streamproc.sinks.redis.values import Run

OpenSink = Callable[[RedisSink], Awaitable[RedisSink]]


class Reading(msgspec.Struct):
    sensor_id: str
    value: float
    note: str | None = None


READINGS = [Reading("a", 1.5), Reading("b", 2.0, "hot"), Reading("a", 4.0)]


@pytest.fixture
async def opened(redis_url: str) -> AsyncIterator[OpenSink]:
    """``await opened(sink)`` opens a sink on the session's Redis and closes it in the end."""
    app, sinks = SimpleNamespace(redis_url=redis_url), []

    async def open_sink(sink: RedisSink) -> RedisSink:
        sinks.append(sink)
        await sink.open(app)
        return sink

    yield open_sink
    for sink in sinks:
        await sink.close()


@pytest.fixture
def write(opened: OpenSink) -> Callable[[RedisSink, Any], Awaitable[None]]:
    async def write_and_flush(sink: RedisSink, values: Any) -> None:
        await opened(sink)
        await sink.write(values)
        await sink.flush()
        assert sink.pending == 0
        assert sink.state == "connected"

    return write_and_flush


async def test_string(write: Any, redis_client: redis.Redis) -> None:
    await write(RedisString("last:{sensor_id}", ttl=100), READINGS)
    assert msgspec.json.decode(redis_client.get("last:a"), type=Reading) == READINGS[2]
    assert 90 < redis_client.ttl("last:a") <= 100
    await write(RedisString("last:{sensor_id}", value="value", keepttl=True), READINGS)
    assert redis_client.get("last:b") == "2.0"
    assert 90 < redis_client.ttl("last:b") <= 100
    await write(RedisString("last:{sensor_id}", value="value", nx=True), [Reading("b", 9.0)])
    assert redis_client.get("last:b") == "2.0"


async def test_hash(write: Any, redis_client: redis.Redis) -> None:
    await write(RedisHash("stats:{sensor_id}", ttl=0.5), READINGS)
    assert redis_client.hgetall("stats:a") == {"sensor_id": "a", "value": "4.0"}
    assert redis_client.hgetall("stats:b") == {"sensor_id": "b", "value": "2.0", "note": "hot"}
    assert 0 < redis_client.pttl("stats:a") <= 500
    await write(RedisHash("s:{sensor_id}"), [Reading("b", 3.0, "x")])
    await write(RedisHash("s:{sensor_id}"), [Reading("b", 3.0)])
    assert redis_client.hgetall("s:b") == {"sensor_id": "b", "value": "3.0"}


async def test_values_that_make_no_command_do_not_wait(write: Any) -> None:
    await write(RedisHash("h"), [{}])


async def test_hash_by_field(write: Any, redis_client: redis.Redis) -> None:
    await write(RedisHash("latest", field="{sensor_id}", value="value"), READINGS)
    assert redis_client.hgetall("latest") == {"a": "4.0", "b": "2.0"}


async def test_counter(write: Any, redis_client: redis.Redis) -> None:
    await write(RedisCounter("n:{sensor_id}"), READINGS)
    await write(RedisCounter("n:{sensor_id}"), READINGS)
    await write(RedisCounter("sums", field="{sensor_id}", amount="value"), READINGS)
    assert redis_client.mget("n:a", "n:b") == ["4", "2"]
    assert redis_client.hgetall("sums") == {"a": "5.5", "b": "2"}


async def test_list(write: Any, redis_client: redis.Redis) -> None:
    await write(RedisList("l", max_length=3), list(range(5)))
    await write(RedisList("r", left=True, max_length=3), list(range(5)))
    assert redis_client.lrange("l", 0, -1) == ["2", "3", "4"]
    assert redis_client.lrange("r", 0, -1) == ["4", "3", "2"]


async def test_sets(write: Any, redis_client: redis.Redis) -> None:
    await write(RedisSet("seen", member="{sensor_id}"), READINGS)
    await write(RedisHyperLogLog("distinct", member="{sensor_id}"), READINGS)
    assert redis_client.smembers("seen") == {"a", "b"}
    assert redis_client.pfcount("distinct") == 2


async def test_sorted_set(write: Any, redis_client: redis.Redis) -> None:
    def sink(**how: bool) -> RedisSortedSet:
        return RedisSortedSet("z", member="{sensor_id}", score="value", **how)

    await write(sink(), READINGS)
    assert redis_client.zrange("z", 0, -1, withscores=True) == [("b", 2.0), ("a", 4.0)]
    await write(sink(gt=True), [Reading("a", 1.0), Reading("b", 9.0)])
    assert redis_client.zrange("z", 0, -1, withscores=True) == [("a", 4.0), ("b", 9.0)]
    await write(sink(lt=True), [Reading("a", 5.0), Reading("b", 8.0)])
    assert redis_client.zrange("z", 0, -1, withscores=True) == [("a", 4.0), ("b", 8.0)]
    await write(sink(incr=True), READINGS)
    assert redis_client.zrange("z", 0, -1, withscores=True) == [("a", 9.5), ("b", 10.0)]


async def test_stream(write: Any, redis_client: redis.Redis) -> None:
    await write(RedisStream("alerts:{sensor_id}"), READINGS)
    entries = redis_client.xrange("alerts:a")
    assert [e[1] for e in entries] == [
        {"sensor_id": "a", "value": "1.5"},
        {"sensor_id": "a", "value": "4.0"},
    ]
    await write(RedisStream("cut", max_length=10, exact=True), list(range(30)))
    assert [e[1]["value"] for e in redis_client.xrange("cut")] == [str(i) for i in range(20, 30)]
    await write(RedisStream("about", max_length=10), list(range(1000)))
    assert 10 <= redis_client.xlen("about") < 1000


async def test_publish(write: Any, redis_client: redis.Redis) -> None:
    with redis_client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("c:*")
        listener.get_message(timeout=5)
        await write(RedisPublish("c:{sensor_id}", value="value"), READINGS)
        heard = [listener.get_message(timeout=5) for _ in READINGS]
    assert [(m["channel"], m["data"]) for m in heard if m] == [
        ("c:a", "1.5"),
        ("c:b", "2.0"),
        ("c:a", "4.0"),
    ]


SCRIPT = "return redis.call('HINCRBYFLOAT', KEYS[1], ARGV[1], ARGV[2])"


async def test_script_also_after_the_server_forgot_it(
    opened: OpenSink, redis_client: redis.Redis
) -> None:
    sink = await opened(RedisScript(SCRIPT, keys=["sum"], args=["sensor_id", "value"]))
    await sink.write(READINGS)
    await sink.flush()
    redis_client.script_flush()
    await sink.write(READINGS)
    await sink.flush()
    assert redis_client.hgetall("sum") == {"a": "11", "b": "4"}


async def test_script_that_does_not_compile(opened: OpenSink) -> None:
    with pytest.raises(ConfigurationError, match="does not compile"):
        await opened(RedisScript("this is not lua", keys=["k"]))


@pytest.mark.parametrize(
    ("sink", "command", "module"),
    [
        (RedisJSON("j:{sensor_id}"), "JSON.SET", "RedisJSON"),
        (RedisTimeSeries("t:{sensor_id}", value="value"), "TS.ADD", "RedisTimeSeries"),
    ],
)
async def test_module_sinks(
    sink: RedisSink, command: str, module: str, opened: OpenSink, redis_client: redis.Redis
) -> None:
    """Where the server has the module the values are there, else open() says what is missing."""
    if redis_client.execute_command("COMMAND INFO", command) == [None]:
        with pytest.raises(ConfigurationError, match=f"no {command}.*{module}"):
            await opened(sink)
        return
    await opened(sink)
    await sink.write(batch(READINGS, [None] * 3))
    await sink.flush()
    read = redis_client.execute_command(command.replace("SET", "GET").replace("ADD", "GET"), "j:b")
    assert read


@pytest.mark.parametrize(
    "make", [RedisString, RedisHash, RedisCounter, RedisList, RedisSet, RedisStream]
)
async def test_tombstone(make: Any, write: Any, redis_client: redis.Redis) -> None:
    redis_client.set("old:x", "1")
    await write(make("old:{key}"), [("x", None)])
    assert redis_client.exists("old:x") == 0


def batch(values: list[Any], keys: list[Any]) -> Any:
    from streamproc.streams.batch import Batch

    offsets = list(range(len(values)))
    return Batch("readings", 3, keys, values, offsets, [1_700_000_000_000] * len(values))


async def test_batch_with_keys_times_and_tombstone(write: Any, redis_client: redis.Redis) -> None:
    redis_client.set("k3/3:2023", "old")
    sink = RedisString("{key}/{partition}:{timestamp:%Y}", value="value")
    await write(sink, batch([*READINGS[:2], None], [b"k1", "k2", "k3"]))
    assert set(redis_client.keys()) == {"k1/3:2023", "k2/3:2023"}


async def test_binary_keys_and_values(write: Any, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        await write(RedisString("b:{key}"), batch([b"\x00\xff\r\n"], [b"\xff\xfe"]))
        assert client.get(b"b:\xff\xfe") == b"\x00\xff\r\n"
        await write(RedisString("big"), [b"x" * 5_000_000])
        assert client.strlen("big") == 5_000_000


async def test_values_of_many_kinds_in_one_hash(write: Any, redis_client: redis.Redis) -> None:
    when = datetime(2026, 1, 2, tzinfo=timezone.utc)
    await write(RedisHash("h"), [{"t": when, "on": True, "tags": ["a"], "n": None}])
    assert redis_client.hgetall("h") == {"t": "2026-01-02T00:00:00Z", "on": "1", "tags": '["a"]'}


async def until_written(sink: RedisSink) -> None:
    while sink.pending:  # noqa: ASYNC110 (the sink has no event to wait for)
        await asyncio.sleep(0.001)


async def test_linger_writes_without_flush(opened: OpenSink, redis_client: redis.Redis) -> None:
    sink = await opened(RedisString("k:{sensor_id}", value="value"))
    await sink.write(READINGS)
    await until_written(sink)
    assert redis_client.get("k:a") == "4.0"
    assert sink.written == 3


async def test_wrong_type_is_told_and_the_others_are_written(
    opened: OpenSink, redis_client: redis.Redis
) -> None:
    redis_client.set("h:b", "a string")
    sink = await opened(RedisHash("h:{sensor_id}"))
    await sink.write(READINGS)
    with pytest.raises(SinkError, match=r"HSET 'h:b': WRONGTYPE.*another key template"):
        await sink.flush()
    assert redis_client.hget("h:a", "value") == "4.0"
    assert sink.errors >= 1
    await sink.write(READINGS[:1])
    await sink.flush()  # told once


async def test_a_refusal_met_while_lingering_is_told_by_the_next_flush(
    opened: OpenSink, redis_client: redis.Redis
) -> None:
    redis_client.set("l", "a string")
    sink = await opened(RedisList("l"))
    await sink.write([1])
    await until_written(sink)
    with pytest.raises(SinkError, match="RPUSH 'l': WRONGTYPE"):
        await sink.flush()


async def test_concurrent_flushes_all_hear_of_a_refusal(
    opened: OpenSink, redis_client: redis.Redis
) -> None:
    redis_client.set("l", "a string")
    sink = await opened(RedisList("l"))
    await sink.write([1])
    results = await asyncio.gather(*(sink.flush() for _ in range(3)), return_exceptions=True)
    assert [type(r) for r in results] == [SinkError] * 3


async def test_values_that_do_not_fit_are_told_by_write(
    opened: OpenSink, redis_client: redis.Redis
) -> None:
    sink = await opened(RedisHash("h:{sensor_id}"))
    with pytest.raises(SinkError, match=r"1 values do not fit.*needs 'sensor_id'"):
        await sink.write([READINGS[0], {"x": 1}, READINGS[1]])
    await sink.flush()
    assert set(redis_client.keys()) == {"h:a", "h:b"}


async def test_many_writers_share_a_sink(opened: OpenSink, redis_client: redis.Redis) -> None:
    sink = await opened(RedisList("l:{key}", batch_size=7, linger=0.0))

    async def agent(name: str) -> None:
        for start in range(0, 200, 5):
            await sink.write([(name, n) for n in range(start, start + 5)])
            if start % 25 == 0:
                await sink.flush()
                assert redis_client.lindex(f"l:{name}", -1) == str(start + 4)

    await asyncio.gather(*(agent(name) for name in "abcd"))
    await sink.flush()
    for name in "abcd":
        assert redis_client.lrange(f"l:{name}", 0, -1) == [str(n) for n in range(200)]


async def test_sinks_of_an_app_share_one_link(redis_url: str) -> None:
    app = SimpleNamespace(redis_url=redis_url)
    one, two, other = RedisSet("s"), RedisSet("s"), RedisSet("s")
    await one.open(app)
    await two.open(app)
    await other.open(SimpleNamespace(redis_url=redis_url))
    assert one._link is two._link
    assert one._link is not other._link
    await one.close()
    await two.write(["x"])
    await two.flush()
    await two.close()
    await other.close()
    with pytest.raises(SinkError, match="open_sink"):
        await one.write(["x"])


async def test_a_sink_opens_again_after_close(redis_url: str, redis_client: redis.Redis) -> None:
    sink = RedisSet("s")
    for member in "ab":
        await sink.open(SimpleNamespace(redis_url=redis_url))
        await sink.write([member])
        await sink.flush()
        await sink.close()
    assert redis_client.smembers("s") == {"a", "b"}


async def test_check(opened: OpenSink) -> None:
    sink = await opened(RedisSet("s"))
    assert "answers" in await sink.check()


class SocketServer(RedisServer):
    """A Redis server that also listens on a Unix socket."""

    @property
    def socket_path(self) -> Path:
        return self.data_dir / "redis.sock"

    def command(self) -> Sequence[str]:
        return [*super().command(), "--unixsocket", str(self.socket_path)]


async def test_unix_socket(tmp_path: Path, children: list[ChildProcess]) -> None:
    server = SocketServer(tmp_path)
    children.append(server)
    server.start()
    sink = RedisSet("s", url=f"unix://{server.socket_path}")
    await sink.open(None)
    await sink.write(["x"])
    await sink.flush()
    assert str(server.socket_path) in await sink.check()
    await sink.close()
    with redis.Redis.from_url(server.url) as client:
        assert client.smembers("s") == {b"x"}


# -- settings ----------------------------------------------------------------------------------


async def test_no_url() -> None:
    with pytest.raises(ConfigurationError, match=r"redis://localhost:6379/0"):
        await RedisSet("s").open(SimpleNamespace(redis_url=None))


async def test_url_that_is_none() -> None:
    with pytest.raises(ConfigurationError, match=r"not usable.*redis://host"):
        await RedisSet("s", url="http://:pw@nowhere:1").open(None)


async def test_unknown_option() -> None:
    with pytest.raises(ConfigurationError, match="no option 'batchsize'"):
        RedisSet("s", batchsize=1)  # type: ignore[call-arg]


async def test_no_such_database(redis_url: str) -> None:
    sink = RedisSet("s", url=redis_url[:-1] + "99")
    with pytest.raises(ConfigurationError, match="no such database"):
        await sink.open(None)


@pytest.mark.parametrize("login", ["", ":wrong-secret@", "who:wrong-secret@"])
async def test_wrong_password(login: str, new_redis: Any) -> None:
    server = new_redis(password="right")
    sink = RedisSet("s", url=f"redis://{login}127.0.0.1:{server.port}/0")
    with pytest.raises(ConfigurationError, match="refused the login") as caught:
        await sink.open(None)
    trace = "".join(traceback.format_exception(caught.value))
    assert "wrong-secret" not in trace + repr(sink)


async def test_right_password(new_redis: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = new_redis(password="p@ss/w:rd")
    sink = RedisSet("s", url=server.url)
    await sink.open(None)
    await sink.write(["x"])
    await sink.flush()
    said = await sink.check() + repr(sink) + repr(sink._link) + caplog.text
    assert "p@ss" not in said
    assert "p%40ss" not in said
    await sink.close()


async def test_password_changed_while_running(new_redis: Any) -> None:
    server = new_redis(password="old")
    sink = RedisSet("s", url=server.url)
    await sink.open(None)
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("requirepass", "new")
        admin.client_kill_filter(_type="normal", skipme=True)
        await sink.write(["x"])
        with pytest.raises(SinkError, match="refused the login"):
            await sink.flush()
        admin.config_set("requirepass", "old")
        await sink.flush()  # nothing was lost
        assert admin.smembers("s") == {b"x"}
    await sink.close()


async def test_redis_py_internals_relied_on(redis_url: str) -> None:
    """Channel uses the streams under redis-py's connection; an upgrade must keep them."""
    client = redis.asyncio.Redis.from_url(redis_url, protocol=2)
    connection = client.connection_pool.make_connection()
    assert not connection.is_connected
    await connection.connect()
    assert connection.is_connected
    connection._writer.write(b"*1\r\n$4\r\nPING\r\n")
    assert await connection._reader.read(100) == b"+PONG\r\n"
    connection._writer.transport.abort()
    await connection.disconnect(nowait=True)
    assert not connection.is_connected
    await client.aclose()


async def test_commands_work_with_a_synchronous_client(redis_client: redis.Redis) -> None:
    commands = HashCommands("stats:{sensor_id}")
    assert commands.add(Run.of(READINGS)) == []
    with redis_client.pipeline(transaction=False) as pipeline:
        for command in commands.take():
            pipeline.execute_command(*command)
        pipeline.execute()
    assert redis_client.hgetall("stats:a") == {"sensor_id": "a", "value": "4.0"}
