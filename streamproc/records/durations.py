"""Durations as people write them, in milliseconds."""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction
from math import isfinite

from streamproc.errors import ConfigurationError

Duration = timedelta | float | str
"""A timedelta, a number of seconds, or a text such as "10s", "500ms" or "1h30m"."""

UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")
VALID = 'valid are "10s", "500ms", "5m", "1h30m", "2d", a number of seconds, or a timedelta'


def duration(value: Duration, *, signed: bool = False) -> int:
    """Return a duration in milliseconds, rounded to the nearest.

    Args:
        value: A timedelta; an int or float of seconds; or a text of numbers with units
            (ms, s, m, h, d), such as "10s", "1.5s" or "1h30m".
        signed: Allow negative durations (for offsets); a text starts with "-" then.

    Raises:
        ConfigurationError: It isn't a duration, is negative, or is finer than a millisecond.
    """
    exact = _exact(value)
    if exact is None:
        raise ConfigurationError(f"{value!r} is not a duration; {VALID}")
    if exact < 0 and not signed:
        raise ConfigurationError(f"{value!r} is a negative duration; {VALID}")
    rounded = round(exact)
    if exact and not rounded:
        raise ConfigurationError(f"{value!r} is finer than a millisecond; {VALID}")
    return rounded


def _exact(value: object) -> Fraction | None:
    """Return milliseconds, or None if the value means no duration."""
    if isinstance(value, timedelta):
        return Fraction(value // timedelta(microseconds=1), 1000)
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return Fraction(value) * 1000 if isfinite(value) else None
    return _parse(value) if isinstance(value, str) else None


def _parse(text: str) -> Fraction | None:
    body = text.strip()
    sign = -1 if body.startswith("-") else 1
    body = body.removeprefix("-")
    total, position = Fraction(0), 0
    while position < len(body):
        part = PART.match(body, position)
        if part is None:
            return None
        total += Fraction(part[1]) * UNITS[part[2]]
        position = part.end()
    return sign * total if position else None
