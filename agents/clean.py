"""Readings that are worth counting, in a topic of their own."""

from __future__ import annotations

from agents.topics import clean_readings, readings
from models import CleanReading, Reading
from streamproc import Stream, app

MAX_FLOW = 500.0  # litres a second; more than the pipes can carry is a stuck meter
MIN_BATTERY = 2.5  # volts; below it a meter measures nonsense


def is_plausible(reading: Reading) -> bool:
    has_power = reading.battery is None or reading.battery >= MIN_BATTERY
    return has_power and reading.flow <= MAX_FLOW


@app.agent(readings)
async def clean(stream: Stream) -> None:
    async for batch in stream.batches():
        source = f"{batch.topic}-{batch.partition}"
        good = [
            CleanReading(**reading.asdict(), source=source, offset=offset)
            for offset, reading in zip(batch.offsets, batch, strict=True)
            if reading is not None and is_plausible(reading)
        ]
        await clean_readings.send_batch(good, keys=[reading.sensor_id for reading in good])
