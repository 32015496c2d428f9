"""How commands put things to people."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a number and what it counts: "1 record", "2,000 records"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
