"""Making window specifications, with durations as people write them.

All durations are timedeltas, numbers of seconds, or texts such as "10s", "500ms" or "1h30m".
The options that all kinds take are documented at
:class:`~streamproc.windows.spec.WindowSpec`.
"""

from __future__ import annotations

from typing import Any

from streamproc.records.durations import Duration, duration
from streamproc.windows.spec import Emit, Hopping, Session, Sliding, Time, Tumbling


def tumbling(
    size: Duration,
    *,
    offset: Duration = 0,
    grace: Duration = 0,
    emit: Emit = "final",
    time: Time = "event",
    out_of_orderness: Duration = 0,
    idle_timeout: Duration | None = "10s",
    late: Any = None,
) -> Tumbling:
    """Return windows of ``size``, one after the other.

    Args:
        size: Length of a window.
        offset: Shifts where windows begin (from multiples of size since 1970, UTC); may be
            negative.
        grace: How long after its end a window still takes records.
        emit: "final" (one result, at the end) or "updates".
        time: "event" or "processing".
        out_of_orderness: How far out of order records are expected to be.
        idle_timeout: After how much silence time goes on without records; None: never.
        late: What becomes of late records: None, "dead-letter", a callback or a topic.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return Tumbling(
        size=duration(size),
        offset=duration(offset, signed=True),
        grace=duration(grace),
        emit=emit,
        time=time,
        out_of_orderness=duration(out_of_orderness),
        idle_timeout=None if idle_timeout is None else duration(idle_timeout),
        late=late,
    )


def hopping(
    size: Duration,
    step: Duration,
    *,
    offset: Duration = 0,
    grace: Duration = 0,
    emit: Emit = "final",
    time: Time = "event",
    out_of_orderness: Duration = 0,
    idle_timeout: Duration | None = "10s",
    late: Any = None,
) -> Hopping:
    """Return windows of ``size`` that begin every ``step``.

    Args:
        size: Length of a window.
        step: From the beginning of a window to that of the next; at most ``size``.
        offset: Shifts where windows begin (from multiples of step since 1970, UTC); may be
            negative.
        grace: How long after its end a window still takes records.
        emit: "final" (one result, at the end) or "updates".
        time: "event" or "processing".
        out_of_orderness: How far out of order records are expected to be.
        idle_timeout: After how much silence time goes on without records; None: never.
        late: What becomes of late records: None, "dead-letter", a callback or a topic.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return Hopping(
        size=duration(size),
        step=duration(step),
        offset=duration(offset, signed=True),
        grace=duration(grace),
        emit=emit,
        time=time,
        out_of_orderness=duration(out_of_orderness),
        idle_timeout=None if idle_timeout is None else duration(idle_timeout),
        late=late,
    )


def sliding(
    size: Duration,
    *,
    grace: Duration = 0,
    emit: Emit = "final",
    time: Time = "event",
    out_of_orderness: Duration = 0,
    idle_timeout: Duration | None = "10s",
    late: Any = None,
) -> Sliding:
    """Return, for each key and distinct event time t, the window (t - size, t].

    Args:
        size: Length of a window.
        grace: How long after its end a window still takes records.
        emit: "final" (one result, at the end) or "updates".
        time: "event" or "processing".
        out_of_orderness: How far out of order records are expected to be.
        idle_timeout: After how much silence time goes on without records; None: never.
        late: What becomes of late records: None, "dead-letter", a callback or a topic.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return Sliding(
        size=duration(size),
        grace=duration(grace),
        emit=emit,
        time=time,
        out_of_orderness=duration(out_of_orderness),
        idle_timeout=None if idle_timeout is None else duration(idle_timeout),
        late=late,
    )


def session(
    gap: Duration,
    *,
    max_length: Duration | None = None,
    grace: Duration = 0,
    emit: Emit = "final",
    time: Time = "event",
    out_of_orderness: Duration = 0,
    idle_timeout: Duration | None = "10s",
    late: Any = None,
) -> Session:
    """Return, for each key, windows of records less than ``gap`` apart.

    Args:
        gap: The silence that ends a session.
        max_length: Bound for the length of a window, its gap included; None: no bound.
        grace: How long after its end a window still takes records.
        emit: "final" (one result, at the end) or "updates".
        time: "event" or "processing".
        out_of_orderness: How far out of order records are expected to be.
        idle_timeout: After how much silence time goes on without records; None: never.
        late: What becomes of late records: None, "dead-letter", a callback or a topic.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return Session(
        gap=duration(gap),
        max_length=None if max_length is None else duration(max_length),
        grace=duration(grace),
        emit=emit,
        time=time,
        out_of_orderness=duration(out_of_orderness),
        idle_timeout=None if idle_timeout is None else duration(idle_timeout),
        late=late,
    )
