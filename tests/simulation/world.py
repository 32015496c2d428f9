"""One run: the world that a seed makes."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from faust.types import TP

from streamproc.errors import StreamprocError
from streamproc.records.codecs import get_codec
from tests.simulation.apps import KEYS, KINDS, Number
from tests.simulation.broker import SimBroker
from tests.simulation.checks import Checks, Violation
from tests.simulation.loop import Time
from tests.simulation.outside import Disk
from tests.simulation.plan import Plan
from tests.simulation.redis import Server
from tests.simulation.worker import Worker

START = 1767225600000
PARTITIONS = 2
#: Virtual seconds within which all must be done when trouble is over.
PATIENCE = 90.0
#: Milliseconds after the start of records that close all windows.
LAST = 1_000_000_000
#: Rounds of loops after which a run counts as one that never ends.
MOST_ROUNDS = 400_000


class World:
    """Everything of a run.

    Args:
        seed: What all choices come from.
        exactly_once: The guarantee.
        kind: Which app is run; any, if None.
        schedule: What fails beside a crash; see :class:`Plan`.
        crash: A worker, and how many steps it makes before it crashes.
        log: Takes each line of the trace, too.
    """

    def __init__(
        self,
        seed: int,
        *,
        exactly_once: bool,
        kind: str | None = None,
        schedule: str | None = None,
        crash: tuple[int, int] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.exactly_once = exactly_once
        self.rng = random.Random(seed)
        random.seed(seed)  # of pauses between retries
        self.kind = self.rng.choice((KINDS[0], KINDS[0], *KINDS)) if kind is None else kind
        #: True when trouble is over: all goes well, and at once.
        self.is_over = False
        self.time = Time()
        self.traces: list[tuple[Any, ...]] = []
        self._log = log
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.acting = "world"
        self.rounds = 0
        self.partitions = PARTITIONS
        self.broker = SimBroker(self, PARTITIONS)
        self._checks = Checks(self, START + LAST // 2)
        self.broker.on_commit = self._checks.check_commit
        self.server = Server(self)
        self.keeps_disks = self.rng.random() < 0.5
        #: Whether the agent is to fail, the last time first, when it comes to a record.
        self.failing: dict[int, list[bool]] = {}
        #: Records by partition, in order: key, number, timestamp.
        self.records: dict[int, list[tuple[str, Number, int]]] = defaultdict(list)
        count = self.rng.choice((1, 2, 2, 2, 2, 3)) if schedule is None else 2
        self.workers = [Worker.of(number, self, Disk()) for number in range(count)]
        self._plan = Plan(self, schedule)
        self._crash = crash
        self.exits = 0
        #: How many steps each worker has made while things failed.
        self.steps: list[int] = []

    # -- what the simulated parts ask for

    @property
    def now(self) -> float:
        return self.time.now

    @property
    def milliseconds(self) -> int:
        return START + round((self.now - 1000.0) * 1000)

    def trace(self, what: str, *details: Any) -> None:
        self.traces.append((self.now, self.acting, what, *details))
        if self._log is not None:
            self._log(f"{self.now:.6f} {self.acting} {what} {' '.join(map(str, details))}")

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay, next(self._count), callback))

    def happens(self, probability: float) -> bool:
        """True with a probability, while things may fail."""
        if self.is_over:
            return False
        probability = self._plan.probability(probability)
        return probability > 0 and self.rng.random() < probability

    def latency(self) -> float:
        """Seconds that a message is on its way."""
        if self.is_over:
            return 0.0
        kind = self.rng.random()
        if kind < 0.5:
            return 0.0
        if kind < 0.97:
            return self.rng.random() * 0.02
        return self.rng.random()

    def some_time(self) -> float:
        return 0.0 if self.is_over else self.rng.choice((0.0, 0.01, 0.1, 1.0)) * self.rng.random()

    def part_of(self, offset: int, end: int) -> int:
        """Return how far a fetch from ``offset`` goes, at most to ``end``."""
        if self.is_over or end - offset < 2 or self.rng.random() < 0.5:
            return end
        return self.rng.randint(offset + 1, end)

    def maybe_fail(self, record: int) -> None:
        """Raise, in an agent, some of the times that it comes to some of the records."""
        if (left := self.failing.get(record)) and left.pop():
            self.trace("raise", record)
            raise ValueError(f"record {record}")

    def put(self, partition: int, timestamp: int, number: int) -> None:
        """Append a record to the source topic."""
        known = self.records[partition]
        # Watermarks allow for no disorder: a late record is left out of windows.
        timestamp = max(timestamp, known[-1][2] if known else 0)
        key = f"{self.rng.choice(KEYS)}{partition}"
        record = Number(id=number, n=self.rng.randint(1, 9))
        known.append((key, record, timestamp))
        value = get_codec("json").encoder(Number)(record)
        self.broker.append("numbers", key.encode(), value, partition=partition, timestamp=timestamp)

    # -- the run

    def run(self) -> None:
        """Let it happen, and check what must be true.

        Raises:
            Violation: Something isn't.
        """
        self._plan.make()
        if self._crash is not None:
            number, step = self._crash
            self.workers[number].crash_at = step
        for worker in self.workers:
            worker.start()
        until = self.now + self._plan.trouble
        self._run_until(lambda: self.now > until)
        self._calm_down()
        self._finish("records")
        self._checks.check_results()
        self._checks.check_tables()
        for worker in self.workers:
            worker.kill()
        # What is in the changelogs is the same for one worker as for more.
        del self.workers[1:]
        self.workers[0].disk = Disk()
        self.workers[0].start()
        self._finish("recovery")
        self._checks.check_tables()

    def _calm_down(self) -> None:
        self.is_over = True
        self.acting = "world"
        self.trace("calm")
        self.steps = [worker.steps for worker in self.workers]
        for worker in self.workers:
            worker.crash_at = None
            worker.is_paused = False
            worker.start_again(0.5)
        self.exits = 0
        for partition in range(PARTITIONS):
            self.put(partition, START + LAST, 10_000 + partition)

    # -- turns

    def _run_until(self, is_done: Callable[[], bool]) -> None:
        """Run until it is done when nothing is left to do at that time."""
        while True:
            ready = [worker for worker in self.workers if worker.is_ready]
            if ready:
                self._give_turn(ready[0] if len(ready) == 1 else self.rng.choice(ready))
            elif is_done():
                return
            elif not self._advance():
                raise Violation("nothing is left to happen, and it isn't done")

    def _give_turn(self, worker: Worker) -> None:
        self.rounds += 1
        if self.rounds > MOST_ROUNDS:
            raise Violation("it never comes to rest")
        self.acting = f"w{worker.number}"
        worker.round()
        self.acting = "world"

    def _advance(self) -> bool:
        times = [at for worker in self.workers if (at := worker.next_timer) is not None]
        if self._timers:
            times.append(self._timers[0][0])
        if not times:
            return False
        self.time.now = max(self.now, min(times))
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
        return True

    def _finish(self, what: str) -> None:
        until = self.now + PATIENCE
        self._run_until(lambda: self._is_done() or self.now > until)
        if not self._is_done():
            state = {
                (tp.topic, tp.partition): (self.broker.committed.get(tp), len(log))
                for tp, log in self._sources()
            }
            raise Violation(
                f"{what}: not done in {PATIENCE:.0f} s after all was well again: committed and "
                f"end are {state}; workers: {', '.join(map(str, self.workers))}"
            )

    def _sources(self) -> list[tuple[TP, Any]]:
        logs = self.broker.create("numbers")
        return [(TP("numbers", part), log) for part, log in enumerate(logs)]

    def _is_done(self) -> bool:
        return (
            all(self.broker.committed.get(tp, 0) >= len(log) for tp, log in self._sources())
            and all(worker.is_settled for worker in self.workers)
            and not self.broker._ending
            and not any(log.open for logs in self.broker.topics.values() for log in logs)
        )

    def on_exit(self, worker: Worker, reason: BaseException | None) -> None:
        """A worker has stopped itself: it is started again, as by a supervisor."""
        self.exits += 1
        self.trace("exit", worker.number, repr(reason))
        if isinstance(reason, Violation):
            raise reason
        if not isinstance(reason, StreamprocError):
            raise Violation(f"a worker stops for no reason of ours: {reason!r}") from reason
        if self.is_over and self.exits > 4:
            raise Violation(f"workers stop themselves again and again: {reason!r}") from reason
        worker.kill()
        worker.start_again(0.1 + (0 if self.is_over else self.rng.random() * 3))
