"""Windows by hand: confluent-kafka, a JSON decoder, a dict a partition, a Redis pipeline.

No fault tolerance: the windows are nowhere but in memory, offsets are committed by the
client's timer. Records of a partition are in order, so a later window's record closes those
before it. Tuned as ``by_hand`` is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import redis

from benchmarks.jobs.by_hand import CHUNK, Reading, new_consumer
from benchmarks.jobs.meter import REDIS, Meter
from benchmarks.readings import PARTITIONS, WINDOW, window_name

Window = dict[str, list[float]]


class Windows:
    """The open window of each partition, and those that were closed."""

    def __init__(self) -> None:
        self.closed: list[tuple[int, Window]] = []
        self._starts = [0] * PARTITIONS
        self._open: list[Window] = [{} for _ in range(PARTITIONS)]

    def add(self, messages: list, fields: Callable[[bytes], tuple[str, float, int]]) -> None:
        starts, windows = self._starts, self._open
        for message in messages:
            sensor, value, timestamp = fields(message.value())
            if value < 0:
                continue
            partition = message.partition()
            start = timestamp - timestamp % WINDOW
            if start != starts[partition]:
                self.closed.append((starts[partition], windows[partition]))
                starts[partition], windows[partition] = start, {}
            window = windows[partition]
            entry = window.get(sensor)
            if entry is None:
                window[sensor] = [1, value, value, value]
                continue
            entry[0] += 1
            entry[1] += value
            if value < entry[2]:
                entry[2] = value
            if value > entry[3]:
                entry[3] = value


def untyped(value: bytes) -> tuple[str, float, int]:
    reading = orjson.loads(value)
    return reading["sensor_id"], reading["value"], reading["ts"]


def typed() -> Callable[[bytes], tuple[str, float, int]]:
    decode = msgspec.json.Decoder(Reading).decode

    def fields(value: bytes) -> tuple[str, float, int]:
        reading = decode(value)
        return reading.sensor_id, reading.value, reading.ts

    return fields


def write(client: redis.Redis, closed: list[tuple[int, Window]]) -> None:
    pipeline: Any = client.pipeline(transaction=False)
    for start, window in closed:
        name = window_name(start)
        for sensor, (count, total, low, high) in window.items():
            pipeline.hset(
                f"stats:{sensor}:{name}",
                mapping={"count": count, "sum": total, "min": low, "max": high},
            )
    pipeline.execute()


def main() -> None:
    meter = Meter()
    consumer = new_consumer()
    fields = typed() if os.environ.get("BENCH_DECODER") == "msgspec" else untyped
    windows = Windows()
    with redis.Redis.from_url(REDIS) as client:
        finished = False
        while not finished:
            messages = consumer.consume(CHUNK, 0.05)
            if not messages:
                continue
            finished = meter.add(len(messages))
            windows.add(messages, fields)
            if windows.closed:
                write(client, windows.closed)
                windows.closed.clear()
        meter.done()
    signal.pause()


if __name__ == "__main__":
    main()
