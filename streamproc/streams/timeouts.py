"""Time limits of agents: one that waits too long with the same records in hand is cancelled.

Agents are looked at now and then, so that a record costs nothing. Time counts while the event
loop runs: neither a worker that stood still nor a sink whose server is away makes agents late.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from streamproc.errors import AgentTimeout

#: Looks at an agent in the time that it has.
LOOKS = 10


class Seen(NamedTuple):
    """What an actor had in hand, and for how many looks."""

    hand: Any
    looks: int


class TimeLimit:
    """Cancels the actors of an agent that have the same records in hand for too long.

    Args:
        agent: The agent.
        seconds: How long is too long; up to a tenth more passes.
    """

    def __init__(self, agent: Any, seconds: float) -> None:
        self.agent = agent
        self.seconds = seconds
        self._seen: WeakKeyDictionary[Any, Seen] = WeakKeyDictionary()
        self._cancelled: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    async def run(self) -> None:
        """Look at the actors until the agent stops."""
        while not self.agent.should_stop:
            await asyncio.sleep(self.seconds / LOOKS)
            waits_for_sink = self._waits_for_sink()
            for aref in list(self.agent._actors):
                self._look(aref, waits_for_sink)

    def _waits_for_sink(self) -> bool:
        sinks = self.agent.app._sinks
        return any(getattr(sink, "state", "connected") == "away" for sink in sinks)

    def _look(self, aref: Any, waits_for_sink: bool) -> None:
        hand = getattr(aref.stream.get_active_stream(), "in_hand", None)
        seen = self._seen.get(aref)
        if hand is None or seen is None or seen.hand != hand or waits_for_sink:
            self._seen[aref] = Seen(hand, 0)
            return
        self._seen[aref] = Seen(hand, seen.looks + 1)
        if seen.looks + 1 == LOOKS:
            self._cancelled[aref] = hand
            aref.actor_task.cancel()

    def error_of(self, aref: Any, cancelled: BaseException) -> AgentTimeout | None:
        """Return why an actor was cancelled, if it was for being late."""
        hand = self._cancelled.pop(aref, None)
        if hand is None or hand != aref.stream.get_active_stream().in_hand:
            return None
        uncancel = getattr(aref.actor_task, "uncancel", None)
        if uncancel is not None:  # from Python 3.11 on
            uncancel()
        _, delivery, row = hand
        tp = delivery.progress.tp
        error = AgentTimeout(
            f"Agent {self.agent.name} had {tp.topic}/{tp.partition}@{delivery.offsets[row]} in "
            f"hand for more than {self.seconds:g} s"
        )
        # Where it waited.
        error.__cause__ = cancelled
        return error
