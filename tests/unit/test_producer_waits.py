"""What the producer does while no broker answers."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka.errors import KafkaError

import streamproc
from streamproc.errors import ProducerError
from streamproc.kafka.producer import Producer


class Stub:
    """A producer whose broker answers at the third time."""

    def __init__(self, stops_after=10):
        self.asked, self.waits, self.stops_after = 0, 0, stops_after
        self.client = self

    def _ensure_producer(self):
        return self

    async def fetch_all_metadata(self):
        self.asked += 1
        if self.asked < 3:
            raise KafkaError("Unable to get cluster metadata over all known brokers")
        return self

    def topics(self):
        return {"readings"}

    def partitions_for_topic(self, topic):
        return {0, 1}

    @property
    def should_stop(self):
        return self.waits >= self.stops_after

    async def sleep(self, seconds):
        self.waits += 1


async def test_topics_are_asked_for_until_a_broker_answers(caplog):
    assert await Producer.partition_counts(Stub()) == {"readings": 2}
    assert caplog.text.count("No broker says which topics there are") == 1


async def test_a_worker_that_stops_does_not_wait_for_a_broker():
    with pytest.raises(ProducerError, match="No broker says"):
        await Producer.partition_counts(Stub(stops_after=1))


class Replaced:
    """A producer that is replaced, by one without metadata, while its user waits to send."""

    def __init__(self):
        self.steps = []
        self.known = False
        self.app = self.client = self.cluster = self
        self.exactly_once = True

    def _ensure_producer(self):
        return self

    def partitions_for_topic(self, topic):
        return {0} if self.known else None

    async def _enter_transaction(self):
        self.steps.append("transaction")
        if self.steps.count("transaction") == 1:
            self.known = False

    async def _wait_for(self, topic):
        self.steps.append("metadata")
        self.known = True


async def test_partitions_are_known_when_a_transaction_is_entered():
    producer = Replaced()
    await Producer._prepare(producer, "readings")
    assert producer.steps == ["metadata", "transaction"] * 2


async def test_topics_are_awaited_only_while_somebody_waits():
    app = streamproc.App("waits", broker="kafka://nowhere")
    producer = Producer(app.transport)
    asked = asyncio.Event()

    async def wait_on_metadata(topic):
        asked.set()
        await asyncio.Event().wait()

    client = SimpleNamespace(_wait_on_metadata=wait_on_metadata)
    producer._producer = SimpleNamespace(client=client)
    sending = asyncio.create_task(producer.send("missing", None, b"1", None, None, None))
    await asked.wait()
    assert producer.awaited_topics == {"missing"}
    sending.cancel()
    await asyncio.wait([sending])
    assert producer.awaited_topics == set()
