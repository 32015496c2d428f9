"""An app that runs in a virtual loop over topics in memory, as far as it can at a time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

from streamproc.errors import DriverError
from streamproc.tables.stores import MemoryStore
from streamproc.testing.broker import MemoryBroker
from streamproc.testing.clock import Clock
from streamproc.testing.failures import Failures
from streamproc.testing.life import AppLife
from streamproc.testing.loop import VirtualLoop
from streamproc.testing.transport import Connection
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
        life: The app, to be killed.
        loop: Its event loop.
    """

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
        self._partitions_of = partitions_of
        self._exit = ExitStack()
        self.failures = self._exit.enter_context(Failures())
        self.loop.set_exception_handler(self.failures.on_loop_error)
        new_store = (lambda table, partition: MemoryStore()) if in_memory else None
        self.life = AppLife(app, self.loop, self.failures, new_store)
        self._work = Work(app)
        self.loop.has_work = lambda: self._work.is_left

    def close(self) -> None:
        """Kill the app, leave it as it was, and free everything."""
        self.life.close()
        self.loop.close()
        self._exit.close()

    def start(self) -> None:
        """Start the app; it is as late then as before."""
        now = self.clock.milliseconds
        self.clock.cover(self.life.user_modules)
        self.wait_for(self._wire_and_start())
        self.settle()
        # What the start took doesn't count: tests begin at the time they asked for.
        self.clock.start_at(now)

    async def _wire_and_start(self) -> None:
        self.life.wire(Connection(self.broker), self._partitions_of(""))
        await self.app.start()

    def kill(self) -> None:
        """End the app as a kill -9 does, and set it back to what it was before its start."""
        self.life.kill()

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
