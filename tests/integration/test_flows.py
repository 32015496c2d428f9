"""Flows in a real worker: windows that close by silence, late records, and where results go."""

import time
from collections import Counter, defaultdict

import pytest

from streamproc.kafka.producer import partition_of

START = 1_700_000_000_000

APP = """
    import os, time
    import streamproc as faust
    from streamproc.aggregates import Count, Sum
    from streamproc.sinks import RedisHash, RedisList
    from streamproc.windows import session, tumbling

    class Reading(faust.Record):
        sensor: str
        n: int

    class Total(faust.Record):
        sensor: str
        count: int
        total: int

    app = faust.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        redis=os.environ["REDIS_URL"],
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        broker_commit_interval=0.5,
        dead_letter_topic=os.environ["APP_ID"] + "-dead",
    )
    TOPIC = os.environ["TOPIC"]
    topic = app.topic(TOPIC, key_type=str, value_type=Reading)
"""


def reading(sensor, n, time):
    return sensor, {"sensor": sensor, "n": n}, START + time


def by_window(records, size=10_000):
    totals = defaultdict(list)
    for sensor, value, timestamp in records:
        totals[sensor, timestamp - timestamp % size].append(value["n"])
    return {window: (len(ns), sum(ns)) for window, ns in totals.items()}


@pytest.fixture
def start(worker, tmp_path):
    """``start(source, topic, ...)`` starts a worker of an app."""

    def run(source, topic, **env):
        written = (tmp_path / "app_under_test.py").exists()
        text = None if written else APP + source
        return worker(text, env={"APP_ID": f"app-{topic}", "TOPIC": topic, **env})

    return run


EVERYWHERE = """
    totals = app.topic(TOPIC + "-totals", key_type=str, value_type=Total)
    late = app.topic(TOPIC + "-late", key_type=str, value_type=Reading)
    latest = app.Table("latest", key_type=str, value_type=int)
    lists = RedisList("called:{sensor}", value="n")

    def window(**options):
        return tumbling("10s", idle_timeout="2s", **options)

    def as_total(result):
        return Total(result.key, result.n, result.total)

    finals = app.stream(topic).window(window(late=late)).aggregate(n=Count(), total=Sum("n"))
    finals.to(RedisHash("final:{key}:{window_start:%M%S}", fields=["n", "total"]))
    finals.map(as_total).to(totals)
    finals.map(lambda result: result.total).to(latest)
    (
        app.stream(topic)
        .window(window(late="dead-letter", emit="updates"))
        .aggregate(n=Count(), total=Sum("n"))
        .to(RedisHash("update:{key}:{window_start:%M%S}", fields=["n", "total"]))
    )
    (
        app.stream(topic)
        .window(session("2s", idle_timeout="2s", late=lists))
        .aggregate(n=Count(), total=Sum("n"))
        .to(RedisHash("session:{key}:{window_start:%M%S}", fields=["n", "total"]))
    )
"""


def test_results_go_everywhere(
    start, topic_factory, produce, redis_client, wait_for, consume_all, kafka_client
):
    topic = topic_factory(partitions=4)
    for name in ("totals", "late"):
        topic_factory(name=f"{topic}-{name}")
    records = [reading(f"s{n % 5}", n, n * 100) for n in range(300)]
    produce(topic, records)
    # Late for its windows, and in time for the session of its sensor.
    late = [reading("s1", 1000, 50)]
    produce(topic, late)
    # Late for all, as it is in a partition that is further.
    stray = reading("s9", 2000, 60)
    produce(topic, [stray], partition=partition_of(b"s1", 4))
    running = start(EVERYWHERE, topic)
    running.wait_ready()
    expected = by_window(records)

    def hashes(kind):
        return {
            key: tuple(map(int, redis_client.hmget(key, "n", "total")))
            for key in redis_client.keys(f"{kind}:*")
        }

    def named(kind):
        return {
            f"{kind}:{sensor}:{time.strftime('%M%S', time.gmtime(start / 1000))}": found
            for (sensor, start), found in expected.items()
        }

    wait_for(lambda: len(hashes("final")) == len(expected), 40, "final results")
    assert hashes("final") == named("final")
    assert hashes("update") == named("update")
    # Each sensor has a reading each half second: one session, by now.
    wait_for(lambda: len(hashes("session")) == 5, 20, "sessions")
    sessions = {sensor: [] for sensor in ("s0", "s1", "s2", "s3", "s4")}
    for sensor, value, _ in records + late:
        sessions[sensor].append(value["n"])
    assert sorted(hashes("session").values()) == sorted(
        (len(ns), sum(ns)) for ns in sessions.values()
    )
    assert redis_client.lrange("called:s9", 0, -1) == ["2000"]
    found = consume_all(f"{topic}-totals", at_least=len(expected))
    assert Counter((each.key.decode(), each.json()["total"]) for each in found) == Counter(
        (sensor, total) for (sensor, _), (_, total) in expected.items()
    )
    found = consume_all(f"{topic}-late", at_least=2)
    assert sorted((each.key.decode(), each.json(), each.timestamp) for each in found) == [
        *late,
        stray,
    ]
    letters = consume_all(f"app-{topic}-dead", at_least=2)
    assert sorted(letter.json()["n"] for letter in letters) == [1000, 2000]
    assert {dict(letter.headers)["dead-letter-error"] for letter in letters} == {b"LateRecord"}
    total = len(records) + 2
    wait_for(lambda: kafka_client.total_committed(f"app-{topic}", topic) == total, 20)
    running.stop()
    # The last of each sensor's windows is in the table's changelog.
    kept = {
        each.key: each.value
        for each in consume_all(f"app-{topic}-latest-changelog")
        if each.key[:1] != b"\x00"
    }
    assert kept == {
        b'"%s"' % sensor.encode(): b"%d" % total
        for (sensor, _), (_, total) in sorted(expected.items())
    }
    # And no open window is left in the changelogs.
    for number in ("", "-2", "-3"):
        kind = "session" if number == "-3" else "tumbling"
        changelog = f"app-{topic}-flow-{topic}{number}-{kind}-changelog"
        left = {(each.partition, each.key): each.value for each in consume_all(changelog)}
        assert {key for (_, key), value in left.items() if value is not None} == {b"\x00position"}


SKEWED = """
    def slowly(reading):
        if os.environ.get("SLOW") and reading.n % 50 == 0:
            time.sleep(0.1)

    (
        app.stream(topic)
        .peek(slowly)
        .key_by("sensor")
        .window(tumbling("10s", idle_timeout="1s", late="dead-letter"))
        .aggregate(n=Count(), total=Sum("n"))
        .to(RedisHash("final:{key}:{window_start:%H%M%S}", fields=["n", "total"]))
    )
"""


def test_partitions_read_at_different_speeds(
    start, topic_factory, produce, redis_client, wait_for, kafka_client
):
    """One partition is far ahead, and the slow one pauses longer than the idle time-out."""
    topic = topic_factory(partitions=2)
    records = [reading(f"s{n % 5}", n, n * 100) for n in range(3000)]
    for begin in range(0, len(records), 250):
        produce(topic, records[begin : begin + 250], partition=0)
        produce(topic, records[begin : begin + 250], partition=1)
    first = start(SKEWED, topic)
    second = start(SKEWED, topic, SLOW="1")
    expected = {window: (2 * n, 2 * total) for window, (n, total) in by_window(records).items()}
    first.wait_ready()
    second.wait_ready()

    def hashes():
        return {
            key: tuple(map(int, redis_client.hmget(key, "n", "total")))
            for key in redis_client.keys("final:*")
        }

    wait_for(lambda: len(hashes()) == len(expected), 40, "final results")
    names = {
        f"final:{sensor}:{time.strftime('%H%M%S', time.gmtime(start / 1000))}": found
        for (sensor, start), found in expected.items()
    }
    wait_for(lambda: hashes() == names, 5, lambda: str(set(hashes().items()) ^ set(names.items())))
    assert kafka_client.partitions(f"app-{topic}-dead") == 0
