"""Workers, brokers and Redis that are killed, stopped, late, or away."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from confluent_kafka import KafkaException
from harness import Feed

APP = """
    import asyncio, os
    import streamproc as faust
    from streamproc.sinks import RedisList

    class Number(faust.Record):
        n: int

    app = faust.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        redis=os.environ["REDIS_URL"],
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        batch_size=500,
    )
    topic = app.topic(os.environ["TOPIC"], key_type=str, value_type=Number)
    seen = RedisList("seen:{partition}", value="n")

    @app.agent(topic)
    async def see(stream):
        async for batch in stream.batches():
            await seen.write(batch)
            await asyncio.sleep(float(os.environ.get("PAUSE", 0)))
"""


@pytest.fixture
def run(worker, tmp_path):
    """``run(app_id, topic, ...)`` starts a worker of the app above."""

    def start(app_id, topic, **env):
        source = None if (tmp_path / "app_under_test.py").exists() else APP
        return worker(source, env={"APP_ID": app_id, "TOPIC": topic, **env})

    return start


def numbers(count, start=0):
    return [(f"k{n % 64}", {"n": n}) for n in range(start, start + count)]


class Seen:
    """What the workers wrote to Redis."""

    def __init__(self, client):
        self.client = client

    def by_partition(self):
        return {
            key: [int(n) for n in self.client.lrange(key, 0, -1)]
            for key in self.client.keys("seen:*")
        }

    def all(self):
        return Counter(n for column in self.by_partition().values() for n in column)

    def has(self, count):
        return sum(self.client.llen(key) for key in self.client.keys("seen:*")) >= count and set(
            self.all()
        ) >= set(range(count))


def first_occurrences(column):
    return list(dict.fromkeys(column))


@pytest.fixture
def seen(redis_client):
    return Seen(redis_client)


def test_two_workers_share_and_one_leaves_and_comes_back(
    run, topic_factory, produce, seen, wait_for, kafka_client
):
    topic = topic_factory(partitions=8)
    app_id = f"app-{topic}"
    feed = Feed(produce, topic, lambda new: numbers(len(new), new.start), step=500)
    run(app_id, topic).wait_ready()
    second = run(app_id, topic)
    second.wait_ready()
    feed.start()
    wait_for(lambda: seen.has(1000), 40, "both work")
    second.stop()
    assert second.exit_code == 0
    before = feed.count
    wait_for(lambda: feed.count > before + 2000, 30, "more records")
    run(app_id, topic).wait_ready()
    wait_for(lambda: feed.count > before + 4000, 30, "more records")
    count = feed.finish()
    wait_for(lambda: seen.has(count), 40, "all records")
    wait_for(lambda: kafka_client.total_committed(app_id, topic) == count, 20, "all committed")
    for column in seen.by_partition().values():
        assert first_occurrences(column) == sorted(set(column))
    # Nobody died, so what was handed over was committed first.
    assert max(seen.all().values()) == 1


def test_one_of_two_workers_is_killed(run, topic_factory, produce, seen, wait_for, kafka_client):
    topic = topic_factory(partitions=8)
    app_id = f"app-{topic}"
    produce(topic, numbers(20_000))
    first, second = run(app_id, topic, PAUSE="0.05"), run(app_id, topic, PAUSE="0.05")
    first.wait_ready()
    second.wait_ready()
    wait_for(lambda: sum(seen.all().values()) > 2000, 40, "both work")
    second.kill()
    wait_for(lambda: seen.has(20_000), 90, "all records")
    wait_for(lambda: kafka_client.total_committed(app_id, topic) == 20_000, 30, "all committed")


def test_a_worker_that_is_stopped_in_the_middle_repeats_nothing(
    run, topic, produce, seen, wait_for
):
    produce(topic, numbers(20_000))
    first = run(f"app-{topic}", topic, PAUSE="0.1")
    wait_for(lambda: sum(seen.all().values()) > 2000, 40, "it works")
    first.stop()
    assert first.exit_code == 0
    assert sum(seen.all().values()) < 20_000
    run(f"app-{topic}", topic)
    wait_for(lambda: seen.has(20_000), 40, "all records")
    assert max(seen.all().values()) == 1


def test_redis_is_killed_and_comes_back(
    run, topic, produce, new_redis, wait_for, kafka_client, children
):
    import redis

    server = new_redis()
    app_id = f"app-{topic}"
    running = run(app_id, topic, REDIS_URL=server.url, PAUSE="0.05")
    produce(topic, numbers(5000))
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        wait_for(lambda: Seen(client).has(5000), 40, "first records")
    committed = 5000
    wait_for(lambda: kafka_client.total_committed(app_id, topic) == committed, 20)
    server.kill()
    produce(topic, numbers(5000, 5000))
    running.wait_log("is away", 20)
    time.sleep(3)
    assert kafka_client.total_committed(app_id, topic) == committed
    server.restart()
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        wait_for(lambda: set(Seen(client).all()) >= set(range(5000, 10_000)), 40, "the rest")
    wait_for(lambda: kafka_client.total_committed(app_id, topic) == 10_000, 20, "all committed")
    assert running.running
    assert running.log.count("is away") == 1


def test_a_broker_that_appears_after_the_worker(run, new_kafka, seen, wait_for):
    from harness import KafkaClient

    server = new_kafka(start=False)
    running = run("app-late-broker", "numbers", BOOTSTRAP=server.bootstrap)
    running.wait_log("no Kafka broker answers", 20)
    time.sleep(20)
    assert running.running
    server.start()
    client = KafkaClient(server.bootstrap)
    try:
        client.create_topic(name="numbers")
    except KafkaException:
        # The embedded broker creates a topic as soon as a worker asks about it.
        assert client.partitions("numbers")
    client.produce("numbers", numbers(1000))
    wait_for(lambda: seen.has(1000), 60, "records of the late broker")
    assert running.log.count("no Kafka broker answers") == 1
    assert running.log.count("Connect call failed") <= 2


def test_a_broker_that_goes_away_and_returns(run, new_kafka, seen, wait_for):
    from harness import KafkaClient

    server = new_kafka()
    client = KafkaClient(server.bootstrap)
    client.create_topic(name="numbers")
    client.produce("numbers", numbers(1000))
    running = run("app-away", "numbers", BOOTSTRAP=server.bootstrap)
    wait_for(lambda: seen.has(1000), 40, "first records")
    if server.durable:
        server.stop()
        time.sleep(8)
        server.restart()
    else:
        server.pause()
        time.sleep(8)
        server.resume()
    client = KafkaClient(server.bootstrap)
    client.produce("numbers", numbers(1000, 1000))
    wait_for(lambda: seen.has(2000), 60, "records after the break")
    wait_for(lambda: client.total_committed("app-away", "numbers") == 2000, 30, "all committed")
    assert running.running
