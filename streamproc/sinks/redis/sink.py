"""The machinery of every Redis sink: a buffer of merged values, and one sender at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from streamproc.errors import ConfigurationError, SinkError, SinkUnavailable
from streamproc.sinks.redis.commands import Commands, key_of
from streamproc.sinks.redis.exact import ExactWriter, stray_key, warn_of_eviction
from streamproc.sinks.redis.failures import Failures, explain
from streamproc.sinks.redis.link import (
    Channel,
    ClusterChannel,
    ConnectionRefused,
    Link,
    is_passing,
    release_link,
    reserve_name,
    share_link,
)
from streamproc.sinks.redis.resp import Command
from streamproc.sinks.redis.values import Run
from streamproc.sinks.refusals import settle, sink_policy
from streamproc.sinks.server import ServerSink
from streamproc.streams.agent import open_in_agent
from streamproc.streams.policies import Policy
from streamproc.tables.place import current_place

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

#: Values collected between two looks at the bound of the buffer.
_SLICE = 1_000


class RedisOptions(TypedDict, total=False):
    """Options that every Redis sink takes."""

    url: str | None
    """redis://, rediss://, unix:// or redis+cluster://; default: the app's ``redis_url``."""
    cluster: bool
    """Whether the URL is that of a Redis Cluster."""
    batch_size: int
    """Values that start a send at once, and commands in one pipeline at most (2000)."""
    batch_bytes: int
    """Bytes that start a send at once, and about the bytes of one pipeline (1 MiB)."""
    linger: float
    """Seconds a value waits for others at most (0.002)."""
    buffer_bytes: int
    """Bytes collected at most while a send is under way or Redis away (16 MiB)."""
    timeout: float
    """Seconds without an answer after which Redis counts as away (10)."""
    exactly_once: bool | None
    """Whether checkpoints write results, with their source offsets; default: as the app."""
    name: str | None
    """Of an exactly-once sink: what its offsets are kept under; default: from kind and key."""
    on_error: Policy | None
    """What becomes of what Redis refuses and of values that don't fit: ``dead_letter``, ``skip``
    or ``stop``; default: dead letters, or ``stop`` in an app without."""


_DEFAULTS: RedisOptions = {
    "url": None,
    "cluster": False,
    "batch_size": 2_000,
    "batch_bytes": 1 << 20,
    "linger": 0.002,
    "buffer_bytes": 16 << 20,
    "timeout": 10.0,
    "exactly_once": None,
    "name": None,
    "on_error": None,
}


class RedisSink(ServerSink):
    """Writes the commands that a :class:`Commands` makes of the values.

    At least once, as soon as it can; or exactly once, at each checkpoint (``exactly_once``).

    Counters: ``written`` values (those whose commands the server has answered), ``errors``
    (values that did not fit and commands that were refused), ``retries`` of pipelines.
    A sink for another command is this class with a :class:`Commands` of its own.
    """

    is_transactional = False

    def __init__(self, commands: Commands, **options: Unpack[RedisOptions]) -> None:
        unknown = set(options) - set(_DEFAULTS)
        if unknown:
            raise ConfigurationError(
                f"{type(self).__name__} has no option {sorted(unknown)[0]!r}; "
                f"options of all Redis sinks: {', '.join(_DEFAULTS)}"
            )
        self._options: RedisOptions = {**_DEFAULTS, **options}
        for name in ("batch_size", "batch_bytes", "buffer_bytes", "timeout"):
            if self._options[name] <= 0:
                raise ConfigurationError(f"{name} must be more than 0")
        self._commands = commands
        self.on_error = sink_policy(type(self).__name__, self._options["on_error"])
        self._app: Any = None
        self.written = 0
        self._link: Link | None = None
        self._channel: Channel | ClusterChannel | None = None
        self._ready = False
        # Made from values but not yet answered by the server; in order, before self._commands.
        self._unsent: list[Command] = []
        self._unsent_values = 0
        self._unsent_bytes = 0
        self._lock = asyncio.Lock()
        self._settling = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._sender: asyncio.Task[None] | None = None
        self._failures = Failures()
        self._exact: ExactWriter | None = None

    def __repr__(self) -> str:
        where = self._link.url if self._link else "not open"
        return f"<{type(self).__name__} {where} {self.state}>"

    @property
    def _server(self) -> Link | None:
        return self._link

    @property
    def _shares(self) -> ExactWriter | None:
        return self._exact

    @property
    def pending(self) -> int:
        """Values accepted and not yet written."""
        if self._exact is not None:
            return self._exact.pending
        return self._commands.count + self._unsent_values

    @property
    def pending_bytes(self) -> int:
        """About the bytes that the pending values take."""
        if self._exact is not None:
            return self._exact.pending_bytes
        return self._commands.size + self._unsent_bytes

    @property
    def is_full(self) -> bool:
        """True when so much waits that streams should wait for a checkpoint."""
        return self.pending_bytes >= self._options["buffer_bytes"]

    @property
    def name(self) -> str:
        """What an exactly-once sink keeps its offsets under."""
        return self._options["name"] or self._commands.name

    # -- life -----------------------------------------------------------------------------

    async def open(self, app: Any) -> None:
        """Connect and check login and server; a server that is away is waited for later.

        Raises :class:`ConfigurationError` when there is no URL, the login is refused or the
        server lacks what the sink needs.
        """
        if self._link is not None:
            return
        url = self._options["url"] or getattr(app, "redis_url", None)
        if not url:
            raise ConfigurationError(
                f"{type(self).__name__} has no Redis URL; give the app one, "
                'App(..., redis="redis://localhost:6379/0"), or the sink: url="redis://..."'
            )
        self._app = app
        self._link = share_link(
            self, app, url, cluster=self._options["cluster"], timeout=self._options["timeout"]
        )
        try:
            if self._is_exact(app):
                self._open_exactly(app, url, self._link)
            else:
                self._channel = self._link.channel()
            await self._link.attempt(self._get_ready)
        except SinkUnavailable as error:
            self._link.is_away(self, error, self.pending)
        except ConnectionRefused as error:
            await self.close()
            raise ConfigurationError(str(error)) from None
        except BaseException:
            await self.close()
            raise

    def _is_exact(self, app: Any) -> bool:
        wanted = self._options["exactly_once"]
        return bool(getattr(app, "exactly_once", False)) if wanted is None else wanted

    def _open_exactly(self, app: Any, url: str, link: Link) -> None:
        app_id = getattr(getattr(app, "conf", None), "id", None)
        if not app_id:
            raise ConfigurationError(
                f"{type(self).__name__}(exactly_once=True) needs an App: its checkpoints write"
            )
        if link.is_cluster and (stray := stray_key(self._commands)) is not None:
            raise ConfigurationError(
                f"{type(self).__name__} with the key {stray.text!r} can't write exactly once to a "
                "Redis Cluster: all keys of a source partition must be in one slot. Give them its "
                f"hash tag: '{{{{p{{partition}}}}}}:{stray.text}', or set exactly_once=False"
            )
        reserve_name(self, app, url, self.name)
        self._exact = ExactWriter(self, link, self._commands, prefix=(app_id, self.name))
        self.is_transactional = True

    async def close(self) -> None:
        """Release the connection; what is not flushed stays unwritten."""
        self._cancel_timer()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])
            self._sender = None
        link, channel = self._link, self._channel
        self._link = self._channel = None
        self._ready = False
        exact, self._exact = self._exact, None
        self.is_transactional = False
        if exact is not None:
            await exact.close()
        if channel is not None:
            await channel.close()
        if link is not None:
            await release_link(self, link)

    async def check(self) -> str:
        """Return the server's version and address, or raise :class:`SinkError`."""
        link = self._opened()
        info = await link.attempt(lambda: link.client.info("server"))
        if not self.pending:
            link.is_back(self, 0)
        return f"Redis {info['redis_version']} at {link.url} answers"

    async def _get_ready(self) -> None:
        """Check the server at the first contact."""
        link = self._opened()
        await self._prepare(link.client)
        if self._exact is not None:
            await warn_of_eviction(link)
        self._ready = True

    async def _get_ready_late(self) -> None:
        """Check a server that was away in ``open``; what is wrong stops a flush, not a start."""
        try:
            await self._get_ready()
        except ConfigurationError as error:
            raise SinkError(str(error)) from error

    async def _prepare(self, client: Any) -> None:
        """Check that the server has what this sink needs; subclasses add to it."""
        await client.ping()

    # -- writing --------------------------------------------------------------------------

    async def write(self, values: Sequence[Any]) -> None:
        """Accept values: Records, dicts, (key, value) pairs or a Batch; wait while full.

        Raises :class:`SinkError` for values that don't fit the sink (a missing field, a type
        that Redis has no form for); the others of the run are accepted all the same. A sink
        that an agent writes to is opened by its first write.
        """
        if self._link is None:
            await open_in_agent(self)
        place = current_place.get()
        partition = None if place is None or place.partition < 0 else place.partition
        run = Run.of(values, partition)
        if self._exact is None:
            misfits = await self._accept(run)
        else:
            misfits = self._exact.accept(self, place, run)
        self._tell(misfits)

    async def _accept(self, run: Run) -> list[SinkError]:
        misfits: list[SinkError] = []
        begin = 0
        for part in run.slices(_SLICE):
            while self.pending_bytes >= self._options["buffer_bytes"]:
                await self._send_pending()
            for error in self._commands.add(part):
                error.row = begin + (error.row or 0)
                misfits.append(error)
            begin += len(part.values)
            self._schedule()
        return misfits

    # -- exactly once ---------------------------------------------------------------------

    async def commit(self, positions: Mapping[int, Mapping[str, int]]) -> None:
        """Write what was cut with the positions it goes up to; waits while Redis is away.

        Raises:
            Fenced: Another worker has claimed a partition since, or Redis has lost the claim
                or earlier writes.
            SinkError: Redis refused commands (a key of another type, say), and ``on_error``
                is ``stop``. The others are applied, and the positions too.
        """
        self._sharing()
        exact = self._exact
        assert exact is not None
        try:
            if not self._ready:
                await self._opened().persist(self, self._get_ready_late, lambda: self.pending)
            await exact.commit(positions)
        finally:
            self.written = exact.written
        if exact.failures.count:
            failures, exact.failures = exact.failures, Failures()
            self.errors += failures.count
            await self._settle(failures)
            # The offsets of what was refused are committed next.
            await self._app.producer.flush()

    # -- at least once --------------------------------------------------------------------

    async def flush(self) -> None:
        """Return when all that was accepted is written and answered by the server.

        Waits while Redis is away. What the server refused since the last flush (a key of
        another type, say; the other commands are applied) goes the way of ``on_error``.

        Raises:
            SinkError: That is ``stop``; or the server refuses the login (everything is kept
                for the next flush).
        """
        self._opened()
        if self._exact is not None:
            if self.pending:
                raise SinkError(f"{type(self).__name__} is exactly_once: checkpoints write it")
            return
        failures = self._failures
        await self._send_pending()
        if failures.count:
            if self._failures is failures:
                self._failures = Failures()
            await self._settle(failures)

    async def _settle(self, failures: Failures) -> None:
        error = failures.error("commands were refused")
        where = f"{type(self).__name__} {self._opened().url}"
        async with self._settling:  # by the first of those who wait for it
            await settle(self._app, where, self.on_error, failures.refusals, error)
            failures.refusals.clear()

    def _schedule(self) -> None:
        """Start sending now if a limit is reached, else within the linger time."""
        if self._sender is not None or not self._commands.count:
            return
        full = (
            self._commands.count >= self._options["batch_size"]
            or self._commands.size >= self._options["batch_bytes"]
        )
        if full:
            self._start_sender()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._options["linger"], self._start_sender)

    def _start_sender(self) -> None:
        self._cancel_timer()
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_while_pending())

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _send_while_pending(self) -> None:
        try:
            while self._commands.count:
                await self._send_pending()
        except SinkError as error:
            # Nothing is lost: what could not be sent is kept, and the next flush meets the
            # same refusal and raises it to whoever waits.
            log.debug("sending is put off to the next flush: %s", error)
        finally:
            self._sender = None

    async def _send_pending(self) -> None:
        """Write all that is accepted by now, in order."""
        async with self._lock:
            self._cancel_timer()
            await self._send_unsent()  # left by a send that was cancelled or refused
            self._unsent_values = self._commands.count
            self._unsent_bytes = self._commands.size
            self._unsent = self._commands.take()
            await self._send_unsent()

    async def _send_unsent(self) -> None:
        link = self._opened()
        bytes_each = self._unsent_bytes / max(len(self._unsent), 1)
        fitting = int(self._options["batch_bytes"] / max(bytes_each, 1.0))
        size = max(1, min(self._options["batch_size"], fitting))
        while self._unsent:
            await link.persist(self, lambda: self._send_some(size), lambda: self.pending)
        self.written += self._unsent_values
        self._unsent_values = self._unsent_bytes = 0

    async def _send_some(self, size: int) -> None:
        """Send one pipeline off the front of the unsent commands."""
        channel = self._channel
        if channel is None:
            raise SinkError(f"{self!r} was closed while writing")
        if not self._ready:
            await self._get_ready_late()
        some = self._unsent[:size]
        errors = await channel.request(some)
        if not errors:
            del self._unsent[:size]
            return
        again, reason = self._sort_out(some, errors)
        self._unsent[:size] = again
        if again:
            await channel.close()  # a new connection may find the server that writes now
            raise SinkUnavailable(f"Redis at {self._opened().url} refuses writes: {reason}")

    def _sort_out(self, some: list[Command], errors: dict[int, str]) -> tuple[list[Command], str]:
        """Keep refused commands as failures; return those to send again, and why."""
        reason = ""
        keys = set()
        again = []
        for index, command in enumerate(some):
            error = errors.get(index)
            key = key_of(command)
            if error is not None and (mended := self._mend(command, error)):
                again.append(mended)
            elif error is not None and not is_passing(error):
                self.errors += 1
                self._failures.add(explain(command, error), command)
                continue
            elif error is None and key not in keys:
                continue
            else:
                # With one command of a key all later ones go again, to keep their order.
                again.append(command)
            keys.add(key)
            reason = reason or error or ""
        return again, reason

    def _mend(self, command: Command, error: str) -> Command | None:
        """Return the command that works where ``command`` met ``error``, if there is one."""
        return None

    def _opened(self) -> Link:
        if self._link is None:
            raise SinkError(f"{type(self).__name__} is not open: await app.open_sink(sink)")
        return self._link
