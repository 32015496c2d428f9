"""What the flow meters of a water network send, and what is raised about them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from streamproc import Record


class Reading(Record, event_time="at"):
    """One measurement. A message that breaks a constraint becomes a dead letter."""

    sensor_id: Annotated[str, Meta(pattern="^meter-[0-9]+$")]
    flow: Annotated[float, Meta(ge=0)]  # litres a second
    pressure: Annotated[float, Meta(ge=0)]  # bar
    at: Annotated[datetime, Meta(tz=True)]
    battery: float | None = None  # volts; None: on mains


class CleanReading(Reading, kw_only=True):
    """A reading worth counting, and where it came from, which tells repeats apart."""

    source: str  # topic and partition
    offset: int


class SensorRun(Record):
    """The readings of one meter in a batch: (offset, flow, time as text) each."""

    sensor_id: str
    source: str
    readings: list[tuple[int, float, str]]


class Alert(Record):
    """Something that a person should look at."""

    sensor_id: str
    reason: str
    pressure: float
    flow: float
    at: datetime
