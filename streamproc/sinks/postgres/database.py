"""One PostgreSQL database as a sink sees it: a connection, transactions, what errors mean."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from streamproc.errors import ConfigurationError, Fenced, SinkError, SinkUnavailable
from streamproc.records.secrets import mask, register
from streamproc.sinks.circuit import Circuit

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError:  # the extra isn't installed; PostgresSink says so
    psycopg = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5

#: SQLSTATE of what ends by itself (by its class, or whole): connections, resources, operators
#: that stop the server, locks and deadlocks, a server that only reads.
_PASSING = ("08", "53", "57", "40", "55P03", "25006", "25P03", "25P04")
#: Of what is about the values of a row.
_OF_ROWS = ("22", "23", "44", "P0")
#: What the server says at the door that trying again won't mend.
_REFUSED = ("authentication failed", "pg_hba.conf", "does not exist", "no password supplied")

_END_IDLE = "SELECT set_config('idle_in_transaction_session_timeout', %s, true)"

T = TypeVar("T")


def require_driver(sink: str) -> None:
    """Raise :class:`ConfigurationError` when psycopg isn't installed."""
    if psycopg is None:
        raise ConfigurationError(f"{sink} needs psycopg: pip install 'streamproc[postgres]'")


def is_of_row(error: Any) -> bool:
    """Return whether an error is about the values of a row, and not of all rows."""
    state = error.sqlstate
    if state is None:  # of psycopg itself: no form for a value
        return isinstance(error, psycopg.DataError | psycopg.ProgrammingError)
    return bool(state.startswith(_OF_ROWS))


class Database:
    """A connection that is opened when needed, and again after it was lost.

    Attributes:
        state: "connected" or "away".
        retries: Attempts that had to be repeated.
        answers: Counted up by a long request when the server has answered a part of it.
        shown: What errors and the log call it; without a login.

    Args:
        url: postgresql://user:password@host:port/database, or what libpq takes.
        timeout: Seconds without an answer after which it counts as away.

    Raises:
        ConfigurationError: The URL isn't one.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            parts = conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise ConfigurationError(
                f"the URL of PostgreSQL is not usable ({mask(str(error)).strip()}); it looks like "
                "postgresql://user:password@host:5432/database"
            ) from None
        register(str(parts.get("password") or ""))
        where = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}"
        self.shown = f"PostgreSQL at {where}/{parts.get('dbname', '')}"
        self.retries = 0
        self.answers = 0
        self.circuit = Circuit(self.shown)
        self._url = url
        self._timeout = timeout
        self._connection: Any = None
        self._away_since: float | None = None

    @property
    def state(self) -> str:
        return "connected" if self._away_since is None else "away"

    async def attempt(self, request: Callable[[Any], Awaitable[T]]) -> T:
        """Run ``request(connection)`` in a transaction, once.

        Raises:
            SinkUnavailable: The server is away.
            SinkError: It refuses for good.
        """
        task = asyncio.ensure_future(self._run(request))
        try:
            while not task.done():
                before = self.answers
                await asyncio.wait({task}, timeout=self._timeout)
                if not task.done() and self.answers == before:
                    raise asyncio.TimeoutError
            return task.result()
        except BaseException as error:
            # Whatever is under way on this connection, nothing more goes over it.
            await self._give_up(task)
            raise self._meaning(error) from error

    async def _give_up(self, task: asyncio.Task[Any]) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            task.cancel()
        elif not task.done():
            # Cancelled, psycopg would ask the server to cancel too, and wait for its answer.
            with socket.socket(fileno=os.dup(connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        if connection is not None:
            await connection.close()

    async def _run(self, request: Callable[[Any], Awaitable[T]]) -> T:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT,
                application_name="streamproc",
            )
        connection = self._connection
        async with connection.transaction():
            # A worker that is stopped in the middle doesn't keep its rows locked for ever.
            await connection.execute(_END_IDLE, (f"{max(1000, int(self._timeout * 1000))}ms",))
            return await request(connection)

    def _meaning(self, error: BaseException) -> BaseException:
        if isinstance(error, asyncio.TimeoutError):
            return SinkUnavailable(f"{self.shown} is away: no answer in {self._timeout:g} s")
        if isinstance(error, OSError):
            return SinkUnavailable(f"{self.shown} is away: {error}")
        if not isinstance(error, psycopg.Error):
            return error
        reason = mask(str(error)).strip().replace("\n", " ")
        state = error.sqlstate
        if state is None and isinstance(error, psycopg.OperationalError):
            if any(each in reason for each in _REFUSED):
                return SinkError(f"{self.shown} refuses the connection: {reason}")
            return SinkUnavailable(f"{self.shown} is away: {reason}")
        if state is not None and state.startswith(_PASSING):
            return SinkUnavailable(f"{self.shown} is away: {reason}")
        return SinkError(f"{self.shown} refused: {reason}")

    async def persist(
        self, request: Callable[[Any], Awaitable[T]], waiting: Callable[[], int]
    ) -> T:
        """Run ``request(connection)`` in a transaction, again and again until it goes through.

        Args:
            request: Sees at each attempt for itself what an earlier one has done.
            waiting: Tells how many values wait.
        """
        circuit = self.circuit
        while True:
            try:
                async with circuit.turn():
                    result = await self.attempt(request)
            except SinkUnavailable as error:
                self.retries += 1
                circuit.on_failure()
                self.is_away(error, waiting())
            except (SinkError, Fenced):
                circuit.on_success()
                self._away_since = None  # it answers, if not as hoped
                raise
            else:
                circuit.on_success()
                self._is_back()
                return result
            if circuit.is_closed:
                await asyncio.sleep(circuit.delay)

    def is_away(self, error: SinkUnavailable, waiting: int) -> None:
        """Note, and log if it is news, that the server is away."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("%s; %d values wait", error, waiting)

    def _is_back(self) -> None:
        if self._away_since is not None:
            seconds = time.monotonic() - self._away_since
            self._away_since = None
            log.warning("%s is back after %.1f s", self.shown, seconds)

    async def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
