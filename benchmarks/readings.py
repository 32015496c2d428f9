"""The input, the same for every system, and what must come out of it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from typing import NamedTuple

SENSORS = 1000
PARTITIONS = 4
FIRST_TIMESTAMP = 1_700_000_000_000
WINDOW = 10_000
#: The sensor of the last record of each partition, an hour after the others: it closes their
#: windows, and its own is nobody's result.
CLOSING = "closing"


@lru_cache(maxsize=4096)
def window_name(start: int) -> str:
    """Name a window by its start, as the keys in Redis have it."""
    return datetime.fromtimestamp(start / 1000, timezone.utc).strftime("%H%M%S")


def window_key(sensor: str, timestamp: int) -> str:
    """Return the key in Redis of the window of ``sensor`` that ``timestamp`` (ms) is in."""
    return f"stats:{sensor}:{window_name(timestamp - timestamp % WINDOW)}"


class Reading(NamedTuple):
    """One record as it is in Kafka: 66 bytes of JSON, keyed by its sensor."""

    key: bytes
    value: bytes
    timestamp: int
    partition: int = -1


def make_readings(count: int, seed: int = 1, step: int = 10) -> list[Reading]:
    """Make ``count`` readings of 1000 sensors, ``step`` ms apart; about 5 % are negative."""
    return list(each_reading(count, seed, step))


def each_reading(count: int, seed: int = 1, step: int = 10) -> Iterator[Reading]:
    """Make the readings of :func:`make_readings` one by one."""
    rng = random.Random(seed)
    for number in range(count):
        yield _reading(
            f"sensor-{rng.randrange(SENSORS):04d}",
            round(rng.gauss(50.0, 30.0), 3),
            FIRST_TIMESTAMP + number * step,
        )


def closing_readings(after: Sequence[Reading]) -> list[Reading]:
    """Return one reading a partition that moves event time far beyond all windows."""
    late = after[-1].timestamp + 3_600_000
    return [_reading(CLOSING, 0.0, late, partition) for partition in range(PARTITIONS)]


def _reading(sensor: str, value: float, timestamp: int, partition: int = -1) -> Reading:
    text = json.dumps({"sensor_id": sensor, "value": value, "ts": timestamp})
    return Reading(sensor.encode(), text.encode(), timestamp, partition)


Hashes = dict[str, dict[str, float]]


def expected_hashes(readings: Iterable[Reading]) -> Hashes:
    """Recompute the Redis hashes of the sensors, plainly."""
    return _statistics((f"stats:{data['sensor_id']}", data) for data in _positive(readings))


def expected_windows(readings: Iterable[Reading]) -> Hashes:
    """Recompute the Redis hashes of the sensors' windows, named by their start."""
    return _statistics(
        (window_key(data["sensor_id"], data["ts"]), data) for data in _positive(readings)
    )


def expected_tables(readings: Iterable[Reading]) -> tuple[dict[str, float], dict[str, float]]:
    """Recompute the tables of sums and counts, of all readings."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for reading in readings:
        data = json.loads(reading.value)
        sensor = data["sensor_id"]
        sums[sensor] = sums.get(sensor, 0.0) + data["value"]
        counts[sensor] = counts.get(sensor, 0) + 1
    return sums, counts


def expected_output(readings: Iterable[Reading]) -> dict[bytes, list[dict]]:
    """Recompute the output topic: the converted readings of each key, in order."""
    output: dict[bytes, list[dict]] = {}
    for data in _positive(readings):
        data["value"] = data["value"] * 1.8 + 32.0
        output.setdefault(data["sensor_id"].encode(), []).append(data)
    return output


def _positive(readings: Iterable[Reading]) -> Iterable[dict]:
    return (data for each in readings if (data := json.loads(each.value))["value"] >= 0)


def _statistics(keyed: Iterable[tuple[str, dict]]) -> Hashes:
    values: dict[str, list[float]] = {}
    for key, data in keyed:
        values.setdefault(key, []).append(data["value"])
    return {
        key: {
            "count": float(len(each)),
            "sum": float(sum_in_order(each)),
            "min": min(each),
            "max": max(each),
        }
        for key, each in values.items()
    }


def sum_in_order(values: Sequence[float]) -> float:
    """Add one by one, as a stream does (``sum`` of newer Pythons compensates errors)."""
    total = values[0]
    for value in values[1:]:
        total += value
    return total
