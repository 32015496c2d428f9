"""Sends the registry of meters to the topic `sensors`, where every worker reads it."""

from __future__ import annotations

import csv
from pathlib import Path

from agents.topics import sensors
from models import Sensor
from streamproc import app

FILE = Path(__file__).parents[1] / "examples" / "sensors.csv"


def read_registry() -> list[Sensor]:
    with FILE.open(encoding="utf-8") as file:
        return [
            Sensor(row["sensor_id"], row["place"], float(row["min_pressure"]))
            for row in csv.DictReader(file)
        ]


@app.task(on_leader=True)
async def publish_registry() -> None:
    found = read_registry()
    await sensors.send_batch(found, keys=[sensor.sensor_id for sensor in found])
