"""The systems that are measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: Where ``make bench-peers`` installs the peers, apart from us: they pin other versions.
PEERS = Path(__file__).parent / ".peers"


@dataclass(frozen=True)
class System:
    """One way of doing one of the jobs.

    Attributes:
        name: What ``--only`` takes.
        title: Name in the table.
        job: One of ``benchmarks.report.JOBS``.
        module: Module under ``benchmarks.jobs``.
        worker: True for Faust apps, run by a Faust worker.
        ours: True for streamproc: the source offsets must be committed when it has stopped.
        size: How many records it gets: "all", or for slow ones a "part" or "few".
        peer: Package of a system that is measured only where it was installed; its wrong
            results are counted and shown, where others' fail the run.
        env: Variations of the module.
        against: Name of the system that it is compared with in a column of its own.
    """

    name: str
    title: str
    job: str
    module: str
    worker: bool = False
    ours: bool = False
    size: str = "all"
    peer: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    against: str = ""

    @property
    def command(self) -> list[str]:
        module = f"benchmarks.jobs.{self.module}"
        if self.peer is not None:
            return [str(PEERS / "bin" / "python"), "-m", module]
        if not self.worker:
            return [sys.executable, "-m", module]
        # uvloop for plain Faust too: it is an option of its command line.
        faust = [sys.executable, "-m", "faust", "--loop", "uvloop", "-A", module]
        return [*faust, "worker", "--without-web", "--loglevel", "warn"]


def _faust(name: str, title: str, job: str, module: str, **env: str) -> System:
    variables = {"BENCH_LIBRARY": "faust", **env}
    return System(name, title, job, module, worker=True, size="few", env=variables)


def _ours(name: str, title: str, job: str, module: str, **env: str) -> System:
    variables = {"BENCH_LIBRARY": "streamproc", **env}
    return System(name, title, job, module, worker=True, ours=True, env=variables)


def _guaranteed(name: str, title: str, form: str, app: str, sink: str, against: str = "") -> System:
    env = {"BENCH_FORM": form, "BENCH_GUARANTEE": app, "BENCH_SINK": sink}
    return System(
        f"guarantees-{name}",
        title,
        "guarantees",
        "guarantees",
        worker=True,
        ours=True,
        env=env,
        against=against and f"guarantees-{against}",
    )


MEMORY, ROCKSDB = {"BENCH_STORE": "memory://"}, {"BENCH_STORE": "rocksdb://"}
AT_LEAST, EXACTLY = "at_least_once", "exactly_once"
UNMODIFIED = "streamproc, the Faust agent unmodified"

SYSTEMS = [
    _faust(
        "faust-table",
        "plain Faust, agent with a table",
        "hash",
        "faust_agent",
        BENCH_STATE="table",
    ),
    _faust(
        "faust-dict", "plain Faust, agent with a dict", "hash", "faust_agent", BENCH_STATE="dict"
    ),
    System("by-hand", "loop by hand", "hash", "by_hand"),
    System(
        "by-hand-msgspec",
        "loop by hand, typed by msgspec",
        "hash",
        "by_hand",
        env={"BENCH_DECODER": "msgspec"},
    ),
    _ours("batches", "streamproc, batches()", "hash", "batches"),
    _ours("unmodified", UNMODIFIED, "hash", "faust_agent", BENCH_STATE="dict"),
    _ours("events", "streamproc, event by event, yield to a sink", "hash", "events"),
    System("produce-by-hand", "loop by hand", "produce", "by_hand_produce"),
    _ours(
        "produce-batches", "streamproc, batches() and send_batch()", "produce", "batches_produce"
    ),
    _faust("windows-faust", "plain Faust, tumbling table in RocksDB", "windows", "faust_windows"),
    System("windows-by-hand", "loop by hand, keeps nothing", "windows", "by_hand_windows"),
    System(
        "windows-by-hand-msgspec",
        "loop by hand, typed by msgspec",
        "windows",
        "by_hand_windows",
        env={"BENCH_DECODER": "msgspec"},
    ),
    System(
        "windows-bytewax",
        "Bytewax, state in memory",
        "windows",
        "bytewax_windows",
        size="part",
        peer="bytewax",
    ),
    System(
        "windows-quix",
        "Quix Streams, RocksDB and changelog",
        "windows",
        "quix_windows",
        size="part",
        peer="quixstreams",
    ),
    _ours("windows", "streamproc, RocksDB and changelog", "windows", "windows"),
    _faust("tables-faust", "plain Faust, memory", "tables", "faust_tables", **MEMORY),
    _faust("tables-faust-rocksdb", "plain Faust, RocksDB", "tables", "faust_tables", **ROCKSDB),
    _ours("tables", f"{UNMODIFIED}, memory", "tables", "faust_tables", **MEMORY),
    _ours("tables-rocksdb", f"{UNMODIFIED}, RocksDB", "tables", "faust_tables", **ROCKSDB),
    _faust("recovery-faust", "plain Faust", "recovery", "counting", BENCH_RECOVERY="1"),
    _ours("recovery", "streamproc", "recovery", "counting", BENCH_RECOVERY="1"),
    _guaranteed("agent", "agent, table, topic: at least once", "agent", AT_LEAST, ""),
    _guaranteed(
        "agent-exactly", "agent, table, topic: exactly once", "agent", EXACTLY, "", "agent"
    ),
    _guaranteed("windows", "windows to a topic: at least once", "windows", AT_LEAST, ""),
    _guaranteed(
        "windows-exactly", "windows to a topic: exactly once", "windows", EXACTLY, "", "windows"
    ),
    _guaranteed("redis", "windows to Redis: at least once", "redis", AT_LEAST, AT_LEAST),
    _guaranteed(
        "redis-sink", "windows to Redis: sink exactly once", "redis", AT_LEAST, EXACTLY, "redis"
    ),
    _guaranteed(
        "redis-exactly", "windows to Redis: exactly once", "redis", EXACTLY, EXACTLY, "redis"
    ),
]

#: The state larger than memory, measured by ``--large``.
LARGE = _ours("large", "streamproc", "large", "counting")
