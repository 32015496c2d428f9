"""What exactly once costs: the same app under both guarantees.

Rates are taken from checkpoint to checkpoint, from the first one that committed something
to the last one before the end: start and end are the same for both and would blur the ratio.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
import redis

from benchmarks.checks import Difference, compare, read_hashes
from benchmarks.readings import (
    CLOSING,
    Hashes,
    Reading,
    closing_readings,
    each_reading,
    window_key,
)
from benchmarks.runner import Job, JobFailed, Run, Runner
from benchmarks.systems import System


class _Value(msgspec.Struct):
    sensor_id: str
    value: float
    ts: int


class _Running(msgspec.Struct):
    sensor_id: str
    count: int


class _Window(msgspec.Struct):
    key: str
    window_start: datetime
    count: float
    sum: float
    min: float
    max: float


class _Input:
    """A topic with so many readings that some checkpoints pass, and what must come of them."""

    def __init__(self, runner: Runner, count: int) -> None:
        self.topic = "guarantees"
        self.counts: dict[str, int] = {}
        self.windows: Hashes = {}
        self.count = 0
        runner.broker.fill(self.topic, self._readings(count))

    def _readings(self, count: int) -> Iterator[Reading]:
        decode = msgspec.json.Decoder(_Value).decode
        for reading in each_reading(count, step=1):
            self._expect(decode(reading.value))
            yield reading
        closing = closing_readings([reading])
        self.count = count + len(closing)
        yield from closing

    def _expect(self, reading: _Value) -> None:
        value = reading.value
        if value < 0:
            return
        self.counts[reading.sensor_id] = self.counts.get(reading.sensor_id, 0) + 1
        window = self.windows.get(key := window_key(reading.sensor_id, reading.ts))
        if window is None:
            self.windows[key] = {"count": 1.0, "sum": value, "min": value, "max": value}
            return
        window["count"] += 1.0
        window["sum"] += value
        window["min"] = min(window["min"], value)
        window["max"] = max(window["max"], value)


class Guarantees:
    """Runs the systems of the job; their input is made when the first one runs."""

    def __init__(self, runner: Runner, count: int) -> None:
        self._runner = runner
        self._count = count
        self._input: _Input | None = None

    def run(self, system: System, timeout: float = 300.0) -> Run:
        """Run ``system`` once and check that its results are those of a recomputation.

        Raises:
            JobFailed: It did not finish, or a result is missing, wrong, or there twice.
        """
        if self._input is None:
            self._input = _Input(self._runner, self._count)
        source, runner = self._input, self._runner
        with redis.Redis.from_url(runner.redis_url, decode_responses=True) as client:
            client.flushall()
            output = runner.new_output()
            variables = {"topic": source.topic, "records": str(source.count), "output": output}
            job = runner.start(system, **variables)
            try:
                job.wait("done", timeout)
                peak = job.peak_mb()
            finally:
                job.stop(30.0)
            difference = self._difference(system.env["BENCH_FORM"], client, output)
        runner.broker.delete_topic(output)
        if difference.wrong:
            raise JobFailed(
                f"{system.name} has {difference.wrong} of {difference.expected} results wrong, "
                f"as {difference.example}"
            )
        runner.check_committed(job, source.topic, source.count)
        return _between_checkpoints(job, peak, difference.expected)

    def _difference(self, form: str, client: redis.Redis, output: str) -> Difference:
        assert self._input is not None
        if form == "redis":
            return compare(self._input.windows, read_hashes(client))
        if form == "windows":
            return compare(self._input.windows, self._read_windows(output))
        return compare(self._input.counts, self._read_counts(output))

    def _read_counts(self, output: str) -> dict[str, int]:
        """Return how far each sensor was counted, or where its count is not the next one."""
        counts: dict[str, int] = {}
        wrong: dict[str, int] = {}
        for result in self._results(output, _Running):
            sensor, number = result.sensor_id, result.count
            if sensor == CLOSING:
                continue
            if number != counts.get(sensor, 0) + 1:
                wrong.setdefault(sensor, number)
            counts[sensor] = number
        return counts | wrong

    def _read_windows(self, output: str) -> Hashes:
        windows: Hashes = {}
        for result in self._results(output, _Window):
            if result.key == CLOSING:
                continue
            key = window_key(result.key, int(result.window_start.timestamp() * 1000))
            twice = windows.get(key, {"count": 0.0})
            windows[key] = {
                "count": result.count + twice["count"],
                "sum": result.sum,
                "min": result.min,
                "max": result.max,
            }
        return windows

    def _results(self, output: str, kind: type[Any]) -> Iterator[Any]:
        decode = msgspec.json.Decoder(kind).decode
        for messages in self._runner.broker.read_all(output):
            for message in messages:
                yield decode(message.value())


def _between_checkpoints(job: Job, peak: float | None, results: int) -> Run:
    told = job.told("committed")
    first, last = told[0], told[-2] if len(told) > 2 else told[-1]
    records = last["records"] - first["records"]
    if not records:
        raise JobFailed(f"{job.system.name} was done in one checkpoint: take more --records")
    return Run(
        rate=records / (last["at"] - first["at"]),
        start=job.wait("first", 1.0),
        peak=peak,
        results=results,
        per_cpu=records / (last["cpu"] - first["cpu"]),
    )
