"""Many runs, and the seeds of those that failed."""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from streamproc.testing.clock import Clock
from tests.simulation.loop import async_generators
from tests.simulation.past import PAST
from tests.simulation.world import START, Violation, World

GUARANTEES = ("exactly_once", "at_least_once")
HELP = """\
Runs workers, a broker, a group, disks and a sink's server in one process and virtual time, lets
all of it fail, and checks the results. A seed decides what happens."""


@dataclass(frozen=True)
class Case:
    """What is run: the same case is the same run.

    Attributes:
        seed: Decides what happens.
        guarantee: "exactly_once" or "at_least_once".
        crash_at: The only fault is a crash of the first worker at this point (each use of the
            broker, a store or the sink's server is one); -1 for no fault at all, None for
            faults of all kinds.
    """

    seed: int
    guarantee: str
    crash_at: int | None = None

    @property
    def command(self) -> str:
        """Return what repeats the run and shows it."""
        crash = "" if self.crash_at is None else f" --crash-at {self.crash_at}"
        return (
            f"python -m tests.simulation --seed {self.seed} --guarantee {self.guarantee}{crash} -v"
        )


def run(case: Case, log: Callable[[str], None] | None = None) -> World:
    """Run one case.

    Raises:
        Violation: What must be true isn't.
    """
    world = World(
        case.seed,
        exactly_once=case.guarantee == "exactly_once",
        crash_at=case.crash_at if case.crash_at != -1 else None,
        is_calm=case.crash_at is not None,
        log=log,
    )
    with _virtual_time(world):
        try:
            world.run()
        finally:
            for worker in world.workers:
                worker.kill()
    return world


@contextmanager
def _virtual_time(world: World) -> Iterator[None]:
    clock = Clock(world.time, START)  # type: ignore[arg-type]
    clock.cover({"tests.simulation.apps"})
    with clock.replaced(), async_generators():
        yield


def digest(world: World) -> str:
    """Return what two runs have in common only if the same happened."""
    return hashlib.sha256("\n".join(world.traces).encode()).hexdigest()[:16]


def random_cases(first: int, count: int, guarantees: list[str]) -> Iterator[Case]:
    """Give cases with faults of all kinds, for one seed after another."""
    for seed in range(first, first + count):
        for guarantee in guarantees:
            yield Case(seed, guarantee)


def crash_cases(first: int, count: int, guarantees: list[str]) -> Iterator[Case]:
    """Give a case for each point at which the first worker can crash, in random order."""
    for seed in range(first, first + count):
        for guarantee in guarantees:
            points = run(Case(seed, guarantee, -1)).workers[0].most_points
            for point in random.Random(seed).sample(range(points), points):
                yield Case(seed, guarantee, point)


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=HELP)
    add = parser.add_argument
    add("--seeds", type=int, default=10**9, metavar="N", help="how many; without end")
    add("--seconds", type=float, default=float("inf"), metavar="S", help="for how long at most")
    add("--first", type=int, metavar="SEED", help="the first of them; a random one")
    add("--guarantee", choices=GUARANTEES, help="only one of them")
    add("--crashes", action="store_true", help="one fault a run: a crash, at each point there is")
    add("--past", action="store_true", help="what has failed once")
    add("--seed", type=int, help="only this one")
    add("--crash-at", type=int, metavar="POINT", help="with --seed: one fault, a crash there")
    add("--keep-going", action="store_true", help="don't end at the first failure")
    add("-v", action="store_true", help="show what happens")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # of coroutines that a crash has left
    if options.v:
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="    %(message).300s")
    else:
        logging.disable(logging.CRITICAL)
    return _run_all(_cases(options), options)


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    guarantees = [options.guarantee] if options.guarantee else list(GUARANTEES)
    if options.past:
        return (Case(*case) for case in PAST)
    if options.seed is not None:
        return (Case(options.seed, guarantee, options.crash_at) for guarantee in guarantees)
    first = secrets.randbelow(10**9) if options.first is None else options.first
    cases = crash_cases if options.crashes else random_cases
    return cases(first, options.seeds, guarantees)


def _run_all(cases: Iterator[Case], options: argparse.Namespace) -> int:
    begin = time.monotonic()
    runs = failures = 0
    for case in cases:
        runs += 1
        try:
            world = run(case, print if options.v else None)
        except Violation as exc:
            failures += 1
            print(f"{case}: {exc}\n  {case.command}", flush=True)
            if not options.keep_going:
                break
        else:
            if options.seed is not None:
                print(f"{case}: {digest(world)}")
        if time.monotonic() > begin + options.seconds:
            break
    rate = 60 * runs / (time.monotonic() - begin)
    print(f"{runs} runs, {failures} failures, {rate:.0f} runs a minute")
    return 1 if failures else 0
