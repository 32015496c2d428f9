"""Questions to the whole group: which worker has which partition, and what it answers.

The assignor of the group tells every worker which partitions each has, in a numbered
generation. A worker is asked for partitions in a generation, and answers only if it is in
that generation, has recovered, and has those partitions. So an answer comes from the one
owner of each partition, or there is none.

Checked against faust-streaming 0.15.3 (``PartitionAssignor.table_metadata``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from typing import Any, TypeVar

import aiohttp
import msgspec
from mode import Service
from yarl import URL

from streamproc.errors import StreamprocError
from streamproc.web.pauses import PauseWatch
from streamproc.web.query import Query
from streamproc.web.reading import Page, Row, home_of, read_page

T = TypeVar("T")

#: Headers of a question of one worker to another.
GENERATION, PARTITIONS = "Streamproc-Generation", "Streamproc-Partitions"

#: Seconds to connect to a worker, and for its whole answer to a question about tables.
CONNECT_TIMEOUT, ASK_TIMEOUT = 2.0, 5.0

#: Seconds after which a client may try again, when workers change.
RETRY_AFTER = 1

decode_page = msgspec.json.Decoder(Page).decode


class NotNow(StreamprocError):
    """A question can't be answered rightly at the moment; it can be asked again."""


@dataclass(frozen=True)
class Missing:
    """Partitions that nobody answered for, and why."""

    worker: str | None
    partitions: list[int]
    reason: str


@dataclass
class Answer:
    """Rows of the group, in order.

    Attributes:
        rows: At most as many as the query's limit.
        more: True when there are more.
        missing: Partitions whose rows are not among them.
        scattered: True when keys are not where their records' keys would be.
    """

    rows: list[Row] = field(default_factory=list)
    more: bool = False
    missing: list[Missing] = field(default_factory=list)
    scattered: bool = False

    @property
    def next(self) -> str | None:
        """Where the next page begins, or None at the end."""
        return self.rows[-1].place.cursor() if self.more and self.rows else None


async def on_loop_of(app: Any, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in the event loop of the app: the web server may have its own."""
    if asyncio.get_running_loop() is app.loop:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, app.loop))


class Cluster(Service):  # type: ignore[misc]
    """The workers of the group, seen from one of them."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self.app = app
        self._session: aiohttp.ClientSession | None = None
        self.pauses = PauseWatch(app)
        #: Tables some of whose keys were not where their records' keys would be.
        self._scattered: set[str] = set()
        super().__init__(**kwargs)

    async def session(self) -> aiohttp.ClientSession:
        """Return the client that other workers are asked with."""
        if self._session is None:
            # A jar would give cookies of one client to another. Encoded bodies pass unchanged.
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
            if not self.started:
                await self.app.add_runtime_dependency(self)
        return self._session

    def on_init_dependencies(self) -> Iterable[Any]:
        return [self.pauses]

    async def on_stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    # -- who has what

    def require_ready(self) -> None:
        """Raise unless this worker knows what it has.

        Raises:
            NotNow: A rebalance or the recovery of tables is going on, or may be.
        """
        if self.pauses.in_doubt:
            raise NotNow("This worker stood still; it may have lost its partitions meanwhile")
        if not self.app.health.is_member:
            raise NotNow("Kafka did not answer for so long that others may have the partitions")
        if not self.app.tables.recovery.completed.is_set():
            raise NotNow("This worker takes part in a rebalance, or recovers its tables")

    @property
    def own_url(self) -> str:
        """The address by which other workers know this one."""
        return str(self.app.conf.canonical_url)

    def owners(self, table: Any) -> Mapping[str, list[int]]:
        """Return the partitions of a table by the address of the worker that has them."""
        topic = table.changelog_topic_name
        found = self.app.assignor.table_metadata(topic)
        return {url: sorted(topics.get(topic, ())) for url, topics in found.items()}

    def owner(self, table: Any, partition: int) -> str:
        """Return the address of the worker that has a partition.

        Raises:
            NotNow: None is known.
        """
        if partition in table.states:
            return self.own_url
        for url, partitions in self.owners(table).items():
            if partition in partitions and url != self.own_url:
                return url
        raise NotNow(f"No worker is known that has partition {partition} of {table.name!r}")

    def answer_peer(self, table: Any, query: Query, headers: Mapping[str, str]) -> Page:
        """Answer another worker's question.

        Raises:
            NotNow: The two don't agree on who has which partition.
        """
        self.require_ready()
        generation = headers[GENERATION]
        if generation != str(self.app.consumer_generation_id):
            raise NotNow(
                f"Asked in generation {generation:.20} of the group; this worker is in "
                f"{self.app.consumer_generation_id}"
            )
        wanted = set(filter(None, headers.get(PARTITIONS, "").split(",")))
        partitions = [each for each in table.states if str(each) in wanted]
        if len(partitions) != len(wanted):
            raise NotNow("This worker doesn't have all partitions that it was asked for")
        return read_page(table, query, partitions)

    # -- questions

    async def gather(self, table: Any, query: Query) -> Answer:
        """Return rows of all partitions, or of the one that the query names.

        Raises:
            NotNow: This worker doesn't know now who has what.
        """
        parts = range(table.partition_count) if query.partition is None else [query.partition]
        return await self._ask_owners(table, query, set(parts))

    async def find(self, table: Any, query: Query) -> Answer:
        """Return the rows of one key, from wherever it is.

        The partition is asked that the key would have as the key of a record. If it has
        none, or keys of this table were found elsewhere, all partitions are asked.

        Raises:
            NotNow: A worker that may have the key didn't answer.
        """
        if query.partition is not None:
            return _whole(await self.gather(table, query))
        home = home_of(table, query.key)
        if home is None:
            return _whole(await self.gather(table, query))
        first = _whole(await self._ask_owners(table, query, {home}))
        if first.rows and not (first.scattered or table.name in self._scattered):
            return first
        others = set(range(table.partition_count)) - {home}
        rest = _whole(await self._ask_owners(table, query, others))
        if rest.rows:
            self._scattered.add(table.name)
        return _joined(query, [first, rest])

    async def _ask_owners(self, table: Any, query: Query, partitions: set[int]) -> Answer:
        self.require_ready()
        here = sorted(partitions & set(table.states))
        own = Answer()
        if here:
            page = read_page(table, query, here)
            own = Answer(page.rows, page.more, scattered=page.scattered)
        plan, unknown = self._plan(table, partitions - set(here))
        asked = [self._ask(url, table, query, parts) for url, parts in plan.items()]
        answers = [own, *await asyncio.gather(*asked)]
        if unknown:
            reason = "no worker is known that has them"
            answers.append(Answer(missing=[Missing(None, sorted(unknown), reason)]))
        return _joined(query, answers)

    def _plan(self, table: Any, wanted: set[int]) -> tuple[dict[str, list[int]], set[int]]:
        plan = {}
        for url, partitions in self.owners(table).items():
            if url != self.own_url and wanted.intersection(partitions):
                plan[url] = sorted(wanted.intersection(partitions))
        return plan, wanted.difference(*plan.values())

    async def _ask(self, url: str, table: Any, query: Query, partitions: list[int]) -> Answer:
        try:
            page = await self._request(url, table, query, partitions)
        except NotNow as exc:
            return Answer(missing=[Missing(url, partitions, str(exc))])
        except asyncio.TimeoutError:
            reason = f"it did not answer within {ASK_TIMEOUT:g} s"
            return Answer(missing=[Missing(url, partitions, reason)])
        except aiohttp.ClientConnectionError as exc:
            reason = f"it can't be reached ({type(exc).__name__})"
            return Answer(missing=[Missing(url, partitions, reason)])
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError) as exc:
            return Answer(missing=[Missing(url, partitions, f"{type(exc).__name__}: {exc}")])
        return Answer(page.rows, page.more, scattered=page.scattered)

    async def _request(self, url: str, table: Any, query: Query, partitions: Iterable[int]) -> Page:
        headers = {
            GENERATION: str(self.app.consumer_generation_id),
            PARTITIONS: ",".join(map(str, partitions)),
            "Accept-Encoding": "identity",
        }
        session = await self.session()
        async with session.get(
            self.address(url) / "tables" / table.name / "",
            params=query.parameters,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT, sock_connect=CONNECT_TIMEOUT),
        ) as response:
            body = await response.read()
            if response.status != 200:
                raise NotNow(_reason(response.status, body))
        return decode_page(body)

    def address(self, url: str) -> URL:
        """Return the address of a worker: all speak TLS if this one does."""
        address = URL(url)
        return address.with_scheme("https") if self.app.conf.web_ssl_context else address


def _reason(status: int, body: bytes) -> str:
    try:
        said = msgspec.json.decode(body, type=dict[str, Any]).get("error")
    except msgspec.MsgspecError:
        said = None
    return f"it answered with status {status}" + (f": {said}" if said else "")


def _whole(answer: Answer) -> Answer:
    for missing in answer.missing:
        raise NotNow(
            f"Partitions {missing.partitions} could not be read"
            + (f" from {missing.worker}" if missing.worker else "")
            + f": {missing.reason}"
        )
    return answer


def _joined(query: Query, answers: Collection[Answer]) -> Answer:
    """Merge answers about different partitions."""
    rows = merge(*(each.rows for each in answers), key=lambda row: row.place)
    taken = list(islice(rows, query.limit))
    total = sum(len(each.rows) for each in answers)
    return Answer(
        taken,
        total > len(taken) or any(each.more for each in answers),
        [missing for each in answers for missing in each.missing],
        any(each.scattered for each in answers),
    )
