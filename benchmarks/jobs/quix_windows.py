"""Quix Streams: tumbling windows in RocksDB with a changelog, a batching sink for Redis.

Windows are closed by the partition's time, so that a window doesn't wait for its own sensor.
"""

from __future__ import annotations

import os
import signal

import redis
from quixstreams import Application
from quixstreams.dataframe.windows.aggregations import Count, Max, Min, Sum
from quixstreams.sinks.base import BatchingSink, SinkBatch

from benchmarks.jobs.meter import BROKER, GROUP, REDIS, TOPIC, Meter
from benchmarks.readings import WINDOW, window_name

meter = Meter()


class HashSink(BatchingSink):
    """Writes windows; reports when the last that is expected has been written."""

    def __init__(self) -> None:
        super().__init__()
        self.client = redis.Redis.from_url(REDIS)
        self.left = int(os.environ["BENCH_RESULTS"])

    def write(self, batch: SinkBatch) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for item in batch:
            window = item.value
            mapping = {name: window[name] for name in ("count", "sum", "min", "max")}
            pipeline.hset(f"stats:{item.key}:{window_name(window['start'])}", mapping=mapping)
        pipeline.execute()
        self.left -= batch.size
        if self.left <= 0:
            meter.done()


def positive(reading: dict) -> bool:
    meter.add(1)
    return reading["value"] >= 0


def main() -> None:
    app = Application(
        BROKER,
        consumer_group=GROUP,
        auto_offset_reset="earliest",
        commit_interval=1.0,
        state_dir="state",
        loglevel="WARNING",
        consumer_extra_config={
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 1000,
            "fetch.queue.backoff.ms": 10,
        },
    )
    topic = app.topic(
        TOPIC, value_deserializer="json", key_deserializer="str", timestamp_extractor=time_of
    )
    windows = app.dataframe(topic).filter(positive).tumbling_window(WINDOW)
    stats = windows.agg(count=Count(), sum=Sum("value"), min=Min("value"), max=Max("value"))
    stats.final(closing_strategy="partition").sink(HashSink())
    app.run()
    signal.pause()


def time_of(reading: dict, headers: object, timestamp: int, kind: object) -> int:
    return reading["ts"]


if __name__ == "__main__":
    main()
