"""What `streamproc dev` reads from Kafka and Redis to show it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis.asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from harness import async_wait_for

from streamproc.dev.results import read_results
from streamproc.errors import BrokerUnavailable
from streamproc.kafka.offsets import OffsetWatch, count_records
from streamproc.kafka.topics import create_topics


@pytest.fixture
async def client(redis_url):
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


async def test_ends_and_committed_offsets_are_followed(bootstrap, topic_factory, produce):
    source, other = topic_factory(partitions=2), topic_factory(partitions=1)
    group = f"group-of-{source}"
    produce(source, [b"x"] * 107, partition=0)
    watch = OffsetWatch(bootstrap, group, [source], [other])
    await watch.start()
    try:
        first = TopicPartition(source, 0)

        async def seen(end, committed):
            offsets = await watch.poll()
            return (offsets.ends[first], offsets.committed[first]) == (end, committed)

        async def other_seen():
            return (await watch.poll()).end([other]) == 9

        await async_wait_for(lambda: seen(107, 0), 20, lambda: str(watch.offsets))
        produce(source, [b"x"] * 50, partition=0)
        produce(other, [b"x"] * 9)
        await commit(bootstrap, group, first, 100)
        await async_wait_for(lambda: seen(157, 100), 20, lambda: str(watch.offsets))
        await async_wait_for(other_seen, 20, lambda: str(watch.offsets))
        assert watch.offsets.total_lag == 57
        assert watch.offsets.done == 100
    finally:
        await watch.stop()


@contextlib.asynccontextmanager
async def counting(bootstrap, topic):
    """Count the records of a topic; gives a function that returns how many there are."""
    counts = [0]
    task = asyncio.create_task(count_records(bootstrap, topic, counts.append))
    try:
        yield lambda: counts[-1]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_records_are_counted(bootstrap, topic_factory, produce):
    topic = topic_factory(partitions=2)
    produce(topic, [("k", b"x")] * 5)
    async with counting(bootstrap, topic) as count:
        await async_wait_for(lambda: count() == 5, 20)
        produce(topic, [("k", b"x")] * 2)
        await async_wait_for(lambda: count() == 7, 20)


@pytest.mark.apache_only
async def test_marks_of_transactions_and_what_was_aborted_are_no_records(bootstrap, topic_factory):
    topic = topic_factory(partitions=1)
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap, transactional_id=f"of-{topic}"
    ) as producer:
        async with producer.transaction():
            await producer.send(topic, b"x")
        await producer.begin_transaction()
        await producer.send(topic, b"aborted")
        await producer.abort_transaction()
        async with counting(bootstrap, topic) as count:
            await async_wait_for(lambda: count() == 1, 20)
            async with producer.transaction():
                await producer.send(topic, b"x")
            await async_wait_for(lambda: count() == 2, 20)


async def commit(bootstrap, group, partition, offset):
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    consumer.assign([partition])
    await consumer.commit({partition: offset})
    await consumer.stop()


async def test_topics_are_created_once_and_keep_old_records(bootstrap, produce, consume_all):
    names = ["created-a", "created-b"]
    assert await create_topics(bootstrap, names, partitions=3) == names
    assert await create_topics(bootstrap, [*names, "created-c"], partitions=3) == ["created-c"]
    produce("created-a", [("k", b"v", 1_000)])
    assert [r.timestamp for r in consume_all("created-a", at_least=1)] == [1000]


async def test_creating_topics_without_a_broker():
    with pytest.raises(BrokerUnavailable, match=r"No Kafka broker answers at 127\.0\.0\.1:1\."):
        await create_topics("127.0.0.1:1", ["t"])


async def test_keys_of_every_type_become_tables(client):
    for number in range(9):
        await client.hset(f"stats:s{number}", mapping={"count": number, "mean": 1 / 3})
    await client.hset("total", mapping={"b": "2", "a": "x" * 50})
    await client.xadd("alerts", {"sensor": "s1", "value": 9})
    await client.xadd("alerts", {"sensor": "s2", "value": 10})
    await client.mset({"last:a": "1", "last:b": "2"})
    await client.zadd("top", {"s1": 1.5, "s2": 3})
    await client.sadd("kinds", "a", "b")
    await client.rpush("recent", "newest", "older")
    await client.hset("streamproc:{p0}:app:readings:sink", mapping={"epoch": 1})  # no result
    tables = {table.title: (table.columns, table.rows) for table in await read_results(client, 3)}
    assert tables == {
        "alerts: newest of 2 entries": (["sensor", "value"], [["s2", "10"], ["s1", "9"]]),
        "kinds (set)": (["key", "members"], [["kinds", "2"]]),
        "last:* (2 × string)": (["key", "value"], [["last:a", "1"], ["last:b", "2"]]),
        "recent (list)": (["recent"], [["newest"], ["older"]]),
        "stats:* (9 × hash)": (
            ["key", "count", "mean"],
            [["s0", "0", "0.3333"], ["s1", "1", "0.3333"], ["s2", "2", "0.3333"]],
        ),
        "top (zset)": (["top", "score"], [["s2", "3"], ["s1", "1.5"]]),
        "total (hash)": (["field", "value"], [["a", "x" * 39 + "…"], ["b", "2"]]),
    }
