"""Checks of ``streamproc doctor``: Redis, and this machine's clock against its."""

from __future__ import annotations

import time
from typing import Any

import redis
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from streamproc.cli.findings import Finding, fault, note, ok
from streamproc.errors import ConfigurationError
from streamproc.records.secrets import mask
from streamproc.settings import Settings
from streamproc.sinks.redis.tls import check_files, tls_fault

_TIMEOUT = 3.0
#: Seconds that clocks may differ.
_CLOCK = 2.0


def check_redis(settings: Settings) -> list[Finding]:
    """Check that Redis can be used, keeps its data, and has our time."""
    if settings.redis is None or settings.redis_url is None:
        return [note("redis", "no Redis is set", "Set `redis` when agents have Redis sinks.")]
    place = mask(settings.redis)
    url = settings.redis_url.replace("+cluster", "", 1)
    try:
        check_files(url)
    except ConfigurationError as exc:
        return [fault("redis", str(exc), "Correct the setting that it names.")]
    with redis.Redis.from_url(
        url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT, decode_responses=True
    ) as client:
        if problem := _problem(client, place):
            return [problem]
        try:
            info: dict[str, Any] = client.info()
            clock = _clock(client)
        except NoPermissionError as exc:
            advice = "Allow the user INFO and TIME, and CONFIG GET, to have more looked at."
            return [note("redis", f"Redis answers at {place}, but doesn't tell all: {exc}", advice)]
        answers = ok("redis", f"Redis {info.get('redis_version', '?')} answers at {place}")
        return [answers, _persistence(client, info), _eviction(info), clock]


def _problem(client: redis.Redis, place: str) -> Finding | None:
    try:
        client.ping()
    except (AuthenticationError, AuthorizationError, NoPermissionError) as exc:
        return _refused(place, exc)
    except (InvalidResponse, UnicodeDecodeError):
        return _wrong_port(place)
    except ResponseError as exc:
        return _refused(place, exc)
    except redis.exceptions.TimeoutError:
        return fault(
            "redis",
            f"{place} doesn't answer within {_TIMEOUT:g} s",
            "It hangs, a firewall drops the packets, or it is no Redis: check the address.",
        )
    except (RedisError, OSError) as exc:
        if tls := tls_fault(str(exc)):
            return fault("redis", f"{place} {tls.problem} ({exc})", f"To mend it, {tls.advice}.")
        if "closed by server" in str(exc):
            return _wrong_port(place)
        return fault(
            "redis",
            f"Redis not running at {place} ({exc})",
            "Start redis-server, or set redis (STREAMPROC_REDIS) to where it runs. "
            "`streamproc dev` brings a Redis of its own.",
        )
    return None


def _refused(place: str, exc: Exception) -> Finding:
    return fault(
        "redis",
        f"login refused by Redis at {place}: {exc}",
        "Set STREAMPROC_REDIS_PASSWORD, and STREAMPROC_REDIS_USERNAME where it has users, in "
        "the environment or in .env.",
    )


def _wrong_port(place: str) -> Finding:
    return fault(
        "redis",
        f"wrong port: what answers at {place} is no Redis",
        "Set redis (STREAMPROC_REDIS) to the server's own port, usually 6379; if it speaks TLS, "
        "write rediss:// or set redis_tls (STREAMPROC_REDIS_TLS).",
    )


def _persistence(client: redis.Redis, info: dict[str, Any]) -> Finding:
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        advice = "Look at Redis' log: usually its disk is full or not writable."
        return fault("redis persistence", "the last snapshot failed", advice)
    if info.get("aof_enabled"):
        return ok("redis persistence", "append-only file")
    try:
        saves = client.config_get("save").get("save", "")
    except ResponseError:
        return ok("redis persistence", "snapshots, as far as can be seen (CONFIG is not allowed)")
    if saves:
        return note(
            "redis persistence",
            "snapshots only: a crash of Redis loses what came after the last one",
            "Where that matters: appendonly yes in redis.conf.",
        )
    return note(
        "redis persistence",
        "none: a restart of Redis loses everything in it",
        "Where that matters: appendonly yes in redis.conf.",
    )


def _eviction(info: dict[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction" or not info.get("maxmemory"):
        return ok("redis memory", f"{info.get('used_memory_human', '?')} used, nothing is evicted")
    return note(
        "redis memory",
        f"keys are evicted ({policy}) at {info.get('maxmemory_human')}: results may vanish",
        "Where that matters: maxmemory-policy noeviction in redis.conf.",
    )


def _clock(client: redis.Redis) -> Finding:
    before = time.time()
    seconds, microseconds = client.time()
    ours = (before + time.time()) / 2
    difference = ours - (seconds + microseconds / 1e6)
    if abs(difference) <= _CLOCK:
        return ok("clock", f"{abs(difference):.1f} s from that of Redis")
    return fault(
        "clock",
        f"{abs(difference):.0f} s {'ahead of' if difference > 0 else 'behind'} that of Redis",
        "Set both machines' clocks by NTP: timestamps and expiry times go by them.",
    )
