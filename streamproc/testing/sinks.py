"""Sinks without their servers: what an app writes is kept for the test to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamproc.sinks.redis.resp import Command
from streamproc.sinks.redis.sink import RedisSink

Undo = Callable[[], None]


class SinkResults:
    """What the app wrote to one sink; see :meth:`TestDriver.sink`.

    Attributes:
        results: Values in the order they were written; after a crash some come again.
    """

    def __init__(self, flush: Callable[[], None]) -> None:
        self.results: list[Any] = []
        self._commands: list[Command] = []
        self._flush = flush
        self._undo: Undo | None = None

    def attach(self, sink: Any) -> None:
        """Take what is written to ``sink``, instead of its server."""
        if self._undo is None:
            record = _record_redis if isinstance(sink, RedisSink) else _record_any
            self._undo = record(sink, self)

    def detach(self) -> None:
        """Leave the sink as it was."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    @property
    def commands(self) -> list[Command]:
        """Commands that Redis would have got, in order; none for sinks of other kinds.

        Values that wait for others are written first.
        """
        self._flush()
        return self._commands

    def clear(self) -> None:
        """Forget what was written so far."""
        self._flush()
        self.results.clear()
        self._commands.clear()


def _record_any(sink: Any, results: SinkResults) -> Undo:
    async def write(values: Sequence[Any]) -> None:
        results.results.extend(getattr(values, "values", values))

    async def nothing(*args: Any) -> None:
        return None

    async def check() -> str:
        return "a test driver takes its values"

    return _replace(
        sink,
        write=write,
        flush=nothing,
        open=nothing,
        close=nothing,
        check=check,
        # It would ask its server what that has.
        is_transactional=False,
    )


def _record_redis(sink: RedisSink, results: SinkResults) -> Undo:
    """Keep all of the sink but its connection, so that values are checked and rendered."""
    commands = sink._commands
    add = commands.add

    def collect(run: Any) -> Any:
        results.results.extend(run.values)
        return add(run)

    async def open_without_server(app: Any) -> None:
        sink._link = _Link()  # type: ignore[assignment]
        sink._channel = _Channel(results._commands)  # type: ignore[assignment]
        sink._ready = True

    async def close() -> None:
        sink._cancel_timer()
        sink._link = sink._channel = None

    undo_commands = _replace(commands, add=collect)
    undo_sink = _replace(sink, open=open_without_server, close=close)

    def undo() -> None:
        undo_commands()
        undo_sink()

    return undo


def _replace(target: Any, **attributes: Any) -> Undo:
    target.__dict__.update(attributes)

    def undo() -> None:
        for name in attributes:
            target.__dict__.pop(name, None)

    return undo


class _Link:
    """A server that is always there."""

    url = "a test driver"
    state = "connected"
    retries = 0

    async def persist(self, sink: Any, attempt: Callable[[], Any], pending: Any) -> None:
        await attempt()


class _Channel:
    """Takes pipelines."""

    def __init__(self, commands: list[Command]) -> None:
        self._commands = commands

    async def request(self, commands: Sequence[Command]) -> dict[int, str]:
        self._commands.extend(commands)
        return {}

    async def close(self) -> None:
        """There is nothing to close."""
