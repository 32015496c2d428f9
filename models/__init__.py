"""Typed records of the reference application."""

from models.readings import Alert, Reading, Sensor

__all__ = ["Alert", "Reading", "Sensor"]
