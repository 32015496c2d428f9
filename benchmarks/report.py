"""The table for people and the JSON for later."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.latency import Latency
from benchmarks.runner import Run
from benchmarks.systems import (
    P50_TARGET,
    P99_TARGET,
    PEAK_TARGET,
    START_TARGETS,
    SYSTEMS,
    TARGETS,
    Target,
)

RESULTS = Path(__file__).parent / "results"
PACKAGES = ["streamproc", "faust-streaming", "aiokafka", "confluent-kafka", "msgspec", "orjson"]
JOBS = {
    "hash": "decode, drop negatives, aggregate by sensor, Redis hash",
    "produce": "decode, drop negatives, convert, send to a topic",
}

Runs = Mapping[str, Sequence[Run]]


def show(console: Console, runs: Runs, latency: Latency | None, kafka: str) -> None:
    """Print a table for each job, then each target and whether it is met."""
    for job, title in JOBS.items():
        if any(system.name in runs and system.job == job for system in SYSTEMS):
            console.print(_job_table(job, title, runs))
    if latency is not None:
        console.print(
            f"Latency at {latency.rate:,} records/s, sent to visible in Redis "
            f"({latency.samples:,} samples): p50 {latency.p50:.1f} ms, p90 {latency.p90:.1f} ms, "
            f"p99 {latency.p99:.1f} ms, longest {latency.worst:.1f} ms\n"
        )
    table = Table(title="Targets", title_justify="left")
    for heading in ("what", "target", "measured", ""):
        table.add_column(heading)
    for line in targets(runs, latency, kafka):
        met = "[green]met[/]" if line["met"] else "[red]not met[/]"
        table.add_row(line["what"], line["target"], line["measured"], met)
    console.print(table)


def _job_table(job: str, title: str, runs: Runs) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("system")
    columns = ("records/s", "lowest", "highest", "x Faust", "x by hand", "peak MB", "start s")
    for heading in columns:
        table.add_column(heading, justify="right")
    by_hand = "by-hand" if job == "hash" else "produce-by-hand"
    for system in SYSTEMS:
        if system.job != job or system.name not in runs:
            continue
        mine = runs[system.name]
        rates = [run.rate for run in mine]
        table.add_row(
            system.title,
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f}",
            f"{max(rates):,.0f}",
            _ratio(runs, system.name, "faust-table"),
            _ratio(runs, system.name, by_hand),
            _peak(mine),
            f"{median(run.start for run in mine):.1f}",
        )
    return table


def _ratio(runs: Runs, system: str, baseline: str) -> str:
    return f"{ratio(runs, system, baseline):.2f}" if baseline in runs else ""


def ratio(runs: Runs, system: str, baseline: str) -> float:
    """Return the ratio of the medians of two systems' rates."""
    return median(run.rate for run in runs[system]) / median(run.rate for run in runs[baseline])


def _peak(runs: Sequence[Run]) -> str:
    peaks = [run.peak for run in runs if run.peak is not None]
    return f"{max(peaks):.0f}" if peaks else ""


def targets(runs: Runs, latency: Latency | None, kafka: str) -> list[dict[str, Any]]:
    """Return what was aimed at, what was measured, and whether that is enough."""
    lines = [
        _rate_line(runs, target)
        for target in TARGETS
        if target.system in runs and target.baseline in runs
    ]
    if latency is not None:
        lines.append(_line("latency p50, ms", P50_TARGET, latency.p50))
        lines.append(_line("latency p99, ms", P99_TARGET, latency.p99))
    ours = [system for system in SYSTEMS if system.commits and system.name in runs]
    for system in ours:
        peaks = [run.peak for run in runs[system.name] if run.peak is not None]
        if peaks:
            lines.append(_line(f"{system.name}: peak MB", PEAK_TARGET, max(peaks)))
    for system in ours:
        start = median(run.start for run in runs[system.name])
        what = f"{system.name}: start to first record, s"
        lines.append(_line(what, START_TARGETS[kafka], start))
    return lines


def _rate_line(runs: Runs, target: Target) -> dict[str, Any]:
    found = ratio(runs, target.system, target.baseline)
    return {
        "what": f"{target.system} against {target.baseline}",
        "target": f">= {target.factor:g}",
        "measured": f"{found:.2f}",
        "met": found >= target.factor,
    }


def _line(what: str, most: float, found: float) -> dict[str, Any]:
    return {
        "what": what,
        "target": f"< {most:g}",
        "measured": f"{found:.1f}",
        "met": found < most,
    }


def write(runs: Runs, latency: Latency | None, kafka: str, options: Mapping[str, Any]) -> Path:
    """Write everything that was measured, and on what, to a new file in ``results``."""
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(timezone.utc)
    path = RESULTS / f"{now:%Y%m%d-%H%M%S}-{kafka}.json"
    content = {
        "at": now.isoformat(timespec="seconds"),
        "kafka": kafka,
        "options": dict(options),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "runs": {name: [asdict(run) for run in each] for name, each in runs.items()},
        "latency": None if latency is None else asdict(latency),
        "targets": targets(runs, latency, kafka),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
