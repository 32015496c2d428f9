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

A :class:`TransactionalSink` brings them there exactly once: it keeps, in the server and in
the same atomic write as the results, the source offsets that they go up to.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from streamproc.streams.policies import Policy
from streamproc.tables.place import Place


class Sink(abc.ABC):
    """Base class of all sinks; see the module's text for the contract.

    Attributes:
        is_transactional: True when the checkpoint is to treat it as a
            :class:`TransactionalSink`; known once the sink is open.
        on_error: What becomes of values that don't fit it, and of what its server refuses for
            good: ``dead_letter``, ``skip`` or ``stop``. None: they are dead letters.
    """

    is_transactional = False
    on_error: Policy | None = None

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


class TransactionalSink(Sink):
    """A sink whose server has results and source offsets in one atomic write.

    Between checkpoints it only buffers. At a checkpoint, ``take()`` cuts the buffer while
    no record is in hand, and ``commit()`` writes what was cut, for each source partition by
    itself, together with the offsets of its readers ("topic@agent"). Records that are
    processed again after a crash make their results again, which ``write()`` drops: the
    server has them. A worker that lost its partitions without knowing is refused, since its
    successor has claimed them.
    """

    is_transactional = True
    #: Stands for its results in the group's offsets, by which a server is noticed that has lost
    #: them all: a short word that no other sink has. Empty: that isn't noticed.
    results_id: str = ""
    #: By partition, the offset of each reader up to which the server has results.
    claimed: Mapping[int, Mapping[str, int]] = {}

    @property
    @abc.abstractmethod
    def is_full(self) -> bool:
        """True when so much waits for a checkpoint that streams should wait for it too."""

    @abc.abstractmethod
    async def claim(self, partitions: Collection[Any]) -> Mapping[int, Mapping[str, int]]:
        """Own the results of source ``partitions`` (TPs) from now on; set ``claimed``.

        Called for all partitions of the worker at every assignment, before records flow.
        Returns ``claimed``. Waits while the server is away.
        """

    @property
    @abc.abstractmethod
    def has_taken(self) -> bool:
        """True when ``take()`` has cut something that isn't committed."""

    @abc.abstractmethod
    def take(self, left_out: Collection[int] = ()) -> None:
        """Cut: what was accepted until now belongs to the checkpoint that begins.

        Args:
            left_out: Partitions that are left to the next checkpoint.
        """

    @abc.abstractmethod
    async def commit(self, positions: Mapping[int, Mapping[str, int]]) -> None:
        """Write what ``take()`` cut with the ``positions`` that it goes up to.

        Waits while the server is away.

        Raises:
            Fenced: Another worker has claimed a partition since, or the server has lost
                the claim.
            SinkError: The server refused results for good.
        """

    @abc.abstractmethod
    def discard(self) -> None:
        """Drop what isn't committed: its records are processed again."""

    def is_replay(self, place: Place) -> bool:
        """True when the server has the results of the record in hand at ``place``."""
        known = self.claimed.get(place.partition)
        source = place.source() if known else None
        return source is not None and source[1] < (known or {}).get(source[0], 0)
