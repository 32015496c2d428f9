"""RedisWriter: results to Redis in plain synchronous Python."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import msgspec
import redis

from streamproc.checkpoint import open_writers
from streamproc.errors import ConfigurationError, SinkError, SinkUnavailable
from streamproc.sinks.redis.collection_commands import HashCommands, StreamCommands
from streamproc.sinks.redis.link import shown_url
from streamproc.sinks.redis.values import Run


class RedisWriter:
    """Writes records to Redis.

    With ``key`` each record becomes a Redis hash of its own: the template names fields of
    the record, as in ``RedisWriter(url, key="stats:{sensor_id}")``. Without, records are
    appended to the Redis stream ``stream``, where nothing is lost and others can follow.

    By default each record is in Redis when ``publish_data`` returns. With ``batch_size``
    records are sent together, which is several times faster: when there are enough, on
    ``flush`` and ``close``, and before a :class:`~streamproc.KafkaReader` commits or waits.

    Args:
        url: "redis://host:port/db", or a mapping with host, port, db and password.
        key: Template of the hash's key.
        stream: Name of the Redis stream used without ``key``.
        max_length: About how many entries the stream keeps; None keeps all.
        batch_size: Records sent together.

    Raises:
        ConfigurationError: The URL is wrong or Redis refused the password.
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
        self._url, self._client = _connect(url)
        if key is None:
            self._commands: Any = StreamCommands(stream, max_length=max_length)
        else:
            self._commands = HashCommands(key)
        self._batch_size = batch_size
        self._waiting: list[Any] = []
        self._lock = threading.Lock()
        #: Records that Redis has.
        self.written = 0
        self._check()
        open_writers.add(self)

    def _check(self) -> None:
        try:
            self._client.ping()
        except redis.AuthenticationError as exc:
            raise ConfigurationError(
                f"Redis at {self._url} refused the login: {exc}. Put the password into the URL "
                "(redis://:PASSWORD@host:port/0) or the environment."
            ) from exc
        except redis.ConnectionError as exc:
            raise SinkUnavailable(
                f"Redis at {self._url} isn't there: {exc}. Start it (redis-server), or check the "
                "address."
            ) from exc

    def publish_data(self, data: Any) -> None:
        """Write one record: a dict, a Record, or a single value.

        Raises:
            SinkUnavailable: Redis is away; the record is kept for the next try.
            SinkError: Redis refused it, or a field of the key isn't in it.
        """
        self.publish_many((data,))

    def publish_many(self, records: Iterable[Any]) -> None:
        """Write several records; see :meth:`publish_data`."""
        with self._lock:
            self._waiting.extend(map(_as_record, records))
            if len(self._waiting) >= self._batch_size:
                self._send()

    def flush(self) -> None:
        """Return when all records are in Redis."""
        with self._lock:
            self._send()

    def _send(self) -> None:
        if not self._waiting:
            return
        errors = self._commands.add(Run.of(self._waiting))
        commands = self._commands.take()
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            replies = pipeline.execute(raise_on_error=False)
        except (redis.ConnectionError, redis.TimeoutError) as exc:
            raise SinkUnavailable(f"Redis at {self._url} is away: {exc}") from exc
        count = len(self._waiting)
        self._waiting.clear()
        refused = [reply for reply in replies if isinstance(reply, redis.RedisError)]
        self.written += count - len(errors) - len(refused)
        if errors:
            raise errors[0]
        if refused:
            raise SinkError(f"Redis at {self._url} refused a record: {refused[0]}")

    def close(self) -> None:
        """Write what waits and disconnect."""
        open_writers.discard(self)
        self.flush()
        self._client.close()

    def __enter__(self) -> RedisWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _as_record(data: Any) -> Any:
    if isinstance(data, (Mapping, msgspec.Struct)) or hasattr(data, "asdict"):
        return data
    return {"value": data}


def _connect(url: str | Mapping[str, Any]) -> tuple[str, Any]:
    if isinstance(url, str):
        try:
            return shown_url(url), redis.Redis.from_url(url, socket_connect_timeout=5)
        except ValueError as exc:
            raise ConfigurationError(
                f"{shown_url(url)} is not a Redis URL; write redis://host:port/0 ({exc})"
            ) from exc
    known = {"host", "port", "db", "password", "username"}
    unknown = sorted(set(url) - known)
    if unknown:
        raise ConfigurationError(
            f"redis: {unknown[0]!r} is not known; there are {', '.join(sorted(known))}"
        )
    host, port = url.get("host", "localhost"), int(url.get("port", 6379))
    options = {name: url[name] for name in ("db", "password", "username") if name in url}
    return f"{host}:{port}", redis.Redis(host=host, port=port, socket_connect_timeout=5, **options)
