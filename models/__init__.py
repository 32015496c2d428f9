"""Typed records of the reference application."""

from models.readings import Alert, CleanReading, Reading, SensorRun

__all__ = ["Alert", "CleanReading", "Reading", "SensorRun"]
