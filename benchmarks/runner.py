"""Running one system once: a fresh process, its times, its memory, and whether it is right."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis

from benchmarks.broker import Broker
from benchmarks.checks import Difference, compare, flat, read_hashes, read_output, read_table
from benchmarks.inputs import Input
from benchmarks.readings import PARTITIONS
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
        results: How many results there should be.
        wrong: How many of them are missing or wrong (a peer's; any other's run fails).
        per_cpu: Records a second of the process's CPU time, None where it isn't told.
    """

    rate: float
    start: float
    peak: float | None
    results: int = 0
    wrong: int = 0
    per_cpu: float | None = None


def new_group(system: System) -> str:
    """Return the name of a consumer group that nobody has used."""
    return f"bench-{system.name}-{uuid4().hex[:8]}"


class Job:
    """A process that runs a module of ``benchmarks.jobs`` against the servers."""

    def __init__(
        self,
        system: System,
        folder: Path,
        broker: str,
        redis_url: str,
        group: str | None = None,
        **variables: str,
    ) -> None:
        self.system = system
        self.group = group or new_group(system)
        self.folder = folder = folder / f"{self.group}-{uuid4().hex[:4]}"
        folder.mkdir(parents=True)
        self.report = folder / "report.jsonl"
        self._process = ChildProcess(system.name, folder)
        self.started = time.monotonic()
        self._process.spawn(
            system.command,
            cwd=folder,
            env={
                **{"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                **{"BENCH_BROKER": broker, "BENCH_REDIS": redis_url, "BENCH_GROUP": self.group},
                **{"BENCH_REPORT": str(self.report), "BENCH_RECORDS": "1000000000"},
                **system.env,
                **{f"BENCH_{name.upper()}": value for name, value in variables.items()},
            },
        )

    def wait(self, event: str, timeout: float) -> float:
        """Return when the job reported ``event``, in seconds since its start."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if event in (events := self.events()):
                return float(events[event]["at"]) - self.started
            if not self._process.running:
                raise JobFailed(f"{self.system.name} ended early:\n{self._process.log_tail(30)}")
            time.sleep(0.05)
        raise JobFailed(
            f"{self.system.name} has no {event!r} after {timeout:g} s:\n"
            f"{self._process.log_tail(30)}"
        )

    def events(self) -> dict[str, dict[str, Any]]:
        """Return what the job has told so far, the last of each event."""
        return {each["event"]: each for each in self._lines()}

    def told(self, event: str) -> list[dict[str, Any]]:
        """Return all that the job has told of ``event``."""
        return [each for each in self._lines() if each["event"] == event]

    def _lines(self) -> list[dict[str, Any]]:
        if not self.report.exists():
            return []
        return [json.loads(line) for line in self.report.read_text().split("\n")[:-1]]

    def peak_mb(self) -> float | None:
        """Return the most memory that was resident so far."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return None
        return next(
            int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")
        )

    def stop(self, timeout: float = 10.0) -> None:
        """End the process; kill it after ``timeout`` seconds."""
        self._process.stop(timeout)


class Runner:
    """Runs systems against one broker and one Redis."""

    def __init__(self, broker: Broker, redis_url: str, folder: Path) -> None:
        self.broker = broker
        self.redis_url = redis_url
        self.folder = folder
        self._redis = redis.Redis.from_url(redis_url, decode_responses=True)

    def run(self, system: System, source: Input, timeout: float = 120.0) -> Run:
        """Run ``system`` on ``source`` once and check its results.

        Raises:
            JobFailed: It did not finish, or its results are not those of a recomputation.
        """
        self._redis.flushall()
        output = ""
        variables = {"topic": source.topic, "records": str(source.count)}
        if system.job == "windows":
            variables["results"] = str(len(source.windows))
        if system.job == "produce":
            variables["output"] = output = self.new_output()
        job = self.start(system, **variables)
        try:
            done = job.wait("done", timeout)
            first = job.wait("first", timeout)
            peak = job.peak_mb()
            visible = self._difference_in_redis(system, source)
        finally:
            job.stop()
        difference = visible or self._difference_in_kafka(system, source, job.group, output)
        if difference.wrong and system.peer is None:
            raise JobFailed(
                f"{system.name} has {difference.wrong} of {difference.expected} results wrong, "
                f"as {difference.example}"
            )
        if system.ours:
            self.check_committed(job, source.topic, source.count)
        rate = source.count / (done - first)
        return Run(rate, first, peak, difference.expected, difference.wrong)

    def start(self, system: System, group: str | None = None, **variables: str) -> Job:
        bootstrap = self.broker.bootstrap
        return Job(system, self.folder, bootstrap, self.redis_url, group, **variables)

    def new_output(self, partitions: int = PARTITIONS) -> str:
        """Create a topic for results and return its name."""
        output = f"out-{uuid4().hex[:8]}"
        self.broker.create_topic(output, partitions)
        return output

    def check_committed(self, job: Job, topic: str, count: int) -> None:
        """Raise :class:`JobFailed` unless all source offsets are committed."""
        committed = self.broker.committed(job.group, topic)
        if committed != count:
            raise JobFailed(f"{job.system.name} committed {committed} of {count} offsets")

    def wait_committed(self, job: Job, topic: str, count: int, timeout: float) -> float:
        """Return when all source offsets are committed, in seconds since the job's start."""
        deadline = time.monotonic() + timeout
        while self.broker.committed(job.group, topic) < count:
            if time.monotonic() > deadline:
                self.check_committed(job, topic, count)
            time.sleep(0.2)
        return time.monotonic() - job.started

    def _difference_in_redis(self, system: System, source: Input) -> Difference | None:
        if system.job not in ("hash", "windows"):
            return None
        expected = source.hashes if system.job == "hash" else source.windows
        return compare(expected, read_hashes(self._redis))

    def _difference_in_kafka(
        self, system: System, source: Input, group: str, output: str
    ) -> Difference:
        if system.job == "produce":
            difference = compare(source.output, read_output(self.broker, output))
            self.broker.delete_topic(output)
            return difference
        found = [read_table(self.broker, group, name) for name in ("sums", "counts")]
        return compare(flat(source.tables), flat(found))
