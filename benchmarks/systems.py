"""The systems that are measured, and the targets between them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class System:
    """One way of doing one of the jobs.

    Attributes:
        name: What ``--only`` takes.
        title: Name in the table.
        job: ``hash`` (aggregate, Redis hash) or ``produce`` (stateless, to a topic).
        module: Module under ``benchmarks.jobs``.
        worker: True for Faust apps, run by a Faust worker.
        commits: True if the source offsets must be committed when it has stopped.
        few: True for systems so slow that they get a part of the records.
        env: Variations of the module.
    """

    name: str
    title: str
    job: str
    module: str
    worker: bool = False
    commits: bool = False
    few: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        module = f"benchmarks.jobs.{self.module}"
        if not self.worker:
            return [sys.executable, "-m", module]
        # uvloop for plain Faust too: it is an option of its command line.
        faust = [sys.executable, "-m", "faust", "--loop", "uvloop", "-A", module]
        return [*faust, "worker", "--without-web", "--loglevel", "warn"]


SYSTEMS = [
    System(
        "faust-table",
        "plain Faust, agent with a table",
        "hash",
        "faust_agent",
        worker=True,
        few=True,
        env={"BENCH_LIBRARY": "faust", "BENCH_STATE": "table"},
    ),
    System(
        "faust-dict",
        "plain Faust, agent with a dict",
        "hash",
        "faust_agent",
        worker=True,
        few=True,
        env={"BENCH_LIBRARY": "faust", "BENCH_STATE": "dict"},
    ),
    System("by-hand", "loop by hand", "hash", "by_hand"),
    System(
        "by-hand-msgspec",
        "loop by hand, typed by msgspec",
        "hash",
        "by_hand",
        env={"BENCH_DECODER": "msgspec"},
    ),
    System("batches", "streamproc, batches()", "hash", "batches", worker=True, commits=True),
    System(
        "unmodified",
        "streamproc, the Faust agent unmodified",
        "hash",
        "faust_agent",
        worker=True,
        commits=True,
        env={"BENCH_LIBRARY": "streamproc", "BENCH_STATE": "dict"},
    ),
    System(
        "events",
        "streamproc, event by event, yield to a sink",
        "hash",
        "events",
        worker=True,
        commits=True,
    ),
    System("produce-by-hand", "loop by hand", "produce", "by_hand_produce"),
    System(
        "produce-batches",
        "streamproc, batches() and send_batch()",
        "produce",
        "batches_produce",
        worker=True,
        commits=True,
    ),
]


@dataclass(frozen=True)
class Target:
    """``system`` should reach ``factor`` times the rate of ``baseline``."""

    system: str
    baseline: str
    factor: float


TARGETS = [
    Target("batches", "faust-table", 60.0),
    Target("batches", "by-hand", 0.8),
    Target("unmodified", "faust-table", 30.0),
    Target("produce-batches", "produce-by-hand", 0.6),
]
#: Latencies in milliseconds, memory in MB, seconds from start to first record.
P50_TARGET, P99_TARGET = 10.0, 50.0
PEAK_TARGET = 200.0
START_TARGETS = {"apache": 4.0, "embedded": 8.0}
