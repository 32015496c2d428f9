"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and what to do when it isn't well."""

    #: ``broker``, ``topic readings``, ``redis``...
    subject: str
    status: Status
    finding: str
    advice: str = ""


def ok(subject: str, finding: str) -> Check:
    """Return that all is well."""
    return Check(subject, "ok", finding)


def warning(subject: str, finding: str, advice: str) -> Check:
    """Return that something works but should be looked at."""
    return Check(subject, "warning", finding, advice)


def fault(subject: str, finding: str, advice: str) -> Check:
    """Return that something doesn't work."""
    return Check(subject, "fault", finding, advice)
