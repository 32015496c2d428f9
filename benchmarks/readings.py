"""The input, the same for every system, and what must come out of it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import NamedTuple

SENSORS = 1000
PARTITIONS = 4
FIRST_TIMESTAMP = 1_700_000_000_000


class Reading(NamedTuple):
    """One record as it is in Kafka: 66 bytes of JSON, keyed by its sensor."""

    key: bytes
    value: bytes


def make_readings(count: int, seed: int = 1) -> list[Reading]:
    """Make ``count`` readings of 1000 sensors; about 5 % are negative."""
    rng = random.Random(seed)
    readings = []
    for number in range(count):
        sensor = f"sensor-{rng.randrange(SENSORS):04d}"
        value = round(rng.gauss(50.0, 30.0), 3)
        text = json.dumps(
            {"sensor_id": sensor, "value": value, "ts": FIRST_TIMESTAMP + number * 10}
        )
        readings.append(Reading(sensor.encode(), text.encode()))
    return readings


def expected_hashes(readings: Sequence[Reading]) -> dict[str, dict[str, float]]:
    """Recompute the Redis hashes, plainly."""
    values: dict[str, list[float]] = {}
    for reading in readings:
        data = json.loads(reading.value)
        if data["value"] >= 0:
            values.setdefault(data["sensor_id"], []).append(data["value"])
    return {
        f"stats:{sensor}": {
            "count": float(len(each)),
            "sum": float(sum_in_order(each)),
            "min": min(each),
            "max": max(each),
        }
        for sensor, each in values.items()
    }


def sum_in_order(values: Sequence[float]) -> float:
    """Add one by one, as a stream does (``sum`` of newer Pythons compensates errors)."""
    total = values[0]
    for value in values[1:]:
        total += value
    return total


def expected_output(readings: Sequence[Reading]) -> dict[bytes, list[dict]]:
    """Recompute the output topic: the converted readings of each key, in order."""
    output: dict[bytes, list[dict]] = {}
    for reading in readings:
        data = json.loads(reading.value)
        if data["value"] >= 0:
            data["value"] = data["value"] * 1.8 + 32.0
            output.setdefault(reading.key, []).append(data)
    return output
