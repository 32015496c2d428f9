"""Readings that are worth counting, in a topic of their own; the newest in a table."""

from __future__ import annotations

from agents.topics import clean_readings, latest, readings
from models import Reading
from streamproc import Batch, Stream, app

MAX_FLOW = 500.0  # litres a second; more than the pipes can carry is a stuck meter
MIN_BATTERY = 2.5  # volts; below it a meter measures nonsense


def is_plausible(reading: Reading) -> bool:
    has_power = reading.battery is None or reading.battery >= MIN_BATTERY
    return has_power and reading.flow <= MAX_FLOW


def newest_of(readings: list[Reading]) -> dict[str, Reading]:
    """Return the newest reading of each meter, whichever came first."""
    found = {reading.sensor_id: reading for reading in sorted(readings, key=lambda each: each.at)}
    known = latest.get_many(found)
    return {
        reading.sensor_id: reading
        for reading, old in zip(found.values(), known, strict=True)
        if old is None or old.at <= reading.at
    }


@app.agent(readings)
async def clean(stream: Stream) -> None:
    batch: Batch[Reading]
    async for batch in stream.batches():
        good = [reading for reading in batch if reading is not None and is_plausible(reading)]
        latest.update(newest_of(good))
        await clean_readings.send_batch(good, keys=[reading.sensor_id for reading in good])
