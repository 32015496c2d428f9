"""Finding out that records wait and nothing is done with them.

A look compares what is done with what was done at the look before. Four things can stand
still: records that agents have in hand, records that wait for a reader, offsets that wait
to be committed, and the recovery of tables. It is remembered since when each does. An agent
that fails and tries again, as its error policy says, doesn't stand still.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple


class Waiting(NamedTuple):
    """Something that should go on.

    Attributes:
        kind: "hand", "queue", "checkpoint" or "recovery".
        where: Topic and partition, or the name of a reader.
    """

    kind: str
    where: str


class Stall(NamedTuple):
    """Something that has not gone on for some seconds."""

    what: Waiting
    seconds: float

    def __str__(self) -> str:
        return _REASONS[self.what.kind].format(where=self.what.where, seconds=self.seconds)


_REASONS = {
    "hand": "no record of {where} was finished for {seconds:.0f} s, and an agent has some in hand",
    "queue": "records wait, and {where} has finished none for {seconds:.0f} s",
    "checkpoint": "{where} has been waiting for a commit for {seconds:.0f} s",
    "recovery": "the rebalance or the recovery of tables has stood still for {seconds:.0f} s",
}


class StallWatch:
    """Knows since when things stand still; is to look about once a second."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._seen: dict[Waiting, tuple[object, float]] = {}
        self._done: dict[Any, int] = {}
        self._committed: dict[Any, int] = {}
        #: When, in the loop's time, a record was last finished and offsets last committed.
        self.last_progress: float | None = None
        self.last_checkpoint: float | None = None

    @property
    def now(self) -> float:
        """The loop's time, which is virtual in a test driver."""
        return float(self._app.loop.time())

    def look(self, *, excused: bool) -> None:
        """Compare with the look before.

        Args:
            excused: There is a good reason to wait, so the time counts from now.
        """
        now = self.now
        consumer = self._app.consumer
        done = self._app.topics.committable()
        committed = {tp: consumer.committed_offset(tp) or 0 for tp in done}
        began = {tp: offset for tp in done if (offset := consumer.began(tp)) is not None}
        if _is_further(done, self._done, began):
            self.last_progress = now
        if _is_further(committed, self._committed, began):
            self.last_checkpoint = now
        self._done, self._committed = done, committed
        seen = {} if excused else self._seen
        self._seen = {}
        for what, state in self._states().items():
            known = seen.get(what)
            self._seen[what] = known if known and known[0] == state else (state, now)

    def longest(self, *kinds: str) -> Stall | None:
        """Return what has stood still for longest, of the given kinds or all."""
        seen = {what: since for what, (_, since) in self._seen.items() if what.kind in kinds}
        if not seen:
            return None
        what = min(seen, key=lambda each: seen[each])
        return Stall(what, self.now - seen[what])

    def forgive(self, seconds: float) -> None:
        """Don't count some seconds: the process stood still, and not its work."""
        self._seen = {what: (state, at + seconds) for what, (state, at) in self._seen.items()}

    def _states(self) -> dict[Waiting, object]:
        """Return how far each thing is that should go on."""
        if self._app.health.is_settled:
            return {**self._records(), **self._checkpoints()}
        return self._recovery() if self._app.health.assignment else {}

    def _records(self) -> dict[Waiting, object]:
        health, failures = self._app.health, self._app.failures
        states: dict[Waiting, object] = {}
        positions: dict[str, list[int | None]] = defaultdict(list)
        waiting = set()
        for progress in self._app.topics.progress():
            position = progress.committable()
            positions[progress.reader].append(position)
            tp = progress.tp
            if failures.is_pausing(progress.reader):
                continue
            if not progress.idle:
                what = Waiting("hand", f"{progress.reader}, partition {tp.partition},")
                states[what] = (position, failures.counts[progress.reader])
            elif progress.has_backlog or (health.lag_of(tp) and self._app.consumer.has_leader(tp)):
                waiting.add(progress.reader)
        for reader in waiting:
            states[Waiting("queue", reader)] = (positions[reader], failures.counts[reader])
        return states

    def _checkpoints(self) -> dict[Waiting, object]:
        return {
            Waiting("checkpoint", f"{tp.topic}/{tp.partition}"): self._committed[tp]
            for tp, offset in self._done.items()
            if offset > self._committed[tp]
        }

    def _recovery(self) -> dict[Waiting, object]:
        app = self._app
        far = (app.rebalancing_count, app.consumer_generation_id)
        return {Waiting("recovery", ""): (far, app.tables.recovery.reader.positions())}


def _is_further(
    offsets: Mapping[Any, int], before: Mapping[Any, int], began: Mapping[Any, int]
) -> bool:
    """Return whether an offset has grown; since reading began, if it wasn't known before."""
    starts = {**began, **before}
    return any(offset > starts.get(tp, offset) for tp, offset in offsets.items())
