"""Many runs, and the seeds of those that failed."""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import multiprocessing
import os
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from mode.utils.logging import CompositeLogger

from streamproc.testing.clock import Clock
from tests.simulation.apps import KINDS
from tests.simulation.cases import GUARANTEES, Case, base_cases, crash_cases, random_cases
from tests.simulation.checks import Violation
from tests.simulation.loop import async_generators
from tests.simulation.past import PAST
from tests.simulation.plan import SCHEDULES
from tests.simulation.world import START, World

HELP = """\
Runs workers, a broker, a group, disks and a sink's server in one process and virtual time, lets
all of it fail, and checks the results. A seed decides what happens."""


def run(case: Case, log: Callable[[str], None] | None = None) -> World:
    """Run one case.

    Raises:
        Violation: What must be true isn't.
    """
    world = World(
        case.seed,
        exactly_once=case.guarantee == "exactly_once",
        kind=case.kind,
        schedule=case.schedule,
        crash=case.crash,
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
    return hashlib.sha256(repr(world.traces).encode()).hexdigest()[:16]


class Runs:
    """Runs cases, and counts them.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._begin = time.monotonic()
        self._stop = multiprocessing.Event()
        self.runs = self.failures = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def steps(self, cases: Iterable[Case]) -> dict[Case, list[int]]:
        """Run cases without a crash; return the steps of each worker."""
        steps: dict[Case, list[int]] = {}
        for case in cases:
            world = self._run(case)
            if world is not None:
                steps[case] = world.steps
        return steps

    def run(self, cases: Iterable[Case]) -> None:
        """Run all cases, until one fails or the time is over, in as many processes as wanted."""
        jobs = self._options.jobs
        if jobs == 1:
            self._run_share(cases)
            return
        fork = multiprocessing.get_context("fork")
        results = fork.SimpleQueue()
        shares = [islice(cases, job, None, jobs) for job in range(jobs)]
        processes = [
            fork.Process(target=self._run_in_process, args=(share, results)) for share in shares
        ]
        for process in processes:
            process.start()
        for _ in processes:
            runs, failures = results.get()
            self.runs, self.failures = self.runs + runs, self.failures + failures
        for process in processes:
            process.join()

    def _run_in_process(self, cases: Iterable[Case], results: Any) -> None:
        self.runs = self.failures = 0
        try:
            self._run_share(cases)
        except BaseException:
            self.failures += 1
            raise
        finally:
            results.put((self.runs, self.failures))

    def _run_share(self, cases: Iterable[Case]) -> None:
        for case in cases:
            if self._stop.is_set() or self.seconds > self._options.seconds:
                return
            world = self._run(case)
            if world is not None and self._options.digests:
                print(f"{case}: {digest(world)}")

    def _run(self, case: Case) -> World | None:
        self.runs += 1
        try:
            return run(case, print if self._options.v else None)
        except Violation as exc:
            self.failures += 1
            print(f"{case}: {exc}\n  {case.command}", flush=True)
            if not self._options.keep_going:
                self._stop.set()
            return None


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; return the exit code."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")  # of coroutines that a crash has left
    gc.set_threshold(3000, 5, 200)
    if options.v:
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="    %(message).300s")
    else:
        logging.disable(logging.CRITICAL)
        CompositeLogger.log = lambda *args, **kwargs: None  # it formats what nobody reads
    runs = Runs(options)
    if options.crashes:
        _run_crashes(runs, options)
    else:
        runs.run(_cases(options))
    rate = 60 * runs.runs / runs.seconds
    print(f"{runs.runs} runs, {runs.failures} failures, {rate:.0f} runs a minute")
    return 1 if runs.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=HELP)
    add = parser.add_argument
    add("--seeds", type=int, metavar="N", help="how many; without end, or 1 with --crashes")
    add("--seconds", type=float, default=float("inf"), metavar="S", help="for how long at most")
    add("--first", type=int, metavar="SEED", help="the first of them; a random one")
    add("--guarantee", choices=GUARANTEES, help="only one of them")
    add("--crashes", action="store_true", help="one crash a run, at each step that there is")
    add("--past", action="store_true", help="what has failed once")
    add("--seed", type=int, help="only this one")
    add("--app", choices=KINDS, help="with --seed: the app")
    add("--schedule", choices=SCHEDULES, help="with --seed: what fails beside a crash")
    add("--crash", type=_crash, metavar="WORKER:STEP", help="with --seed: who crashes, and when")
    add("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; one a core")
    add("--digests", action="store_true", help="print what is the same if the same happened")
    add("--keep-going", action="store_true", help="don't end at the first failure")
    add("-v", action="store_true", help="show what happens")
    return parser


def _crash(text: str) -> tuple[int, int]:
    worker, step = map(int, text.split(":"))
    return worker, step


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    guarantees = [options.guarantee] if options.guarantee else GUARANTEES
    if options.past:
        return iter(PAST)
    if options.seed is not None:
        choice = options.app, options.schedule, options.crash
        return (Case(options.seed, guarantee, *choice) for guarantee in guarantees)
    return random_cases(_first(options), options.seeds or 10**9, guarantees)


def _first(options: argparse.Namespace) -> int:
    return secrets.randbelow(10**9) if options.first is None else int(options.first)


def _run_crashes(runs: Runs, options: argparse.Namespace) -> None:
    guarantees = [options.guarantee] if options.guarantee else GUARANTEES
    first = _first(options)
    steps = runs.steps(base_cases(first, options.seeds or 1, guarantees))
    cases = crash_cases(steps, first)
    before = runs.runs
    runs.run(cases)
    print(
        f"{len(cases)} steps of {len(steps)} runs without a crash, a crash at "
        f"{runs.runs - before} of them (first seed {first})"
    )
