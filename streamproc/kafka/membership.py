"""What the broker last said about this worker: is it a member, and where do partitions end?

Read from the worker's own thread, while aiokafka writes it in the consumer's. Checked
against aiokafka 0.14.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from time import monotonic
from typing import Any, NamedTuple

from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.structs import TopicPartition
from faust.types import TP

#: First and longest pause, in seconds, between two tries to commit offsets.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


class Span(NamedTuple):
    """The offset that is fetched next, and where what may be read ends."""

    position: int
    end: int


class Heartbeats:
    """When the group was last told, and confirmed, that this worker is alive.

    aiokafka keeps that time to itself. It counts from the sending of the heartbeat: the
    broker's session time-out begins no earlier.
    """

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._last: float | None = None
        beat, start_beating = coordinator._do_heartbeat, coordinator._start_heartbeat_task

        async def do_heartbeat() -> bool:
            sent = monotonic()
            confirmed: bool = await beat()
            if confirmed:
                self._last = sent
            return confirmed

        def start_heartbeat_task() -> None:
            # The group has just taken the worker in.
            self._last = monotonic()
            start_beating()

        coordinator._do_heartbeat = do_heartbeat
        coordinator._start_heartbeat_task = start_heartbeat_task

    @property
    def age(self) -> float | None:
        """Seconds since then; None while this worker is no member of its group."""
        if self._last is None or self._coordinator.generation < 0:
            return None
        return monotonic() - self._last


def span_of(consumer: Any, tp: TP) -> Span | None:
    """Return what is known of an assigned partition; None before its first fetch."""
    subscription = consumer._subscription.subscription
    assignment = subscription and subscription.assignment
    state = assignment and assignment.state_value(TopicPartition(*tp))
    if not state or not state.has_valid_position or state.highwater is None:
        return None
    end = state.highwater
    if consumer._isolation_level == "read_committed" and state.lso is not None:
        # Records of a transaction that is open can't be read yet.
        end = min(end, state.lso)
    return Span(state.position, end)


def has_leader(consumer: Any, tp: TP) -> bool:
    """True when the partition has a leader, and this worker a connection to it."""
    client = consumer._client
    leader = client.cluster.leader_for_partition(TopicPartition(*tp))
    return any(
        node == leader and connection.connected()
        for (node, _), connection in list(client._conns.items())
    )


async def commit(consumer: Any, offsets: Mapping[Any, Any], timeout: float) -> None:
    """Commit offsets; after errors that pass try again, for ``timeout`` seconds at most.

    aiokafka's own ``commit`` tries for ever, at a fixed pace.

    Raises:
        CommitFailedError: The group has rebalanced.
        IllegalStateError: The partitions are not assigned.
        KafkaError: What else the broker said last.
        asyncio.TimeoutError: It said nothing in that time.
    """
    subscription = consumer._subscription.subscription
    assignment = subscription and subscription.assignment
    if not assignment or not assignment.tps.issuperset(offsets):
        raise IllegalStateError("The partitions are not assigned")
    deadline = monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        trial = _try_to_commit(consumer._coordinator, assignment, offsets)
        try:
            await asyncio.wait_for(trial, deadline - monotonic())
            return
        except (IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError) as exc:
            raise CommitFailedError(str(exc)) from exc
        except KafkaError as exc:
            # Workers that met the same error should not come back all at once.
            wait = pause * random.uniform(0.5, 1.0)
            if not exc.retriable or monotonic() + wait >= deadline:
                raise
            await asyncio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)


async def _try_to_commit(coordinator: Any, assignment: Any, offsets: Mapping[Any, Any]) -> None:
    await coordinator.ensure_coordinator_known()
    async with coordinator._commit_lock:
        # Sent is sent: whoever gives up waiting leaves the connection in order.
        await asyncio.shield(coordinator._do_commit_offsets(assignment, offsets))
