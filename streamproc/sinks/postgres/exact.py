"""Exactly once: rows and source offsets go to PostgreSQL in one transaction.

Fences (see :mod:`streamproc.sinks.shares`) are rows of the table ``streamproc_offsets``. A
write locks those of its partitions, looks whether they are still ours and whether the write
was applied already, changes the user's table, and notes number and offsets. Who looks waits
for a transaction that has the lock: there is no answer while one is in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from streamproc.errors import SinkError
from streamproc.sinks.postgres.database import Database, is_of_row
from streamproc.sinks.postgres.rows import Change, Layout, Rows
from streamproc.sinks.redis.failures import Failures
from streamproc.sinks.refusals import Refusal
from streamproc.sinks.shares import Fence, Share, ShareWriter, new_owner, topic_of

TABLE = "streamproc_offsets"
DDL = """CREATE TABLE IF NOT EXISTS streamproc_offsets (
    app text, sink text, topic text, partition integer,
    owner text NOT NULL, epoch bigint NOT NULL, write bigint NOT NULL, positions jsonb NOT NULL,
    PRIMARY KEY (app, sink, topic, partition)
)"""
_LOCK_DDL = "SELECT pg_advisory_xact_lock(hashtext('streamproc_offsets'))"
_ADD = """INSERT INTO streamproc_offsets VALUES (%s, %s, %s, %s, '', 0, 0, '{}')
    ON CONFLICT DO NOTHING"""
_LOOK = """SELECT owner, write, positions FROM streamproc_offsets
    WHERE app = %s AND sink = %s AND topic = %s AND partition = %s FOR UPDATE"""
_CLAIM = """UPDATE streamproc_offsets SET owner = %s, epoch = epoch + 1
    WHERE app = %s AND sink = %s AND topic = %s AND partition = %s"""
_NOTE = """UPDATE streamproc_offsets SET write = write + 1, positions = positions || %s
    WHERE app = %s AND sink = %s AND topic = %s AND partition = %s"""
#: Types of columns whose values go as JSON: json and jsonb.
_JSON = frozenset({114, 3802})

#: Rows between two answers of the server.
_ROWS = 5_000


class PostgresWriter(ShareWriter):
    """Keeps the rows of each source partition apart, and writes them with the offsets.

    Args:
        database: Where the table is.
        table: Its name, with a schema or without.
        how: How values become rows.
        prefix: Names of the app and the sink.
    """

    def __init__(
        self, database: Database, table: str, how: Layout, *, prefix: tuple[str, str]
    ) -> None:
        new_share = partial(Share, owner=new_owner(), prototype=Rows(how))
        super().__init__(new_share, (database.shown, prefix[1]))
        self._database = database
        self._table = sql.Identifier(*table.split("."))
        self._how = how
        self._prefix = prefix
        #: Columns of the table, and those whose values go as JSON.
        self._columns: frozenset[str] = frozenset()
        self._json: frozenset[str] = frozenset()
        self.failures = Failures()
        #: Rows that the last attempt to write left out.
        self._refused: list[Refusal] = []

    async def prepare(self, connection: Any) -> None:
        """Look at the table, and see that there is one for the offsets.

        Raises:
            SinkError: There isn't, and it can't be made.
        """
        cursor = await connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(self._table))
        self._json = frozenset(each.name for each in cursor.description if each.type_code in _JSON)
        self._columns = frozenset(each.name for each in cursor.description)
        if missing := {*(self._how.columns or ()), *self._how.key, *self._how.add} - self._columns:
            raise SinkError(self._no_column(min(missing)))
        found = await (await connection.execute("SELECT to_regclass(%s)", (TABLE,))).fetchone()
        if found[0] is not None:
            return
        try:
            async with connection.transaction():
                # Of several that make it at once, PostgreSQL lets all but one fail.
                await connection.execute(_LOCK_DDL)
                await connection.execute(DDL)
        except psycopg.errors.InsufficientPrivilege as error:
            raise SinkError(
                f"the user may not make the table that keeps the offsets ({error}); make it once: "
                f"{DDL}"
            ) from None

    def _no_column(self, name: str) -> str:
        return f"the table has no column {name!r}; its columns: {', '.join(sorted(self._columns))}"

    # -- claims

    async def _claim_all(self, shares: list[tuple[Share, list[str]]]) -> None:
        found = await self._database.persist(partial(self._claim, shares), lambda: self.pending)
        for share, topics in shares:
            share.on_claimed(
                {
                    topic: (f"{TABLE} of {topic}/{share.partition}", found[topic, share.partition])
                    for topic in topics
                }
            )

    async def _claim(
        self, shares: list[tuple[Share, list[str]]], connection: Any
    ) -> dict[tuple[str, int], Fence]:
        found = {}
        for share, topics in shares:
            for topic in topics:
                key = (*self._prefix, topic, share.partition)
                await connection.execute(_ADD, key)
                cursor = await connection.execute(_LOOK, key)
                owner, number, positions = await cursor.fetchone()
                found[topic, share.partition] = Fence(owner or None, number, positions)
                await connection.execute(_CLAIM, (share.owner, *key))
        return found

    # -- writes

    async def _write_all(self, shares: list[Share]) -> None:
        await self._database.persist(partial(self._write, shares), lambda: self.pending)
        for share in shares:
            self.written += share.on_applied().values
        for refusal in self._refused:
            self.failures.add(refusal.reason)
        self.failures.refusals += self._refused
        self._refused = []

    async def _write(self, shares: list[Share], connection: Any) -> None:
        missing = [share for share in shares if not await self._look(share, connection)]
        if not missing:
            return  # written before, with an answer that got lost
        # Of an attempt that is rolled back nothing counts.
        self._refused = []
        writes = [share.under_way for share in missing if share.under_way]
        changes = [change for write in writes for change in write.commands]
        for (_, names), same in groupby(changes, lambda change: (change.kind, change.names)):
            if not self._columns.issuperset(names):
                await self.prepare(connection)  # there may be new ones
            if unknown := set(names) - self._columns:
                for change in same:
                    self._refuse(change, self._no_column(min(unknown)))
            else:
                rows = list(same)
                for begin in range(0, len(rows), _ROWS):
                    await self._apply(connection, rows[begin : begin + _ROWS])
        for share in missing:
            await self._note(share, connection)

    async def _look(self, share: Share, connection: Any) -> bool:
        seen: list[tuple[str | None, int]] = []
        for topic in share.fences:
            cursor = await connection.execute(_LOOK, (*self._prefix, topic, share.partition))
            owner, number, _ = await cursor.fetchone() or (None, 0, {})
            seen.append((owner, number))
        return share.is_applied(self._database.shown, seen)

    async def _note(self, share: Share, connection: Any) -> None:
        assert share.under_way is not None
        for topic in share.fences:
            ours = {r: o for r, o in share.under_way.positions.items() if topic_of(r) == topic}
            key = (*self._prefix, topic, share.partition)
            await connection.execute(_NOTE, (Jsonb(ours), *key))

    async def _apply(self, connection: Any, changes: Sequence[Change]) -> None:
        """Make changes of one kind, on the same columns; leave out rows that are refused."""
        self._database.answers += 1  # to what came before
        try:
            async with connection.transaction():
                await self._send(connection, changes)
        except psycopg.Error as error:
            if not is_of_row(error):
                raise
            if len(changes) > 1:
                middle = len(changes) // 2
                await self._apply(connection, changes[:middle])
                await self._apply(connection, changes[middle:])
                return
            self._refuse(changes[0], str(error).strip())

    def _refuse(self, change: Change, why: str) -> None:
        row = dict(zip(change.names, change.values, strict=True))
        reason = f"{change.kind} {_told(row)}: {why}".replace("\n", " ")
        key = {name: row[name] for name in self._how.key if name in row}
        self._refused.append(Refusal(reason, key or None, row))

    async def _send(self, connection: Any, changes: Sequence[Change]) -> None:
        kind, names, _ = changes[0]
        rows = [self._adapted(change) for change in changes]
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        async with connection.cursor() as cursor:
            if kind == "insert":
                copy = sql.SQL("COPY {} ({}) FROM STDIN").format(self._table, columns)
                async with cursor.copy(copy) as rows_in:
                    for row in rows:
                        await rows_in.write_row(row)
                return
            statement: sql.Composable
            if kind == "delete":
                same = sql.SQL(" AND ").join(
                    sql.SQL("{} = %s").format(sql.Identifier(name)) for name in names
                )
                statement = sql.SQL("DELETE FROM {} WHERE {}").format(self._table, same)
            else:
                statement = self._upsert(names, columns)
            await cursor.executemany(statement, rows)

    def _upsert(self, names: Sequence[str], columns: sql.Composable) -> sql.Composable:
        changed = [self._changed(name) for name in names if name not in self._how.key]
        key = sql.SQL(", ").join(map(sql.Identifier, self._how.key))
        action: sql.Composable = sql.SQL("NOTHING")
        if changed:
            action = sql.SQL("UPDATE SET {}").format(sql.SQL(", ").join(changed))
        return sql.SQL("INSERT INTO {} AS old ({}) VALUES ({}) ON CONFLICT ({}) DO {}").format(
            self._table, columns, sql.SQL(", ").join(sql.SQL("%s") for _ in names), key, action
        )

    def _changed(self, name: str) -> sql.Composable:
        column = sql.Identifier(name)
        if name not in self._how.add:
            return sql.SQL("{0} = EXCLUDED.{0}").format(column)
        total = sql.SQL("{0} = coalesce(old.{0} + EXCLUDED.{0}, EXCLUDED.{0}, old.{0})")
        return total.format(column)

    def _adapted(self, change: Change) -> tuple[Any, ...]:
        """Return the values as the columns want them."""
        return tuple(
            Jsonb(value)
            if type(value) is dict or (name in self._json and value is not None)
            else value
            for name, value in zip(change.names, change.values, strict=True)
        )


def _told(row: dict[str, Any]) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in row.items())
    return text if len(text) <= 120 else text[:117] + "..."
