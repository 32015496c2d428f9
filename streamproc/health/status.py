"""What a worker says of itself: is it alive, is it ready, and if not, why.

Everything is read when asked, from what the worker knows: nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from faust.exceptions import ConsumerNotStarted
from faust.types import TP

from streamproc.health.sinks import SinkProbe
from streamproc.health.stalls import Stall, StallWatch

#: Seconds, beside three commit intervals, that offsets may wait before a worker is unready.
CHECKPOINT_GRACE = 10.0
#: Part of ``stall_timeout`` after which a worker is unready.
UNREADY_AT = 0.5


class Check(NamedTuple):
    """One of the things that a ready worker needs; ``reason`` is None if it has it."""

    name: str
    reason: str | None

    @property
    def ok(self) -> bool:
        return self.reason is None


class Health:
    """The health of a worker; ``app.health``.

    Attributes:
        gave_up: Why the worker ends itself, or None.
        stopping: The worker has been told to stop.
        sinks: Knows which sinks' servers are away.
    """

    def __init__(
        self, app: Any, *, stall_timeout: float | None = None, ready_max_lag: int | None = None
    ) -> None:
        self._app = app
        self.stall_timeout = stall_timeout
        self.ready_max_lag = ready_max_lag
        self.gave_up: str | None = None
        self.stopping = False
        self.sinks = SinkProbe(app)
        self._watch = StallWatch(app)

    # -- the answers

    @property
    def live(self) -> bool:
        """False when the worker has given itself up: it should be started anew."""
        return self.gave_up is None

    @property
    def ready(self) -> bool:
        """True when the worker does its part of the group's work."""
        return all(check.ok for check in self.checks())

    @property
    def reasons(self) -> list[str]:
        """Why the worker isn't ready, each in words."""
        return [f"{check.name}: {check.reason}" for check in self.checks() if not check.ok]

    def checks(self) -> list[Check]:
        """Check all that a ready worker needs; what has not been started isn't looked at."""
        if not self.started:
            return [Check("worker", _worker(self))]
        self.look()
        return [Check(name, check(self)) for name, check in _CHECKS.items()]

    # -- what is going on

    @property
    def started(self) -> bool:
        """True when everything of the worker has been started; the group may be on its way."""
        return bool(self._app.tables.started)

    @property
    def reads(self) -> bool:
        """True when there are topics to be read."""
        return len(self._app.topics) > 0

    @property
    def assignment(self) -> set[TP]:
        """The partitions that this worker has, those of changelogs included."""
        try:
            return set(self._app.consumer.assignment())
        except ConsumerNotStarted:
            return set()

    @property
    def is_settled(self) -> bool:
        """True when partitions are assigned, tables recovered, and records flow."""
        return bool(self._app.tables.recovery.completed.is_set() and not self._app.rebalancing)

    @property
    def missing_outputs(self) -> set[str]:
        """Topics that something is sent to, and that don't exist."""
        return set(self._app.consumer.missing_outputs)

    @property
    def heartbeat_age(self) -> float | None:
        """Seconds since the group confirmed this worker; None: it is no member."""
        age: float | None = self._app.consumer.heartbeat_age
        return age

    @property
    def is_member(self) -> bool:
        """False when the group may have given the partitions to others."""
        age = self.heartbeat_age
        return age is not None and age <= self._app.conf.broker_session_timeout

    @property
    def progress_age(self) -> float | None:
        """Seconds since a record was last finished; None: not yet."""
        return self._since(self._watch.last_progress)

    @property
    def checkpoint_age(self) -> float | None:
        """Seconds since offsets were last committed; None: not yet."""
        return self._since(self._watch.last_checkpoint)

    def _since(self, time: float | None) -> float | None:
        return None if time is None else self._watch.now - time

    def lag(self) -> dict[TP, int | None]:
        """Return how many offsets of each partition that is read are not done; None: unknown."""
        app = self._app
        if not self.started:
            return {}
        changelogs = app.tables.changelog_topics
        read = {tp for tp in self.assignment if tp.topic not in changelogs}
        return {tp: self.lag_of(tp) for tp in sorted(read) if app.topics.is_read(tp)}

    def lag_of(self, tp: TP) -> int | None:
        """Return how many offsets of a partition are not done, by the last fetch of it."""
        app = self._app
        span = app.consumer.span(tp)
        if span is None:
            return None
        undone = [each.undone() for each in app.topics.progress(tp)]
        position = min([span.position, *(each for each in undone if each is not None)])
        return max(0, int(span.end) - int(position))

    # -- stalls

    def look(self) -> None:
        """See whether things go on. The watchdog of a worker does so each second."""
        if self.started and not self.stopping:
            # Waiting for a server that is away, or for a topic, is right.
            self._watch.look(
                excused=bool(self.sinks.away or self.missing_outputs) or not self.is_member
            )

    def forgive(self, seconds: float) -> None:
        """Don't count some seconds: the process stood still, and not its work."""
        self._watch.forgive(seconds)

    @property
    def stall(self) -> Stall | None:
        """What has stood still for ``stall_timeout`` and ends the worker, or None."""
        return self._stalled(1.0)

    @property
    def warning(self) -> Stall | None:
        """What has stood still for so long that the worker isn't ready, or None."""
        return self._stalled(UNREADY_AT)

    def _stalled(self, part: float) -> Stall | None:
        if self.stall_timeout is None:
            return None
        limit = part * self.stall_timeout
        stall = self._watch.longest("hand", "queue", "recovery")
        if stall and stall.seconds >= limit:
            return stall
        stall = self._watch.longest("checkpoint")
        interval = self._app.conf.broker_commit_interval
        return stall if stall and stall.seconds >= limit + interval else None


# -- the checks; each returns what is wrong, or None


def _worker(health: Health) -> str | None:
    if health.gave_up is not None:
        return health.gave_up
    if health.stopping or health._app.should_stop:
        return "the worker is stopping"
    return None if health.started else "the worker is starting"


def _group(health: Health) -> str | None:
    if not health.reads or health.is_member:
        return None
    age = health.heartbeat_age
    if age is None:
        return "the worker is not, or no longer, a member of its group"
    return (
        f"Kafka has not answered for {age:.0f} s, so the group may have given the partitions to "
        "others"
    )


def _partitions(health: Health) -> str | None:
    if health._app.rebalancing:
        return "a rebalance is going on"
    if health.reads and not health.assignment and not health.is_settled:
        return "no partitions were assigned yet"
    return None


def _tables(health: Health) -> str | None:
    if health.is_settled or not health.assignment:
        return None
    return "tables are being recovered" if health._app.tables else "partitions are being taken over"


def _topics(health: Health) -> str | None:
    return (
        "; ".join(
            f"topic {name!r} doesn't exist, and what is sent to it waits"
            for name in sorted(health.missing_outputs)
        )
        or None
    )


def _lag(health: Health) -> str | None:
    lag = health.lag()
    unknown = [tp for tp, records in lag.items() if records is None]
    if unknown:
        return f"not known yet for {_places(unknown)}"
    most = health.ready_max_lag
    total = sum(records or 0 for records in lag.values())
    if most is not None and total > most:
        return f"{total} records wait; ready_max_lag is {most}"
    return None


def _sinks(health: Health) -> str | None:
    # Sinks share servers.
    return "; ".join(dict.fromkeys(health.sinks.away.values())) or None


def _checkpoint(health: Health) -> str | None:
    stall = health._watch.longest("checkpoint")
    limit = 3 * health._app.conf.broker_commit_interval + CHECKPOINT_GRACE
    return str(stall) if stall and stall.seconds > limit else None


def _progress(health: Health) -> str | None:
    return str(health.warning) if health.warning else None


def _places(tps: list[TP]) -> str:
    shown = ", ".join(f"{tp.topic}/{tp.partition}" for tp in tps[:5])
    return shown + (f" and {len(tps) - 5} more" if len(tps) > 5 else "")


_CHECKS: dict[str, Callable[[Health], str | None]] = {
    "worker": _worker,
    "group": _group,
    "partitions": _partitions,
    "tables": _tables,
    "topics": _topics,
    "lag": _lag,
    "sinks": _sinks,
    "checkpoint": _checkpoint,
    "progress": _progress,
}
