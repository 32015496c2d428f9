"""What every job reports, in the same way: its first record, and its last visible result."""

from __future__ import annotations

import json
import os
import time


class Meter:
    """Counts records and writes two lines to the report: ``first`` and ``done``.

    Times are of the monotonic clock, which all processes of a machine share.
    """

    def __init__(self) -> None:
        self._report = os.environ["BENCH_REPORT"]
        self._left = int(os.environ["BENCH_RECORDS"])
        self._started = False

    def add(self, count: int) -> bool:
        """Count records that were handed to the job; return True when these are the last."""
        if not self._started:
            self._started = True
            self._write("first")
        self._left -= count
        return self._left <= 0

    def done(self) -> None:
        """Report that all results are visible (acknowledged by Redis, or by the broker)."""
        self._write("done")

    def _write(self, event: str) -> None:
        with open(self._report, "a") as report:
            report.write(json.dumps({"event": event, "at": time.monotonic()}) + "\n")


BROKER = os.environ.get("BENCH_BROKER", "")
REDIS = os.environ.get("BENCH_REDIS", "")
GROUP = os.environ.get("BENCH_GROUP", "")
TOPIC = os.environ.get("BENCH_TOPIC", "")
OUTPUT = os.environ.get("BENCH_OUTPUT", "")
