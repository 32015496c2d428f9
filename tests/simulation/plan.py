"""What happens to a world, beside what its workers do: records come, and things fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from tests.simulation.broker import SESSION_TIMEOUT

#: Virtual seconds in which things fail: at random, or by a schedule.
TROUBLE, SCHEDULED = 12.0, 6.5
#: How many records an agent fails at first.
FAILING = 0.1
#: What happens to two workers of which one crashes at a step that is chosen: nothing else; the
#: group rebalances; one stands still until it is out of the group, and goes on; answers are lost.
SCHEDULES = ("calm", "rebalance", "zombie", "lost answers")
#: Steps of a worker, most of which are in the beginning.
STEPS = 300


class Plan:
    """Makes things happen in a world.

    Args:
        world: The world.
        schedule: One of SCHEDULES, or None for faults of all kinds at random.
    """

    def __init__(self, world: Any, schedule: str | None) -> None:
        self._world = world
        self._schedule = schedule
        self.trouble = TROUBLE if schedule is None else SCHEDULED

    def make(self) -> None:
        """Choose what happens and when."""
        if self._schedule is None:
            self._plan_records(bursts=self._world.rng.randint(4, 14), most=4)
            self._plan_faults()
        else:
            self._plan_records(bursts=3, most=4)
            self._plan_schedule(self._schedule)

    def probability(self, probability: float) -> float:
        """Return how probable something is that fails with ``probability`` at random."""
        if self._schedule is None:
            return probability
        return 3 * probability if self._schedule == "lost answers" else 0.0

    def _plan_records(self, bursts: int, most: int) -> None:
        world, rng = self._world, self._world.rng
        numbers = itertools.count()
        for _ in range(bursts):
            at = rng.random() * (self.trouble - 2)
            for _ in range(rng.randint(1, most)):
                world.later(at, self._putting(numbers))

    def _putting(self, numbers: Iterator[int]) -> Callable[[], None]:
        world, rng = self._world, self._world.rng
        partition, number = rng.randrange(world.partitions), next(numbers)

        def put() -> None:
            world.put(partition, world.milliseconds + rng.randint(0, 8_000), number)

        return put

    def _plan_schedule(self, schedule: str) -> None:
        world, rng = self._world, self._world.rng
        worker = rng.choice(world.workers)
        if schedule == "rebalance":
            world.later(1.5 + rng.random(), self._doing(self._rejoin, worker))
        elif schedule == "zombie":
            world.later(1.0 + rng.random(), self._doing(self._freeze, worker))

    def _plan_faults(self) -> None:
        world, rng = self._world, self._world.rng
        if rng.random() < 0.15:
            # Not in the middle of a claim: that would be a server that loses what it answered.
            taken = rng.random() * TROUBLE
            world.later(taken, world.server.keep_copy)
            world.later(taken + rng.random() * (TROUBLE - taken), world.server.restore)
        faults = (
            self._pause,
            self._pause,
            self._kill,
            self._cut_power,
            self._restart,
            self._rejoin,
        )
        for _ in range(rng.randint(0, 5)):
            worker, at = rng.choice(world.workers), rng.random() * TROUBLE
            world.later(at, self._doing(rng.choice(faults), worker))
        for worker in world.workers:
            if rng.random() < 0.6:
                worker.crash_at = int(rng.random() ** 2 * STEPS)
        for record in range(60):
            if rng.random() < FAILING:
                world.failing[record] = [rng.random() < 0.6 for _ in range(rng.randint(1, 3))]

    # -- faults

    def _doing(self, fault: Callable[[Any], None], worker: Any) -> Callable[[], None]:
        def do() -> None:
            if not self._world.is_over:
                self._world.trace(fault.__name__.strip("_"), worker.number)
                fault(worker)

        return do

    def _pause(self, worker: Any) -> None:
        self._stand_still(worker, self._world.rng.choice((0.5, 2.0, 6.0)), self._pause)

    def _freeze(self, worker: Any) -> None:
        self._stand_still(worker, SESSION_TIMEOUT + 1, self._freeze, at_least=SESSION_TIMEOUT)

    def _stand_still(
        self, worker: Any, most: float, again: Callable[[Any], None], at_least: float = 0.1
    ) -> None:
        world = self._world

        def go_on() -> None:
            worker.is_paused = False
            world.trace("go on", worker.number)

        if not worker.may_pause:
            world.later(0.1, self._doing(again, worker))
            return
        worker.is_paused = True
        world.later(max(at_least, world.rng.random() * most + 0.1), go_on)

    def _kill(self, worker: Any) -> None:
        worker.kill()
        worker.start_again(self._world.rng.random() * 4)

    def _cut_power(self, worker: Any) -> None:
        worker.kill()
        worker.disk.lose_power(self._world.rng)
        worker.start_again(self._world.rng.random() * 4)

    def _restart(self, worker: Any) -> None:
        worker.stop()

    def _rejoin(self, worker: Any) -> None:
        worker.rejoin()
