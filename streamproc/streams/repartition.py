"""The topic between two parts of a flow, where records get the partition of a new key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Header with the partition that a record comes from; by it the next part keeps a watermark
#: for each of them, so that a partition read faster doesn't make another one's records late.
UPSTREAM_HEADER = "upstream"


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
        head = ((UPSTREAM_HEADER, str(partition_from).encode()),)
        await self.topic.send_batch(
            values, keys=keys, timestamps=timestamps, headers=[head] * len(values)
        )
