"""Windows while workers are killed, started and stopped: the last results are right."""

from __future__ import annotations

import time
from collections import defaultdict

import pytest
from harness import Feed

START = 1_700_000_000_000
SIZE = 5_000

APP = """
    import os
    import streamproc as faust
    from streamproc.aggregates import Count, Max, Min, Sum
    from streamproc.sinks import RedisHash
    from streamproc.windows import tumbling

    class Reading(faust.Record):
        sensor: str
        n: int

    app = faust.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        redis=os.environ["REDIS_URL"],
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.5,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        dead_letter_topic=os.environ["APP_ID"] + "-dead",
    )
    topic = app.topic(os.environ["TOPIC"], key_type=str, value_type=Reading)
    results = app.topic(os.environ["TOPIC"] + "-results", key_type=str)
    (
        app.stream(topic)
        .filter(lambda reading: reading.n % 7)
        .window(tumbling("5s", idle_timeout="3s", late="dead-letter"))
        .aggregate(n=Count(), total=Sum("n"), low=Min("n"), high=Max("n"))
        .to(RedisHash("final:{key}:{window_start:%s}", fields=["n", "total", "low", "high"]))
        .to(results)
    )
"""

FIELDS = ("n", "total", "low", "high")


def readings(numbers):
    """Event time goes 20 times as fast as the clock."""
    return [(f"s{n % 64}", {"sensor": f"s{n % 64}", "n": n}, START + n * 5) for n in numbers]


@pytest.fixture
def run(worker, tmp_path):
    """``run(topic)`` starts a worker of the app above."""

    def start(topic):
        source = None if (tmp_path / "app_under_test.py").exists() else APP
        return worker(source, env={"APP_ID": f"app-{topic}", "TOPIC": topic, "TZ": "UTC"})

    return start


def expected_of(records):
    """Compute the windows from what is in the input topic."""
    windows = defaultdict(list)
    for record in records:
        n = record.json()["n"]
        if n % 7:
            start = record.timestamp - record.timestamp % SIZE
            windows[record.key.decode(), start // 1000].append(n)
    return {window: (len(ns), sum(ns), min(ns), max(ns)) for window, ns in windows.items()}


def test_windows_are_right_however_workers_end(
    run, topic_factory, produce, consume_all, redis_client, wait_for, kafka, kafka_client
):
    topic = topic_factory(partitions=8)
    kafka_client.create_topic(name=f"{topic}-results")

    def finals():
        return {
            (key.split(":")[1], int(key.split(":")[2])): tuple(
                map(int, redis_client.hmget(key, *FIELDS))
            )
            for key in redis_client.keys("final:*")
        }

    def wait_for_more(count=64 * 8):
        before = redis_client.dbsize()
        wait_for(lambda: redis_client.dbsize() >= before + count, 60, "more windows")

    def wait_for_heirs():
        """Wait until others do the partitions of the killed: all sent by now is done."""
        sent = dict(feed.sent)

        def done():
            committed = kafka_client.committed(f"app-{topic}", topic)
            return all(committed.get(partition, 0) >= count for partition, count in sent.items())

        wait_for(done, 60, "the partitions of killed workers at others")

    feed = Feed(produce, topic, readings, step=400)
    first, second, third = run(topic), run(topic), run(topic)
    feed.start()
    for each in (first, second, third):
        each.wait_ready()
    wait_for_more()
    first.kill()
    wait_for_more()
    fourth = run(topic)
    second.kill()
    fourth.wait_ready()
    wait_for_more()
    if not kafka.durable:
        # When the leader of the group leaves and the embedded broker finds a killed member to
        # be gone in the same moment, it elects nobody ever after: all join again and again.
        wait_for_heirs()
    third.stop()
    assert third.exit_code == 0
    fifth = run(topic)
    fifth.wait_ready()
    wait_for_more()
    fourth.kill()
    wait_for_more()
    count = feed.finish()
    records = consume_all(topic, at_least=count)
    expected = expected_of(records)
    wait_for(lambda: redis_client.dbsize() == len(expected), 40, "all windows")
    wait_for(lambda: kafka_client.total_committed(f"app-{topic}", topic) == count, 20)
    fifth.stop()
    assert finals() == expected
    last = {}
    for record in consume_all(f"{topic}-results", at_least=len(expected)):
        result = record.json()
        begin = result["window_start"].replace("Z", "+00:00")
        last[result["key"], begin] = tuple(result[name] for name in FIELDS)
    by_text = {
        (key, time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(start))): found
        for (key, start), found in expected.items()
    }
    assert last == by_text
    assert kafka_client.partitions(f"app-{topic}-dead") == 0
