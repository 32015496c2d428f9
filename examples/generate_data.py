"""Write sample_data.csv, 16 minutes of readings of 24 flow meters, and sensors.csv, their registry.

    python examples/generate_data.py

They are always the same. Each meter sends every two seconds. Flow rises and falls, with
noise; pressure falls as flow rises. Two pipes burst, a meter's battery runs down, another is
silent for a while. On purpose some rows are wrong (a missing, negative, misspelt or
impossible value, an unknown meter, a time without a zone), and some come late.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random

METERS = 24
STEP = timedelta(seconds=2)
STEPS = timedelta(minutes=16) // STEP
START = datetime(2026, 3, 2, tzinfo=timezone.utc)
COLUMNS = ["sensor_id", "flow", "pressure", "at", "battery"]

LATE = 0.01  # of the readings
WRONG = 0.006

BURSTS = {"meter-4": range(100, 118), "meter-17": range(300, 345)}
SILENT = ("meter-9", range(200, 260))
EMPTY_BATTERY = ("meter-5", range(440, STEPS))


def reading(random: Random, meter: int, step: int, at: datetime) -> dict[str, str]:
    """A correct reading."""
    angle = 2 * math.pi * step / STEPS
    demand = 1 + 0.25 * math.sin(angle - 1.9) + 0.12 * math.sin(2 * angle)
    flow = (10 + 2 * meter) * demand * random.gauss(1, 0.03)
    pressure = 5.5 - 1.2 * demand + random.gauss(0, 0.05)
    name = f"meter-{meter}"
    if step in BURSTS.get(name, ()):
        flow, pressure = 4 * flow, 0.3 * pressure
    battery = 3.6 - 0.3 * step / STEPS
    if name == EMPTY_BATTERY[0] and step in EMPTY_BATTERY[1]:
        battery -= 1.2
    values = name, f"{flow:.3f}", f"{pressure:.3f}", text(at), f"{battery:.2f}"
    return dict(zip(COLUMNS, values, strict=True))


def spoil(random: Random, row: dict[str, str]) -> None:
    """Make a row wrong in one of the ways that happen."""
    column, value = random.choice(
        [
            ("flow", ""),
            ("flow", "-7.5"),
            ("flow", "NaN"),
            ("flow", "999.999"),
            ("pressure", "n/a"),
            ("sensor_id", "unknown"),
            ("at", row["at"].removesuffix("+00:00")),
        ]
    )
    row[column] = value


def text(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")


def arrivals(random: Random) -> Iterator[tuple[datetime, dict[str, str]]]:
    """All rows with the times at which they arrive."""
    for step in range(STEPS):
        for meter in range(1, METERS + 1):
            at = START + step * STEP + timedelta(seconds=random.uniform(0, 1.5))
            row = reading(random, meter, step, at)
            late = random.random() < LATE
            delay = timedelta(seconds=random.uniform(3, 8)) if late else timedelta()
            if random.random() < WRONG:
                spoil(random, row)
            if not (row["sensor_id"] == SILENT[0] and step in SILENT[1]):
                yield at + delay, row


def rows(seed: int = 7) -> list[dict[str, str]]:
    """All rows in the order in which they arrive."""
    return [row for _, row in sorted(arrivals(Random(seed)), key=lambda arrival: arrival[0])]


def sensors() -> list[dict[str, str]]:
    """The registry: where each meter is, and the pressure it should never fall under."""
    places = ["Harbour", "Old Town", "Hillside", "Mill Lane", "Station", "Orchard"]
    return [
        {
            "sensor_id": f"meter-{meter}",
            "place": f"{places[meter % len(places)]} {meter // len(places) + 1}",
            "min_pressure": "2.5" if meter % 3 else "2.0",
        }
        for meter in range(1, METERS + 1)
    ]


def write(name: str, rows: list[dict[str, str]]) -> None:
    with Path(__file__).with_name(name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    write("sample_data.csv", rows())
    write("sensors.csv", sensors())


if __name__ == "__main__":
    main()
