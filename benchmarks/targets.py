"""What is aimed at, between systems and by figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.latency import Latency
from benchmarks.pauses import Pause
from benchmarks.runner import Run
from benchmarks.systems import SYSTEMS

Runs = Mapping[str, Sequence[Run]]


class Target(NamedTuple):
    """``system`` should reach ``factor`` times the rate of ``baseline``."""

    system: str
    baseline: str
    factor: float


TARGETS = [
    Target("batches", "faust-table", 60.0),
    Target("batches", "by-hand", 0.8),
    Target("unmodified", "faust-table", 30.0),
    Target("produce-batches", "produce-by-hand", 0.6),
    Target("windows", "windows-faust", 60.0),
    Target("windows", "windows-by-hand", 0.5),
    Target("windows", "windows-bytewax", 2.0),
    Target("windows", "windows-quix", 2.0),
    Target("tables", "tables-faust", 50.0),
    Target("tables-rocksdb", "tables-faust-rocksdb", 50.0),
    Target("recovery", "recovery-faust", 30.0),
]
#: Records a second.
RATE_TARGETS = {"recovery": 300_000.0}
#: Memory in MB, of the jobs whose state is small; seconds from start to first record.
PEAK_TARGET, PEAK_JOBS = 200.0, ("hash", "produce")
START_TARGETS = {"apache": 4.0, "embedded": 8.0}
#: Latencies in milliseconds.
P50_TARGET, P99_TARGET = 10.0, 50.0
#: Memory in MB of ten million keys.
LARGE_TARGET = 1_000.0

#: Rate under exactly once, of that at least once.
EXACTLY_ONCE_TARGET = 0.7
#: Milliseconds from sending to reading under exactly once: a checkpoint comes each second.
EXACTLY_ONCE_P99_TARGET = 1_100.0
#: Seconds that a rebalance stops partitions that stay with their worker, and others.
STAYED_TARGET, MOVED_TARGET = 1.0, 3.0

Line = dict[str, Any]


def ratio(runs: Runs, system: str, baseline: str) -> float:
    """Return the ratio of the medians of two systems' rates."""
    return median(run.rate for run in runs[system]) / median(run.rate for run in runs[baseline])


def best_ratio(runs: Runs, system: str, baseline: str) -> float:
    """Return the ratio of the best rates of two systems, of which only one thing differs."""
    return max(run.rate for run in runs[system]) / max(run.rate for run in runs[baseline])


def lines(runs: Runs, kafka: str) -> list[Line]:
    """Return what was aimed at of the runs, what was measured, and whether that is enough."""
    found = [
        at_least(
            f"{target.system} against {target.baseline}",
            target.factor,
            ratio(runs, target.system, target.baseline),
        )
        for target in TARGETS
        if target.system in runs and target.baseline in runs
    ]
    found += [
        at_least(
            f"{each.name} against {each.against}",
            EXACTLY_ONCE_TARGET,
            best_ratio(runs, each.name, each.against),
        )
        for each in SYSTEMS
        if each.name in runs and each.against in runs
    ]
    for name, rate in RATE_TARGETS.items():
        if name in runs:
            measured = median(run.rate for run in runs[name])
            found.append(at_least(f"{name}: records/s", rate, measured))
    ours = [each for each in SYSTEMS if each.ours and each.name in runs]
    for system in ours:
        peaks = [run.peak for run in runs[system.name] if run.peak is not None]
        if peaks and system.job in PEAK_JOBS:
            found.append(below(f"{system.name}: peak MB", PEAK_TARGET, max(peaks)))
    for system in ours:
        if system.job in ("recovery", "guarantees"):
            continue  # the one waits for a member that left, the other for a checkpoint
        start = median(run.start for run in runs[system.name])
        what = f"{system.name}: start to first record, s"
        found.append(below(what, START_TARGETS[kafka], start))
    return found


def guarantee_lines(
    delays: Mapping[str, Sequence[Latency]], pauses: Mapping[str, Sequence[Pause]]
) -> list[Line]:
    """Return the targets of latencies (best round) and of pauses (median of the rounds)."""
    found = [
        below(f"{name}: latency p99, ms", EXACTLY_ONCE_P99_TARGET, min(run.p99 for run in rounds))
        for name, rounds in delays.items()
        if name.endswith("-exactly")
    ]
    for name, rounds in pauses.items():
        for change in ("leaves", "joins"):
            some = [each for each in rounds if each.change == change]
            stayed = [each.stayed for each in some if each.stayed is not None]
            moved = [each.moved for each in some if each.moved is not None]
            what = f"{name}: a worker {change}"
            if stayed:
                found.append(below(f"{what}: who stays, s", STAYED_TARGET, median(stayed)))
            if moved:
                found.append(below(f"{what}: who moves, s", MOVED_TARGET, median(moved)))
    return found


def at_least(what: str, least: float, found: float) -> Line:
    return _line(what, f">= {least:,g}", found, found >= least)


def below(what: str, most: float, found: float) -> Line:
    return _line(what, f"< {most:,g}", found, found < most)


def _line(what: str, target: str, found: float, met: bool) -> Line:
    measured = f"{found:,.0f}" if found >= 1000 else f"{found:.2f}"
    return {"what": what, "target": target, "measured": measured, "met": met}
