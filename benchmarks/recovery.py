"""Rebuilding a table from its changelog, with nothing on the local disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from benchmarks.inputs import keys
from benchmarks.readings import FIRST_TIMESTAMP, PARTITIONS, Reading
from benchmarks.runner import JobFailed, Run, Runner, new_group
from benchmarks.systems import System


class Recovery:
    """Runs recoveries; the changelog of a system is made when it is first run.

    Args:
        sizes: Keys of the table by ``System.size``.
    """

    def __init__(self, runner: Runner, sizes: dict[str, int]) -> None:
        self._runner = runner
        self._sizes = sizes
        self._groups: dict[str, str] = {}

    def run(self, system: System, timeout: float = 180.0) -> Run:
        """Start a worker with an empty data folder and return how fast its table was complete.

        Raises:
            JobFailed: It did not finish, or its table is not complete.
        """
        count = self._sizes[system.size]
        if system.name not in self._groups:
            self._groups[system.name] = self._make_changelog(system, count)
        group = self._groups[system.name]
        job = self._runner.start(system, group, topic=_topic(system))
        try:
            done, first = job.wait("done", timeout), job.wait("first", timeout)
            peak = job.peak_mb()
            job.wait("content", timeout)
            content = job.events()["content"]
        finally:
            job.stop()
        shutil.rmtree(job.folder)
        if (content["keys"], content["total"]) != (count, count):
            raise JobFailed(f"{system.name} recovered {content} of {count} keys")
        return Run(count / (done - first), first, peak, count)

    def _make_changelog(self, system: System, count: int) -> str:
        """Count each of ``count`` keys once; return the group whose changelog has it."""
        broker, topic, group = self._runner.broker, _topic(system), new_group(system)
        if not system.ours:
            broker.create_topic(topic)
            changelog, records = f"{group}-counts-changelog", list(_changelog(count))
            broker.fill(changelog, records[:-PARTITIONS])
            broker.append(changelog, records[-PARTITIONS:])
            return group
        broker.fill(topic, (Reading(key, b"1", FIRST_TIMESTAMP) for key in keys(count)))
        variables = {"topic": topic, "records": str(count), "recovery": ""}
        job = self._runner.start(system, group, **variables)
        try:
            job.wait("done", 180.0)
            self._runner.wait_committed(job, topic, count, 60.0)
        finally:
            job.stop(30.0)
        shutil.rmtree(job.folder)
        return group


def _topic(system: System) -> str:
    return f"keys-{system.name}"


def _changelog(count: int) -> Iterator[Reading]:
    """Make what Faust writes, key and value in JSON, but much faster than it does.

    Keys are spread evenly over the partitions: a recovery doesn't ask where they belong.
    """
    for number, key in enumerate(keys(count)):
        yield Reading(b'"%s"' % key, b"1", FIRST_TIMESTAMP, number % PARTITIONS)
