"""Which topic a name stands for: one that was deleted and made anew has another id (KIP-516).

aiokafka asks for metadata without ids. Checked against aiokafka 0.14.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from aiokafka.errors import IncompatibleBrokerVersion, NodeNotReadyError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

_NULL_ID = (0, 0)
_64_BITS = (1 << 64) - 1


class MetadataResponse_v10(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("id_high", Int64),
                ("id_low", Int64),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class MetadataRequest_v10(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = MetadataResponse_v10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("id_high", Int64),
                ("id_low", Int64),
                ("topic", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicIdRequest(Request[MetadataRequest_v10]):  # type: ignore[misc]
    """Metadata of topics, with their ids."""

    API_KEY = 3

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[MetadataRequest_v10]) -> MetadataRequest_v10:
        topics: list[Any] = [(*_NULL_ID, topic, {}) for topic in self._topics]
        return request_struct_class(topics, False, False, False, {})


async def fetch_topic_ids(client: Any, topics: Collection[str]) -> dict[str, str]:
    """Return the ids of topics; nothing of a topic that isn't there, or if the broker has none.

    Raises:
        KafkaError: The broker doesn't answer.
    """
    node = client.get_random_node()
    if node is None:
        raise NodeNotReadyError("No broker is known")
    try:
        response = await client.send(node, TopicIdRequest(topics))
    except (NotImplementedError, IncompatibleBrokerVersion):
        return {}
    return {
        topic: f"{high & _64_BITS:016x}{low & _64_BITS:016x}"
        for error, topic, high, low, *_ in response.topics
        if not error and (high, low) != _NULL_ID
    }
