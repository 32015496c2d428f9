"""The long form: seeded random schedules of faults, run after run; ``make faults``."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from faults import faults
from faults.run import Plan, Servers, assert_held, play

MODES = ("records", "batches", "flow")
GUARANTEES = ("at_least_once", "exact_redis", "exactly_once")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of the first run (default: chance)")
    parser.add_argument("--rounds", type=int, default=6, help="runs at most")
    parser.add_argument("--minutes", type=float, default=60, help="no new run after these")
    parser.add_argument("--faults", type=int, default=6, help="faults in a run")
    parser.add_argument("--guarantee", choices=GUARANTEES, default=None, help="default: by chance")
    parser.add_argument("--mode", choices=MODES, default=None, help="default: by chance")
    parser.add_argument(
        "--brokers", type=int, choices=(1, 3), default=None, help="default: by chance"
    )
    parser.add_argument("--only", default="", help="names of faults, with commas between them")
    parser.add_argument("--in-order", action="store_true", help="those, once each")
    parser.add_argument("--keep", type=Path, default=None, help="folder for logs and data")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="faults-"))
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    deadline = time.monotonic() + options.minutes * 60
    rows, failed = [], 0
    print(f"first seed {seed}, logs in {folder}")
    for number in range(options.rounds):
        if number and time.monotonic() > deadline:
            break
        row, error = _round(options, seed + number, folder / f"round-{number}")
        rows.append(row)
        if error is not None:
            failed += 1
            print(error)
    _print_table(rows)
    if not failed and options.keep is None:
        shutil.rmtree(folder)
    return 1 if failed else 0


def _round(options: argparse.Namespace, seed: int, folder: Path) -> tuple[list[str], str | None]:
    dice = random.Random(seed)
    guarantee = dice.choice(GUARANTEES)
    mode, brokers, standbys = dice.choice(MODES), dice.choice((1, 1, 3)), dice.choice((0, 0, 1))
    plan = Plan(options.guarantee or guarantee, options.mode or mode, seed, standbys=standbys)
    brokers = options.brokers or brokers
    allowed = [getattr(faults, name) for name in options.only.split(",") if name]
    if not allowed:
        allowed = [*faults.ANY, *([faults.take_leaders_away] if brokers == 3 else [])]
    schedule = allowed
    if not options.in_order:
        schedule = [dice.choice(allowed) for _ in range(options.faults)]
    if not options.only and dice.random() < 0.3:
        schedule[-1] = dice.choice(faults.LOSSES)
    began = time.monotonic()
    error, result, figures, run = None, "held", None, None
    servers = Servers(folder, brokers).start()
    try:
        run, figures = play(servers, plan, schedule)
        assert_held(run, figures)
    except Exception:  # noqa: BLE001 - the table comes at the end, whatever it was
        error, result = traceback.format_exc(), "BROKEN"
    finally:
        servers.stop()
    row = [str(seed), plan.guarantee, plan.mode, str(brokers), result]
    row += [", ".join(fault.__name__ for fault in schedule)]
    row += [f"{time.monotonic() - began:.0f} s", str(len(run.stops) if run else "?")]
    return [*row, str(figures or "")], error


def _print_table(rows: list[list[str]]) -> None:
    print("\n| seed | guarantee | mode | brokers | result | faults | took | stops | figures |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    sys.exit(main())
