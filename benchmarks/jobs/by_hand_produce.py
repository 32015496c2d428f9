"""The stateless loop by hand: confluent-kafka in and out, orjson between.

Tuned: see ``by_hand``; the producer lingers 5 ms, takes large batches and a queue that
holds several chunks, and gets each chunk by ``produce_batch`` or ``produce``, whichever
``BENCH_PRODUCE`` names.
"""

from __future__ import annotations

import os
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
    send = send_single if os.environ.get("BENCH_PRODUCE") == "single" else send_batch
    finished = False
    while not finished:
        messages = consumer.consume(CHUNK, 0.05)
        if not messages:
            continue
        finished = meter.add(len(messages))
        send(producer, messages)
        producer.poll(0)
    producer.flush()
    meter.done()
    signal.pause()


def send_single(producer: Producer, messages: list) -> None:
    loads, dumps, produce = orjson.loads, orjson.dumps, producer.produce
    for message in messages:
        reading = loads(message.value())
        value = reading["value"]
        if value < 0:
            continue
        reading["value"] = value * 1.8 + 32.0
        produce(OUTPUT, dumps(reading), message.key())


def send_batch(producer: Producer, messages: list) -> None:
    loads, dumps = orjson.loads, orjson.dumps
    records = []
    for message in messages:
        reading = loads(message.value())
        value = reading["value"]
        if value < 0:
            continue
        reading["value"] = value * 1.8 + 32.0
        records.append({"value": dumps(reading), "key": message.key()})
    producer.produce_batch(OUTPUT, records)


if __name__ == "__main__":
    main()
