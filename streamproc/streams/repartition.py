"""The topic between two parts of a flow, where records get the partition of a new key."""

from __future__ import annotations

from typing import Any

from streamproc.streams.rows import Rows
from streamproc.streams.steps import Task

#: Header with the partition that a record comes from; by it the next part keeps a watermark
#: for each of them, so that a partition read faster doesn't make another one's records late.
UPSTREAM_HEADER = "upstream"


class Repartition:
    """Sends rows to a topic by their key, with where they come from."""

    def __init__(self, topic: Any) -> None:
        self.topic = topic

    def __call__(self, value: Any) -> Any:
        raise NotImplementedError

    async def send_rows(self, rows: Rows, task: Task) -> None:
        """Send rows; see :meth:`streamproc.streams.topic.Topic.send_batch`."""
        head = ((UPSTREAM_HEADER, str(task.partition).encode()),)
        await self.topic.send_batch(
            rows.values, keys=rows.keys, timestamps=rows.times, headers=[head] * len(rows)
        )
