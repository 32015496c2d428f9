"""Exactly once in Kafka: what a reader of committed records sees, whatever ends a worker."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict

import pytest
from harness import Feed

START = 1_700_000_000_000
SIZE = 5_000

APP = """
    import os
    import streamproc as faust
    from streamproc.aggregates import Count, Sum
    from streamproc.windows import tumbling

    class Reading(faust.Record):
        sensor: str
        n: int

    app = faust.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        processing_guarantee="exactly_once",
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.5,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
    )
    name = os.environ["TOPIC"]
    topic = app.topic(name, value_type=Reading)
    windows = app.topic(name + "-windows", key_type=str)
    counts = app.topic(name + "-counts", key_type=str)
    seen = app.Table("seen", default=int)

    (
        app.stream(topic)
        .key_by(lambda reading: reading.sensor)
        .window(tumbling("5s", idle_timeout="3s", late="dead-letter"))
        .aggregate(n=Count(), total=Sum("n"))
        .to(windows)
    )

    @app.agent(topic)
    async def count(readings):
        async for reading in readings:
            seen[reading.sensor] += 1
            await counts.send(key=reading.sensor, value=[seen[reading.sensor], reading.n])
"""


def readings(numbers):
    """Event time goes 20 times as fast as the clock; keys by partition, as tables need it."""
    return [(f"s{n % 32}", {"sensor": f"s{n % 32}", "n": n}, START + n * 5) for n in numbers]


def expected_windows(count):
    windows = defaultdict(list)
    for n in range(count):
        timestamp = START + n * 5
        windows[f"s{n % 32}", (timestamp - timestamp % SIZE) // 1000].append(n)
    return {window: (len(ns), sum(ns)) for window, ns in windows.items()}


@pytest.mark.apache_only
def test_every_result_is_there_once_whatever_ends_a_worker(
    worker, topic_factory, produce, consume_all, wait_for, kafka_client
):
    topic = topic_factory(partitions=4)
    for name in ("windows", "counts"):
        kafka_client.create_topic(name=f"{topic}-{name}", partitions=4)
    env = {"APP_ID": f"app-{topic}", "TOPIC": topic, "TZ": "UTC"}
    feed = Feed(produce, topic, readings, step=200)
    first, second = worker(APP, env=env), worker(env=env)
    feed.start()
    first.wait_ready()
    second.wait_ready()

    def results(name):
        return consume_all(f"{topic}-{name}")

    def wait_for_more():
        before = len(results("counts"))
        wait_for(lambda: len(results("counts")) > before + 500, 40, "more results")

    wait_for_more()
    first.kill()
    third = worker(env=env)
    wait_for_more()
    second.stop()
    assert second.exit_code == 0
    wait_for_more()
    third.kill()
    last = worker(env=env)
    count = feed.finish()
    expected = expected_windows(count)
    wait_for(lambda: len(results("counts")) >= count, 60, "all records")
    wait_for(lambda: len(results("windows")) >= len(expected), 40, "all windows")
    last.stop()
    found = Counter()
    for record in results("windows"):
        result = record.json()
        begin = time.strptime(result["window_start"][:19], "%Y-%m-%dT%H:%M:%S")
        found[
            (result["key"], int(time.mktime(begin)) - time.timezone),
            (result["n"], result["total"]),
        ] += 1
    assert found == Counter(expected.items())
    numbers = defaultdict(list)
    for record in results("counts"):
        numbers[record.key.decode()].append(record.json())
    assert numbers == {
        f"s{k}": [[at + 1, n] for at, n in enumerate(range(k, count, 32))] for k in range(32)
    }


TWO_READERS = """
    import asyncio
    import os
    import streamproc as faust

    app = faust.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        processing_guarantee="exactly_once",
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.3,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
    )
    name = os.environ["TOPIC"]
    topic = app.topic(name, value_type=int)
    fast = app.topic(name + "-fast", value_type=int)
    slow = app.topic(name + "-slow", value_type=int)

    @app.agent(topic)
    async def hurry(numbers):
        async for number in numbers:
            await fast.send(value=number)

    @app.agent(topic)
    async def dawdle(numbers):
        async for number in numbers:
            await asyncio.sleep(0.01)
            await slow.send(value=number)
"""


@pytest.mark.apache_only
def test_a_reader_that_is_ahead_of_another_sends_nothing_twice(
    worker, topic_factory, produce, consume_all, wait_for, kafka_client
):
    topic = topic_factory(partitions=2)
    for name in ("fast", "slow"):
        kafka_client.create_topic(name=f"{topic}-{name}", partitions=2)
    env = {"APP_ID": f"app-{topic}", "TOPIC": topic}

    def results(name):
        return sorted(record.json() for record in consume_all(f"{topic}-{name}"))

    produce(topic, [(str(n), n) for n in range(500)])
    first = worker(TWO_READERS, env=env)
    wait_for(lambda: len(results("slow")) > 50, 40, "results of the slow one")
    first.kill()
    assert len(results("fast")) > len(results("slow"))
    second = worker(env=env)
    wait_for(lambda: len(results("slow")) >= 500, 60, "all results")
    second.stop()
    assert results("slow") == results("fast") == list(range(500))


def test_a_broker_without_transactions_is_told(worker, topic_factory):
    if os.environ.get("STREAMPROC_TEST_KAFKA") == "apache":
        pytest.skip("Apache Kafka has transactions")
    topic = topic_factory()
    refused = worker(APP, env={"APP_ID": f"app-{topic}", "TOPIC": topic})
    assert refused.wait_end() != 0
    assert "needs a broker with transactions as Apache Kafka 2.5" in refused.log
