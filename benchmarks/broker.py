"""What the benchmark itself does with Kafka: topics, input, output read back, offsets."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from uuid import uuid4

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.readings import PARTITIONS, Reading


class Broker:
    """A client of the broker that the systems read from."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})

    def create_topic(self, name: str, partitions: int = PARTITIONS) -> None:
        """Create a topic and return when its partitions have leaders."""
        topic = NewTopic(name, partitions, 1, config={"retention.ms": "-1"})
        self._admin.create_topics([topic])[name].result(30)
        while True:
            found = self._admin.list_topics(timeout=10).topics.get(name)
            if found and len(found.partitions) == partitions:
                return
            time.sleep(0.05)

    def delete_topic(self, name: str) -> None:
        self._admin.delete_topics([name])[name].result(30)

    def new_producer(self, **options: object) -> Producer:
        settings = {"bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random"}
        return Producer({**settings, **{key.replace("_", "."): v for key, v in options.items()}})

    def fill(self, topic: str, readings: Iterable[Reading]) -> None:
        """Create ``topic`` and put the readings in, at their own times."""
        self.create_topic(topic)
        producer = self.new_producer(linger_ms=50, queue_buffering_max_messages=2_000_000)
        for count, (key, value, timestamp, partition) in enumerate(readings):
            if count % 10_000 == 0:
                while len(producer) > 1_000_000:
                    producer.poll(0.1)
                producer.poll(0)
            producer.produce(topic, value, key, partition, timestamp=timestamp)
        producer.flush()

    def append(self, topic: str, readings: Iterable[Reading]) -> None:
        """Put a few readings into a topic, each in a batch of its own.

        The embedded broker says that a topic ends with the first record of its last batch.
        """
        producer = self.new_producer()
        for key, value, timestamp, partition in readings:
            producer.produce(topic, value, key, partition, timestamp=timestamp)
            producer.flush()

    def read_all(
        self, topic: str, timeout: float = 120.0, partitions: int = PARTITIONS
    ) -> Iterator[list[Message]]:
        """Read what is committed of a topic to the ends of its partitions, as fetches tell."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": uuid4().hex,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
            }
        )
        open_partitions = set(range(partitions))
        consumer.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in open_partitions])
        deadline = time.monotonic() + timeout
        while open_partitions and time.monotonic() < deadline:
            messages = consumer.consume(10_000, 1.0)
            ends = [each for each in messages if each.error()]
            for end in ends:
                if end.error().code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(end.error())
                open_partitions.discard(end.partition())
            yield [each for each in messages if not each.error()] if ends else messages
        consumer.close()

    def committed(self, group: str, topic: str) -> int:
        """Return the sum of the group's committed offsets."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group})
        partitions = [TopicPartition(topic, each) for each in range(PARTITIONS)]
        offsets = consumer.committed(partitions, 10)
        consumer.close()
        return sum(max(each.offset, 0) for each in offsets)
