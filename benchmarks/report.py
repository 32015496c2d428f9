"""The table for people and the JSON for later."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import targets
from benchmarks.large import Large
from benchmarks.latency import Latency
from benchmarks.pauses import Pause
from benchmarks.peers import peer_versions
from benchmarks.runner import Run
from benchmarks.systems import SYSTEMS, System
from benchmarks.targets import Line, Runs

RESULTS = Path(__file__).parent / "results"
PACKAGES = [
    "streamproc",
    "faust-streaming",
    "aiokafka",
    "confluent-kafka",
    "msgspec",
    "orjson",
    "rocksdict",
]


class JobKind(NamedTuple):
    """A job: its title, and the systems that the others are compared with."""

    title: str
    faust: str = ""
    by_hand: str = ""


JOBS = {
    "hash": JobKind(
        "decode, drop negatives, aggregate by sensor, Redis hash", "faust-table", "by-hand"
    ),
    "produce": JobKind(
        "decode, drop negatives, convert, send to a topic", by_hand="produce-by-hand"
    ),
    "windows": JobKind(
        "windows of 10 s a sensor, final results to Redis hashes",
        "windows-faust",
        "windows-by-hand",
    ),
    "tables": JobKind("two tables: sums\\[k] += v; counts\\[k] += 1", "tables-faust"),
    "recovery": JobKind("a table rebuilt from its changelog", "recovery-faust"),
    "guarantees": JobKind("the same app at least once and exactly once"),
}


class Measured(NamedTuple):
    """All that one run of the benchmark measured."""

    runs: Runs
    latency: Latency | None
    large: Large | None
    kafka: str
    delays: Mapping[str, list[Latency]] = {}
    pauses: Mapping[str, list[Pause]] = {}


def show(console: Console, measured: Measured) -> None:
    """Print a table for each job, then each target and whether it is met."""
    for job, kind in JOBS.items():
        systems = [each for each in SYSTEMS if each.job == job and each.name in measured.runs]
        if systems:
            console.print(_job_table(kind, systems, measured.runs))
    if measured.latency is not None:
        console.print(_latency_line(measured.latency))
    if measured.large is not None:
        console.print(_large_line(measured.large))
    if measured.delays:
        console.print(_delay_table(measured.delays))
    if measured.pauses:
        console.print(_pause_table(measured.pauses))
    table = Table(title="Targets", title_justify="left")
    for heading in ("what", "target", "measured", ""):
        table.add_column(heading)
    for line in target_lines(measured):
        met = "[green]met[/]" if line["met"] else "[red]not met[/]"
        table.add_row(line["what"], line["target"], line["measured"], met)
    console.print(table)


def _job_table(kind: JobKind, systems: list[System], runs: Runs) -> Table:
    table = Table(title=kind.title, title_justify="left")
    table.add_column("system")
    any_wrong = any(run.wrong for system in systems for run in runs[system.name])
    columns = ["records/s", "lowest", "highest"]
    compared = [
        heading for heading, name in (("x Faust", kind.faust), ("x by hand", kind.by_hand)) if name
    ]
    if guaranteed := any(system.against for system in systems):
        compared = ["x at least once", "records/CPU s", "x"]
    columns += [*compared, "peak MB", "start s"]
    for heading in columns + ["wrong results"] * any_wrong:
        table.add_column(heading, justify="right")
    for system in systems:
        mine = runs[system.name]
        rates = [run.rate for run in mine]
        cells = [
            system.title,
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f}",
            f"{max(rates):,.0f}",
            *(_guarantee_cells(runs, system) if guaranteed else _ratios(runs, system, kind)),
            _peak(mine),
            f"{median(run.start for run in mine):.1f}",
        ]
        if any_wrong:
            worst = max(mine, key=lambda run: run.wrong)
            cells.append(f"{worst.wrong:,} of {worst.results:,}")
        table.add_row(*cells)
    return table


def _ratios(runs: Runs, system: System, kind: JobKind) -> list[str]:
    return [
        f"{targets.ratio(runs, system.name, baseline):.2f}" if baseline in runs else ""
        for baseline in (kind.faust, kind.by_hand)
        if baseline
    ]


def _guarantee_cells(runs: Runs, system: System) -> list[str]:
    """Compare the best of each: whatever else the machine does only makes a run slower."""
    mine = max(run.per_cpu or 0.0 for run in runs[system.name])
    if system.against not in runs:
        return ["", f"{mine:,.0f}", ""]
    baseline = max(run.per_cpu or 0.0 for run in runs[system.against])
    ratio = targets.best_ratio(runs, system.name, system.against)
    return [f"{ratio:.2f}", f"{mine:,.0f}", f"{mine / baseline:.2f}"]


def _delay_table(delays: Mapping[str, list[Latency]]) -> Table:
    any_rate = next(iter(delays.values()))[0].rate
    table = Table(
        title=f"Latency at {any_rate:,} records/s, sent to read in the output, ms; best round",
        title_justify="left",
    )
    table.add_column("app")
    for heading in ("samples", "p50", "p90", "p99", "longest"):
        table.add_column(heading, justify="right")
    for name, rounds in _by_title(delays):
        best = min(rounds, key=lambda each: each.p99)
        figures = (best.p50, best.p90, best.p99, best.worst)
        table.add_row(name, f"{best.samples:,}", *(f"{each:,.1f}" for each in figures))
    return table


def _pause_table(pauses: Mapping[str, list[Pause]]) -> Table:
    table = Table(
        title="Longest gap between results of a partition in a rebalance, s: median (longest)",
        title_justify="left",
    )
    for heading in ("app", "a worker", "who stays", "who moves", "without a rebalance"):
        table.add_column(heading)
    for name, rounds in _by_title(pauses):
        for change in ("leaves", "joins"):
            some = [each for each in rounds if each.change == change]
            columns = ("stayed", "moved", "usual")
            cells = [_gaps([getattr(each, column) for each in some]) for column in columns]
            table.add_row(name, change, *cells)
    return table


def _by_title(rounds: Mapping[str, list[Any]]) -> Iterator[tuple[str, list[Any]]]:
    return ((each.title, rounds[each.name]) for each in SYSTEMS if each.name in rounds)


def _gaps(gaps: list[float | None]) -> str:
    known = [gap for gap in gaps if gap is not None]
    return f"{median(known):.2f} ({max(known):.2f})" if known else ""


def _peak(runs: list[Run] | Any) -> str:
    peaks = [run.peak for run in runs if run.peak is not None]
    return f"{max(peaks):.0f}" if peaks else ""


def _latency_line(latency: Latency) -> str:
    return (
        f"Latency at {latency.rate:,} records/s, sent to visible in Redis "
        f"({latency.samples:,} samples): p50 {latency.p50:.1f} ms, p90 {latency.p90:.1f} ms, "
        f"p99 {latency.p99:.1f} ms, longest {latency.worst:.1f} ms\n"
    )


def _large_line(large: Large) -> str:
    peak = "" if large.peak is None else f"peak {large.peak:,.0f} MB, "
    return (
        f"A table of {large.keys:,} keys in RocksDB: {large.rate:,.0f} records/s, "
        f"{peak}{large.disk:,.0f} MB on disk\n"
    )


def target_lines(measured: Measured) -> list[Line]:
    """Return what was aimed at, what was measured, and whether that is enough."""
    lines = targets.lines(measured.runs, measured.kafka)
    latency, large = measured.latency, measured.large
    if latency is not None:
        lines.append(targets.below("latency p50, ms", targets.P50_TARGET, latency.p50))
        lines.append(targets.below("latency p99, ms", targets.P99_TARGET, latency.p99))
    if large is not None and large.peak is not None:
        what = f"{large.keys:,} keys: peak MB"
        lines.append(targets.below(what, targets.LARGE_TARGET, large.peak))
    return lines + targets.guarantee_lines(measured.delays, measured.pauses)


def write(measured: Measured, options: Mapping[str, Any]) -> Path:
    """Write everything that was measured, and on what, to a new file in ``results``."""
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(timezone.utc)
    path = RESULTS / f"{now:%Y%m%d-%H%M%S}-{measured.kafka}.json"
    content = {
        "at": now.isoformat(timespec="seconds"),
        "kafka": measured.kafka,
        "options": dict(options),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
            **peer_versions(),
        },
        "runs": _as_dicts(measured.runs),
        "latency": None if measured.latency is None else asdict(measured.latency),
        "large": None if measured.large is None else asdict(measured.large),
        "delays": _as_dicts(measured.delays),
        "pauses": _as_dicts(measured.pauses),
        "targets": target_lines(measured),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _as_dicts(rounds: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(each) for each in some] for name, some in rounds.items()}
