"""streamproc under one of its guarantees: the same app, once at least and once exactly once.

``BENCH_FORM``: an ``agent`` by batches with a table, its results to a topic; or a flow of
windows, final results to a topic (``windows``) or to ``redis``. ``BENCH_GUARANTEE`` is the
app's, ``BENCH_SINK`` that of the Redis sink.

What the group has committed, and when, is told at each checkpoint: rates are taken from it.
"""

from __future__ import annotations

import asyncio
import os
import time

from benchmarks.jobs.meter import BROKER, GROUP, OUTPUT, REDIS, TOPIC, Meter
from streamproc import App, Record
from streamproc.aggregates import Count, Max, Min, Sum
from streamproc.sinks import RedisHash
from streamproc.windows import tumbling

FORM = os.environ["BENCH_FORM"]
RECORDS = int(os.environ["BENCH_RECORDS"])
WORKER = os.environ.get("BENCH_WORKER", "")
PARTITIONS = int(os.environ.get("BENCH_PARTITIONS", "4"))


class Reading(Record):
    sensor_id: str
    value: float
    ts: int


class Running(Record):
    """How many readings of a sensor there were, this one included."""

    sensor_id: str
    count: int
    ts: int
    worker: str


app = App(
    GROUP,
    broker=f"kafka://{BROKER}",
    redis=REDIS,
    store="rocksdb://",
    processing_guarantee=os.environ["BENCH_GUARANTEE"],
    web_enabled=False,
)
readings = app.topic(TOPIC, key_type=str, value_type=Reading)
meter = Meter()

if FORM == "agent":
    results = app.topic(OUTPUT, value_type=Running)
    counts = app.Table("counts", default=int, partitions=PARTITIONS)

    @app.agent(readings)
    async def count(stream):
        async for batch in stream.batches():
            meter.add(len(batch))
            keys, values = [], []
            for key, reading in batch.items():
                if reading.value < 0:
                    continue
                sensor = reading.sensor_id
                number = counts[sensor] = counts[sensor] + 1
                keys.append(key)
                values.append(Running(sensor, number, reading.ts, WORKER))
            await results.send_batch(values, keys=keys)

else:
    if FORM == "redis":
        target = RedisHash(
            "stats:{key}:{window_start:%H%M%S}",
            fields=["count", "sum", "min", "max"],
            exactly_once=os.environ["BENCH_SINK"] == "exactly_once",
        )
    else:
        target = app.topic(OUTPUT, key_type=str)
    (
        app.stream(readings)
        .filter(lambda reading: reading.value >= 0)
        .window(tumbling("10s"))
        .aggregate(count=Count(), sum=Sum("value"), min=Min("value"), max=Max("value"))
        .to(target)
    )


@app.task
async def tell_progress():
    """Tell of each checkpoint how many source records are committed."""
    told = 0
    while True:
        await asyncio.sleep(0.005)
        committed = sum(
            offset or 0
            for tp, offset in app.consumer._committed_offset.items()
            if tp.topic == TOPIC
        )
        if committed > told:
            if not told:
                meter.add(0)
            told = committed
            meter.tell("committed", records=committed, cpu=time.process_time())
            if committed >= RECORDS:
                meter.done()
