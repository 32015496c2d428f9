"""KafkaReader and RedisWriter on real servers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import harness
import pytest
import redis
import yaml

from streamproc import KafkaReader, Record, RedisWriter
from streamproc.errors import (
    BrokerUnavailable,
    ConfigurationError,
    SinkError,
    SinkUnavailable,
    StreamprocError,
)

# The embedded broker holds a join for half the session time-out.
FAST = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 1000}
ROOT = Path(__file__).parents[2]


class Reading(Record):
    sensor_id: str
    value: float


def readings(count, start=0):
    return [
        (f"s{i % 5}", {"sensor_id": f"s{i % 5}", "value": float(i)})
        for i in range(start, start + count)
    ]


def test_reads_what_is_there_and_stops(bootstrap, topic, produce):
    produce(topic, readings(500))
    with KafkaReader(bootstrap, topic, group=f"g-{topic}", timeout=1.0, **FAST) as reader:
        values = [record["value"] for record in reader.get_stream()]
    assert sorted(values) == [float(i) for i in range(500)]


def test_limit_commits_exactly_what_was_given(bootstrap, topic, produce, kafka_client):
    produce(topic, readings(300))
    group = f"g-{topic}"
    with KafkaReader(bootstrap, topic, group=group, limit=100, **FAST) as reader:
        first = [record["value"] for record in reader.get_stream()]
    assert len(first) == 100
    assert kafka_client.total_committed(group, topic) == 100
    with KafkaReader(bootstrap, topic, group=group, timeout=2.0, **FAST) as reader:
        rest = [record["value"] for record in reader.get_stream()]
    assert sorted(first + rest) == [float(i) for i in range(300)]


def test_the_record_at_which_the_loop_fails_is_read_again(bootstrap, topic_factory, produce):
    topic = topic_factory(partitions=1)
    produce(topic, readings(10))
    group = f"g-{topic}"

    def divide():
        with KafkaReader(bootstrap, topic, group=group, timeout=2.0, **FAST) as reader:
            for record in reader.get_stream():
                1 / (4.0 - record["value"])

    with pytest.raises(ZeroDivisionError):
        divide()
    with KafkaReader(bootstrap, topic, group=group, timeout=2.0, **FAST) as reader:
        assert next(reader.get_stream())["value"] == 4.0


def test_typed_records_and_dead_letters(bootstrap, topic, produce, consume_all):
    produce(topic, [*readings(20), ("s1", b"{broken"), ("s1", {"sensor_id": "s1"})])
    group = f"g-{topic}"
    with KafkaReader(
        bootstrap, topic, group=group, value_type=Reading, timeout=1.5, **FAST
    ) as reader:
        records = list(reader.get_stream())
        assert reader.rejected == 2
    assert sorted(each.value for each in records) == [float(i) for i in range(20)]
    letters = consume_all(f"{group}-dead-letters", at_least=2)
    reasons = {dict(letter.headers)["dead-letter-reason"].decode() for letter in letters}
    assert any("value" in reason for reason in reasons)
    assert {letter.value for letter in letters} >= {b"{broken"}


def test_frames(bootstrap, topic, produce):
    produce(topic, readings(250))
    with KafkaReader(
        bootstrap, topic, group=f"g-{topic}", limit=200, timeout=2.0, **FAST
    ) as reader:
        frames = list(reader.get_frames())
    assert sum(len(frame) for frame in frames) == 200
    assert set(frames[0].columns) == {"sensor_id", "value"}


def test_broker_and_topic_that_are_not_there(bootstrap):
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1 "):
        KafkaReader("127.0.0.1:1", "t", connect_timeout=0.5)
    with pytest.raises(ConfigurationError, match="no-such-topic"):
        KafkaReader(bootstrap, "no-such-topic", connect_timeout=0.5)


def test_writer_to_hashes_and_to_a_stream(redis_url, redis_client):
    with RedisWriter(redis_url, key="stats:{sensor_id}") as writer:
        writer.publish_data({"sensor_id": "a", "value": 1})
        assert redis_client.hgetall("stats:a") == {"sensor_id": "a", "value": "1"}
        writer.publish_data(Reading("b", 2.5))
        assert redis_client.hget("stats:b", "value") == "2.5"
        with pytest.raises(SinkError, match="sensor_id"):
            writer.publish_data({"value": 1})
        assert writer.written == 2
    with RedisWriter(redis_url) as writer:
        writer.publish_data({"n": 1})
        writer.publish_data("text")
    assert [fields for _, fields in redis_client.xrange("records")] == [
        {"n": "1"},
        {"value": "text"},
    ]


def test_writer_keeps_what_redis_missed(new_redis):
    server = new_redis()
    writer = RedisWriter(server.url)
    writer.publish_data({"n": 1})
    server.kill()
    with pytest.raises(SinkUnavailable):
        writer.publish_data({"n": 2})
    server.restart()
    writer.publish_data({"n": 3})
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        numbers = [int(fields["n"]) for _, fields in client.xrange("records")]
    assert numbers[-2:] == [2, 3]
    writer.close()


@pytest.fixture
def five_lines(tmp_path, bootstrap, topic, redis_url):
    config = {"broker_list": [bootstrap], "topic": topic, "redis": redis_url}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    processes = []

    def start():
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "five_lines.py")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_the_loop_as_it_stands_survives_kill(five_lines, topic, produce, redis_client, wait_for):
    """Killed in the middle and started again, nothing is missing in Redis."""
    produce(topic, readings(20_000))
    process = five_lines()
    wait_for(lambda: redis_client.xlen("records") > 3000, 30, "records in Redis")
    process.kill()
    process.wait()
    five_lines()

    def seen():
        return {fields["value"] for _, fields in redis_client.xrange("records")}

    wait_for(lambda: redis_client.xlen("records") >= 20_000 and len(seen()) == 20_000, 60, "all")
    assert {float(each) for each in seen()} == {float(i) for i in range(20_000)}


def test_a_writer_in_batches_loses_nothing_when_killed(
    bootstrap, topic, produce, redis_url, redis_client, wait_for, tmp_path
):
    """What is committed is in Redis, even if the writer held it for a while."""
    count = 60_000
    produce(topic, readings(count))
    code = (
        "import sys\n"
        "from streamproc import KafkaReader, RedisWriter\n"
        "writer = RedisWriter(sys.argv[1], batch_size=700)\n"
        "reader = KafkaReader(sys.argv[2], sys.argv[3], group=sys.argv[3], timeout=3,\n"
        "                     session_timeout_ms=6000, heartbeat_interval_ms=1000)\n"
        "for record in reader.get_stream():\n"
        "    writer.publish_data({'value': record['value'], 'slow': sum(range(2000))})\n"
    )

    def start():
        arguments = [sys.executable, "-c", code, redis_url, bootstrap, topic]
        return subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)})

    first = start()
    try:
        # It has committed by then, at least twice.
        wait_for(lambda: redis_client.xlen("records") > 40_000, 40, "records in Redis")
    finally:
        first.kill()
        first.wait()
    second = start()
    assert second.wait(timeout=60) == 0
    values = [float(fields["value"]) for _, fields in redis_client.xrange("records")]
    assert set(values) == {float(i) for i in range(count)}
    assert len(values) < 2 * count, "the second began where the first had committed"


class Loop(threading.Thread):
    """A reader's loop in a thread of its own; ``places`` are the records it has had."""

    def __init__(self, *args, **options):
        super().__init__()
        self.places = []
        self.values = []
        self._arguments = args, options

    def run(self):
        args, options = self._arguments
        with KafkaReader(*args, **options, **FAST) as reader:
            for message in reader.messages():
                self.values.append(message.value["value"])
                self.places.append(message[:3])


def test_two_readers_share_the_partitions(bootstrap, topic, produce, kafka_client, wait_for):
    group = f"g-{topic}"
    produced = 400
    produce(topic, readings(produced))
    first = Loop(bootstrap, topic, group=group, timeout=4)
    second = Loop(bootstrap, topic, group=group, timeout=4)
    first.start()
    wait_for(lambda: len(first.places) == produced, 30, "the first reads alone")
    second.start()

    def shared():
        nonlocal produced
        produce(topic, readings(20, start=produced))
        produced += 20
        return len(second.places) > 100

    wait_for(shared, 40, "the second gets records")
    before = len(first.places)
    produce(topic, readings(200, start=produced))
    produced += 200
    first.join(60)
    second.join(60)
    assert set(first.values) | set(second.values) == {float(i) for i in range(produced)}
    assert {place[1] for place in second.places}.isdisjoint(
        place[1] for place in first.places[before:]
    )
    assert kafka_client.total_committed(group, topic) == produced


def test_a_reader_without_partitions_stops_too(bootstrap, topic_factory, produce):
    """More readers than partitions: the one that has none ends its loop at the timeout."""
    topic = topic_factory(partitions=1)
    produce(topic, readings(10))
    loops = [Loop(bootstrap, topic, group=f"g-{topic}", timeout=6) for _ in range(2)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join(60)
        assert not loop.is_alive()
    assert {value for loop in loops for value in loop.values} == {float(i) for i in range(10)}


def test_a_loop_that_was_left_goes_on_where_it_was(bootstrap, topic_factory, produce):
    topic = topic_factory(partitions=1)
    produce(topic, readings(1000))
    with KafkaReader(bootstrap, topic, group=f"g-{topic}", timeout=2.0, **FAST) as reader:
        seen = []
        for record in reader.get_stream():
            if record["value"] == 300.0:
                break
            seen.append(record["value"])
        assert reader.current.offset == 300
        for message in reader.messages():
            if message.value["value"] == 700.0:
                assert message.key == "s0"
                break
            seen.append(message.value["value"])
        seen += [record["value"] for record in reader.get_stream()]
    assert seen == [float(i) for i in range(1000)]


def test_a_limit_is_each_loops_own(bootstrap, topic_factory, produce, kafka_client):
    topic = topic_factory(partitions=1)
    produce(topic, readings(100))
    group = f"g-{topic}"
    with KafkaReader(bootstrap, topic, group=group, limit=30, timeout=2.0, **FAST) as reader:
        parts = [[record["value"] for record in reader.get_stream()] for _ in range(2)]
        parts.append([value for frame in reader.get_frames() for value in frame["value"]])
        assert kafka_client.total_committed(group, topic) == 90
    assert [len(part) for part in parts] == [30, 30, 30]
    assert [value for part in parts for value in part] == [float(i) for i in range(90)]


def test_break_commits_up_to_before_the_record(bootstrap, topic_factory, produce, kafka_client):
    topic = topic_factory(partitions=1)
    produce(topic, readings(100))
    group = f"g-{topic}"
    with KafkaReader(bootstrap, topic, group=group, **FAST) as reader:
        for record in reader.get_stream():
            if record["value"] == 40.0:
                break
    assert kafka_client.total_committed(group, topic) == 40


@pytest.mark.apache_only  # the embedded broker answers wrongly where a partition ends
def test_only_what_comes_from_now_on(bootstrap, topic_factory, produce):
    topic = topic_factory(partitions=1)
    produce(topic, readings(5))
    seen = []
    options = {"group": f"g-{topic}", "from_beginning": False, "timeout": 3.0, **FAST}
    with KafkaReader(bootstrap, topic, **options) as reader:
        assert list(reader.get_stream()) == []
        produce(topic, readings(5, start=5))
        seen = [record["value"] for record in reader.get_stream()]
    assert seen == [5.0, 6.0, 7.0, 8.0, 9.0]


def test_the_loop_waits_while_redis_is_away(bootstrap, topic, produce, new_redis, caplog):
    """Errors are printed as in the loop of the first page, and still nothing is lost."""
    produce(topic, readings(500))
    server = new_redis()
    writer = RedisWriter(server.url)
    errors = []
    over = threading.Event()

    def restart_soon():
        over.wait(2.0)
        server.restart()
        over.wait()  # the server ends with the thread that started it

    restarter = threading.Thread(target=restart_soon)
    with KafkaReader(bootstrap, topic, group=f"g-{topic}", timeout=2.0, **FAST) as reader:
        for number, record in enumerate(reader.get_stream()):
            if number == 200:
                server.kill()
                restarter.start()
            try:
                writer.publish_data(record)
            except SinkUnavailable as error:
                errors.append(error)
    assert len(errors) == 1, "the loop stands still until Redis is back"
    assert "waits until it is back" in caplog.text
    assert "is back after" in caplog.text
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        values = {float(fields["value"]) for _, fields in client.xrange("records")}
    # What a killed Redis had taken may be gone; what came later is there.
    assert len(values) >= 300
    assert writer.written == 500
    writer.close()
    over.set()
    restarter.join()


def test_a_record_in_hand_is_not_committed_when_redis_is_away_at_the_end(
    bootstrap, topic_factory, produce, new_redis, kafka_client
):
    topic = topic_factory(partitions=1)
    produce(topic, readings(50))
    group = f"g-{topic}"
    server = new_redis()
    writer = RedisWriter(server.url, batch_size=1000)
    reader = KafkaReader(bootstrap, topic, group=group, timeout=2.0, **FAST)
    for number, record in enumerate(reader.get_stream()):
        writer.publish_data(record)
        if number == 20:
            server.kill()
            break
    with pytest.raises(SinkUnavailable):
        reader.close()
    assert kafka_client.total_committed(group, topic) == 0
    with pytest.raises(SinkUnavailable):
        writer.close()


def test_broker_that_stands_still_for_a_while(new_kafka):
    server = new_kafka()
    client = harness.KafkaClient(server.bootstrap)
    topic = client.create_topic()
    client.produce(topic, readings(100))
    loop = Loop(server.bootstrap, topic, group="g", limit=200)
    loop.start()
    harness.wait_for(lambda: len(loop.places) == 100, 30, "the first hundred")
    server.pause()
    threading.Event().wait(4)  # longer than heartbeats, shorter than the session
    server.resume()
    client.produce(topic, readings(100, start=100))
    loop.join(60)
    assert set(loop.values) == {float(i) for i in range(200)}


def test_large_and_strange_records(bootstrap, topic_factory, produce, consume_all):
    topic = topic_factory(partitions=1, config={"max.message.bytes": "20000000"})
    large = {"sensor_id": "l", "value": 1.0, "note": "x" * 5_000_000}
    produce(
        topic,
        [
            (None, large),
            ("k", b"{" + b"y" * 5_000_000),
            (b"\xff\xfe", {"sensor_id": "b", "value": 2.0}),
            ("k", b"\xff\xfe"),
            ("k", b"[" * 100_000),
            ("k", b'{"sensor_id": "n", "value": NaN}'),
            ("k", {"sensor_id": "c", "value": 3.0}),
        ],
    )
    group = f"g-{topic}"
    with KafkaReader(
        bootstrap, topic, group=group, value_type=Reading, timeout=2.0, **FAST
    ) as reader:
        messages = list(reader.messages())
        assert reader.rejected == 4
    assert [message.value.value for message in messages] == [1.0, 2.0, 3.0]
    assert [message.key for message in messages] == [None, b"\xff\xfe", "k"]
    letters = consume_all(f"{group}-dead-letters", at_least=4)
    headers = [dict(letter.headers) for letter in letters]
    assert {each["dead-letter-offset"] for each in headers} == {b"1", b"3", b"4", b"5"}
    # A broker that takes no letter of this size gets one without the value.
    sizes = {
        int(each.get("dead-letter-left-out", len(letter.value or b"")))
        for letter, each in zip(letters, headers, strict=True)
    }
    assert max(sizes) == 5_000_001


def test_a_closed_reader_says_so(bootstrap, topic):
    reader = KafkaReader(bootstrap, topic, group=f"g-{topic}", **FAST)
    reader.close()
    reader.close()
    with pytest.raises(StreamprocError, match="closed"):
        next(reader.get_stream())


def test_wrong_arguments(bootstrap, topic, redis_url):
    with pytest.raises(ConfigurationError, match="gruop_id"):
        KafkaReader(bootstrap, topic, gruop_id="x")
    with pytest.raises(ConfigurationError, match="hots"):
        RedisWriter({"hots": "localhost"})
    with pytest.raises(ConfigurationError, match="not a Redis URL"):
        RedisWriter("http://localhost")
    with pytest.raises(ConfigurationError, match="cluster"):
        RedisWriter("redis+cluster://localhost")
    with pytest.raises(ConfigurationError, match="no such database"):
        RedisWriter(f"{redis_url.rpartition('/')[0]}/99")
    with pytest.raises(SinkUnavailable, match=r"127\.0\.0\.1:1 is away.*Start it"):
        RedisWriter("127.0.0.1:1")


def test_redis_as_a_mapping_and_with_a_password(new_redis):
    server = new_redis(password="geheim")
    place = {"host": "127.0.0.1", "port": server.port, "db": 1}
    with pytest.raises(ConfigurationError, match="login"):
        RedisWriter(place)
    with pytest.raises(ConfigurationError) as caught:
        RedisWriter({**place, "password": "falsch"})
    assert "falsch" not in str(caught.value)
    with RedisWriter({**place, "password": "geheim"}, key="k:{n}") as writer:
        writer.publish_many({"n": n} for n in range(10))
        assert writer.written == 10
    with redis.Redis(password="geheim", **place) as client:
        assert client.dbsize() == 10


def test_a_record_that_redis_refuses(redis_url, redis_client):
    redis_client.set("stats:a", "no hash")
    with RedisWriter(redis_url, key="stats:{sensor_id}") as writer:
        with pytest.raises(SinkError, match="WRONGTYPE"):
            writer.publish_data({"sensor_id": "a", "value": 1})
        writer.publish_data({"sensor_id": "b", "value": 1})
        with pytest.raises(SinkError, match="sensor_id"):
            writer.publish_many([{"value": 1}, {"sensor_id": "c", "value": 1}])
        assert writer.written == 2
    assert redis_client.exists("stats:b", "stats:c") == 2


def test_a_connection_that_redis_closed_is_opened_again(redis_url, redis_client):
    with RedisWriter(redis_url) as writer:
        writer.publish_data({"n": 1})
        for client in redis_client.client_list(_type="normal"):
            if client["cmd"] == "xadd":
                redis_client.client_kill(client["addr"])
        writer.publish_data({"n": 2})
    assert [fields["n"] for _, fields in redis_client.xrange("records")] == ["1", "2"]


def test_the_last_batch_is_written_at_the_end_of_the_program(redis_url, redis_client):
    code = (
        "import sys\n"
        "from streamproc import RedisWriter\n"
        "RedisWriter(sys.argv[1], batch_size=100).publish_data({'n': 1})\n"
    )
    subprocess.run([sys.executable, "-c", code, redis_url], check=True, timeout=30)
    assert redis_client.xlen("records") == 1
