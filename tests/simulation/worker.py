"""A worker of the simulation: the app's process, which is started, stopped and killed."""

from __future__ import annotations

import atexit
import gc
from typing import Any

from streamproc.testing.failures import Failures
from streamproc.testing.life import AppLife
from streamproc.testing.tables import TableView
from tests.simulation.apps import SimApp
from tests.simulation.loop import SimLoop
from tests.simulation.network import SimConnection
from tests.simulation.outside import Disk, SimStore

_known: dict[tuple[int, str, str], Worker] = {}


class Worker:
    """One worker; its app is used for one run after another."""

    def __init__(self, number: int, guarantee: str, kind: str) -> None:
        self.number = number
        self.sim = SimApp(guarantee, kind)
        self.app = self.sim.app
        self.loop = SimLoop()
        self.loop.set_exception_handler(lambda loop, context: None)
        failures = Failures()
        self.life = AppLife(self.app, self.loop, failures, self._new_store)
        atexit.register(self.life.close)
        self.world: Any = None
        self.disk = Disk()
        self._task: Any = None

    @classmethod
    def of(cls, number: int, world: Any, disk: Disk) -> Worker:
        """Return the worker of this number for a new run."""
        guarantee = "exactly_once" if world.exactly_once else "at_least_once"
        worker = _known.get((number, guarantee, world.kind))
        if worker is None:
            worker = _known[number, guarantee, world.kind] = cls(number, guarantee, world.kind)
            # It stays, so the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
        worker.begin(world, disk)
        return worker

    def begin(self, world: Any, disk: Disk) -> None:
        """Be in a world in which it hasn't been started yet."""
        self.world, self.disk = world, disk
        self.sim.world = world
        self.loop.source = world.time
        self.is_paused = False
        self.is_alive = False
        #: Steps after which it crashes, and how many it has made.
        self.crash_at: int | None = None
        self.steps = 0
        #: Its transactional ids.
        self.producers: set[str] = set()
        self._place: tuple[int, int] | None = None
        #: Starts and ends; what was planned before the last one is void.
        self.lives = 0
        self._task = None
        self.writes_tables = False

    def __str__(self) -> str:
        app = self.app
        if not self.is_alive:
            return f"{self.number} is dead"
        return (
            f"{self.number} (rebalancing: {app.rebalancing}, void: {app.checkpoint.is_void}, "
            f"flow: {app.consumer.flow_active}, assigned: {sorted(app.consumer.assignment())}, "
            f"inside: {app.checkpoint.gate._inside}, shut: {app.checkpoint.gate.shut})"
        )

    # -- life

    def start(self) -> None:
        """Start the app."""
        if self.is_alive:
            return
        self.lives += 1
        self.writes_tables = False
        self.is_alive = True
        self.world.trace("start", self.number)
        self._task = self.loop.create_task(self._start())

    async def _start(self) -> None:
        self.life.wire(SimConnection(self.world, self), 2)
        # Its tables would not be what a replay makes of them.
        self.app.when_sink_behind = "continue"
        await self.app.start()

    def start_again(self, delay: float) -> None:
        life = self.lives

        def start() -> None:
            if life == self.lives:
                self.start()

        self.world.later(delay, start)

    def kill(self) -> None:
        """End it as a kill -9 does."""
        self.lives += 1
        if self.is_alive:
            self.is_alive = False
            self.life.kill()
            # What it can't mend any more holds readers up until somebody ends it.
            self.world.broker.end_passed_over(self.producers)

    def stop(self) -> None:
        """Stop it in good order; it is started again then."""
        if self.is_alive and self._task.done() and not self.app.crashed:
            self._task = self.loop.create_task(self.app.stop())

    def rejoin(self) -> None:
        """Have the group rebalance."""
        if self.is_alive and self._task.done() and not self.app.should_stop:
            self.app.consumer._thread._nudged.set()

    def count_step(self, what: str) -> None:
        """It uses what is outside: crash here, if it is its time.

        A step is a use that differs from the one before: it was in an earlier round, or
        something has changed outside since.
        """
        place = self.world.rounds, len(self.world.traces)
        if place == self._place or self.world.is_over:
            return
        self._place = place
        self.steps += 1
        if self.crash_at is not None and self.steps > self.crash_at:
            self.crash_at = None
            self.world.trace("crash", self.number, what, self.steps)
            self.life.connection.cut()

    def _new_store(self, table: Any, partition: int) -> Any:
        if not self.world.keeps_disks:
            return SimStore(Disk(), (table.name, partition), self.life.connection)
        return SimStore(self.disk, (table.name, partition), self.life.connection)

    # -- turns

    @property
    def may_pause(self) -> bool:
        """False where at least once has no defence: a worker that knows it is a member, and
        writes tables when it isn't any more."""
        if self.app.exactly_once or not self.is_alive or not self._task.done():
            return True
        return not self.writes_tables and self.app.consumer.is_positioned

    @property
    def is_ready(self) -> bool:
        return self.is_alive and not self.is_paused and self.loop.is_ready

    @property
    def next_timer(self) -> float | None:
        return self.loop.next_timer if self.is_alive and not self.is_paused else None

    def round(self) -> None:
        """Run what is ready, and see what has become of it."""
        self.loop.round()
        connection = self.life.connection
        if connection is not None and connection._is_cut:
            self.kill()
            if self.world.rng.random() < 0.3:
                self.disk.lose_power(self.world.rng)
            self.start_again(self.world.rng.random() * 2)
        elif self.app.crashed:
            self.world.on_exit(self, self.app.crash_reason)
        elif self._task.done():
            error = None if self._task.cancelled() else self._task.exception()
            if error is not None:
                self.world.on_exit(self, error)
            elif self.app.should_stop:
                self.kill()
                self.start_again(0.1)

    @property
    def is_settled(self) -> bool:
        """True when it is up, with nothing in hand."""
        if not (self.is_alive and self._task.done()) or self.app.should_stop:
            return False
        app = self.app
        if app.rebalancing or not self.world.broker.is_member(app.consumer.group.member):
            return False
        if not app.consumer.assignment():
            # What it had begun is aborted by the broker, and void when it gets partitions.
            return True
        return (
            app.consumer._positioned
            and not app.checkpoint.is_void
            and not app.checkpoint.gate._inside
            and not app.tables.is_dirty
            and (not app.exactly_once or not app.producer.has_sent)
        )

    def table(self, name: str) -> dict[str, int]:
        """Return what it has of a table."""
        return dict(TableView(self.app.tables[name]))
