"""The stateless loop by hand: confluent-kafka in and out, orjson between.

Tuned: see ``by_hand``; the producer lingers 5 ms, takes large batches and a queue that
holds all. ``produce`` record by record is faster than ``produce_batch`` here.
"""

from __future__ import annotations

import signal

import orjson
from confluent_kafka import Producer

from benchmarks.jobs.by_hand import CHUNK, new_consumer
from benchmarks.jobs.meter import BROKER, OUTPUT, Meter


def main() -> None:
    meter = Meter()
    consumer = new_consumer()
    producer = Producer(
        {
            "bootstrap.servers": BROKER,
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "batch.num.messages": 100_000,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1_048_576,
        }
    )
    finished = False
    while not finished:
        messages = consumer.consume(CHUNK, 0.05)
        if not messages:
            continue
        finished = meter.add(len(messages))
        convert(producer, messages)
        producer.poll(0)
    producer.flush()
    meter.done()
    signal.pause()


def convert(producer: Producer, messages: list) -> None:
    loads, dumps, produce = orjson.loads, orjson.dumps, producer.produce
    for message in messages:
        reading = loads(message.value())
        value = reading["value"]
        if value < 0:
            continue
        reading["value"] = value * 1.8 + 32.0
        produce(OUTPUT, dumps(reading), message.key())


if __name__ == "__main__":
    main()
