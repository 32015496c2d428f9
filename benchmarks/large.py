"""State larger than memory is meant for: millions of keys in one worker's table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.inputs import keys, number_of
from benchmarks.readings import FIRST_TIMESTAMP, Reading
from benchmarks.runner import JobFailed, Runner
from benchmarks.systems import LARGE


@dataclass(frozen=True)
class Large:
    """What a large table costs.

    Attributes:
        keys: Distinct keys.
        rate: Records a second, until all of them are in the changelog and on disk.
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
        job.wait("done", 900.0)
        done, first = runner.wait_committed(job, "large", total, 120.0), job.wait("first", 1.0)
        peak = job.peak_mb()
    finally:
        job.stop(60.0)
    _check(runner, job.group, count)
    return Large(count, total / (done - first), peak, _megabytes(job.folder))


def _records(count: int) -> Iterable[Reading]:
    for key in keys(count):
        yield Reading(key, b"1", FIRST_TIMESTAMP)
    for key in islice(keys(count), count // 5):
        yield Reading(key, b"1", FIRST_TIMESTAMP)


def _check(runner: Runner, group: str, count: int) -> None:
    """Compare the changelog with what was sent, a byte a key."""
    expected, found = bytearray(b"\1" * count), bytearray(count)
    for key in islice(keys(count), count // 5):
        expected[number_of(key)] = 2
    for messages in runner.broker.read_all(f"{group}-counts-changelog", 300.0):
        for message in messages:
            if not message.key().startswith(b"\0"):
                found[number_of(json.loads(message.key()))] = int(message.value())
    if found != expected:
        wrong = sum(one != other for one, other in zip(found, expected, strict=True))
        raise JobFailed(f"{LARGE.name} has {wrong} of {count} counts wrong in the changelog")


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
