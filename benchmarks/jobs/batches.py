"""streamproc by batches: decode, drop negatives, aggregate in a dict, a Redis hash a sensor."""

from __future__ import annotations

from benchmarks.jobs.meter import BROKER, GROUP, REDIS, TOPIC, Meter
from streamproc import App, Record
from streamproc.sinks import RedisHash


class Reading(Record):
    sensor_id: str
    value: float
    ts: int


class Stats(Record):
    count: int
    sum: float
    min: float
    max: float


app = App(
    GROUP,
    broker=f"kafka://{BROKER}",
    redis=REDIS,
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.0,
    web_enabled=False,
)
readings = app.topic(TOPIC, value_type=Reading)
hashes = RedisHash("stats:{key}")
stats: dict[str, Stats] = {}
meter = Meter()


@app.agent(readings)
async def aggregate(stream):
    async for batch in stream.batches():
        finished = meter.add(len(batch))
        changed = set()
        for reading in batch:
            value = reading.value
            if value < 0:
                continue
            sensor = reading.sensor_id
            changed.add(sensor)
            entry = stats.get(sensor)
            if entry is None:
                stats[sensor] = Stats(1, value, value, value)
                continue
            entry.count += 1
            entry.sum += value
            if value < entry.min:
                entry.min = value
            if value > entry.max:
                entry.max = value
        await hashes.write([(sensor, stats[sensor]) for sensor in changed])
        if finished:
            await hashes.flush()
            meter.done()
