"""RedisWriter: results to Redis in plain synchronous Python."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Iterable, Mapping
from time import monotonic
from types import TracebackType
from typing import Any

from streamproc.checkpoint import waiting_writers
from streamproc.errors import ConfigurationError, SinkError, SinkUnavailable
from streamproc.sinks.channel import SyncChannel
from streamproc.sinks.redis.collection_commands import HashCommands, StreamCommands
from streamproc.sinks.redis.link import is_passing, shown_url
from streamproc.sinks.redis.resp import Command
from streamproc.sinks.redis.values import Run, field_names

logger = logging.getLogger(__name__)

#: Longest time that a record waits for its batch to fill while others come, in seconds.
FLUSH_INTERVAL = 0.5
#: Records kept while Redis is away; further ones are refused.
MAX_WAITING = 100_000
_REDIS_KEYS = ("host", "port", "db", "username", "password")


class RedisWriter:
    """Writes records to Redis.

    With ``key`` each record becomes a Redis hash of its own: the template names fields of
    the record, as in ``RedisWriter(url, key="stats:{sensor_id}")``. Without, records are
    appended to the Redis stream ``stream``, where nothing is lost and others can follow
    (``XREAD``). A value that is no dict or Record goes under the name "value".

    By default each record is in Redis when ``publish_data`` returns. With ``batch_size``
    records are sent together, which is several times faster: when there are enough, at
    least twice a second while records come, on ``flush`` and ``close``, at the end of the
    program, and before a :class:`~streamproc.KafkaReader` commits or waits.

    While Redis is away ``publish_data`` raises, the record is kept, and the reader waits
    until it is written.

    Args:
        url: "redis://host:port/db", "host:port", or a mapping with host, port, db,
            username and password.
        key: Template of the hash's key.
        stream: Name of the Redis stream used without ``key``.
        max_length: About how many entries the stream keeps; None keeps all.
        batch_size: Records sent together.

    Raises:
        ConfigurationError: The URL is wrong or Redis refused the login.
        SinkUnavailable: Redis isn't there.
    """

    def __init__(
        self,
        url: str | Mapping[str, Any] = "redis://localhost:6379/0",
        *,
        key: str | None = None,
        stream: str = "records",
        max_length: int | None = None,
        batch_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1, not {batch_size}")
        self._channel = _channel(url)
        if key is None:
            self._commands: Any = StreamCommands(stream, max_length=max_length)
        else:
            self._commands = HashCommands(key)
        self._batch_size = batch_size
        self._unsent: list[Command] = []  # what Redis didn't take yet, before _commands
        self._waiting = 0
        self._flush_due = 0.0
        self._lock = threading.RLock()
        #: Records that Redis has.
        self.written = 0
        self._check()

    def _check(self) -> None:
        try:
            self._channel.request([("PING",)])
        except SinkUnavailable as exc:
            raise SinkUnavailable(
                f"{exc}. Start it (redis-server), or check the address"
            ) from exc.__cause__

    def publish_data(self, data: Any) -> None:
        """Write one record: a dict, a Record, or a single value.

        Raises:
            SinkUnavailable: Redis is away; the record is kept for the next try, unless
                very many wait already.
            SinkError: Redis refused it, or a field of the key isn't in it.
        """
        self.publish_many((data,))

    def publish_many(self, records: Iterable[Any]) -> None:
        """Write several records together; see :meth:`publish_data`.

        Those that can be written are, even if one raises.
        """
        run = Run([_as_record(record) for record in records])
        with self._lock:
            if self._waiting >= MAX_WAITING:
                self._send()
            errors = self._commands.add(run)
            if not self._waiting:
                self._flush_due = monotonic() + FLUSH_INTERVAL
                waiting_writers.add(self)
            self._waiting += len(run.values) - len(errors)
            if self._waiting >= self._batch_size or monotonic() >= self._flush_due:
                self._send()
        if errors:
            raise errors[0]

    def flush(self) -> None:
        """Return when all records are in Redis; raises like :meth:`publish_data`."""
        with self._lock:
            self._send()

    def _send(self) -> None:
        if self._commands.count:
            self._unsent += self._commands.take()
        if not self._unsent:
            waiting_writers.discard(self)
            return
        commands = self._unsent
        try:
            errors = self._channel.request(commands)
        except SinkUnavailable:
            waiting_writers.stalled = True
            raise
        later = [commands[index] for index, reply in errors.items() if is_passing(reply)]
        refused = [reply for reply in errors.values() if not is_passing(reply)]
        self._unsent = later
        self.written += self._waiting - len(errors)
        self._waiting = len(later)
        if later:
            waiting_writers.stalled = True
            reply = next(filter(is_passing, errors.values()))
            raise SinkUnavailable(f"Redis at {self._channel.shown} is away: {reply}")
        waiting_writers.discard(self)
        if refused:
            raise SinkError(
                f"Redis at {self._channel.shown} refused {len(refused)} of {len(commands)} "
                f"commands: {refused[0]}"
            )

    def close(self) -> None:
        """Write what waits and disconnect; raises like :meth:`publish_data`."""
        try:
            self.flush()
        finally:
            waiting_writers.discard(self)
            self._channel.close()

    def __enter__(self) -> RedisWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@atexit.register
def _flush_at_exit() -> None:
    for writer in list(waiting_writers):
        try:
            writer.flush()
        except SinkError as exc:
            logger.error("Records are not in Redis: %s", exc)


def _as_record(data: Any) -> Any:
    # A dict with no field in it is not a value: the sink says what is wrong with it.
    return data if isinstance(data, Mapping) or field_names(data) else {"value": data}


def _channel(url: str | Mapping[str, Any]) -> SyncChannel:
    if isinstance(url, str):
        full = url if "://" in url else f"redis://{url}"
        shown = shown_url(full)
        if full.startswith(("redis+cluster://", "rediss+cluster://")):
            raise ConfigurationError(
                f"RedisWriter does not write to clusters ({shown}); use a sink of "
                "streamproc.sinks in an agent"
            )
        return SyncChannel(shown, full, {})
    unknown = sorted(set(url) - set(_REDIS_KEYS))
    if unknown:
        raise ConfigurationError(
            f"redis: {unknown[0]!r} is not known; there are {', '.join(_REDIS_KEYS)}"
        )
    options = {"host": "localhost", "port": 6379, **url}
    return SyncChannel(f"{options['host']}:{options['port']}", None, options)
