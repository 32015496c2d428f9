"""State larger than memory is meant for: millions of keys in one worker's table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.inputs import keys
from benchmarks.readings import FIRST_TIMESTAMP, Reading
from benchmarks.runner import Runner
from benchmarks.systems import LARGE


@dataclass(frozen=True)
class Large:
    """What a large table costs.

    Attributes:
        keys: Distinct keys.
        rate: Records a second.
        peak: Peak resident memory in MB, None where there is no /proc.
        disk: MB in the worker's data folder.
    """

    keys: int
    rate: float
    peak: float | None
    disk: float


def measure_large(runner: Runner, count: int) -> Large:
    """Count ``count`` distinct keys, and every fifth of them once more."""
    runner.broker.fill("large", _records(count))
    total = count + count // 5
    job = runner.start(LARGE, topic="large", records=str(total))
    try:
        done, first = job.wait("done", 900.0), job.wait("first", 60.0)
        peak = job.peak_mb()
    finally:
        job.stop(60.0)
    runner.check_committed(job, "large", total)
    return Large(count, total / (done - first), peak, _megabytes(job.folder))


def _records(count: int) -> Iterable[Reading]:
    for key in keys(count):
        yield Reading(key, b"1", FIRST_TIMESTAMP)
    for number, key in enumerate(keys(count)):
        if number == count // 5:
            return
        yield Reading(key, b"1", FIRST_TIMESTAMP)


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
