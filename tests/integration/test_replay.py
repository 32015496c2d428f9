"""Replaying files into a real broker."""

from __future__ import annotations

import gzip
import io

import pytest
from rich.console import Console

from streamproc.dev.process import free_port
from streamproc.dev.replay import replay, replay_with_bar
from streamproc.errors import BrokerUnavailable, ReplayError


@pytest.fixture
def sample(tmp_path):
    lines = "".join(f"s{i % 10},{i},{1_700_000_000 + i}\n" for i in range(5000))
    path = tmp_path / "sample.csv.gz"
    path.write_bytes(gzip.compress(b"id,n,ts\n" + lines.encode()))
    return path


async def test_all_rows_arrive_in_order_for_each_key(sample, topic, bootstrap, consume_all):
    states = []
    done = await replay(
        sample,
        bootstrap=bootstrap,
        topic=topic,
        key="id",
        timestamp="ts",
        on_progress=lambda state: states.append((state.records, state.fraction)),
    )
    received = consume_all(topic, at_least=5000)
    assert done.records == len(received) == 5000
    by_key = {}
    ends = {}
    for record in received:
        n = record.json()["n"]
        assert record.timestamp == (1_700_000_000 + n) * 1000
        by_key.setdefault(record.key, []).append((n, record.partition))
        ends[record.partition] = record.offset + 1
    assert done.end_offsets == ends
    for key, rows in by_key.items():
        assert [n for n, _ in rows] == list(range(int(key[1:]), 5000, 10))
        assert len({partition for _, partition in rows}) == 1
    assert states == sorted(states)
    assert states[-1] == (5000, 1.0)


async def test_keys_choose_the_partition_that_kafka_would(
    topic, produce, tmp_path, bootstrap, consume_all
):
    path = tmp_path / "keys.ndjson"
    path.write_text("".join(f'{{"k": "key-{i}"}}\n' for i in range(200)))
    await replay(path, bootstrap=bootstrap, topic=topic, key="k")
    produce(topic, [(f"key-{i}", b"{}") for i in range(200)])
    places = {}
    for record in consume_all(topic, at_least=400):
        places.setdefault(record.key, set()).add(record.partition)
    assert len(places) == 200
    assert all(len(partitions) == 1 for partitions in places.values())


async def test_a_missing_topic_is_created(tmp_path, bootstrap, kafka_client, consume_all):
    path = tmp_path / "one.jsonl"
    path.write_text('{"a": 1}\n' * 9)
    topic = f"made-{free_port()}"
    await replay(path, bootstrap=bootstrap, topic=topic, partitions=3)
    assert kafka_client.partitions(topic) == 3
    received = consume_all(topic, at_least=9)
    assert [r.partition for r in received] == [0] * 3 + [1] * 3 + [2] * 3


async def test_the_rate_is_kept(tmp_path, topic, bootstrap):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n' * 500)
    done = await replay(path, bootstrap=bootstrap, topic=topic, rate=1000)
    assert done.records == 500
    assert done.rate <= 1000


async def test_rows_before_a_bad_line_are_sent(tmp_path, topic, bootstrap):
    path = tmp_path / "bad.csv"
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(ReplayError, match=r"bad\.csv, line 3"):
        await replay(path, bootstrap=bootstrap, topic=topic)


async def test_records_larger_than_a_batch(tmp_path, topic, bootstrap, consume_all):
    path = tmp_path / "large.jsonl"
    sizes = [10, 3_000_000, 10, 700_000, 10]
    path.write_text("".join('{"k": 1, "a": "%s"}\n' % ("x" * size) for size in sizes))
    done = await replay(path, bootstrap=bootstrap, topic=topic, key="k")
    received = consume_all(topic, at_least=5)
    assert done.end_offsets == {received[0].partition: 5}
    assert [len(r.json()["a"]) for r in received] == sizes


async def test_no_broker(sample):
    with pytest.raises(BrokerUnavailable, match=r"No Kafka broker answers at 127\.0\.0\.1:"):
        await replay(sample, bootstrap=f"127.0.0.1:{free_port()}", topic="t")


def test_the_closing_line(sample, topic, bootstrap):
    console = Console(file=io.StringIO(), width=200)
    replay_with_bar(sample, bootstrap=bootstrap, topic=topic, key="id", console=console)
    assert f"5,000 records of {sample} sent to {topic} in " in console.file.getvalue()
