"""What sinks with a server have in common: how it is, and what checkpoints want of them."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from streamproc.errors import SinkError
from streamproc.sinks.base import TransactionalSink
from streamproc.sinks.circuit import Circuit
from streamproc.sinks.redis.failures import Failures
from streamproc.sinks.shares import ShareWriter


class Server(Protocol):
    """What a sink knows of its server's state."""

    retries: int
    circuit: Circuit

    @property
    def state(self) -> str:
        """The state: "connected" or "away"."""


class ServerSink(TransactionalSink):
    """A sink with a server, and with shares when it is transactional.

    Attributes:
        errors: Values that did not fit, and what the server refused.
    """

    errors = 0

    @property
    @abc.abstractmethod
    def _server(self) -> Server | None:
        """The server, if the sink is open."""

    @property
    @abc.abstractmethod
    def _shares(self) -> ShareWriter | None:
        """What it keeps of source partitions, if it is open and transactional."""

    @property
    def state(self) -> str:
        """The server's state: "connected", or "away" (also before ``open``)."""
        return self._server.state if self._server else "away"

    @property
    def circuit(self) -> str:
        """Whether requests reach the server: "closed" (they do), "open" or "half-open"."""
        return self._server.circuit.state if self._server else "closed"

    @property
    def retries(self) -> int:
        """Attempts that had to be repeated, by all sinks that share the server."""
        return self._server.retries if self._server else 0

    def _tell(self, misfits: Sequence[SinkError]) -> None:
        """Raise an error that tells of the values that don't fit, if there are some."""
        if not misfits:
            return
        self.errors += len(misfits)
        failures = Failures()
        for error in misfits:
            failures.add(str(error))
        refusal = failures.error("values do not fit")
        refusal.misfits = misfits
        raise refusal

    # -- as a transactional sink

    @property
    def results_id(self) -> str:  # type: ignore[override]
        """Stands for its results: what it is called, and where its server is."""
        return self._shares.results_id if self._shares is not None else ""

    @property
    def claimed(self) -> Mapping[int, Mapping[str, int]]:  # type: ignore[override]
        """By partition, the offset of each reader up to which the server has results."""
        return self._shares.claimed if self._shares is not None else {}

    @property
    def has_taken(self) -> bool:
        """True when ``take()`` has cut something that isn't committed."""
        return self._shares is not None and self._shares.has_taken

    async def claim(self, partitions: Collection[Any]) -> Mapping[int, Mapping[str, int]]:
        """Own the results of source partitions from now on; waits while the server is away."""
        return await self._sharing().claim(partitions)

    def take(self, left_out: Collection[int] = ()) -> None:
        """Cut: what was accepted until now belongs to the checkpoint that begins."""
        self._sharing().take(left_out)

    def discard(self) -> None:
        """Drop what isn't committed: its records are processed again."""
        self._sharing().discard()

    def _sharing(self) -> ShareWriter:
        if self._server is None:
            raise SinkError(f"{type(self).__name__} is not open: await app.open_sink(sink)")
        if self._shares is None:
            raise SinkError(f"{type(self).__name__} isn't exactly_once")
        return self._shares
