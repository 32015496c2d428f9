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
from benchmarks.latency import Latency, measure_latency
from benchmarks.readings import make_readings
from benchmarks.runner import Input, JobFailed, Run, Runner
from benchmarks.systems import SYSTEMS
from streamproc.dev.servers import kafka_server, redis_server

LATENCY = "latency"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000, help="readings (%(default)s)")
    parser.add_argument(
        "--faust-records", type=int, default=20_000, help="readings for plain Faust (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (%(default)s)")
    parser.add_argument("--kafka", choices=["embedded", "apache"], default="embedded")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*(system.name for system in SYSTEMS), LATENCY],
        help="only this one; may be repeated",
    )
    parser.add_argument("--rate", type=int, default=5_000, help="records/s for the latency")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the latency run")
    parser.add_argument("--keep", action="store_true", help="keep logs, and say where")
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
            runs = run_rounds(args, runner, console)
            latency = run_latency(args, runner, console)
    finally:
        if args.keep:
            console.print(f"Logs are in {folder}")
        else:
            shutil.rmtree(folder)
    report.show(console, runs, latency, args.kafka)
    path = report.write(runs, latency, args.kafka, vars(args))
    console.print(f"Written to {path}")


def run_rounds(args: argparse.Namespace, runner: Runner, console: Console) -> dict[str, list[Run]]:
    """Run the chosen systems in turn, round after round, so that all share the weather."""
    systems = [each for each in SYSTEMS if args.only is None or each.name in args.only]
    runs: dict[str, list[Run]] = defaultdict(list)
    if not systems:
        return runs
    readings = make_readings(args.records)
    few = readings[: args.faust_records]
    sources = {True: Input(runner.broker, "readings-few", few)}
    sources[False] = Input(runner.broker, "readings", readings)
    del readings
    for number in range(args.rounds):
        for system in systems:
            try:
                run = runner.run(system, sources[system.few])
            except JobFailed as exc:
                console.print(f"[red]{exc}[/]", highlight=False)
                continue
            runs[system.name].append(run)
            peak = f", {run.peak:.0f} MB" if run.peak is not None else ""
            console.print(
                f"round {number + 1}: {system.name:16} {run.rate:>9,.0f} records/s{peak}",
                highlight=False,
            )
    return runs


def run_latency(args: argparse.Namespace, runner: Runner, console: Console) -> Latency | None:
    if args.only is not None and LATENCY not in args.only:
        return None
    system = next(each for each in SYSTEMS if each.name == "batches")
    console.print(f"latency: {args.rate:,} records/s for {args.seconds:g} s", highlight=False)
    try:
        return measure_latency(runner, system, args.rate, args.seconds)
    except JobFailed as exc:
        console.print(f"[red]{exc}[/]", highlight=False)
        return None


if __name__ == "__main__":
    main()
