"""Topics for development: made when they aren't there, and kept however old their data is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError

from streamproc.errors import BrokerUnavailable, ConfigurationError
from streamproc.kafka.refusal import find_refusal
from streamproc.kafka.security import NO_SECURITY

_TOPIC_ALREADY_EXISTS = 36
# Retention goes by record timestamps: a replay of last year's data would vanish at once.
_CONFIG = {"retention.ms": "-1"}


async def create_topics(
    bootstrap: str,
    names: Iterable[str],
    partitions: int = 4,
    security: Mapping[str, Any] = NO_SECURITY,
) -> list[str]:
    """Create those topics that don't exist, and return their names when all can be used.

    Args:
        bootstrap: "host:port,host:port".
        names: Names of topics.
        partitions: Of each topic.
        security: Arguments of aiokafka's clients about login and TLS.

    Raises:
        BrokerUnavailable: No broker answers at ``bootstrap``.
        ConfigurationError: A broker refuses us: its login, TLS...
        ValueError: A name or a number of partitions that the broker refuses.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **security)
    try:
        await admin.start()
    except KafkaConnectionError as exc:
        await admin.close()
        if refusal := await find_refusal(bootstrap, security):
            raise ConfigurationError(f"{refusal}.") from exc
        raise BrokerUnavailable(f"No Kafka broker answers at {bootstrap}.") from exc
    try:
        missing = sorted(set(names) - set(await admin.list_topics()))
        if missing:
            await _create(admin, missing, partitions)
        # A broker answers before all of it knows the topic, and nothing tells when it does.
        while not set(missing) <= set(await admin.list_topics()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    finally:
        await admin.close()
    return missing


async def _create(admin: Any, names: list[str], partitions: int) -> None:
    topics = [NewTopic(name, partitions, 1, topic_configs=_CONFIG) for name in names]
    reply = await admin.create_topics(topics)
    for name, code, *reason in reply.topic_errors:
        if code not in (0, _TOPIC_ALREADY_EXISTS):
            raise ValueError(f"Topic {name!r} could not be created: error {code} {reason}")
