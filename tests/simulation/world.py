"""One run: the world that a seed makes, and what must be true in it."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import datetime
from typing import Any

from faust.types import TP

from streamproc.errors import StreamprocError
from streamproc.records.codecs import get_codec
from streamproc.testing.broker import Offsets
from tests.simulation.apps import KEYS, Expected, Number
from tests.simulation.broker import SimBroker
from tests.simulation.loop import Time
from tests.simulation.outside import Disk
from tests.simulation.redis import Server
from tests.simulation.worker import Worker

START = 1767225600000
PARTITIONS = 2
#: Virtual seconds in which things fail, and within which all must be done after that.
#: How many records an agent fails at first.
FAILING = 0.05
TROUBLE, PATIENCE = 25.0, 90.0
#: Rounds of loops after which a run counts as one that never ends.
MOST_ROUNDS = 400_000


def _milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


class Violation(Exception):
    """What must be true isn't."""


class World:
    """Everything of a run.

    Args:
        seed: What all choices come from.
        exactly_once: The guarantee.
        crash_at: Crash the first worker at this point of its first life.
        is_calm: Let nothing else fail.
        log: Takes each line of the trace, too.
    """

    def __init__(
        self,
        seed: int,
        *,
        exactly_once: bool,
        crash_at: int | None = None,
        is_calm: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.exactly_once = exactly_once
        self.rng = random.Random(seed)
        random.seed(seed)  # of pauses between retries
        self.is_calm = is_calm
        #: True when trouble is over: all goes well, and at once.
        self.is_over = False
        self.time = Time()
        self.traces: list[str] = []
        self._log = log
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.acting = "world"
        self.rounds = 0
        self.broker = SimBroker(self, PARTITIONS)
        self.broker.on_commit = self._check_commit
        self.server = Server(self)
        self.keeps_disks = self.rng.random() < 0.5
        self._failing: dict[int, int] = {}
        #: Records by partition, in order: key, number, timestamp.
        self.records: dict[int, list[tuple[str, Number, int]]] = defaultdict(list)
        self.number_of_workers = self.rng.choice((1, 2, 2, 2))
        self.workers = [
            Worker.of(number, exactly_once, self, Disk())
            for number in range(self.number_of_workers)
        ]
        self.workers[0].crash_at = crash_at
        self.exits = 0

    # -- what the simulated parts ask for

    @property
    def now(self) -> float:
        return self.time.now

    @property
    def milliseconds(self) -> int:
        return START + round((self.now - 1000.0) * 1000)

    def trace(self, what: str, *details: Any) -> None:
        line = f"{self.now:.6f} {self.acting} {what} {' '.join(map(str, details))}"
        self.traces.append(line)
        if self._log is not None:
            self._log(line)

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay, next(self._count), callback))

    def happens(self, probability: float) -> bool:
        """True with a probability, while things may fail."""
        return not (self.is_over or self.is_calm) and self.rng.random() < probability

    def latency(self) -> float:
        """Seconds that a message is on its way."""
        if self.is_over:
            return 0.0
        kind = self.rng.random()
        if kind < 0.5:
            return 0.0
        if kind < 0.97:
            return self.rng.random() * 0.02
        return self.rng.random() * 1.5

    def some_time(self) -> float:
        return 0.0 if self.is_over else self.rng.choice((0.0, 0.01, 0.1, 1.0)) * self.rng.random()

    def part_of(self, offset: int, end: int) -> int:
        """Return how far a fetch from ``offset`` goes, at most to ``end``."""
        if self.is_over or end - offset < 2 or self.rng.random() < 0.5:
            return end
        return self.rng.randint(offset + 1, end)

    def maybe_fail(self, record: int) -> None:
        """Raise, in an agent, for some records a few times."""
        if self._failing.get(record, 0) > 0:
            self._failing[record] -= 1
            self.trace("raise", record)
            raise ValueError(f"record {record}")

    # -- the run

    def run(self) -> None:
        """Let it happen, and check what must be true.

        Raises:
            Violation: Something isn't.
        """
        self._plan()
        for worker in self.workers:
            worker.start()
        self._run_until(lambda: self.now > 1000.0 + TROUBLE)
        self.is_over = True
        self.acting = "world"
        self.trace("calm")
        for worker in self.workers:
            worker.crash_at = None
            worker.is_paused = False
            worker.start_again(0.5)
        self.exits = 0
        self._finish("records")
        for partition in range(PARTITIONS):
            self._put(partition, START + 1_000_000_000)
        self._finish("the last windows")
        self._check_results()
        self._check_tables()
        for worker in self.workers:
            worker.kill()
            worker.disk = Disk()
            worker.start()
        self._finish("recovery")
        self._check_tables()

    def _plan(self) -> None:
        rng = self.rng
        ids = itertools.count()
        for _ in range(rng.randint(2, 8)):
            at = rng.random() * (TROUBLE - 5)
            for _ in range(rng.randint(1, 9)):
                partition = rng.randrange(PARTITIONS)
                self.later(at, self._putting(partition, next(ids)))
        if self.is_calm:
            return
        if rng.random() < 0.15:
            # Not in the middle of a claim: that would be a server that loses what it answered.
            taken = rng.random() * TROUBLE
            self.later(taken, self.server.keep_copy)
            self.later(taken + rng.random() * (TROUBLE - taken), self.server.restore)
        for _ in range(rng.randint(0, 5)):
            worker = rng.choice(self.workers)
            at, fault = (
                rng.random() * TROUBLE,
                rng.choice(
                    (
                        self._pause,
                        self._pause,
                        self._kill,
                        self._cut_power,
                        self._restart,
                        self._rejoin,
                    )
                ),
            )
            self.later(at, self._fault(fault, worker))
        for worker in self.workers:
            if worker.crash_at is None and rng.random() < 0.5:
                worker.crash_at = int(rng.random() ** 2 * 1500)
        for record in range(60):
            if rng.random() < FAILING:
                self._failing[record] = rng.randint(1, 2)

    def _putting(self, partition: int, number: int) -> Callable[[], None]:
        def put() -> None:
            jitter = self.rng.randint(0, 15_000)
            self._put(partition, self.milliseconds + jitter, number)

        return put

    def _put(self, partition: int, timestamp: int, number: int | None = None) -> None:
        known = self.records[partition]
        # Watermarks allow for no disorder: a late record is left out of windows.
        timestamp = max(timestamp, known[-1][2] if known else 0)
        number = 10_000 + partition if number is None else number
        key = f"{self.rng.choice(KEYS)}{partition}"
        record = Number(id=number, n=self.rng.randint(1, 9))
        known.append((key, record, timestamp))
        value = get_codec("json").encoder(Number)(record)
        self.broker.append("numbers", key.encode(), value, partition=partition, timestamp=timestamp)

    # -- faults

    def _fault(self, fault: Callable[[Worker], None], worker: Worker) -> Callable[[], None]:
        def do() -> None:
            if not self.is_over:
                self.trace(fault.__name__.strip("_"), worker.number)
                fault(worker)

        return do

    def _pause(self, worker: Worker) -> None:
        def go_on() -> None:
            worker.is_paused = False
            self.trace("go on", worker.number)

        if not worker.may_pause:
            self.later(0.1, self._fault(self._pause, worker))
            return
        worker.is_paused = True
        self.later(self.rng.choice((0.5, 3.0, 12.0)) * self.rng.random() + 0.1, go_on)

    def _kill(self, worker: Worker) -> None:
        worker.kill()
        worker.start_again(self.rng.random() * 8)

    def _cut_power(self, worker: Worker) -> None:
        worker.kill()
        worker.disk.lose_power(self.rng)
        worker.start_again(self.rng.random() * 8)

    def _restart(self, worker: Worker) -> None:
        worker.stop()

    def _rejoin(self, worker: Worker) -> None:
        worker.rejoin()

    # -- turns

    def _run_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            self.rounds += 1
            if self.rounds > MOST_ROUNDS:
                raise Violation("it never comes to rest")
            ready = [worker for worker in self.workers if worker.is_ready]
            if ready:
                worker = ready[0] if len(ready) == 1 else self.rng.choice(ready)
                self.acting = f"w{worker.number}"
                worker.round()
                self.acting = "world"
            elif not self._advance():
                raise Violation("nothing is left to happen, and it isn't done")

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

    # -- what must be true

    def _check_commit(self, offsets: Offsets) -> None:
        """What is committed is durable, wherever that is."""
        for tp, found in offsets.items():
            offset = found.offset
            if tp.topic != "numbers":
                continue
            wanted = {number.id for _, number, _ in self.records[tp.partition][:offset]}
            there = {number for number, _ in self.server.results(tp.partition)}
            if lost := wanted - there - self.server.lost:
                raise Violation(f"{tp}: committed to {offset}; the sink lacks {lost}")
            there = {value["id"] for _, value in self._outputs("totals", everything=True)}
            if wanted - there:
                raise Violation(f"{tp}: committed to {offset}; outputs lack {wanted - there}")

    def _outputs(self, topic: str, everything: bool = False) -> list[tuple[str, Any]]:
        decode = get_codec("json").decoder(None)
        found = []
        for log in self.broker.topics.get(topic, ()):
            for offset in range(len(log)):
                if offset not in log.marks and (everything or log.is_seen(offset)):
                    found.append(((log.keys[offset] or b"").decode(), decode(log.values[offset])))
        return found

    def _check_results(self) -> None:
        expected = {part: Expected(records) for part, records in self.records.items()}
        for part, each in expected.items():
            wanted = Counter(pair for pairs in each.outputs.values() for pair in pairs)
            values = self.server.results(part)
            there = {number for number, _ in values}
            wanted = Counter(
                {pair: 1 for pair in wanted if pair[0] in there or pair[0] not in self.server.lost}
            )
            what = f"sink of partition {part}"
            if self.exactly_once:
                self._compare(what, Counter(values), wanted)
            else:
                # A zombie may have changed the tables, whose totals those are.
                wanted = Counter(number for number, _ in wanted)
                self._compare(what, Counter(number for number, _ in values), wanted, exact=True)
        outputs = [(key, value["id"], value["total"]) for key, value in self._outputs("totals")]
        wanted = Counter(
            (key, *pair)
            for each in expected.values()
            for key, pairs in each.outputs.items()
            for pair in pairs
        )
        if self.exactly_once:
            self._compare("topic totals", Counter(outputs), wanted)
            self._check_order(outputs, expected)
        else:
            ids = Counter(number for _, number, _ in outputs)
            self._compare("topic totals", ids, Counter(number for _, number, _ in wanted))
        windows = {
            (key, start): tuple(window)
            for each in expected.values()
            for (key, start), window in each.windows.items()
            if start < START + 900_000_000
        }
        closed = [
            ((each["key"], _milliseconds(each["window_start"])), (each["n"], each["total"]))
            for _, each in self._outputs("closed")
        ]
        if self.exactly_once:
            self._compare("topic closed", Counter(closed), Counter(windows.items()))
            return
        largest: dict[Any, tuple[int, int]] = {}
        for window, result in closed:
            largest[window] = max(result, largest.get(window, result))
        if less := {each: at for each, at in windows.items() if largest.get(each, (0, 0)) < at}:
            raise Violation(f"topic closed: {largest} has less than {less}")

    def _check_order(
        self, outputs: list[tuple[str, int, int]], expected: dict[int, Expected]
    ) -> None:
        by_key: dict[str, list[int]] = defaultdict(list)
        for key, number, _ in outputs:
            by_key[key].append(number)
        for each in expected.values():
            for key, pairs in each.outputs.items():
                if by_key[key] != [number for number, _ in pairs]:
                    raise Violation(f"topic totals, order of {key}: {by_key[key]}")

    def _compare(
        self, what: str, found: Counter[Any], wanted: Counter[Any], exact: bool = False
    ) -> None:
        missing, more = wanted - found, found - wanted
        if missing or (more and (exact or self.exactly_once)):
            raise Violation(f"{what}: missing {dict(missing)}, too much {dict(more)}")

    def _check_tables(self) -> None:
        totals: dict[str, int] = {}
        seen: dict[str, int] = {}
        for records in self.records.values():
            expected = Expected(records)
            totals |= expected.totals
            seen |= expected.seen
        for name, wanted in ("totals", totals), ("seen", seen):
            found: dict[str, int] = {}
            for worker in self.workers:
                found |= worker.table(name)
            if self.exactly_once and found != wanted:
                raise Violation(f"table {name}: {found}, not {wanted}")
            less = {key: found.get(key) for key in wanted if found.get(key, 0) < wanted[key]}
            if less:
                raise Violation(f"table {name} has lost: {less} of {wanted}")
