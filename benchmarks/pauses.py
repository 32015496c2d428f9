"""How long a rebalance stops the flow: the longest gap between results, by partition.

Three workers are under load; one stops, another one comes. Results say which worker made
them, and the record's timestamp when. Results of a partition go to the same partition of
the output, since both have the same keys and as many partitions.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import msgspec

from benchmarks.delays import Sender
from benchmarks.runner import Job, JobFailed, Runner, new_group
from benchmarks.systems import System

PARTITIONS, WORKERS = 6, 3
#: Seconds of load before each change and after it.
STEADY = 10.0
#: Seconds around a change in which gaps count as its own.
BEFORE, AFTER = 0.5, 8.0


class _Result(msgspec.Struct):
    worker: str


class Output(NamedTuple):
    """A result: when it was made (seconds of the clock on the wall), and by whom."""

    at: float
    worker: str


@dataclass(frozen=True)
class Pause:
    """What a change did, in seconds.

    Attributes:
        change: "leaves" or "joins".
        stayed: Longest gap of a partition whose worker is the same after it; None: there
            is none.
        moved: Longest gap of a partition that has got another worker.
        usual: Longest gap of any partition while nothing changed.
    """

    change: str
    stayed: float | None
    moved: float | None
    usual: float


def measure_pauses(runner: Runner, system: System, rate: int) -> list[Pause]:
    """Return the pauses when one of three workers stops, and when another one comes.

    Raises:
        JobFailed: A worker did not start, or records were lost or counted twice.
    """
    group = new_group(system)
    topic = new_group(system)
    runner.broker.create_topic(topic, PARTITIONS)
    output = runner.new_output(PARTITIONS)
    jobs: list[Job] = []

    def start() -> None:
        variables = {"topic": topic, "output": output, "partitions": str(PARTITIONS)}
        jobs.append(runner.start(system, group, worker=str(len(jobs)), **variables))

    sender = Sender(runner.broker, topic, rate)
    try:
        for _ in range(WORKERS):
            start()
        sender.start()
        for job in jobs:
            job.wait("first", 60.0)
        time.sleep(STEADY)
        left = time.time()
        jobs[0].stop(30.0)
        time.sleep(STEADY)
        start()
        jobs[-1].wait("first", 60.0)
        joined = time.time()
        time.sleep(STEADY)
        sent = sender.end()
        time.sleep(2.0)
    finally:
        for job in jobs:
            job.stop(30.0)
    outputs = _read(runner, output, sent)
    usual = max(_longest_gap(each, left - BEFORE - 5.0, left - BEFORE) for each in outputs.values())
    # A worker tells of its first checkpoint, which comes after the rebalance.
    return [
        pause("leaves", outputs, left - BEFORE, left + AFTER, usual),
        pause("joins", outputs, joined - AFTER, joined + AFTER, usual),
    ]


def pause(
    change: str, outputs: dict[int, list[Output]], start: float, end: float, usual: float
) -> Pause:
    """Find the longest gaps from ``start`` to ``end``, of partitions that stay and that move."""
    stayed: list[float] = []
    moved: list[float] = []
    for each in outputs.values():
        workers = [output.worker for output in each if start <= output.at <= end]
        stays = len(set(workers)) == 1
        (stayed if stays else moved).append(_longest_gap(each, start, end))
    return Pause(change, max(stayed, default=None), max(moved, default=None), usual)


def _longest_gap(outputs: list[Output], start: float, end: float) -> float:
    times = [each.at for each in outputs if start <= each.at <= end]
    return max((after - before for before, after in pairwise(times)), default=end - start)


def _read(runner: Runner, output: str, sent: int) -> dict[int, list[Output]]:
    decode = msgspec.json.Decoder(_Result).decode
    outputs: dict[int, list[Output]] = defaultdict(list)
    for messages in runner.broker.read_all(output, partitions=PARTITIONS):
        for message in messages:
            at = message.timestamp()[1] / 1000.0
            outputs[message.partition()].append(Output(at, decode(message.value()).worker))
    found = sum(map(len, outputs.values()))
    if found != sent:
        raise JobFailed(f"{found} results of {sent} records, over two rebalances")
    return outputs
