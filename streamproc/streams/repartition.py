"""The topic between two parts of a flow, where records get the partition of a new key.

Keys are in it as they are in other topics (text as it is), so that equal keys have equal
partitions; a header tells what a key was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamproc.kafka.fetch import Headers
from streamproc.records.codecs import untyped_exact

#: Header with the partition that a record comes from; by it the next part keeps a watermark
#: for each of them, so that a partition read faster doesn't make another one's records late.
UPSTREAM_HEADER = "upstream"
#: Header of a record whose key isn't text.
KEY_HEADER = "key"


class Repartition:
    """Sends records to a topic by their key, with where they come from."""

    def __init__(self, topic: Any) -> None:
        self.topic = topic

    async def send_batch(
        self,
        values: Sequence[Any],
        keys: Sequence[Any],
        timestamps: Sequence[int],
        partition_from: int,
    ) -> None:
        """Send records; see :meth:`streamproc.streams.topic.Topic.send_batch`."""
        head: Headers = ((UPSTREAM_HEADER, str(partition_from).encode()),)
        heads = {kind: _head(head, kind) for kind in set(map(type, keys))}
        await self.topic.send_batch(
            values,
            keys=keys,
            timestamps=timestamps,
            headers=[heads[type(key)] for key in keys],
        )


def _head(head: Headers, kind: type) -> Headers:
    if kind is str:
        return head
    return (*head, (KEY_HEADER, b"bytes" if kind is bytes else b"json"))


def upstream_of(headers: Sequence[Headers]) -> list[int]:
    """Return the partitions that records come from."""
    return [int(head[0][1]) if head else 0 for head in headers]


def keys_of(keys: Sequence[bytes | None], headers: Sequence[Headers]) -> list[Any]:
    """Return keys as they were before they were sent."""
    return [
        None if key is None else _READERS[head[1][1] if len(head) > 1 else b""](key)
        for key, head in zip(keys, headers, strict=True)
    ]


def _json(raw: bytes) -> Any:
    return _hashable(untyped_exact(raw))


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if isinstance(key, list) else key


_READERS: dict[bytes, Callable[[bytes], Any]] = {b"": bytes.decode, b"bytes": bytes, b"json": _json}
