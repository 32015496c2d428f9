"""``python -m benchmarks``: measure all systems in one run, side by side."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.broker import Broker
from benchmarks.delays import measure_delay
from benchmarks.guarantees import Guarantees
from benchmarks.inputs import Inputs
from benchmarks.large import Large, measure_large
from benchmarks.latency import Latency, measure_latency
from benchmarks.pauses import Pause, measure_pauses
from benchmarks.peers import peer_versions
from benchmarks.recovery import Recovery
from benchmarks.runner import JobFailed, Run, Runner
from benchmarks.systems import SYSTEMS, System
from streamproc.dev.servers import kafka_server, redis_server

LATENCY = "latency"
#: What is measured of the systems that do the same under both guarantees, besides their rates.
DELAYS, PAUSES = "delays", "pauses"
AGENTS = ("guarantees-agent", "guarantees-agent-exactly")
#: The job's readings, of which there should be some checkpoints full.
READINGS_TIMES = 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--records", type=int, default=1_000_000, help="readings (%(default)s)")
    add("--part", type=int, default=200_000, help="readings for the peers (%(default)s)")
    add("--faust-records", type=int, default=15_000, help="readings for plain Faust (%(default)s)")
    add("--keys", type=int, default=2_000_000, help="keys of the recovered table (%(default)s)")
    add(
        "--faust-keys",
        type=int,
        default=100_000,
        help="keys of plain Faust's recovered table (%(default)s)",
    )
    add("--rounds", type=int, default=2, help="runs of each (%(default)s)")
    add("--kafka", choices=["embedded", "apache"], default="embedded")
    add("--job", action="append", choices=list(report.JOBS), help="only this job's systems")
    add(
        "--only",
        action="append",
        choices=[*(system.name for system in SYSTEMS), LATENCY, DELAYS, PAUSES],
        metavar="NAME",
        help="only this system, or latency, delays, pauses; may be repeated",
    )
    add("--rate", type=int, default=5_000, help="records/s for latencies and pauses")
    add("--seconds", type=float, default=30.0, help="length of a latency run")
    add(
        "--large",
        type=int,
        nargs="?",
        const=10_000_000,
        metavar="KEYS",
        help="measure only a table of so many keys (%(const)s)",
    )
    add("--keep", action="store_true", help="keep logs, and say where")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with (
            kafka_server(args.kafka, folder / "kafka") as kafka,
            redis_server(folder / "redis") as redis,
        ):
            runner = Runner(Broker(kafka.bootstrap), redis.url, folder)
            measured = measure(args, runner, console)
    finally:
        if args.keep:
            console.print(f"Logs are in {folder}")
        else:
            shutil.rmtree(folder)
    report.show(console, measured)
    console.print(f"Written to {report.write(measured, vars(args))}")


def measure(args: argparse.Namespace, runner: Runner, console: Console) -> report.Measured:
    if args.large is not None:
        return report.Measured({}, None, run_large(args, runner, console), args.kafka)
    runs = run_rounds(args, runner, console)
    latency = run_latency(args, runner, console)
    delays, pauses = run_guarantees(args, runner, console)
    return report.Measured(runs, latency, None, args.kafka, delays, pauses)


def chosen(args: argparse.Namespace, console: Console) -> list[System]:
    """Return the systems to run; say which are not installed."""
    systems = [
        each
        for each in SYSTEMS
        if (args.only is None or each.name in args.only)
        and (args.job is None or each.job in args.job)
    ]
    for system in list(systems):
        if system.peer is not None and system.peer not in peer_versions():
            console.print(f"{system.name}: skipped, not installed (make bench-peers)")
            systems.remove(system)
        if system.job == "guarantees" and args.kafka != "apache":
            console.print(f"{system.name}: skipped, the embedded Kafka has no transactions")
            systems.remove(system)
    return systems


def run_rounds(args: argparse.Namespace, runner: Runner, console: Console) -> dict[str, list[Run]]:
    """Run the chosen systems in turn, round after round, so that all share the weather."""
    runs: dict[str, list[Run]] = defaultdict(list)
    sizes = {"all": args.records, "part": args.part, "few": args.faust_records}
    inputs = Inputs(runner.broker, sizes)
    recovery = Recovery(runner, {"all": args.keys, "few": args.faust_keys})
    guarantees = Guarantees(runner, READINGS_TIMES * args.records)
    systems = chosen(args, console)
    for number in range(args.rounds):
        for system in systems:
            try:
                if system.job == "recovery":
                    run = recovery.run(system)
                elif system.job == "guarantees":
                    run = guarantees.run(system)
                else:
                    run = runner.run(system, inputs.of(system))
            except JobFailed as exc:
                console.print(f"[red]{exc}[/]", highlight=False)
                continue
            runs[system.name].append(run)
            peak = f", {run.peak:.0f} MB" if run.peak is not None else ""
            wrong = f", {run.wrong:,} of {run.results:,} results wrong" if run.wrong else ""
            console.print(
                f"round {number + 1}: {system.name:23} {run.rate:>9,.0f} records/s{peak}{wrong}",
                highlight=False,
            )
    return runs


def run_latency(args: argparse.Namespace, runner: Runner, console: Console) -> Latency | None:
    if args.only is None and args.job is not None:
        return None
    if args.only is not None and LATENCY not in args.only:
        return None
    system = next(each for each in SYSTEMS if each.name == "batches")
    console.print(f"latency: {args.rate:,} records/s for {args.seconds:g} s", highlight=False)
    try:
        return measure_latency(runner, system, args.rate, args.seconds)
    except JobFailed as exc:
        console.print(f"[red]{exc}[/]", highlight=False)
        return None


def run_guarantees(
    args: argparse.Namespace, runner: Runner, console: Console
) -> tuple[dict[str, list[Latency]], dict[str, list[Pause]]]:
    """Measure latencies and pauses under both guarantees, in turn."""
    delays: dict[str, list[Latency]] = defaultdict(list)
    pauses: dict[str, list[Pause]] = defaultdict(list)
    for _ in range(args.rounds):
        for system in (each for each in SYSTEMS if each.name in AGENTS):
            try:
                if _wanted(args, DELAYS):
                    console.print(f"delays: {system.name}", highlight=False)
                    delay = measure_delay(runner, system, args.rate, args.seconds)
                    delays[system.name].append(delay)
                if _wanted(args, PAUSES):
                    console.print(f"pauses: {system.name}", highlight=False)
                    pauses[system.name] += measure_pauses(runner, system, args.rate)
            except JobFailed as exc:
                console.print(f"[red]{exc}[/]", highlight=False)
    return delays, pauses


def _wanted(args: argparse.Namespace, name: str) -> bool:
    if args.kafka != "apache":
        return False
    if args.only is not None:
        return name in args.only
    return args.job is None or "guarantees" in args.job


def run_large(args: argparse.Namespace, runner: Runner, console: Console) -> Large | None:
    console.print(f"large: {args.large:,} keys", highlight=False)
    try:
        return measure_large(runner, args.large)
    except JobFailed as exc:
        console.print(f"[red]{exc}[/]", highlight=False)
        return None


if __name__ == "__main__":
    main()
