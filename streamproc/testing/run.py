"""An app that runs in a virtual loop over topics in memory, as far as it can at a time."""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from faust.exceptions import AlreadyConfiguredWarning

from streamproc.errors import DriverError
from streamproc.tables.stores import MemoryStore
from streamproc.testing.broker import MemoryBroker
from streamproc.testing.clock import Clock
from streamproc.testing.failures import Failures
from streamproc.testing.loop import VirtualLoop
from streamproc.testing.snapshot import Snapshot
from streamproc.testing.transport import Connection, MemoryChangelogs, MemoryTransport
from streamproc.testing.work import Work

#: Virtual seconds that records may take before the driver gives up on them.
PATIENCE = 3600.0


class AppRun:
    """Starts and kills an app, and runs it until nothing is left to do.

    Args:
        app: The App.
        start_time: Wall-clock time at the start, in milliseconds since 1970.
        partitions_of: The number of partitions of a topic, by its name.
        in_memory: Keep tables in memory, whatever they declare.

    Attributes:
        broker: The topics.
        clock: The app's clock.
        failures: What the app raised.
        loop: Its event loop.
        open_sink: Takes the place of ``app.open_sink``.
        on_kill: Called when the app has been killed, before it is set back.
    """

    open_sink: Any = None

    def __init__(
        self,
        app: Any,
        *,
        start_time: int,
        partitions_of: Callable[[str], int],
        in_memory: bool,
    ) -> None:
        self.app = app
        self.loop = VirtualLoop()
        self.clock = Clock(self.loop, start_time)
        self.broker = MemoryBroker(
            partitions_of, lambda: self.clock.milliseconds, self.loop.call_lasting
        )
        self.on_kill: Callable[[], None] = lambda: None
        self._partitions_of = partitions_of
        self._in_memory = in_memory
        self._exit = ExitStack()
        self.failures = self._exit.enter_context(Failures())
        self.loop.set_exception_handler(self.failures.on_loop_error)
        self._folder = Path(tempfile.mkdtemp(prefix="streamproc-test-"))
        app.finalize()
        self._snapshot = Snapshot(app)
        self._work = Work(app)
        self.loop.has_work = lambda: self._work.is_left
        self._connection = Connection(self.broker)

    def close(self) -> None:
        """Kill the app, leave it as it was, and free everything."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        self.loop.close()
        self._exit.close()

    # -- starting the app, and killing it

    def start(self) -> None:
        """Start the app; it is as late then as before."""
        now = self.clock.milliseconds
        self._connection = Connection(self.broker)
        self.clock.cover(self._user_modules())
        self.wait_for(self._wire_and_start())
        self.settle()
        # What the start took doesn't count: tests begin at the time they asked for.
        self.clock.start_at(now)

    async def _wire_and_start(self) -> None:
        app = self.app
        self._snapshot.unbind()
        app.transport = MemoryTransport(app.conf.broker_consumer, app, self._connection)
        app.producer_transport = app.transport
        app.boot_strategy.enable_web = False
        app.boot_strategy.enable_sensors = False  # the monitor samples each second
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AlreadyConfiguredWarning)
            app.conf.datadir = self._folder
            app.conf.topic_partitions = self._partitions_of("")
        app.tables.recovery.reader = MemoryChangelogs(self._connection)
        if self._in_memory:
            app.tables.new_store = lambda table, partition: MemoryStore()
        app.open_sink = self.open_sink
        for agent in app.agents.values():
            for topic in agent.get_topic_names():
                self.broker.create(topic)
        await app.start()

    def _user_modules(self) -> set[str]:
        app = self.app
        functions = [*(agent.fun for agent in app.agents.values()), *app._app_tasks]
        return {function.__module__ for function in functions if function.__module__}

    def kill(self) -> None:
        """End the app as a kill -9 does, and set it back to what it was before its start."""
        self.failures.enabled = False
        self._connection.cut()
        with self._quiet():
            self.loop.kill_tasks()
            self._close_actors()
            self._close_stores()
            self.on_kill()
            self._snapshot.restore()
        self.failures.enabled = True

    def _close_actors(self) -> None:
        # Python warns of functions that were called and never begun.
        for agent in self.app.agents.values():
            for actor in list(agent._actors):
                if inspect.iscoroutine(actor.it):
                    actor.it.close()

    def _close_stores(self) -> None:
        tables = self.app.tables
        for table in tables.values():
            for states in (table.states, table.standbys):
                for state in states.values():
                    state.close()
        if tables._folder is not None:
            tables._folder.release()

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        # Tasks that are cancelled from outside complain.
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)

    # -- running

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run until ``coroutine`` is done; timers fire as needed."""
        task = self.loop.create_task(coroutine)
        task.add_done_callback(lambda _: self.loop.stop())
        until = self.loop.time() + PATIENCE
        with self.clock.replaced():
            self.loop.run(lambda: until)
        if not task.done():
            task.cancel()
            raise DriverError(
                f"The app hangs: {task.get_coro()!r} did not end. {self._work.describe()}"
            ) from self.app.crash_reason
        return task.result()

    def settle(self, target: float = 0.0) -> None:
        """Run until the app has nothing left to do, and it is ``target`` at least."""
        until = max(target, self.loop.time()) + PATIENCE

        def limit() -> float | None:
            if self.app.crashed:
                return None
            self.app.consumer.note_uncommitted()
            return until if self._work.is_left else target or None

        with self.clock.replaced():
            self.loop.run(limit)
        self.loop.jump(target)
        self.check_crashed()
        if self.loop.time() >= until - 1.0 and self._work.is_left:
            raise DriverError(
                f"Records are not done after {PATIENCE:.0f} s of virtual time: "
                f"{self._work.describe()}"
            )

    def check_crashed(self) -> None:
        """Raise :class:`DriverError` if the app has stopped itself."""
        if self.app.crashed:
            reason = self.app.crash_reason
            self.failures.read()
            raise DriverError(f"The app stopped itself: {reason!r}") from reason
