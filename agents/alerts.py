"""Alerts in the Redis stream ``alerts``: a burst pipe shows as a fall in pressure."""

from __future__ import annotations

from typing import Any

from agents.statistics import statistics
from agents.topics import registry
from models import Alert, Sensor
from streamproc.sinks import RedisStream

#: Bar; for meters that the registry doesn't know (yet).
MIN_PRESSURE = 2.0


def alert(window: Any, sensor: Sensor | None) -> Alert | None:
    """Return an alert if the mean pressure is less than the meter should ever have."""
    sensor = sensor or Sensor(window.key, place="unknown", min_pressure=MIN_PRESSURE)
    if window.pressure >= sensor.min_pressure:
        return None
    return Alert(
        sensor_id=window.key,
        place=sensor.place,
        reason="low pressure",
        pressure=window.pressure,
        flow=window.flow,
        at=window.window_end,
    )


(
    statistics.join(registry, how="left", on="key", fn=alert)
    .filter(lambda found: found is not None)
    .to(RedisStream("alerts", max_length=1000))
)
