"""Redis sinks: commands, wire protocol, link to the server, and a class for each kind."""

from streamproc.sinks.redis.kinds import (
    RedisCounter,
    RedisHash,
    RedisHyperLogLog,
    RedisJSON,
    RedisList,
    RedisPublish,
    RedisScript,
    RedisSet,
    RedisSortedSet,
    RedisStream,
    RedisString,
    RedisTimeSeries,
)
from streamproc.sinks.redis.lookup import redis_lookup
from streamproc.sinks.redis.sink import RedisOptions, RedisSink

__all__ = [
    "RedisCounter",
    "RedisHash",
    "RedisHyperLogLog",
    "RedisJSON",
    "RedisList",
    "RedisOptions",
    "RedisPublish",
    "RedisScript",
    "RedisSet",
    "RedisSink",
    "RedisSortedSet",
    "RedisStream",
    "RedisString",
    "RedisTimeSeries",
    "redis_lookup",
]
