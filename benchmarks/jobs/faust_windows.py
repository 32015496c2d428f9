"""A tumbling Faust table, kept in RocksDB; what changed is written to Redis by a timer.

Event time is the Kafka timestamp, which is that of the reading. Plain Faust closes windows by
the wall clock, which in a replay is at once and so loses what is in them. This table therefore
doesn't expire, and what is in Redis are its updates: after the last record, the final results.
"""

from __future__ import annotations

import faust
import redis.asyncio

from benchmarks.jobs.meter import BROKER, GROUP, REDIS, TOPIC, Meter
from benchmarks.readings import WINDOW, window_name


class Reading(faust.Record, serializer="json"):
    sensor_id: str
    value: float
    ts: int


app = faust.App(
    GROUP,
    broker=f"kafka://{BROKER}",
    store="rocksdb://",
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.0,
    web_enabled=False,
)
readings = app.topic(TOPIC, value_type=Reading)
stats = app.Table("stats", partitions=4).tumbling(WINDOW / 1000).relative_to_stream()
changed: dict[tuple[str, int], tuple[int, float, float, float]] = {}
client = redis.asyncio.Redis.from_url(REDIS)
meter = Meter()


@app.agent(readings)
async def aggregate(stream):
    async for reading in stream:
        finished = meter.add(1)
        value = reading.value
        if value >= 0:
            sensor = reading.sensor_id
            window = stats[sensor]
            try:
                count, total, low, high = window.value()
            except KeyError:
                entry = (1, value, value, value)
            else:
                entry = (count + 1, total + value, min(low, value), max(high, value))
            stats[sensor] = entry
            changed[sensor, reading.ts - reading.ts % WINDOW] = entry
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
    for (sensor, start), (count, total, low, high) in changed.items():
        mapping = {"count": count, "sum": total, "min": low, "max": high}
        pipeline.hset(f"stats:{sensor}:{window_name(start)}", mapping=mapping)
    changed.clear()
    await pipeline.execute()
