"""One life after another of an app: wired to a broker in memory, started, and killed."""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faust.exceptions import AlreadyConfiguredWarning

from streamproc.testing.failures import Failures
from streamproc.testing.loop import VirtualLoop
from streamproc.testing.snapshot import Snapshot
from streamproc.testing.transport import Connection


class AppLife:
    """An app that can be started as if its process had just begun, and killed.

    Args:
        app: The App.
        loop: The loop that it runs in.
        failures: Where its errors are kept.
        new_store: Makes the stores of tables, in the place of what they declare.

    Attributes:
        connection: What it has of the broker in this life.
        open_sink: Takes the place of ``app.open_sink``.
        on_kill: Called when the app has been killed, before it is set back.
    """

    open_sink: Any = None

    def __init__(
        self,
        app: Any,
        loop: VirtualLoop,
        failures: Failures,
        new_store: Callable[[Any, int], Any] | None = None,
    ) -> None:
        self.app = app
        self.loop = loop
        self.failures = failures
        self.connection: Connection | None = None
        self.on_kill: Callable[[], None] = lambda: None
        self._new_store = new_store
        self._folder = Path(tempfile.mkdtemp(prefix="streamproc-test-"))
        app.finalize()
        self._snapshot = Snapshot(app)

    def close(self) -> None:
        """Kill the app, leave it as it was, and free everything."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wire(self, connection: Connection, partitions: int) -> None:
        """Connect the app, which isn't running, with a broker.

        Args:
            connection: The broker.
            partitions: Of topics that the app creates.
        """
        app = self.app
        self.connection = connection
        self._snapshot.unbind()
        app.transport = connection.new_transport(app)
        app.producer_transport = app.transport
        app.boot_strategy.enable_web = False
        app.boot_strategy.enable_sensors = False  # the monitor samples each second
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AlreadyConfiguredWarning)
            app.conf.datadir = self._folder
            app.conf.topic_partitions = partitions
        app.tables.recovery.reader = connection.new_changelogs()
        if self._new_store is not None:
            app.tables.new_store = self._new_store
        if self.open_sink is not None:
            app.open_sink = self.open_sink
        for agent in app.agents.values():
            for topic in agent.get_topic_names():
                connection.broker.create(topic)

    @property
    def user_modules(self) -> set[str]:
        """Where the app's functions are."""
        app = self.app
        functions = [*(agent.fun for agent in app.agents.values()), *app._app_tasks]
        return {function.__module__ for function in functions if function.__module__}

    def kill(self) -> None:
        """End the app as a kill -9 does, and set it back to what it was before its start."""
        self.failures.enabled = False
        if self.connection is not None:
            self.connection.cut()
        with _quiet():
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
def _quiet() -> Iterator[None]:
    # Tasks that are cancelled from outside complain.
    level = logging.root.manager.disable
    if level >= logging.CRITICAL:
        yield
        return
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
