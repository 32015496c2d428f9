"""What every job reports, in the same way: its first record, and its last visible result."""

from __future__ import annotations

import json
import os
import time


class Meter:
    """Counts records and writes to the report: ``first``, ``done``, what else a job tells.

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
            self.tell("first")
        self._left -= count
        return self._left <= 0

    def done(self) -> None:
        """Report that all results are visible (acknowledged by Redis, or by the broker)."""
        self.tell("done")

    def tell(self, event: str, **facts: float) -> None:
        """Write a line to the report: what happened, when, and what is to be known of it."""
        with open(self._report, "a") as report:
            report.write(json.dumps({"event": event, "at": time.monotonic(), **facts}) + "\n")


BROKER = os.environ.get("BENCH_BROKER", "")
REDIS = os.environ.get("BENCH_REDIS", "")
GROUP = os.environ.get("BENCH_GROUP", "")
TOPIC = os.environ.get("BENCH_TOPIC", "")
OUTPUT = os.environ.get("BENCH_OUTPUT", "")
