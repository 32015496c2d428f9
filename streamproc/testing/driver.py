"""The test driver: an app without a broker, run in steps, in virtual time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from streamproc.errors import DriverError
from streamproc.records.durations import Duration, duration
from streamproc.tables.windowset import WindowWrapper
from streamproc.testing.declared import declared_topic
from streamproc.testing.loop import Killed
from streamproc.testing.records import Coder, DeadLetter, InputTopic, OutputTopic, Time, time_of
from streamproc.testing.run import AppRun
from streamproc.testing.sinks import SinkResults
from streamproc.testing.tables import TableView


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
        self._outputs: dict[str, OutputTopic] = {}
        self._sinks: dict[int, tuple[Any, SinkResults]] = {}
        self._letters_read = 0

    # -- life

    def __enter__(self) -> TestDriver:
        app = self.app
        if app.started:
            raise DriverError(f"App {app.conf.id!r} is running already: end its other driver")
        self._run = run = AppRun(
            app,
            start_time=self._start_time,
            partitions_of=self._partitions_of,
            in_memory=self._stores == "memory",
        )
        run.life.open_sink, run.life.on_kill = self._open_sink, self._leave_sinks
        self._broker = run.broker
        try:
            for topic in () if isinstance(self._partitions, int) else self._partitions:
                self._broker.create(topic)
            run.start()
        except BaseException:
            run.close()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None and not self.app.crashed:
                self._run.wait_for(self.app.stop())
                self._run.check_crashed()
        finally:
            self._run.close()
        if error is None:
            self._check_unread()

    def _partitions_of(self, topic: str) -> int:
        partitions = self._partitions
        return partitions if isinstance(partitions, int) else partitions.get(topic, 4)

    def _check_unread(self) -> None:
        unseen = self._run.failures.unseen
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
        return self._run.clock.milliseconds

    def advance(self, by: Duration) -> None:
        """Let virtual time pass; timers fire, each at its time, and all they cause is done.

        Args:
            by: A timedelta, a number of seconds, or a text such as "10s" or "1h30m".
        """
        self._run.settle(self._run.loop.time() + duration(by) / 1000)

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
        return InputTopic(name, self._coder(name, topic), self._broker, self._run.settle)

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
        self._run.failures.read()
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
        return self._run.failures.read()

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

    def _leave_sinks(self) -> None:
        for _, results in self._sinks.values():
            results.detach()

    def _flush(self, sink: Any) -> None:
        if sink in self.app._sinks:
            self._run.wait_for(sink.flush())

    # -- the worker's life

    def checkpoint(self) -> None:
        """Run a checkpoint: flush sinks and producer, write tables, commit offsets."""
        self._run.wait_for(self.app.consumer.commit())
        self._run.settle()

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
        self._run.wait_for(self.app.stop())
        self._run.kill()
        self._run.start()

    def crash(self) -> None:
        """End the app as a kill -9 does, and start it again.

        What no checkpoint has made durable is lost and processed again from the committed
        offsets. Tables come back from their changelogs. Variables of your modules stay.
        """
        self._run.kill()
        self._run.start()

    @contextmanager
    def crash_after(self, steps: int) -> Iterator[None]:
        """Crash in the middle of what is done in the ``with`` block, wherever that is.

        The block ends there, and the app is started again: see :meth:`crash`. If the block
        is done before, nothing happens. With steps counted up from 0, a test crashes at every
        place there is: between two agents, in a checkpoint, in a recovery.

        Args:
            steps: Rounds of the event loop until then.
        """
        self._run.loop.steps_left = steps
        try:
            yield
        except Killed:
            self.crash()
        finally:
            self._run.loop.steps_left = None

    def rebalance(self, without: Collection[int] = ()) -> None:
        """Rebalance the group: all partitions are given up, and all come back but some.

        Args:
            without: Partitions, of every topic, that another worker gets. They stay with it
                (nothing processes them) until the next call.
        """
        group = self.app.consumer.group
        group.taken = set(without)
        self._run.wait_for(group.rebalance())
        self._run.settle()
