"""Sinks: what brings results to systems outside Kafka."""

from streamproc.sinks.base import Sink
from streamproc.sinks.redis import (
    RedisCounter,
    RedisHash,
    RedisHyperLogLog,
    RedisJSON,
    RedisList,
    RedisPublish,
    RedisScript,
    RedisSet,
    RedisSink,
    RedisSortedSet,
    RedisStream,
    RedisString,
    RedisTimeSeries,
    redis_lookup,
)

__all__ = [
    "RedisCounter",
    "RedisHash",
    "RedisHyperLogLog",
    "RedisJSON",
    "RedisList",
    "RedisPublish",
    "RedisScript",
    "RedisSet",
    "RedisSink",
    "RedisSortedSet",
    "RedisStream",
    "RedisString",
    "RedisTimeSeries",
    "Sink",
    "redis_lookup",
]
