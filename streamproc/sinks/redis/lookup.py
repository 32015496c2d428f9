"""Look-ups in Redis for ``flow.enrich()``: all keys of a batch in one pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from streamproc.errors import ConfigurationError, DecodeError
from streamproc.records.codecs import get_codec
from streamproc.sinks.redis.link import Link, release_link, share_link

Kind = Literal["hash", "string"]


class RedisLookUp:
    """Finds hashes or strings by key; see :func:`redis_lookup`."""

    def __init__(
        self, key: str, kind: str, value_type: Any, url: str | None, cluster: bool, timeout: float
    ) -> None:
        try:
            if "{key" not in key:
                raise LookupError
            key.format(key="")
        except (LookupError, ValueError, AttributeError):
            raise ConfigurationError(
                f'{key!r} is no template of a key to look up, such as "sensor:{{key}}"'
            ) from None
        if kind not in ("hash", "string"):
            raise ConfigurationError(f'kind={kind!r}: there are "hash" and "string"')
        self._template = key
        self._command = "HGETALL" if kind == "hash" else "GET"
        self._read = _hash_reader(value_type) if kind == "hash" else _string_reader(value_type)
        self._url = url
        self._cluster = cluster
        self._timeout = timeout
        self._link: Link | None = None

    async def open(self, app: Any) -> None:
        """Take the app's Redis URL, unless there is one of its own.

        Raises:
            ConfigurationError: There is none.
        """
        url = self._url or getattr(app, "redis_url", None)
        if not url:
            raise ConfigurationError(
                "redis_lookup() has no Redis URL; give the app one, App(..., redis=...), or url=..."
            )
        if self._link is None:
            self._link = share_link(self, app, url, cluster=self._cluster, timeout=self._timeout)

    async def close(self) -> None:
        """Give up the connection."""
        link, self._link = self._link, None
        if link is not None:
            await release_link(self, link)

    async def __call__(self, keys: Sequence[Any]) -> list[Any]:
        """Return what Redis has of each key; None where it has nothing.

        What isn't of the value type is an error in the place of the value.
        """
        assert self._link is not None, "open it first"
        pipeline = self._link.client.pipeline(transaction=False)
        for key in keys:
            pipeline.execute_command(self._command, self._template.format(key=_text(key)))
        replies = await self._link.attempt(pipeline.execute)
        return [self._value(reply) if reply else None for reply in replies]

    def _value(self, reply: Any) -> Any:
        try:
            return self._read(reply)
        except (DecodeError, msgspec.ValidationError) as exc:
            return exc


def redis_lookup(
    key: str,
    kind: Kind = "hash",
    *,
    value_type: Any = None,
    url: str | None = None,
    cluster: bool = False,
    timeout: float = 10.0,
) -> RedisLookUp:
    """Return a look-up in Redis, pipelined, for ``flow.enrich()``.

    Args:
        key: Template of the Redis key, ``"sensor:{key}"``.
        kind: "hash" (HGETALL, a dict of text) or "string" (GET).
        value_type: What to make of it: a Record, of the fields of a hash or the JSON in a
            string. A string is text without it.
        url: Redis URL; the app's if None.
        cluster: Whether that is a Redis Cluster.
        timeout: Seconds without an answer after which the connection counts as lost.

    Raises:
        ConfigurationError: The template or kind isn't one.
    """
    return RedisLookUp(key, kind, value_type, url, cluster, timeout)


def _text(key: Any) -> Any:
    return key.decode() if isinstance(key, bytes) else key


def _hash_reader(value_type: Any) -> Callable[[Any], Any]:
    def read(reply: Any) -> dict[str, str]:
        # A cluster's client gives a dict, a pipeline's raw reply is a list.
        pairs = reply.items() if isinstance(reply, dict) else zip(*[iter(reply)] * 2, strict=True)
        return {name.decode(): value.decode("utf-8", "replace") for name, value in pairs}

    if value_type is None:
        return read
    return lambda reply: msgspec.convert(read(reply), value_type, strict=False)


def _string_reader(value_type: Any) -> Callable[[Any], Any]:
    if value_type is None:
        return lambda reply: reply.decode("utf-8", "replace")
    return get_codec("json").decoder(value_type)
