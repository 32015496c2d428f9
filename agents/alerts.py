"""Alerts in the Redis stream ``alerts``: a burst pipe shows as a fall in pressure."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agents.topics import clean_readings
from models import Alert
from streamproc import Stream, app
from streamproc.sinks import RedisStream

MIN_PRESSURE = 2.0  # bar


@app.agent(clean_readings, sink=[RedisStream("alerts", max_length=1000)])
async def alert(stream: Stream) -> AsyncIterator[Alert]:
    async for reading in stream:
        if reading.pressure < MIN_PRESSURE:
            yield Alert(
                sensor_id=reading.sensor_id,
                reason="low pressure",
                pressure=reading.pressure,
                flow=reading.flow,
                at=reading.at,
            )
