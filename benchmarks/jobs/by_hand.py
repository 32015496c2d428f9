"""The loop by hand: confluent-kafka, a JSON decoder, a dict, a Redis pipeline.

No fault tolerance: offsets are committed by the client's timer, whatever Redis has.
Tuned as far as it goes: ``queued.max.messages.kbytes`` and ``fetch.queue.backoff.ms`` so
that the client's queue neither starves nor waits a second when full, no CRC checks (off by
default), hiredis under redis-py, one pipeline a chunk with only the sensors that changed.
"""

from __future__ import annotations

import os
import signal

import msgspec
import orjson
import redis
from confluent_kafka import Consumer

from benchmarks.jobs.meter import BROKER, GROUP, REDIS, TOPIC, Meter

CHUNK = 10_000


class Reading(msgspec.Struct):
    sensor_id: str
    value: float
    ts: int


def new_consumer() -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": BROKER,
            "group.id": GROUP,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 1000,
            "fetch.queue.backoff.ms": 10,
            "fetch.wait.max.ms": 20,
            "queued.min.messages": 100_000,
            "queued.max.messages.kbytes": 65_536,
        }
    )
    consumer.subscribe([TOPIC])
    return consumer


def main() -> None:
    meter = Meter()
    consumer = new_consumer()
    stats: dict[str, list[float]] = {}
    add = add_typed if os.environ.get("BENCH_DECODER") == "msgspec" else add_untyped
    with redis.Redis.from_url(REDIS) as client:
        finished = False
        while not finished:
            messages = consumer.consume(CHUNK, 0.05)
            if not messages:
                continue
            finished = meter.add(len(messages))
            changed = add(messages, stats)
            pipeline = client.pipeline(transaction=False)
            for sensor in changed:
                count, total, low, high = stats[sensor]
                pipeline.hset(
                    f"stats:{sensor}",
                    mapping={"count": count, "sum": total, "min": low, "max": high},
                )
            pipeline.execute()
        meter.done()
    signal.pause()


def add_untyped(messages: list, stats: dict[str, list[float]]) -> set[str]:
    loads = orjson.loads
    changed = set()
    for message in messages:
        reading = loads(message.value())
        value = reading["value"]
        if value < 0:
            continue
        sensor = reading["sensor_id"]
        changed.add(sensor)
        entry = stats.get(sensor)
        if entry is None:
            stats[sensor] = [1, value, value, value]
            continue
        entry[0] += 1
        entry[1] += value
        if value < entry[2]:
            entry[2] = value
        if value > entry[3]:
            entry[3] = value
    return changed


def add_typed(messages: list, stats: dict[str, list[float]]) -> set[str]:
    decode = msgspec.json.Decoder(Reading).decode
    changed = set()
    for message in messages:
        reading = decode(message.value())
        value = reading.value
        if value < 0:
            continue
        sensor = reading.sensor_id
        changed.add(sensor)
        entry = stats.get(sensor)
        if entry is None:
            stats[sensor] = [1, value, value, value]
            continue
        entry[0] += 1
        entry[1] += value
        if value < entry[2]:
            entry[2] = value
        if value > entry[3]:
            entry[3] = value
    return changed


if __name__ == "__main__":
    main()
