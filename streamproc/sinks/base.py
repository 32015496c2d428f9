"""The contract of a sink, in prose and as a class.

A sink takes values and brings them to a system outside Kafka, at least once:

- ``open(app)`` is called once on the worker's event loop before the first write.
- ``await write(values)`` accepts a run of values in order. It may keep them in a
  buffer, and waits (back-pressure) while the buffer is full or the server away.
- ``await flush()`` returns only when all that was accepted is durable in the
  server. Source offsets are committed after it, never before. While the server is
  away it waits and retries; it raises only what retrying cannot mend.
- ``await close()`` flushes nothing; whoever wants the data flushes first.
- ``await check()`` says in one line whether the server answers, or raises.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any


class Sink(abc.ABC):
    """Base class of all sinks; see the module's text for the contract."""

    async def open(self, app: Any) -> None:  # noqa: B027
        """Connect and get ready; ``app`` gives defaults such as the Redis URL."""

    @abc.abstractmethod
    async def write(self, values: Sequence[Any]) -> None:
        """Accept ``values`` in order; wait while there is no room for them."""

    @abc.abstractmethod
    async def flush(self) -> None:
        """Return when everything accepted so far is durable."""

    async def close(self) -> None:  # noqa: B027
        """Release connections."""

    @abc.abstractmethod
    async def check(self) -> str:
        """Return one line on the server's state, or raise :class:`~streamproc.errors.SinkError`."""
