"""Results in Redis and PostgreSQL are exact, whatever ends the workers that write them."""

from __future__ import annotations

import psycopg
import pytest
from conftest import KAFKA_KIND
from harness import Feed
from postgres import Postgres

# On Apache Kafka all is exact, on the embedded broker just what is in sinks.
APP = f"""
    import os
    import streamproc as faust
    from streamproc.sinks import PostgresSink, RedisCounter, RedisList

    class Item(faust.Record):
        n: int
        name: str

    app = faust.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        redis=os.environ["REDIS_URL"],
        processing_guarantee="{"exactly_once" if KAFKA_KIND == "apache" else "at_least_once"}",
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.3,
        topic_disable_leader=True,
    )
    source = app.topic(os.environ["TOPIC"], value_type=Item)
    totals = RedisCounter("total:{{name}}", amount="n", exactly_once=True)
    numbers = RedisList("n:{{{{p{{partition}}}}}}", value="n", exactly_once=True)
    batches = RedisCounter("batches", amount="n", exactly_once=True)

    sums = PostgresSink("sums", key=["name"], add=["n"])
    log = PostgresSink("log", columns=["n"])

    @app.agent(source, sink=[totals, sums, log])
    async def count(items):
        async for item in items:
            yield item

    @app.agent(source)
    async def note(items):
        async for item in items:
            await numbers.write([item])

    @app.agent(source)
    async def sum_up(items):
        async for batch in items.batches():
            await batches.write([{{"n": len(batch)}}])
"""

NAMES = 7


def items(numbers):
    return [(str(n), {"n": n, "name": f"s{n % NAMES}"}) for n in numbers]


@pytest.fixture
def database():
    """A connection to a PostgreSQL with the tables, and its URL."""
    server = Postgres()
    try:
        with psycopg.connect(server.start().url, autocommit=True) as connection:
            connection.execute("CREATE TABLE sums (name text PRIMARY KEY, n bigint)")
            connection.execute("CREATE TABLE log (n bigint)")
            yield connection, server.url
    finally:
        server.remove()


def test_exact_whatever_ends_a_worker(
    worker, topic_factory, produce, wait_for, redis_client, consume_all, kafka_client, database
):
    topic = topic_factory(partitions=4)
    db, url = database
    env = {"APP_ID": f"app-{topic}", "TOPIC": topic, "DATABASE_URL": url}
    feed = Feed(produce, topic, items, step=200, pause=0.2)
    first, second = worker(APP, env=env), worker(env=env)
    feed.start()
    first.wait_ready()
    second.wait_ready()

    def counted():
        return int(redis_client.get("batches") or 0)

    def wait_for_more():
        before = counted()
        wait_for(lambda: counted() > before + 1000, 90, "more results")

    wait_for_more()
    first.kill()
    third = worker(env=env)
    wait_for_more()
    second.stop()
    assert second.exit_code == 0
    wait_for_more()
    count = feed.finish()
    wait_for(lambda: counted() >= count, 90, lambda: f"all {count}, there are {counted()}")
    third.stop()
    assert third.exit_code == 0
    check(redis_client, db, topic, count, consume_all)

    # The group has forgotten all, Redis nothing: what is read again makes no results.
    kafka_client.reset_offsets(env["APP_ID"], topic)
    more = [(str(n), {"n": n, "name": f"s{n % NAMES}"}) for n in range(count, count + 1000)]
    produce(topic, more)
    count += 1000
    again = worker(env=env)
    wait_for(lambda: kafka_client.total_committed(env["APP_ID"], topic) >= count, 60, "the end")
    again.stop()
    check(redis_client, db, topic, count, consume_all)


def check(redis_client, db, topic, count, consume_all):
    """Compare what is in the servers with what was sent."""
    assert redis_client.get("batches") == str(count)
    expected = {f"s{k}": sum(range(k, count, NAMES)) for k in range(NAMES)}
    assert {key: int(redis_client.get(f"total:{key}")) for key in expected} == expected
    assert dict(db.execute("SELECT name, n FROM sums").fetchall()) == expected
    logged = db.execute("SELECT n FROM log ORDER BY n").fetchall()
    assert [n for (n,) in logged] == list(range(count))
    sent = {}
    for record in consume_all(topic, at_least=count):
        sent.setdefault(record.partition, []).append(record.json()["n"])
    for partition, numbers in sent.items():
        stored = redis_client.lrange(f"n:{{p{partition}}}", 0, -1)
        assert [int(n) for n in stored] == numbers


RESTORED = f"""
    import os
    import streamproc as faust
    from streamproc.sinks import RedisList

    app = faust.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        redis=os.environ["REDIS_URL"],
        processing_guarantee="{"exactly_once" if KAFKA_KIND == "apache" else "at_least_once"}",
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.3,
        topic_disable_leader=True,
        when_sink_behind=os.environ.get("WHEN_SINK_BEHIND"),
    )
    source = app.topic(os.environ["TOPIC"], value_type=int)
    counts = app.Table("counts", default=int)
    numbers = RedisList("numbers", exactly_once=True)

    @app.agent(source, sink=[numbers])
    async def note(items):
        async for item in items:
            counts["all"] += 1
            yield item
"""


def test_a_server_restored_from_an_older_copy(
    worker, topic_factory, produce, wait_for, redis_client, kafka_client
):
    topic = topic_factory(partitions=1)
    env = {"APP_ID": f"app-{topic}", "TOPIC": topic}

    def run(numbers, **changed):
        produce(topic, [(None, n) for n in numbers])
        running = worker(RESTORED, env=env | changed)
        count = numbers.stop
        wait_for(
            lambda: (
                kafka_client.total_committed(env["APP_ID"], topic) >= count
                and redis_client.lrange("numbers", -1, -1) == [str(count - 1)]
            ),
            60,
            lambda: f"{count}, there are {redis_client.lrange('numbers', 0, -1)}",
        )
        running.stop()
        return running

    run(range(10))
    copy = {key: redis_client.dump(key) for key in redis_client.keys("*")}
    run(range(10, 20))
    for key, value in copy.items():
        redis_client.restore(key, 0, value, replace=True)
    stopped = worker(RESTORED, env=env)
    assert stopped.wait_end() != 0
    assert "has fewer results than the group has offsets" in stopped.log
    went_on = run(range(20, 25), WHEN_SINK_BEHIND="replay")
    assert f"Missing: {topic}/0 from 10" in went_on.log
    assert [int(n) for n in redis_client.lrange("numbers", 0, -1)] == [*range(25)]
