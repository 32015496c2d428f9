"""The test driver: an app without a broker, run in steps, in virtual time."""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
import warnings
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from faust.exceptions import AlreadyConfiguredWarning

from streamproc.errors import DriverError
from streamproc.records.durations import Duration, duration
from streamproc.tables.stores import MemoryStore
from streamproc.tables.windowset import WindowWrapper
from streamproc.testing.broker import MemoryBroker
from streamproc.testing.clock import Clock
from streamproc.testing.declared import declared_topic
from streamproc.testing.failures import Failures
from streamproc.testing.loop import Killed, VirtualLoop
from streamproc.testing.records import Coder, DeadLetter, InputTopic, OutputTopic, Time, time_of
from streamproc.testing.sinks import SinkResults
from streamproc.testing.snapshot import Snapshot
from streamproc.testing.tables import TableView
from streamproc.testing.transport import (
    Connection,
    MemoryChangelogs,
    MemoryTransport,
)
from streamproc.testing.work import Work

#: Virtual seconds that records may take before the driver gives up on them.
PATIENCE = 3600.0


class TestDriver:
    """Runs an app's agents and streams with no broker and no Redis.

    The app is the real one: its agents, streams, tables, checkpoints, recovery and dead
    letters run as in a worker. In memory are the broker, the tables' stores and the
    servers of sinks; and time stands still unless the test advances it. Every method
    returns when the app has done all that it can do at that time.

    A context manager; the app is as before afterwards, so that many tests can use it. In
    a test that is itself ``async`` it works the same.

    Args:
        app: The app.
        partitions: Of each topic; or by topic, of which those that aren't named get 4.
        start_time: Wall-clock time at the start (see :data:`Time`); a fixed one, so that
            tests repeat.
        stores: ``"memory"``, or ``"app"`` for those that the app's tables declare, in a
            folder that is removed at the end.

    Raises:
        DriverError: The app does not start.
    """

    __test__ = False  # pytest would take it for a class of tests

    def __init__(
        self,
        app: Any,
        *,
        partitions: int | Mapping[str, int] = 4,
        start_time: Time = "2026-01-01",
        stores: str = "memory",
    ) -> None:
        if stores not in ("memory", "app"):
            raise DriverError(f"stores={stores!r}: there are 'memory' and 'app'")
        self.app = app
        self._partitions = partitions
        self._start_time = time_of(start_time)
        self._stores = stores
        self._exit = ExitStack()
        self._outputs: dict[str, OutputTopic] = {}
        self._sinks: dict[int, tuple[Any, SinkResults]] = {}
        self._letters_read = 0

    # -- life

    def __enter__(self) -> TestDriver:
        try:
            self._set_up()
            self._start_app()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None and not self.app.crashed:
                self._await(self.app.stop())
                self._check_crashed()
        finally:
            self._tear_down()
        if error is None:
            self._check_unread()

    def _set_up(self) -> None:
        app = self.app
        if app.started:
            raise DriverError(f"App {app.conf.id!r} is running already: end its other driver")
        self._loop = VirtualLoop()
        self._clock = Clock(self._loop, self._start_time)
        self._failures = self._exit.enter_context(Failures())
        self._loop.set_exception_handler(self._failures.on_loop_error)
        self._folder = Path(tempfile.mkdtemp(prefix="streamproc-test-"))
        self._broker = MemoryBroker(self._partitions_of, lambda: self._clock.milliseconds)
        if not isinstance(self._partitions, int):
            for topic in self._partitions:
                self._broker.create(topic)
        app.finalize()
        self._snapshot = Snapshot(app)
        self._work = Work(app)

    def _tear_down(self) -> None:
        if hasattr(self, "_work"):
            self._kill()
        if hasattr(self, "_folder"):
            shutil.rmtree(self._folder, ignore_errors=True)
        if hasattr(self, "_loop"):
            self._loop.close()
        self._exit.close()

    def _partitions_of(self, topic: str) -> int:
        partitions = self._partitions
        return partitions if isinstance(partitions, int) else partitions.get(topic, 4)

    # -- starting the app, and killing it

    def _start_app(self) -> None:
        now = self._clock.milliseconds
        self._connection = Connection(self._broker)
        self._clock.cover(self._user_modules())
        self._await(self._wire_and_start())
        self._settle()
        # What the start took doesn't count: tests begin at the time they asked for.
        self._clock.start_at(now)

    async def _wire_and_start(self) -> None:
        app = self.app
        self._snapshot.unbind()
        self._loop.has_work = lambda: self._work.is_left
        app.transport = MemoryTransport(app.conf.broker_consumer, app, self._connection)
        app.producer_transport = app.transport
        app.boot_strategy.enable_web = False
        app.boot_strategy.enable_sensors = False  # the monitor samples each second
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AlreadyConfiguredWarning)
            app.conf.datadir = self._folder
            app.conf.topic_partitions = self._partitions_of("")
        app.tables.recovery.reader = MemoryChangelogs(self._connection)
        if self._stores == "memory":
            app.tables.new_store = lambda table, partition: MemoryStore()
        app.open_sink = self._open_sink
        for agent in app.agents.values():
            for topic in agent.get_topic_names():
                self._broker.create(topic)
        await app.start()

    def _user_modules(self) -> set[str]:
        app = self.app
        functions = [*(agent.fun for agent in app.agents.values()), *app._app_tasks]
        return {function.__module__ for function in functions if function.__module__}

    def _kill(self) -> None:
        """End the app as a kill -9 does, and set it back to what it was before its start."""
        self._failures.enabled = False
        self._connection.cut()
        with self._quiet():
            self._loop.kill_tasks()
            self._close_actors()
            self._close_stores()
            for _, results in self._sinks.values():
                results.detach()
            self._snapshot.restore()
        self._failures.enabled = True

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

    def _await(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run until ``coroutine`` is done; timers fire as needed."""
        task = self._loop.create_task(coroutine)
        task.add_done_callback(lambda _: self._loop.stop())
        until = self._loop.time() + PATIENCE
        with self._clock.replaced():
            self._loop.run(lambda: until)
        if not task.done():
            task.cancel()
            raise DriverError(
                f"The app hangs: {task.get_coro()!r} did not end. {self._work.describe()}"
            ) from self.app.crash_reason
        return task.result()

    def _settle(self, target: float = 0.0) -> None:
        """Run until the app has nothing left to do, and it is ``target`` at least."""
        until = max(target, self._loop.time()) + PATIENCE

        def limit() -> float | None:
            if self.app.crashed:
                return None
            self.app.consumer.note_uncommitted()
            return until if self._work.is_left else target or None

        with self._clock.replaced():
            self._loop.run(limit)
        self._loop.jump(target)
        self._check_crashed()
        if self._loop.time() >= until - 1.0 and self._work.is_left:
            raise DriverError(
                f"Records are not done after {PATIENCE:.0f} s of virtual time: "
                f"{self._work.describe()}"
            )

    def _check_crashed(self) -> None:
        if self.app.crashed:
            reason = self.app.crash_reason
            self._failures.read()
            raise DriverError(f"The app stopped itself: {reason!r}") from reason

    def _check_unread(self) -> None:
        unseen = self._failures.unseen
        if unseen:
            raise DriverError(
                f"The app raised {unseen[-1]!r}"
                + (f" and {len(unseen) - 1} more" if len(unseen) > 1 else "")
                + ", and the test did not look: read driver.errors or driver.dead_letters()"
            ) from unseen[-1]
        letters = self._letters()[self._letters_read :]
        if letters:
            first = letters[0]
            raise DriverError(
                f"The app rejected {len(letters)} records, the first at {first.topic}/"
                f"{first.partition}@{first.offset} ({first.stage}): {first.reason}. The test did "
                "not look: read driver.dead_letters()"
            )

    # -- time

    @property
    def now(self) -> int:
        """Wall-clock time of the app, in milliseconds since 1970."""
        return self._clock.milliseconds

    def advance(self, by: Duration) -> None:
        """Let virtual time pass; timers fire, each at its time, and all they cause is done.

        Args:
            by: A timedelta, a number of seconds, or a text such as "10s" or "1h30m".
        """
        self._settle(self._loop.time() + duration(by) / 1000)

    # -- records

    def topic(self, topic: Any) -> InputTopic:
        """Return a topic to pipe records into.

        Args:
            topic: Its name, or a Topic of the app.

        Raises:
            DriverError: The app doesn't read it.
        """
        name = topic if isinstance(topic, str) else topic.get_topic_name()
        read = {each for channel in self.app.topics for each in channel.topics}
        if name not in read:
            names = ", ".join(sorted(each for each in read if not each.startswith(self._own)))
            raise DriverError(f"The app does not read topic {name!r}; it reads {names or 'none'}")
        return InputTopic(name, self._coder(name, topic), self._broker, self._settle)

    def output(self, topic: Any) -> OutputTopic:
        """Return a topic to read what the app sent to it; the same one for each call.

        Args:
            topic: Its name, or a Topic of the app.

        Raises:
            DriverError: The app neither sent to a topic of this name nor declares it.
        """
        name = topic if isinstance(topic, str) else topic.get_topic_name()
        if name not in self._outputs:
            if isinstance(topic, str) and not self._is_known(name):
                raise DriverError(
                    f"The app sent nothing to a topic {name!r} and declares none of that name. "
                    "If that is right, give the Topic instead of its name"
                )
            self._outputs[name] = OutputTopic(name, self._coder(name, topic), self._broker)
        return self._outputs[name]

    @property
    def _own(self) -> str:
        return f"{self.app.conf.id}-"

    def _is_known(self, name: str) -> bool:
        return name in self._broker.topics or declared_topic(self.app, name) is not None

    def _coder(self, name: str, topic: Any) -> Coder:
        declared = declared_topic(self.app, name) if isinstance(topic, str) else topic
        return Coder(self.app, name, declared)

    def dead_letters(self) -> list[DeadLetter]:
        """Return all records that the app rejected, in order, with the reasons."""
        self._failures.read()
        letters = self._letters()
        self._letters_read = len(letters)
        return letters

    def _letters(self) -> list[DeadLetter]:
        topic = self.app.dead_letters.topic
        letters = []
        for partition, offset in self._broker.in_order(topic):
            log = self._broker.topics[topic][partition]
            letters.append(DeadLetter.of(log.headers[offset], log.keys[offset], log.values[offset]))
        return letters

    @property
    def errors(self) -> list[BaseException]:
        """What agents, timers and tasks raised; each try of a record counts.

        Errors that a test doesn't look at (here or by :meth:`dead_letters`) fail it at the
        end of the driver.
        """
        return self._failures.read()

    # -- state and sinks

    def table(self, table: Any) -> TableView:
        """Return what a table holds, over all partitions.

        Args:
            table: Its name, or the table, or what its ``tumbling()`` or ``hopping()`` returned.

        Raises:
            DriverError: The app has no such table.
        """
        if isinstance(table, str):
            tables = self.app.tables
            if table not in tables:
                names = ", ".join(sorted(tables)) or "none"
                raise DriverError(f"The app has no table {table!r}; it has {names}")
            table = tables[table]
        return TableView(table.table if isinstance(table, WindowWrapper) else table)

    def sink(self, sink: Any) -> SinkResults:
        """Return what the app wrote to a sink.

        Args:
            sink: The sink object.
        """
        known = self._sinks.get(id(sink))
        if known is None:
            results = SinkResults(lambda: self._flush(sink))
            known = self._sinks[id(sink)] = (sink, results)
        known[1].attach(sink)
        return known[1]

    async def _open_sink(self, sink: Any) -> None:
        self.sink(sink)
        await type(self.app).open_sink(self.app, sink)

    def _flush(self, sink: Any) -> None:
        if sink in self.app._sinks:
            self._await(sink.flush())

    # -- the worker's life

    def checkpoint(self) -> None:
        """Run a checkpoint: flush sinks and producer, write tables, commit offsets."""
        self._await(self.app.consumer.commit())
        self._settle()

    @property
    def committed(self) -> dict[tuple[str, int], int]:
        """Committed offsets by topic and partition."""
        return {
            (tp.topic, tp.partition): offset
            for tp, offset in self._broker.committed.items()
            if not tp.topic.startswith(self._own)
        }

    def restart(self) -> None:
        """Stop the app in good order, with a last checkpoint, and start it again."""
        self._await(self.app.stop())
        self._kill()
        self._start_app()

    def crash(self) -> None:
        """End the app as a kill -9 does, and start it again.

        What no checkpoint has made durable is lost and processed again from the committed
        offsets. Tables come back from their changelogs. Variables of your modules stay.
        """
        self._kill()
        self._start_app()

    @contextmanager
    def crash_after(self, steps: int) -> Iterator[None]:
        """Crash in the middle of what is done in the ``with`` block, wherever that is.

        The block ends there, and the app is started again: see :meth:`crash`. If the block
        is done before, nothing happens. With steps counted up from 0, a test crashes at every
        place there is: between two agents, in a checkpoint, in a recovery.

        Args:
            steps: Rounds of the event loop until then.
        """
        self._loop.steps_left = steps
        try:
            yield
        except Killed:
            self.crash()
        finally:
            self._loop.steps_left = None

    def rebalance(self, without: Collection[int] = ()) -> None:
        """Rebalance the group: all partitions are given up, and all come back but some.

        Args:
            without: Partitions, of every topic, that another worker gets. They stay with it
                (nothing processes them) until the next call.
        """
        group = self.app.consumer.group
        group.taken = set(without)
        self._await(group.rebalance())
        self._settle()
