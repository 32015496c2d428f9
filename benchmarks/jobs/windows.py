"""streamproc's operators: windows in RocksDB with a changelog, final results to Redis hashes."""

from __future__ import annotations

import os

from benchmarks.jobs.meter import BROKER, GROUP, REDIS, TOPIC, Meter
from streamproc import App, Record
from streamproc.aggregates import Count, Max, Min, Sum
from streamproc.sinks import RedisHash
from streamproc.windows import tumbling


class Reading(Record):
    sensor_id: str
    value: float
    ts: int


class Hashes(RedisHash):
    """Reports when the last result that is expected has been written."""

    left = int(os.environ.get("BENCH_RESULTS", "0"))

    async def write(self, values):
        await super().write(values)
        self.left -= len(values)
        if self.left <= 0:
            await self.flush()
            meter.done()


app = App(
    GROUP,
    broker=f"kafka://{BROKER}",
    redis=REDIS,
    store="rocksdb://",
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.0,
    web_enabled=False,
)
readings = app.topic(TOPIC, key_type=str, value_type=Reading)
meter = Meter()
started = False


def positive(reading):
    # Not meter.add() each time: this is called for every record.
    global started
    if not started:
        started = True
        meter.add(0)
    return reading.value >= 0


stats = (
    app.stream(readings)
    .filter(positive)
    .window(tumbling("10s"))
    .aggregate(count=Count(), sum=Sum("value"), min=Min("value"), max=Max("value"))
    .to(Hashes("stats:{key}:{window_start:%H%M%S}", fields=["count", "sum", "min", "max"]))
)
