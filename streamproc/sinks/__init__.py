"""Sinks: what brings results to systems outside Kafka."""

from streamproc.sinks.base import Sink, TransactionalSink
from streamproc.sinks.postgres import PostgresSink
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
    "PostgresSink",
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
    "TransactionalSink",
    "redis_lookup",
]
