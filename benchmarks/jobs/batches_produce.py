"""streamproc by batches, stateless: decode, drop negatives, convert, send to a topic."""

from __future__ import annotations

from benchmarks.jobs.meter import BROKER, GROUP, OUTPUT, TOPIC, Meter
from streamproc import App, Record


class Reading(Record):
    sensor_id: str
    value: float
    ts: int


app = App(
    GROUP,
    broker=f"kafka://{BROKER}",
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.0,
    web_enabled=False,
)
readings = app.topic(TOPIC, value_type=Reading)
converted = app.topic(OUTPUT, value_type=Reading)
meter = Meter()


@app.agent(readings)
async def convert(stream):
    async for batch in stream.batches():
        finished = meter.add(len(batch))
        keys, values = [], []
        for key, reading in batch.items():
            value = reading.value
            if value < 0:
                continue
            reading.value = value * 1.8 + 32.0
            keys.append(key)
            values.append(reading)
        await converted.send_batch(values, keys=keys)
        if finished:
            await app.producer.flush()
            meter.done()
