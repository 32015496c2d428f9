"""KafkaReader and RedisWriter on real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
import yaml

from streamproc import KafkaReader, Record, RedisWriter
from streamproc.errors import BrokerUnavailable, ConfigurationError, SinkError, SinkUnavailable

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


def test_two_readers_share_the_partitions(bootstrap, topic, produce):
    produce(topic, readings(2000))
    code = (
        "import sys, json\n"
        "from streamproc import KafkaReader\n"
        "with KafkaReader(sys.argv[1], sys.argv[2], group=sys.argv[3], timeout=12,\n"
        "                 session_timeout_ms=6000) as reader:\n"
        "    print(json.dumps([r['value'] for r in reader.get_stream()]))\n"
    )
    command = [sys.executable, "-c", code, bootstrap, topic, f"g-{topic}"]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    time.sleep(5)
    produce(topic, readings(2000, start=2000))
    parts = [json.loads(reader.communicate(timeout=60)[0]) for reader in readers]
    assert set(parts[0]) | set(parts[1]) == {float(i) for i in range(4000)}
