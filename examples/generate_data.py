"""Write sample_data.csv: a day of readings of 24 flow meters, always the same.

    python examples/generate_data.py

Flow follows the hours of a day, with noise; pressure falls as flow rises. Pipes burst, a
meter's battery runs down, another is silent for two hours. On purpose some rows are wrong
(a missing, negative, misspelt or impossible value, an unknown meter, a time without a
zone), and some come late.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random

METERS = 24
STEP = timedelta(minutes=3)
STEPS = timedelta(days=1) // STEP
START = datetime(2026, 3, 2, tzinfo=timezone.utc)
COLUMNS = ["sensor_id", "flow", "pressure", "at", "battery"]

BURSTS = 0.002  # of the readings
LATE = 0.01
WRONG = 0.006

SILENT = ("meter-9", range(200, 240))
EMPTY_BATTERY = ("meter-5", range(440, STEPS))


def reading(random: Random, meter: int, step: int, at: datetime) -> dict[str, str]:
    """A correct reading."""
    hour = 2 * math.pi * step / STEPS
    demand = 1 + 0.25 * math.sin(hour - 1.9) + 0.12 * math.sin(2 * hour)
    flow = (10 + 2 * meter) * demand * random.gauss(1, 0.03)
    pressure = 5.5 - 1.2 * demand + random.gauss(0, 0.05)
    if random.random() < BURSTS:
        flow, pressure = 4 * flow, 0.3 * pressure
    name = f"meter-{meter}"
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
            at = START + step * STEP + timedelta(seconds=random.uniform(0, 20))
            row = reading(random, meter, step, at)
            late = random.random() < LATE
            delay = timedelta(minutes=random.uniform(5, 20)) if late else timedelta()
            if random.random() < WRONG:
                spoil(random, row)
            if not (row["sensor_id"] == SILENT[0] and step in SILENT[1]):
                yield at + delay, row


def rows(seed: int = 7) -> list[dict[str, str]]:
    """All rows in the order in which they arrive."""
    return [row for _, row in sorted(arrivals(Random(seed)), key=lambda arrival: arrival[0])]


def main() -> None:
    with Path(__file__).with_name("sample_data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows())


if __name__ == "__main__":
    main()
