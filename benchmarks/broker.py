"""What the benchmark itself does with Kafka: topics, input, output read back, offsets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import uuid4

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.readings import PARTITIONS, Reading


class Broker:
    """A client of the broker that the systems read from."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._admin = AdminClient({"bootstrap.servers": bootstrap})

    def create_topic(self, name: str) -> None:
        """Create a topic and return when its partitions have leaders."""
        topic = NewTopic(name, PARTITIONS, 1, config={"retention.ms": "-1"})
        self._admin.create_topics([topic])[name].result(30)
        while True:
            found = self._admin.list_topics(timeout=10).topics.get(name)
            if found and len(found.partitions) == PARTITIONS:
                return
            time.sleep(0.05)

    def delete_topic(self, name: str) -> None:
        self._admin.delete_topics([name])[name].result(30)

    def new_producer(self, **options: object) -> Producer:
        settings = {"bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random"}
        return Producer({**settings, **{key.replace("_", "."): v for key, v in options.items()}})

    def fill(self, topic: str, readings: Sequence[Reading]) -> None:
        """Create ``topic`` and put the readings in."""
        self.create_topic(topic)
        producer = self.new_producer(linger_ms=50, queue_buffering_max_messages=2_000_000)
        for count, reading in enumerate(readings):
            producer.produce(topic, reading.value, reading.key)
            if count % 10_000 == 0:
                producer.poll(0)
        producer.flush()

    def read_all(self, topic: str, count: int) -> list[tuple[bytes, bytes]]:
        """Read ``count`` records back, and those that are there beyond them."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": uuid4().hex})
        consumer.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in _partitions()])
        records: list[tuple[bytes, bytes]] = []
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            messages = consumer.consume(10_000, 1.0)
            if not messages and len(records) >= count:
                break
            records += [(each.key(), each.value()) for each in messages if not each.error()]
        consumer.close()
        return records

    def committed(self, group: str, topic: str) -> int:
        """Return the sum of the group's committed offsets."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group})
        offsets = consumer.committed([TopicPartition(topic, each) for each in _partitions()], 10)
        consumer.close()
        return sum(max(each.offset, 0) for each in offsets)


def _partitions() -> range:
    return range(PARTITIONS)
