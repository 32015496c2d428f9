"""A Faust agent with two tables, as its users write it.

Runs unchanged on plain Faust and on streamproc: only the import differs. ``BENCH_STORE`` is
the store's URL.
"""

from __future__ import annotations

import os

from benchmarks.jobs.meter import BROKER, GROUP, TOPIC, Meter

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
    store=os.environ["BENCH_STORE"],
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.0,
    web_enabled=False,
)
readings = app.topic(TOPIC, value_type=Reading)
sums = app.Table("sums", default=float, partitions=4)
counts = app.Table("counts", default=int, partitions=4)
meter = Meter()


@app.agent(readings)
async def add(stream):
    async for reading in stream:
        finished = meter.add(1)
        sums[reading.sensor_id] += reading.value
        counts[reading.sensor_id] += 1
        if finished:
            meter.done()
