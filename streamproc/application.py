"""The App: Faust's, wired to the batch data path."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import faust
from faust.app.base import BootStrategy as FaustBootStrategy
from mode.utils.imports import symbol_by_name
from yarl import URL

from streamproc.checkpoint import Checkpoint
from streamproc.errors import ConfigurationError
from streamproc.health import Health
from streamproc.kafka.security import TokenFunction, app_credentials
from streamproc.kafka.transport import Transport
from streamproc.records.durations import Duration
from streamproc.records.registry import Registry
from streamproc.records.secrets import guard_output, register_url
from streamproc.streams.agent import Agent
from streamproc.streams.deadletters import DeadLetters
from streamproc.streams.failures import Failures
from streamproc.streams.policies import dead_letter, retry
from streamproc.streams.replies import ReplyConsumer
from streamproc.streams.stream import Stream
from streamproc.streams.topic import Topic
from streamproc.tables.manager import TableManager
from streamproc.tables.settables import CounterTable, SetGlobalTable, SetTable
from streamproc.tables.table import GlobalTable, Table

logger = logging.getLogger(__name__)

#: Broker URLs that the batch data path takes; others keep Faust's transport.
BATCH_SCHEMES = {"kafka", "aiokafka", ""}

#: Where ours differs from Faust's default.
DEFAULTS: dict[str, Any] = {
    "store": "rocksdb://",
    "broker_commit_interval": 1.0,
    "broker_session_timeout": 10.0,
    # Workers that go on learn from a heartbeat that one has left or come: their pause is as long.
    "broker_heartbeat_interval": 1.0,
    "stream_wait_empty": True,
    "consumer_max_fetch_size": 1024 * 1024,
    "producer_max_batch_size": 256 * 1024,
    "producer_max_request_size": 16 * 1024 * 1024,
}

_LOOPBACK = "127.0.0.1"
_ALL_ADDRESSES = ("0.0.0.0", "::", "")  # noqa: S104 - those that are warned of


def _web_defaults(options: dict[str, Any]) -> dict[str, str]:
    """Return where the pages are served, on this machine only unless told otherwise.

    The name that other workers use follows, or they would ask an address that doesn't answer.
    """
    if "WEB_BIND" in os.environ or "web_bind" in options:
        return {}
    host = {} if "WEB_HOST" in os.environ else {"web_host": _LOOPBACK}
    return {"web_bind": _LOOPBACK, **host}


class BootStrategy(FaustBootStrategy):  # type: ignore[misc]
    """Starts the web server first: it answers probes while Kafka is waited for."""

    def server(self) -> Any:
        return self._chain(
            self.sensors(),
            self.web_server(),
            self.kafka_producer(),
            self.kafka_consumer(),
            self.agents(),
            self.kafka_conductor(),
            self.tables(),
        )


class App(faust.App):  # type: ignore[misc]
    """A stream-processing application: what ``faust.App`` is, on batches.

    ``app.health`` says how the worker is; see :class:`streamproc.health.Health`.

    Args:
        id: Application id; also the consumer group.
        redis: Default URL for Redis sinks.
        batch_size: Most records in one batch.
        buffer_bytes: Bytes fetched of one partition and not yet processed, above which
            no more of it is fetched until half is processed.
        fetch_max_wait: Seconds the broker may hold a fetch when there's nothing new.
        dead_letters: Send rejected records to the dead-letter topic; else they are
            counted, logged and skipped.
        dead_letter_topic: Its name; ``<id>-dead-letters`` if None.
        max_retries: How often a record or batch at which an agent raised is given again
            before its records are rejected.
        drain_timeout: Seconds that agents have, on a rebalance or a stop, to finish the
            records they have begun.
        stall_timeout: Seconds without a finished record, while records wait, after which
            the worker ends itself (and half of which it isn't ready); None for never. While
            Kafka or the server of a sink is away the time doesn't count.
        ready_max_lag: Records that may wait in all partitions of a worker that is ready.
        read_committed: Read only records of committed transactions.
        table_cache_bytes: About how much memory the unchanged entries of one partition of
            a table may take, in bytes.
        group_instance_id: A name that this worker keeps over restarts, and no other has: a
            restart within the session time-out costs the others no rebalance. Faust's
            ``consumer_group_instance_id``.
        broker_credentials: Login and TLS of the brokers: a
            :class:`~streamproc.BrokerSecurity`, or Faust's ``SASLCredentials``,
            ``OAuthCredentials``, ``SSLCredentials``.
        broker_token: Function or coroutine function that returns a token, for brokers whose
            logins are by OAUTHBEARER; or its name, ``module:function``.
        processing_guarantee: "at_least_once", or "exactly_once": what is sent to Kafka, tables
            and source offsets are one transaction a checkpoint, and sinks that can keep
            offsets with their results. Needs Kafka 2.5 or newer.
        transaction_timeout: Seconds after which the broker aborts a transaction. Longer than
            two checkpoints are apart, and than agents need for a record; readers of the
            results wait so long for those of a worker that was killed.
        checkpoint_records: Records read after which a checkpoint comes before its time
            (``broker_commit_interval``).
        checkpoint_bytes: Bytes read after which it does, as they are in memory.
        when_sink_behind: What to do when the server of a transactional sink has forgotten
            results, restored from an older copy for example: "replay" reads their records
            again, "continue" goes on without them, "stop" stops. By default it stops if
            there are tables, which would count again, and else replays.
        **options: Settings of ``faust.App``.

    Raises:
        ConfigurationError: A setting that can't be honoured.
    """

    def __init__(
        self,
        id: str,
        *args: Any,
        redis: str | None = None,
        batch_size: int = 5000,
        buffer_bytes: int = 8 * 1024 * 1024,
        fetch_max_wait: float = 0.02,
        dead_letters: bool = True,
        dead_letter_topic: str | None = None,
        max_retries: int = 3,
        drain_timeout: float = 20.0,
        stall_timeout: float | None = 120.0,
        ready_max_lag: int | None = None,
        read_committed: bool = False,
        table_cache_bytes: int = 32 * 1024 * 1024,
        group_instance_id: str | None = None,
        broker_token: TokenFunction | str | None = None,
        processing_guarantee: Any = "at_least_once",
        transaction_timeout: float = 10.0,
        checkpoint_records: int = 1_000_000,
        checkpoint_bytes: int = 256 * 1024 * 1024,
        when_sink_behind: str | None = None,
        **options: Any,
    ) -> None:
        self.exactly_once = _is_exactly_once(processing_guarantee)
        if when_sink_behind not in (None, "replay", "continue", "stop"):
            raise ConfigurationError(
                f"when_sink_behind={when_sink_behind!r}: it is 'replay', 'continue' or 'stop'"
            )
        self.transaction_timeout = transaction_timeout
        self.checkpoint_records = checkpoint_records
        self.checkpoint_bytes = checkpoint_bytes
        self.when_sink_behind = when_sink_behind
        guard_output()
        register_url(redis or "")
        options.update(app_credentials(options, broker_token))
        self.redis_url = redis
        self.batch_size = batch_size
        self.buffer_bytes = buffer_bytes
        self.fetch_max_wait = fetch_max_wait
        self.max_retries = max_retries
        self.drain_timeout = drain_timeout
        self.read_committed = read_committed
        self.table_cache_bytes = table_cache_bytes
        self.dead_letters = DeadLetters(
            self, (dead_letter_topic or f"{id}-dead-letters") if dead_letters else None
        )
        #: What becomes of records that fail where an agent or a flow says nothing else.
        self.error_policy = retry(max_retries) if max_retries else dead_letter
        self.failures = Failures(self)
        self.checkpoint = Checkpoint(self)
        self.health = Health(self, stall_timeout=stall_timeout, ready_max_lag=ready_max_lag)
        self._sinks: dict[Any, asyncio.Future[None]] = {}
        #: Sources of flows (see :mod:`streamproc.streams.flow`), in order of definition.
        self.flows: list[Any] = []
        if group_instance_id is not None:
            options["consumer_group_instance_id"] = group_instance_id
        for name, value in {**DEFAULTS, **_web_defaults(options)}.items():
            options.setdefault(name, value)
        options.setdefault("Stream", Stream)
        options.setdefault("Topic", Topic)
        options.setdefault("Agent", Agent)
        options.setdefault("Serializers", Registry)
        options.setdefault("TableManager", TableManager)
        options.setdefault("Table", Table)
        options.setdefault("GlobalTable", GlobalTable)
        options.setdefault("SetTable", SetTable)
        options.setdefault("SetGlobalTable", SetGlobalTable)
        options.setdefault("Router", "streamproc.web.router:Router")
        options.setdefault("Worker", "streamproc.health.worker:Worker")
        super().__init__(id, *args, **options)

    def agent(
        self,
        channel: Any = None,
        *,
        on_error: Any = None,
        timeout: Duration | None = None,
        **options: Any,
    ) -> Callable[[Callable[..., Any]], Any]:
        """Make an agent of an async function over a stream.

        Args:
            channel: Topic, or its name.
            on_error: What becomes of records at which the agent raises: ``retry(...)``,
                ``dead_letter``, ``skip`` or ``stop``. Or an async function of the agent and
                the error, which is called at each failure.
            timeout: How long the agent may wait with a record (or batch) in hand. Then it is
                cancelled, and the record has failed with
                :class:`~streamproc.errors.AgentTimeout`.
            **options: Those of ``faust.App.agent``.

        Raises:
            ConfigurationError: ``on_error`` or ``timeout`` is none of these.
        """
        decorate: Callable[[Callable[..., Any]], Any] = super().agent(
            channel, errors=on_error, timeout=timeout, **options
        )
        return decorate

    actor = agent

    BootStrategy = BootStrategy

    def CounterTable(self, name: str, **options: Any) -> CounterTable:
        """Define a table of numbers that are counted up; see :class:`CounterTable`."""
        table = CounterTable(self, name=name, beacon=self.tables.beacon, **options)
        self.tables.add(table)
        return table

    def _new_web(self) -> Any:
        web = super()._new_web()
        web.blueprints.add("", "streamproc.web.health:blueprint")
        if self.conf.web_tables_enabled:
            web.blueprints.add("", "streamproc.web.tables:blueprint")
        web.web_app.middlewares.append(symbol_by_name("streamproc.web.guard:masked_errors"))
        return web

    def _new_transport(self) -> Any:
        return self._batch_transport(self.conf.broker_consumer) or super()._new_transport()

    def _new_producer_transport(self) -> Any:
        return self._batch_transport(self.conf.broker_producer) or super()._new_producer_transport()

    def _batch_transport(self, urls: list[URL]) -> Transport | None:
        if urls[0].scheme not in BATCH_SCHEMES:
            logger.warning(
                "Broker %s:// is served by Faust's own transport, record by record; "
                "use kafka:// for the batch data path",
                urls[0].scheme,
            )
            return None
        return Transport(urls, self)

    @property
    def sinks(self) -> list[Any]:
        """The sinks that are open, or being opened."""
        return list(self._sinks)

    async def open_sink(self, sink: Any) -> None:
        """Open a sink and flush it in every checkpoint; again for the same sink is free."""
        opening = self._sinks.get(sink)
        if opening is None:
            opening = self._sinks[sink] = asyncio.ensure_future(sink.open(self))
        await opening
        if sink.is_transactional:
            await self.checkpoint.add_transactional(sink)
        else:
            self.checkpoint.add(sink)

    @cached_property
    def _reply_consumer(self) -> ReplyConsumer:
        return ReplyConsumer(self, loop=self.loop, beacon=self.beacon)

    async def _consumer_wait_empty(self, consumer: Any, logger: Any) -> None:
        await consumer.wait_empty()

    async def on_start(self) -> None:
        await super().on_start()
        self.warn_of_open_pages()

    def warn_of_open_pages(self) -> None:
        """Say in the log that the pages are open to all, if they are."""
        if self.conf.web_enabled and self.conf.web_bind in _ALL_ADDRESSES:
            logger.warning(
                "The worker's pages are served on all addresses (web_bind=%s), and have no login: "
                "whoever reaches port %s reads tables and metrics. Set web_bind (--web-bind) to "
                "127.0.0.1, or to an address of a network that you trust",
                self.conf.web_bind,
                self.conf.web_port,
            )

    async def _producer_flush(self, logger: Any) -> None:
        # With exactly once, what no checkpoint has flushed is aborted; that it isn't acknowledged
        # is for the checkpoint to deal with.
        if not self.exactly_once:
            await super()._producer_flush(logger)

    async def on_stop(self) -> None:
        await super().on_stop()
        self.checkpoint.close()
        self.dead_letters.close()
        await asyncio.gather(*(sink.close() for sink in self._sinks))


def _is_exactly_once(guarantee: Any) -> bool:
    # Faust's enumeration has these values, too.
    name = str(getattr(guarantee, "value", guarantee))
    if name not in ("at_least_once", "exactly_once"):
        raise ConfigurationError(
            f"processing_guarantee={name!r}: it is 'at_least_once' or 'exactly_once'"
        )
    return name == "exactly_once"
