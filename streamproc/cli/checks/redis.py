"""Checks of Redis: reachable, login, version, whether data outlives a restart, its clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import redis
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from streamproc.cli.checks.check import Check, fault, ok, warning
from streamproc.settings import Settings, without_password

_OLDEST = (6, 0)


def check_redis(settings: Settings, timeout: float = 3.0) -> Iterator[Check]:
    """Check the Redis of the settings."""
    url = settings.redis_url
    if url is None:
        yield ok("redis", "none is set")
        return
    place = without_password(url).rpartition("@")[2].rpartition("://")[2]
    options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    client = redis.Redis.from_url(
        url.replace("+cluster://", "://"), decode_responses=True, retry=None, **options
    )
    with client:
        try:
            before = time.time()
            seconds, micros = client.time()
            skew = seconds + micros / 1e6 - (before + time.time()) / 2
            info = client.info()
        except RedisError as exc:
            yield _failure(place, exc)
            return
        yield from _check_server(place, client, info)
        yield _clock(skew)


def _failure(place: str, exc: RedisError) -> Check:
    """Tell what is wrong by how it failed; order matters, some types derive from others."""
    reason = str(exc)
    if isinstance(exc, AuthenticationError | AuthorizationError) or reason.startswith(
        ("NOAUTH", "WRONGPASS")
    ):
        return fault(
            "redis",
            f"Redis at {place} refused the login: {reason}",
            "Set STREAMPROC_REDIS_PASSWORD (in the environment or .env) to its password; a user "
            "name goes into the URL: redis://user@host:6379/0.",
        )
    if isinstance(exc, TimeoutError):
        return fault(
            "redis",
            f"{place} doesn't answer as Redis: {reason}",
            "Check that the port is Redis' (6379 by default), not another program's, and that "
            "no firewall is between.",
        )
    if isinstance(exc, ConnectionError) and "refused" in reason:
        return fault(
            "redis",
            f"Redis isn't running at {place}: connection refused",
            "Start it (redis-server, or docker compose up redis), or set STREAMPROC_REDIS to the "
            "URL of one that runs.",
        )
    if isinstance(exc, ConnectionError) and "closed" not in reason.lower():
        return fault(
            "redis",
            f"Redis at {place} can't be reached: {reason}",
            "Check host and port in STREAMPROC_REDIS (or `redis` in config.yaml).",
        )
    if isinstance(exc, ResponseError) and "DB index" in reason:
        return fault("redis", f"{place}: {reason}", "Use database 0 to 15 in the URL.")
    return fault(
        "redis",
        f"{place} isn't Redis, or not a Redis we may use: {type(exc).__name__}: {reason}",
        "Check the port in STREAMPROC_REDIS: Redis' is 6379 by default.",
    )


def _check_server(place: str, client: Any, info: dict[str, Any]) -> Iterator[Check]:
    version = str(info.get("redis_version", "unknown"))
    finding = f"Redis {version} at {place}, {info.get('used_memory_human', '?')} in use"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < _OLDEST:
        yield warning("redis", finding, "Use Redis 6 or newer: some sinks need its commands.")
    else:
        yield ok("redis", finding)
    yield _persistence(client, info)
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if info.get("maxmemory") and policy != "noeviction":
        yield warning(
            "redis memory",
            f"keys are evicted ({policy}) when {info['maxmemory_human']} are in use",
            "Set maxmemory-policy noeviction where results must not disappear.",
        )


def _persistence(client: Any, info: dict[str, Any]) -> Check:
    subject = "redis persistence"
    if info.get("loading"):
        return warning(subject, "Redis is still loading its data", "Wait until it has.")
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status") == "err":
            return fault(subject, "the append-only file can't be written", "Check Redis' disk.")
        return ok(subject, "append-only file (AOF)")
    if info.get("rdb_last_bgsave_status") == "err":
        return fault(subject, "the last snapshot (RDB) failed", "Check Redis' disk and its log.")
    try:
        rule = client.config_get("save").get("save", "")
    except RedisError:
        return ok(subject, "not known (CONFIG isn't allowed here)")
    if rule:
        return warning(
            subject,
            f"snapshots only (RDB, save {rule}): a crash loses what came after the last",
            "Set appendonly yes where acknowledged results must outlive a crash.",
        )
    return warning(
        subject,
        "none: a restart of Redis loses all results",
        "Set appendonly yes, unless Redis is only a cache here.",
    )


def _clock(skew: float) -> Check:
    finding = f"{abs(skew):.2f} s {'ahead of' if skew > 0 else 'behind'} this machine"
    if abs(skew) > 2:
        return fault(
            "clock",
            f"Redis' clock is {finding}",
            "Keep clocks by NTP (timedatectl set-ntp true): time-outs and windows go by them.",
        )
    return ok("clock", f"Redis' is {finding}")
