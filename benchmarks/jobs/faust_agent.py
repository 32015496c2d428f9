"""A Faust agent as its users write it: event by event, results written to Redis by a timer.

Runs unchanged on plain Faust and on streamproc: only the import differs. ``BENCH_STATE``
chooses where the statistics are: ``dict``, or a Faust ``table`` in memory.
"""

from __future__ import annotations

import os

import redis.asyncio

from benchmarks.jobs.meter import BROKER, GROUP, REDIS, TOPIC, Meter

if os.environ.get("BENCH_LIBRARY") == "streamproc":
    import streamproc as faust
else:
    import faust


class Reading(faust.Record, serializer="json"):
    sensor_id: str
    value: float
    ts: int


app = faust.App(
    GROUP,
    broker=f"kafka://{BROKER}",
    store="memory://",
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.0,
    web_enabled=False,
)
readings = app.topic(TOPIC, value_type=Reading)
in_table = os.environ.get("BENCH_STATE") == "table"
stats = app.Table("stats", partitions=4) if in_table else {}
changed: set[str] = set()
client = redis.asyncio.Redis.from_url(REDIS)
meter = Meter()


@app.agent(readings)
async def aggregate(stream):
    async for reading in stream:
        finished = meter.add(1)
        value = reading.value
        if value >= 0:
            sensor = reading.sensor_id
            entry = stats.get(sensor)
            if entry is None:
                stats[sensor] = (1, value, value, value)
            else:
                count, total, low, high = entry
                stats[sensor] = (count + 1, total + value, min(low, value), max(high, value))
            changed.add(sensor)
        if finished:
            await write_changed()
            meter.done()


@app.timer(0.1)
async def write_regularly():
    await write_changed()


async def write_changed():
    if not changed:
        return
    pipeline = client.pipeline(transaction=False)
    for sensor in changed:
        count, total, low, high = stats[sensor]
        mapping = {"count": count, "sum": total, "min": low, "max": high}
        pipeline.hset(f"stats:{sensor}", mapping=mapping)
    changed.clear()
    await pipeline.execute()
