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


class Sensor(Record):
    """What the registry knows of a meter."""

    sensor_id: str
    place: str
    min_pressure: float  # bar; less means that a pipe has burst


class Alert(Record):
    """Something that a person should look at."""

    sensor_id: str
    place: str
    reason: str
    pressure: float  # mean of the window
    flow: float
    at: datetime  # end of the window
