"""What is run: the same case is the same run."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from tests.simulation.apps import KINDS
from tests.simulation.plan import SCHEDULES

GUARANTEES = ("exactly_once", "at_least_once")


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        seed: Decides what happens.
        guarantee: "exactly_once" or "at_least_once".
        kind: The app; None to leave it to the seed.
        schedule: What fails beside a crash; None for faults of all kinds.
        crash: A worker, and the number of steps after which it crashes.
    """

    seed: int
    guarantee: str
    kind: str | None = None
    schedule: str | None = None
    crash: tuple[int, int] | None = None

    @property
    def command(self) -> str:
        """Return what repeats the run and shows it."""
        words = ["python -m tests.simulation -v --seed", str(self.seed)]
        words += ["--guarantee", self.guarantee]
        if self.kind is not None:
            words += ["--app", self.kind]
        if self.schedule is not None:
            words += ["--schedule", f"'{self.schedule}'"]
        if self.crash is not None:
            words += ["--crash", "{}:{}".format(*self.crash)]
        return " ".join(words)


def random_cases(first: int, count: int, guarantees: Collection[str]) -> Iterator[Case]:
    """Give cases with faults of all kinds, for one seed after another."""
    for seed in range(first, first + count):
        for guarantee in guarantees:
            yield Case(seed, guarantee)


def base_cases(first: int, count: int, guarantees: Collection[str]) -> Iterator[Case]:
    """Give a case without a crash for each guarantee, app and schedule."""
    for seed in range(first, first + count):
        for guarantee in guarantees:
            for kind in KINDS:
                for schedule in SCHEDULES:
                    yield Case(seed, guarantee, kind, schedule)


def crash_cases(steps: dict[Case, list[int]], seed: int) -> list[Case]:
    """Return a case for each step at which a worker can crash, in random order.

    Args:
        steps: How many there are for each worker, by the case without a crash.
    """
    cases = [
        replace(base, crash=(worker, step))
        for base, counts in steps.items()
        for worker, count in enumerate(counts)
        for step in range(count)
    ]
    random.Random(seed).shuffle(cases)
    return cases
