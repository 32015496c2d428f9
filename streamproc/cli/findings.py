"""What ``streamproc doctor`` finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(str, Enum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked, and what to do when it isn't right."""

    check: str
    level: Level
    message: str
    advice: str = ""


def ok(check: str, message: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Level.OK, message)


def note(check: str, message: str, advice: str) -> Finding:
    """Return a finding that may be meant so."""
    return Finding(check, Level.NOTE, message, advice)


def fault(check: str, message: str, advice: str) -> Finding:
    """Return a finding that keeps the project from working."""
    return Finding(check, Level.FAULT, message, advice)
