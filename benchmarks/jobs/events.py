"""streamproc, event by event: the agent yields, its sink writes to Redis at least once."""

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


@app.agent(readings, sink=[hashes])
async def aggregate(stream):
    async for reading in stream:
        finished = meter.add(1)
        value = reading.value
        if value >= 0:
            sensor = reading.sensor_id
            entry = stats.get(sensor)
            if entry is None:
                entry = stats[sensor] = Stats(1, value, value, value)
            else:
                entry.count += 1
                entry.sum += value
                if value < entry.min:
                    entry.min = value
                if value > entry.max:
                    entry.max = value
            yield sensor, entry
        if finished:
            app.add_future(last_result())


async def last_result():
    await hashes.flush()
    meter.done()
