"""The sink of PostgreSQL on a real server: exact whatever is lost, and what it refuses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime, timezone
from enum import Enum
from typing import Any

import psycopg
import pytest
from exactly import READER, Job, Network, asyncio_timeout, at, checkpoint, new_app, partitions
from exactly import process as process_all
from postgres import Postgres

from streamproc import Record
from streamproc.errors import ConfigurationError, Fenced, SinkError
from streamproc.sinks import PostgresSink

Open = Callable[..., Awaitable[PostgresSink]]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    server = Postgres()
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture
def db(server: Postgres) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the server, which has new tables."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS streamproc_offsets, log, totals, readings")
        connection.execute("CREATE TABLE log (n bigint, p int, note jsonb)")
        connection.execute("CREATE TABLE totals (name text PRIMARY KEY, n bigint, last bigint)")
        yield connection


@pytest.fixture
async def opened(server: Postgres, db: Any) -> AsyncIterator[Open]:
    """``await opened(sink, claim=(0,))``: opens it in an app of its own, as a worker does."""
    sinks: list[PostgresSink] = []

    async def start(sink: PostgresSink, claim: Any = (0,)) -> PostgresSink:
        sinks.append(sink)
        await sink.open(new_app(""))
        if claim:
            await sink.claim(partitions(*claim))
        return sink

    yield start
    for sink in sinks:
        await sink.close()


def rows(db: Any, table: str) -> list[Any]:
    return list(db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall())


class Kind(Enum):
    HOT = "hot"


class Reading(Record):
    sensor: str
    value: float
    kind: Kind
    at: datetime
    tags: list[str]
    note: str | None = None


MOMENT = datetime(2026, 1, 1, 12, 30, tzinfo=timezone.utc)


async def test_rows_survive_a_crash_between_the_database_and_kafka(
    opened: Open, server: Postgres, db: Any
) -> None:
    def sinks() -> list[PostgresSink]:
        return [
            PostgresSink("public.log", columns={"n": "n", "p": "partition"}, url=server.url),
            PostgresSink("totals", key=["name"], add=["n"], url=server.url),
        ]

    first = [await opened(sink, claim=(0, 1)) for sink in sinks()]
    values = [{"name": "ab"[n % 2], "n": n, "last": n} for n in range(10)]
    for offset, value in enumerate(values):
        with at(0, offset) as place:
            for sink in first:
                await sink.write([value])
            assert place.wrote
        if offset == 3:
            await checkpoint(first, {0: 4, 1: 7})
            assert rows(db, "totals") == [("a", 2, 2), ("b", 4, 3)]
    assert [sink.pending for sink in first] == [6, 6]
    await checkpoint(first, {0: 10, 1: 7})
    assert [(sink.pending, sink.written, sink.has_taken) for sink in first] == [(0, 10, False)] * 2

    second = [await opened(sink, claim=()) for sink in sinks()]
    for sink in second:
        assert await sink.claim(partitions(0, 1)) == {0: {READER: 10}, 1: {READER: 7}}
        assert "PostgreSQL" in await sink.check()
    for offset, value in enumerate([*values, {"name": "a", "n": 10, "last": 10}][4:], 4):
        await process_all(second, 0, offset, value)
    await checkpoint(second, {0: 11, 1: 7})
    assert rows(db, "totals") == [("a", 30, 10), ("b", 25, 9)]
    assert rows(db, "log") == [(n, 0, None) for n in range(11)]
    with pytest.raises(Fenced, match=r"partition 0 was claimed by .*:\d+:"):
        await checkpoint(first, {0: 12})
    epochs = db.execute("SELECT DISTINCT sink, epoch FROM streamproc_offsets").fetchall()
    assert sorted(epochs) == [("public.log", 2), ("totals", 2)]


async def test_values_of_all_types(opened: Open, server: Postgres, db: Any) -> None:
    db.execute(
        "CREATE TABLE readings (sensor text PRIMARY KEY, value real, kind text, at timestamptz, "
        "tags text[], note text, extra jsonb)"
    )
    sink = await opened(PostgresSink("readings", key=["sensor"], url=server.url))
    reading = Reading(sensor="a", value=1.5, kind=Kind.HOT, at=MOMENT, tags=["x", "y"])
    with at(0, 0):
        await sink.write([reading])
        await sink.write([{"sensor": "b", "extra": {"k": [1]}}, {"sensor": "c", "extra": [1, 2]}])
        await sink.write([{"sensor": "b", "note": "later"}, ("c", None), ("d", None)])
        with pytest.raises(SinkError, match="has no 'sensor', which is in the table's key") as no:
            await sink.write([{"sensor": "e"}, {"value": 1}, (None, None)])
        assert [error.row for error in no.value.misfits] == [1, 2]
    await checkpoint([sink], {0: 1})
    found = rows(db, "readings")
    assert found == [
        ("a", 1.5, "hot", MOMENT, ["x", "y"], None, None),
        ("b", None, None, None, None, "later", {"k": [1]}),
        ("e", None, None, None, None, None, None),
    ]
    with at(0, 1):
        await sink.write([("a", None), ("b", None), {"sensor": "b", "value": 2}])
    await checkpoint([sink], {0: 2})
    assert [row[:2] for row in rows(db, "readings")] == [("b", 2.0), ("e", None)]


async def test_rows_that_are_refused_leave_the_others(
    opened: Open, server: Postgres, db: Any
) -> None:
    db.execute("ALTER TABLE log ADD CHECK (p < 5), ALTER n SET NOT NULL")
    log = await opened(PostgresSink("log", url=server.url))
    totals = await opened(PostgresSink("totals", key=["name"], url=server.url))
    with at(0, 0):
        await log.write(
            [{"n": n if n != 40 else None, "p": 9 if n == 50 else 0} for n in range(99)]
        )
        await totals.write(
            [{"name": "nul\0", "n": 1}, {"name": "a", "n": "x"}, {"name": "b", "n": 2}]
        )
    with pytest.raises(
        SinkError, match=r"2 rows were refused: insert n=None.*null value.*p=9.*chec"
    ):
        await checkpoint([log], {0: 1})
    with pytest.raises(SinkError, match=r"2 rows were refused: .*NUL.*invalid input syntax"):
        await checkpoint([totals], {0: 1})
    assert [row[0] for row in rows(db, "log")] == [n for n in range(99) if n not in (40, 50)]
    assert rows(db, "totals") == [("b", 2, None)]
    assert log.errors == totals.errors == 2
    with at(0, 1):
        await log.write([{"n": 99, "more": 1}, {"n": 100}])
        await totals.write([{"name": "c", "more": 1}])
    db.execute("ALTER TABLE totals ADD more int")
    with pytest.raises(
        SinkError, match="insert n=99, more=1: the table has no column 'more'; its c"
    ):
        await checkpoint([log], {0: 2})
    await checkpoint([totals], {0: 2})
    assert rows(db, "log")[-1] == (100, None, None)
    assert rows(db, "totals")[-1] == ("c", None, None, 1)
    await checkpoint([log, totals], {0: 2})
    assert await log.claim(partitions(0)) == {0: {READER: 2}}
    db.execute("DROP TABLE log")
    with at(0, 2):
        await log.write([{"n": 1}])
    with pytest.raises(SinkError, match='refused: relation "log" does not exist'):
        await checkpoint([log], {0: 3})


async def test_a_transaction_may_take_longer_than_the_server_may_be_silent(
    opened: Open, server: Postgres, db: Any
) -> None:
    sink = await opened(PostgresSink("log", url=server.url, timeout=1))
    with at(0, 0):
        await sink.write([{"n": n if n % 2 else "x"} for n in range(3_000)])
    with pytest.raises(SinkError, match="1500 rows were refused"):
        await checkpoint([sink], {0: 1})
    assert len(rows(db, "log")) == 1500


@pytest.mark.parametrize("lost", ["emptied", "restored"])
async def test_a_database_that_has_forgotten(
    lost: str, opened: Open, server: Postgres, db: Any
) -> None:
    sink = await opened(PostgresSink("log", url=server.url))
    for offset in range(3):
        await process_all([sink], 0, offset, {"n": offset})
        await checkpoint([sink], {0: offset + 1})
    if lost == "emptied":
        db.execute("DELETE FROM streamproc_offsets")
    else:
        db.execute("UPDATE streamproc_offsets SET write = 1, positions = '{\"t@agent\": 1}'")
    await process_all([sink], 0, 3, {"n": 3})
    with pytest.raises(Fenced, match=r"PostgreSQL at .* has lost"):
        await checkpoint([sink], {0: 4})
    sink.discard()
    assert await sink.claim(partitions(0)) == {0: {} if lost == "emptied" else {READER: 1}}


async def test_what_open_refuses(server: Postgres, db: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    app = new_app("")
    url = server.url

    async def refused(sink: PostgresSink, match: str, app: Any = app) -> None:
        with pytest.raises(ConfigurationError, match=match) as caught:
            await sink.open(app)
        assert "pass" not in str(caught.value).replace("password", "")

    await refused(PostgresSink("log"), "DATABASE_URL")
    await refused(PostgresSink("log", url="nonsense"), "looks like postgresql://")
    await refused(PostgresSink("nowhere", url=url), 'relation "nowhere" does not exist')
    await refused(PostgresSink("log", columns=["x"], url=url), "no column 'x'; its columns: n, no")
    wrong = url.replace("%2F", "")
    await refused(PostgresSink("log", url=wrong), "refuses the connection: .*authentication failed")
    await refused(PostgresSink("log", url=url), "needs an App", None)
    db.execute("CREATE ROLE reader LOGIN PASSWORD 'pass'")
    db.execute("GRANT ALL ON log TO reader")
    db.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    reader = url.replace("tester:pass%2Fword", "reader:pass")
    await refused(PostgresSink("log", url=reader), "make it once: CREATE TABLE")
    monkeypatch.setenv("DATABASE_URL", url)
    first = PostgresSink("log")
    await first.open(app)
    await refused(PostgresSink("log"), "two sinks of the app are called 'log'")
    await first.flush()
    with pytest.raises(SinkError, match="one source partition"):
        await first.write([{"n": 1}])
    with at(0, 0), pytest.raises(SinkError, match="claimed no partitions yet"):
        await first.write([{"n": 1}])
    await first.close()
    for options, match in (
        ({"add": ["n"]}, "add needs key"),
        ({"key": "n"}, r"key=\['n'\]"),
        ({"key": ["n"], "add": ["n"]}, "in key and in add"),
        ({"key": ["n"], "columns": ["p"]}, "not in columns"),
        ({"timeout": 0}, "timeout must be more than 0"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            PostgresSink("log", **options)


@pytest.mark.parametrize("trouble", ["killed", "paused", "locked"])
async def test_away(trouble: str, opened: Open, server: Postgres, db: Any) -> None:
    sink = await opened(PostgresSink("log", url=server.url, timeout=1))
    for n in range(10):
        await process_all([sink], 0, n, {"n": n})
    if trouble == "killed":
        server.kill()
    elif trouble == "paused":
        server.pause()
    else:
        other = psycopg.connect(server.url)
        other.execute("LOCK TABLE log")
    committing = asyncio.create_task(checkpoint([sink], {0: 10}))
    async with asyncio_timeout(40):
        while not (sink.state == "away" and sink.retries > 1):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not committing.done()
    if trouble == "killed":
        await asyncio.to_thread(server.start)
    elif trouble == "paused":
        server.resume()
    else:
        other.close()
    async with asyncio_timeout(40):
        await committing
    assert sink.state == "connected"
    with psycopg.connect(server.url) as again:
        assert rows(again, "log") == [(n, None, None) for n in range(10)]


COMMIT = b"Q\0\0\0\x0bCOMMIT\0"


@pytest.mark.parametrize("fault", ["before", "after", "late"])
async def test_answer_lost(fault: str, opened: Open, server: Postgres, db: Any) -> None:
    async with Network(server.port, end=COMMIT).up() as network:
        url = server.url.replace(str(server.port), str(network.port))
        sink = await opened(PostgresSink("log", url=url, timeout=2))
        for n in range(5):
            await process_all([sink], 0, n, {"n": n})
            network.fault = fault
            await checkpoint([sink], {0: n + 1})
        assert network.faults == 5
        await sink.close()
    assert rows(db, "log") == [(n, None, None) for n in range(5)]


async def test_counts_are_exact_wherever_workers_crash(server: Postgres, db: Any) -> None:
    seed, total = random.randrange(1 << 32), 60
    print(f"seed {seed}")

    async with Network(server.port, seed, end=COMMIT).up() as network:
        url = server.url.replace(str(server.port), str(network.port))

        def pair() -> list[PostgresSink]:
            log = {"n": "value", "p": "partition"}
            totals = {"name": "partition", "n": "value"}
            return [
                PostgresSink("log", columns=log, url=url, timeout=3),
                PostgresSink("totals", columns=totals, key=["name"], add=["n"], url=url, timeout=3),
            ]

        job = Job(network, pair, lambda: new_app(""), seed)
        async with asyncio_timeout(100):
            await job.run(total)
    assert job.crashes > 2
    assert rows(db, "totals") == [(str(p), sum(range(total)), None) for p in range(3)]
    found = [(p, n) for n, p, _ in rows(db, "log")]
    assert sorted(found) == [(p, n) for p in range(3) for n in range(total)]
