"""Bytewax: an event clock, tumbling windows that are folded, a batched sink for Redis.

One worker, no recovery store: its state is in memory only. It stops at the end of the topic,
which closes all windows. Its clock adds the time that has passed to the latest event's: in a
replay that is too much, and without a wait it drops events that are in order.
"""

from __future__ import annotations

import signal
from datetime import datetime, timedelta, timezone

import orjson
import redis
from bytewax import operators as op
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.operators.windowing import EventClock, TumblingWindower, fold_window
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import cluster_main

from benchmarks.jobs.meter import BROKER, REDIS, TOPIC, Meter
from benchmarks.readings import WINDOW, window_name

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LENGTH = timedelta(milliseconds=WINDOW)
meter = Meter()


class Hashes(StatelessSinkPartition):
    def __init__(self) -> None:
        self.client = redis.Redis.from_url(REDIS)

    def write_batch(self, items: list) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for sensor, (window, (count, total, low, high)) in items:
            mapping = {"count": count, "sum": total, "min": low, "max": high}
            pipeline.hset(f"stats:{sensor}:{window_name(window * WINDOW)}", mapping=mapping)
        pipeline.execute()


class HashSink(DynamicSink):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Hashes:
        return Hashes()


def decode(message) -> dict:
    meter.add(1)
    return orjson.loads(message.value)


def time_of(reading: dict) -> datetime:
    return datetime.fromtimestamp(reading["ts"] / 1000, UTC)


def fold(entry: list | None, reading: dict) -> list:
    value = reading["value"]
    if entry is None:
        return [1, value, value, value]
    entry[0] += 1
    entry[1] += value
    if value < entry[2]:
        entry[2] = value
    if value > entry[3]:
        entry[3] = value
    return entry


def merge(one: list | None, other: list | None) -> list | None:
    """Join two windows; tumbling ones never are."""
    raise AssertionError


def build() -> Dataflow:
    flow = Dataflow("windows")
    source = kop.input("in", flow, brokers=[BROKER], topics=[TOPIC], tail=False, batch_size=1000)
    readings = op.map("decode", source.oks, decode)
    positive = op.filter("positive", readings, lambda reading: reading["value"] >= 0)
    keyed = op.key_on("key", positive, lambda reading: reading["sensor_id"])
    clock = EventClock(time_of, wait_for_system_duration=LENGTH)
    windower = TumblingWindower(length=LENGTH, align_to=EPOCH)
    windows = fold_window("fold", keyed, clock, windower, lambda: None, fold, merge)
    op.output("out", windows.down, HashSink())
    return flow


def main() -> None:
    cluster_main(build(), [], 0)
    meter.done()
    signal.pause()


if __name__ == "__main__":
    main()
