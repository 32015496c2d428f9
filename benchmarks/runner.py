"""Running one system once: a fresh process, its times, its memory, and whether it is right."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import redis

from benchmarks.broker import Broker
from benchmarks.readings import Reading, expected_hashes, expected_output
from benchmarks.systems import System
from streamproc.dev.process import ChildProcess

ROOT = Path(__file__).resolve().parent.parent


class JobFailed(Exception):
    """A job ended, took too long, or gave wrong results; the message says what is known."""


@dataclass(frozen=True)
class Run:
    """What one run of a system gave.

    Attributes:
        rate: Records a second, from the first record handed to the job's code to the last
            result visible.
        start: Seconds from the start of the process to its first record.
        peak: Peak resident memory in MB (VmHWM), None where there is no /proc.
    """

    rate: float
    start: float
    peak: float | None


class Input:
    """A topic full of readings, and what must come out of them."""

    def __init__(self, broker: Broker, topic: str, readings: Sequence[Reading]) -> None:
        self.topic = topic
        self.count = len(readings)
        self.hashes = expected_hashes(readings)
        self.output = expected_output(readings)
        broker.fill(topic, readings)


class Job:
    """A process that runs a module of ``benchmarks.jobs`` against the servers."""

    def __init__(
        self, system: System, folder: Path, broker: str, redis_url: str, **variables: str
    ) -> None:
        self.system = system
        self.group = f"bench-{system.name}-{uuid4().hex[:8]}"
        folder = folder / self.group
        folder.mkdir(parents=True)
        self.report = folder / "report.jsonl"
        self._process = ChildProcess(system.name, folder)
        self._started = time.monotonic()
        self._process.spawn(
            system.command,
            cwd=folder,
            env={
                **{"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                **{"BENCH_BROKER": broker, "BENCH_REDIS": redis_url, "BENCH_GROUP": self.group},
                **{"BENCH_REPORT": str(self.report), "BENCH_RECORDS": "1000000000"},
                **{f"BENCH_{name.upper()}": value for name, value in variables.items()},
                **system.env,
            },
        )

    def wait(self, event: str, timeout: float) -> float:
        """Return when the job reported ``event``, in seconds since its start."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if event in (events := self._events()):
                return events[event] - self._started
            if not self._process.running:
                raise JobFailed(f"{self.system.name} ended early:\n{self._process.log_tail(30)}")
            time.sleep(0.05)
        raise JobFailed(
            f"{self.system.name} has no {event!r} after {timeout:g} s:\n"
            f"{self._process.log_tail(30)}"
        )

    def _events(self) -> dict[str, float]:
        if not self.report.exists():
            return {}
        lines = self.report.read_text().split("\n")[:-1]
        return {each["event"]: each["at"] for each in map(json.loads, lines)}

    def peak_mb(self) -> float | None:
        """Return the most memory that was resident so far."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return None
        return next(
            int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")
        )

    def stop(self) -> None:
        self._process.stop()


class Runner:
    """Runs systems against one broker and one Redis."""

    def __init__(self, broker: Broker, redis_url: str, folder: Path) -> None:
        self.broker = broker
        self.redis_url = redis_url
        self.folder = folder
        self._redis = redis.Redis.from_url(redis_url, decode_responses=True)

    def run(self, system: System, source: Input, timeout: float = 90.0) -> Run:
        """Run ``system`` on ``source`` once and check its results.

        Raises:
            JobFailed: It did not finish, or its results are not those of a recomputation.
        """
        self._redis.flushall()
        output = f"out-{uuid4().hex[:8]}"
        if system.job == "produce":
            self.broker.create_topic(output)
        job = self.start(system, topic=source.topic, output=output, records=str(source.count))
        try:
            done = job.wait("done", timeout)
            first = job.wait("first", timeout)
            peak = job.peak_mb()
            if system.job == "hash":
                self._check_hashes(system, source.hashes)
        finally:
            job.stop()
        if system.job == "produce":
            self._check_output(system, output, source.output)
            self.broker.delete_topic(output)
        if system.commits:
            committed = self.broker.committed(job.group, source.topic)
            if committed != source.count:
                raise JobFailed(f"{system.name} committed {committed} of {source.count} offsets")
        return Run(source.count / (done - first), first, peak)

    def start(self, system: System, **variables: str) -> Job:
        return Job(system, self.folder, self.broker.bootstrap, self.redis_url, **variables)

    def _check_hashes(self, system: System, expected: Mapping[str, Mapping[str, float]]) -> None:
        keys = sorted(self._redis.scan_iter("stats:*", count=1000))
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(key)
        found = {
            key: {field: float(text) for field, text in each.items()}
            for key, each in zip(keys, pipeline.execute(), strict=True)
        }
        if found != expected:
            wrong = [key for key in expected if found.get(key) != expected[key]]
            example = wrong[0] if wrong else "keys that should not be"
            raise JobFailed(
                f"{system.name} has {len(wrong)} of {len(expected)} hashes wrong, as {example}: "
                f"{found.get(example)} instead of {expected.get(example)}"
            )

    def _check_output(
        self, system: System, topic: str, expected: Mapping[bytes, Sequence[dict]]
    ) -> None:
        found: dict[bytes, list[dict]] = defaultdict(list)
        for key, value in self.broker.read_all(topic, sum(map(len, expected.values()))):
            found[key].append(json.loads(value))
        if found != expected:
            raise JobFailed(f"The output of {system.name} is not that of a recomputation")
