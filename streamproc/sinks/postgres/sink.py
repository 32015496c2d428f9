"""The sink of PostgreSQL: rows of a table, exactly once."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamproc.errors import ConfigurationError, SinkError, SinkUnavailable
from streamproc.sinks.postgres.database import Database, require_driver
from streamproc.sinks.postgres.rows import layout
from streamproc.sinks.redis.failures import Failures
from streamproc.sinks.redis.values import Run
from streamproc.sinks.refusals import settle, sink_policy
from streamproc.sinks.server import ServerSink
from streamproc.streams.agent import open_in_agent
from streamproc.streams.policies import Policy
from streamproc.tables.place import current_place

if TYPE_CHECKING:
    from streamproc.sinks.postgres.exact import PostgresWriter

#: Names that sinks of an app have, by its id, database and name.
_names: dict[tuple[int, str, str], object] = {}


class PostgresSink(ServerSink):
    """Writes values as rows of a table, with their source offsets in the same transaction.

    Each field of a value (a Record, a dict, a dataclass) goes to the column of its name. The
    results are in the table after each checkpoint, exactly once, whatever the guarantee of
    the app.

    Args:
        table: Name of a table that is there, with a schema or without.
        key: Columns of its primary key or of a unique constraint. A row with the same key
            is updated; a tombstone (None with a key) deletes it, if the key is one column.
            Without ``key`` rows are added.
        add: Columns whose values are added to what the row has: counts and sums.
        columns: Which fields to write; as a mapping, by column the name of the field (or of what
            is known of the record: key, timestamp, topic, partition, offset).
        url: postgresql://user:password@host:5432/database; default: what the environment has as
            DATABASE_URL.
        name: What its offsets are kept under; default: the table.
        on_error: What becomes of rows that PostgreSQL refuses (a value that isn't of the
            column's type, a constraint) and of values that don't fit: ``dead_letter``, ``skip``
            or ``stop``; default: dead letters, or ``stop`` in an app without.
        buffer_bytes: About what is kept between checkpoints; with more, one comes early.
        timeout: Seconds without an answer after which PostgreSQL counts as away.

    Raises:
        ConfigurationError: An option is wrong, or psycopg isn't installed.
    """

    def __init__(
        self,
        table: str,
        *,
        key: Sequence[str] = (),
        add: Sequence[str] = (),
        columns: Sequence[str] | Mapping[str, str] | None = None,
        url: str | None = None,
        name: str | None = None,
        on_error: Policy | None = None,
        buffer_bytes: int = 16 << 20,
        timeout: float = 10.0,
    ) -> None:
        require_driver(type(self).__name__)
        for option, number in (("buffer_bytes", buffer_bytes), ("timeout", timeout)):
            if number <= 0:
                raise ConfigurationError(f"{option} must be more than 0")
        self.table = table
        self.name = name or table
        self.on_error = sink_policy(type(self).__name__, on_error)
        self._layout = layout(columns, key, add)
        self._url = url
        self._buffer_bytes = buffer_bytes
        self._timeout = timeout
        self._app: Any = None
        self._database: Database | None = None
        self._writer: PostgresWriter | None = None
        self._ready = False

    def __repr__(self) -> str:
        where = self._database.shown if self._database else "not open"
        return f"<{type(self).__name__} {self.table} {where} {self.state}>"

    @property
    def _server(self) -> Database | None:
        return self._database

    @property
    def _shares(self) -> PostgresWriter | None:
        return self._writer

    @property
    def written(self) -> int:
        """Values that the server has."""
        return self._writer.written if self._writer else 0

    @property
    def pending(self) -> int:
        """Values accepted and not yet written."""
        return self._writer.pending if self._writer else 0

    @property
    def pending_bytes(self) -> int:
        """About the bytes that the pending values take."""
        return self._writer.pending_bytes if self._writer else 0

    # -- life

    async def open(self, app: Any) -> None:
        """Connect and look at the table; a server that is away is waited for later.

        Raises:
            ConfigurationError: There is no URL, the login is refused, there is no such table
                or column, or the table of the offsets can't be made.
        """
        if self._database is not None:
            return
        from streamproc.sinks.postgres.exact import PostgresWriter  # needs psycopg

        app_id = getattr(getattr(app, "conf", None), "id", None)
        if not app_id:
            raise ConfigurationError(f"{type(self).__name__} needs an App: its checkpoints write")
        url = self._url or os.environ.get("DATABASE_URL", "")
        if not url:
            raise ConfigurationError(
                f"{type(self).__name__} has no URL; set DATABASE_URL in the environment, or give "
                'url="postgresql://user:password@host:5432/database"'
            )
        database = Database(url, self._timeout)
        if _names.setdefault((id(app), database.shown, self.name), self) is not self:
            raise ConfigurationError(
                f"two sinks of the app are called {self.name!r}, so PostgreSQL couldn't tell the "
                'offsets of one from those of the other; give each a name of its own: name="...", '
                "the same at every start"
            )
        self._app, self._database = app, database
        writer = PostgresWriter(database, self.table, self._layout, prefix=(app_id, self.name))
        self._writer = writer
        try:
            await database.attempt(writer.prepare)
            self._ready = True
        except SinkUnavailable as error:
            database.is_away(error, 0)
        except SinkError as error:
            await self.close()
            raise ConfigurationError(str(error)) from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Release the connection; what isn't committed stays unwritten."""
        database, self._database, self._writer = self._database, None, None
        self._ready = False
        for reserved in [key for key, owner in _names.items() if owner is self]:
            del _names[reserved]
        if database is not None:
            await database.close()

    async def check(self) -> str:
        """Return the server's version and address, or raise :class:`SinkError`."""
        self._opened()
        probe = Database(self._url or os.environ.get("DATABASE_URL", ""), self._timeout)

        async def version(connection: Any) -> str:
            (found,) = await (await connection.execute("SHOW server_version")).fetchone()
            return str(found)

        try:
            return f"PostgreSQL {await probe.attempt(version)} ({probe.shown}) answers"
        finally:
            await probe.close()

    # -- writing

    async def write(self, values: Sequence[Any]) -> None:
        """Accept values: Records, dicts, (key, value) pairs or a Batch.

        Raises:
            SinkError: Some don't fit (a missing field); the others are accepted. Or they aren't
                made of records of one source partition.
        """
        if self._writer is None:
            await open_in_agent(self)
        place = current_place.get()
        partition = None if place is None or place.partition < 0 else place.partition
        self._tell(self._opened().accept(self, place, Run.of(values, partition)))

    async def flush(self) -> None:
        """Do nothing: checkpoints write.

        Raises:
            SinkError: Something waits for one.
        """
        if self._opened().pending:
            raise SinkError(f"{type(self).__name__} is exactly once: checkpoints write it")

    @property
    def is_full(self) -> bool:
        """True when so much waits that streams should wait for a checkpoint."""
        return self.pending_bytes >= self._buffer_bytes

    async def claim(self, partitions: Collection[Any]) -> Mapping[int, Mapping[str, int]]:
        """Own the results of source partitions from now on; waits while the server is away."""
        await self._get_ready(self._opened())
        return await super().claim(partitions)

    async def commit(self, positions: Mapping[int, Mapping[str, int]]) -> None:
        """Write what was cut with the positions it goes up to; waits while the server is away.

        Raises:
            Fenced: Another worker has claimed a partition since, or the server has lost the
                claim or earlier writes.
            SinkError: PostgreSQL refused rows, and ``on_error`` is ``stop``; the others are
                there, and the positions too. Or it refused all (no table, no right to it).
        """
        writer = self._opened()
        await writer.commit(positions)
        if writer.failures.count:
            failures, writer.failures = writer.failures, Failures()
            self.errors += failures.count
            error = failures.error("rows were refused")
            await settle(self._app, repr(self), self.on_error, failures.refusals, error)
            # The offsets of what was refused are committed next.
            await self._app.producer.flush()

    async def _get_ready(self, writer: PostgresWriter) -> None:
        if not self._ready and self._database is not None:
            await self._database.persist(writer.prepare, lambda: writer.pending)
            self._ready = True

    def _opened(self) -> PostgresWriter:
        if self._writer is None:
            raise SinkError(f"{type(self).__name__} is not open: await app.open_sink(sink)")
        return self._writer
