"""Redis goes away in the middle of writing and comes back: nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from streamproc.dev.servers import RedisServer
from streamproc.errors import SinkError
from streamproc.sinks import RedisHash, RedisList, RedisScript, RedisSet, RedisSink, RedisString

LOGGER = "streamproc.sinks.redis.link"
Start = Callable[..., Awaitable[RedisSink]]


@pytest.fixture
async def opened() -> AsyncIterator[Start]:
    """``await opened(sink, server)`` opens a sink on a server and closes it in the end."""
    sinks: list[RedisSink] = []
    apps: dict[str, Any] = {}

    async def start(sink: RedisSink, server: RedisServer) -> RedisSink:
        sinks.append(sink)
        await sink.open(apps.setdefault(server.url, SimpleNamespace(redis_url=server.url)))
        return sink

    yield start
    for sink in sinks:
        await sink.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio_timeout(30):
        while not condition():  # noqa: ASYNC110 (any state can be waited for)
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def asyncio_timeout(seconds: float) -> AsyncIterator[None]:
    """End the test when it hangs (asyncio.timeout is not there in Python 3.10)."""
    task = asyncio.current_task()
    assert task is not None
    timer = asyncio.get_running_loop().call_later(seconds, task.cancel)
    try:
        yield
    finally:
        timer.cancel()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == LOGGER]


async def test_killed_and_restarted_while_writing(
    opened: Start, new_redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    server: RedisServer = new_redis()
    hashes = await opened(RedisHash("h:{key}", linger=0.001), server)
    lists = await opened(RedisList("l:{key}", linger=0.001), server)
    total, keys = 4_000, 40
    gone = asyncio.Event()

    async def write(sink: RedisSink, value: Callable[[int], Any]) -> None:
        for start in range(0, total, 20):
            await sink.write([(str(n % keys), value(n)) for n in range(start, start + 20)])
            if start == 1_000:
                await sink.flush()
            if start == 2_000:
                await gone.wait()
            await asyncio.sleep(0)
        await sink.flush()

    writers = [
        asyncio.create_task(write(hashes, lambda n: {"n": n})),
        asyncio.create_task(write(lists, lambda n: n)),
    ]
    await until(lambda: lists.written >= 1_000 and hashes.written >= 1_000)
    server.kill()
    gone.set()
    await until(lambda: lists.state == "away" and hashes.state == "away")
    assert not any(writer.done() for writer in writers)
    await asyncio.to_thread(server.restart)
    async with asyncio_timeout(60):
        await asyncio.gather(*writers)

    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        for key in range(keys):
            last = total - keys + key
            assert client.hgetall(f"h:{key}") == {"n": str(last)}
            stored = [int(n) for n in client.lrange(f"l:{key}", 0, -1)]
            assert set(stored) == set(range(key, total, keys))
            assert stored[-1] == last
    assert lists.written == hashes.written == total
    assert lists.state == "connected"
    assert lists.retries > 0
    said = messages(caplog)
    assert len(said) == 2
    assert "is away" in said[0]
    assert "values wait" in said[0]
    assert "is back after" in said[1]


async def test_a_restart_that_nobody_notices_is_not_news(
    opened: Start, new_redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    server = new_redis()
    sink = await opened(RedisSet("s"), server)
    await sink.write(["a"])
    await sink.flush()
    await asyncio.to_thread(server.restart)
    await sink.write(["b"])
    await sink.flush()
    assert messages(caplog) == []
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert client.smembers("s") == {"a", "b"}


async def test_away_at_start(
    opened: Start, new_redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    server = new_redis(start=False)
    sink = await opened(RedisString("k"), server)
    assert sink.state == "away"
    await sink.write(["v"])
    flushing = asyncio.create_task(sink.flush())
    await until(lambda: sink.retries > 2)
    assert not flushing.done()
    await asyncio.to_thread(server.start)
    async with asyncio_timeout(30):
        await flushing
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert client.get("k") == "v"
    assert ["away" in m for m in messages(caplog)] == [True, False]


async def test_away_at_start_and_then_not_as_needed(opened: Start, new_redis: Any) -> None:
    """What open() could not check is told by flush()."""
    server = new_redis(start=False)
    sink = await opened(RedisScript("no lua", keys=["k"]), server)
    await sink.write([1])
    await asyncio.to_thread(server.start)
    with pytest.raises(SinkError, match="does not compile"):
        await sink.flush()


async def test_buffer_is_bounded_while_redis_is_away(opened: Start, new_redis: Any) -> None:
    server = new_redis()
    bound = 200_000
    sink = await opened(RedisList("l", buffer_bytes=bound, batch_bytes=50_000), server)
    server.kill()
    accepted = 0

    async def write() -> None:
        nonlocal accepted
        for n in range(200):
            await sink.write([f"{n:010}" + "x" * 10_000])
            accepted += 1

    writer = asyncio.create_task(write())
    await until(lambda: sink.state == "away" and sink.pending_bytes >= bound)
    assert sink.pending_bytes < bound + 20_000
    before = accepted
    await until(lambda: sink.retries > 5)
    assert accepted == before
    await asyncio.to_thread(server.restart)
    async with asyncio_timeout(60):
        await writer
        await sink.flush()
    assert sink.pending_bytes == 0
    with redis.Redis.from_url(server.url) as client:
        stored = [int(item[:10]) for item in client.lrange("l", 0, -1)]
    assert sorted(set(stored)) == list(range(200))


async def test_cancelled_flush_loses_nothing(opened: Start, new_redis: Any) -> None:
    server = new_redis()
    sink = await opened(RedisList("l"), server)
    server.kill()
    await sink.write([1, 2])
    flushing = asyncio.create_task(sink.flush())
    await until(lambda: sink.state == "away")
    flushing.cancel()
    await asyncio.wait([flushing])
    assert flushing.cancelled()
    await sink.write([3])
    assert sink.pending == 3
    await asyncio.to_thread(server.restart)
    await sink.flush()
    with redis.Redis.from_url(server.url) as client:
        assert client.lrange("l", 0, -1) == [b"1", b"2", b"3"]


async def test_server_that_does_not_answer(opened: Start, new_redis: Any) -> None:
    server = new_redis()
    sink = await opened(RedisString("k", timeout=0.2), server)
    server.pause()
    await sink.write(["v"])
    flushing = asyncio.create_task(sink.flush())
    await until(lambda: sink.state == "away")
    server.resume()
    async with asyncio_timeout(30):
        await flushing
    with redis.Redis.from_url(server.url) as client:
        assert client.get("k") == b"v"


async def test_what_was_given_up_does_not_arrive_later(opened: Start, new_redis: Any) -> None:
    """A pipeline that got stuck halfway must not come after the newer one."""
    server = new_redis()
    sink = await opened(RedisString("k", timeout=0.2), server)
    await sink.write(["first"])
    await sink.flush()
    server.pause()
    await sink.write(["x" * 20_000_000])  # more than a batch: it is sent without a flush
    await until(lambda: sink.state == "away")
    # A flush that is cancelled gives up nothing: the sink goes on sending by itself.
    await sink.close()
    newer = RedisString("k")
    server.resume()
    await opened(newer, server)
    await newer.write(["newer"])
    await newer.flush()
    with redis.Redis.from_url(server.url) as client:
        for _ in range(100):
            assert client.getrange("k", 0, 9) == b"newer"  # all of the other is too long to show


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [
        ({"maxmemory": "1"}, {"maxmemory": "0"}),
        ({"min-replicas-to-write": "1"}, {"min-replicas-to-write": "0"}),
    ],
    ids=["OOM", "NOREPLICAS"],
)
async def test_writes_refused_for_a_while(
    refuse: dict[str, str],
    allow: dict[str, str],
    opened: Start,
    new_redis: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    server = new_redis()
    sink = await opened(RedisList("l:{key}", ttl=100), server)
    with redis.Redis.from_url(server.url, decode_responses=True) as admin:
        for name, value in refuse.items():
            admin.config_set(name, value)
        await sink.write([("a", 1), ("b", 2), ("a", 3)])
        flushing = asyncio.create_task(sink.flush())
        await until(lambda: sink.state == "away")
        for name, value in allow.items():
            admin.config_set(name, value)
        async with asyncio_timeout(30):
            await flushing
        assert admin.lrange("l:a", 0, -1) == ["1", "3"]
        assert admin.lrange("l:b", 0, -1) == ["2"]
        assert admin.ttl("l:a") > 0
    assert "refuses writes" in messages(caplog)[0]


async def test_replica_that_becomes_the_master(opened: Start, new_redis: Any) -> None:
    server, master = new_redis(), new_redis()
    sink = await opened(RedisSet("s"), server)
    with redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", master.port)
        await sink.write(["x"])
        flushing = asyncio.create_task(sink.flush())
        await until(lambda: sink.state == "away")
        admin.replicaof("NO", "ONE")
        async with asyncio_timeout(30):
            await flushing
        assert admin.smembers("s") == {b"x"}
