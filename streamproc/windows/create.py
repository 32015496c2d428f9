"""Making window specifications, with durations as people write them.

All durations are timedeltas, numbers of seconds, or texts such as "10s", "500ms" or "1h30m".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from streamproc.records.durations import Duration, duration
from streamproc.windows.spec import Emit, Hopping, Session, Sliding, Time, Tumbling

if TYPE_CHECKING:
    from typing_extensions import Unpack


class WindowOptions(TypedDict, total=False):
    """What all kinds of windows take.

    Attributes:
        grace: How long after its end a window still takes records.
        emit: "final" (one result, at the end; the default) or "updates".
        time: "event" (the default) or "processing".
        out_of_orderness: How far out of order records are expected to be.
        idle_timeout: After how much silence time goes on without records, "10s" if it isn't
            given; None: never.
        late: What becomes of late records: None, "dead-letter", a callback or a topic.
    """

    grace: Duration
    emit: Emit
    time: Time
    out_of_orderness: Duration
    idle_timeout: Duration | None
    late: Any


def _in_milliseconds(options: WindowOptions) -> dict[str, Any]:
    spec: dict[str, Any] = dict(options)
    for name in ("grace", "out_of_orderness", "idle_timeout"):
        if spec.get(name) is not None:
            spec[name] = duration(spec[name])
    return spec


def tumbling(size: Duration, *, offset: Duration = 0, **options: Unpack[WindowOptions]) -> Tumbling:
    """Return windows of ``size``, one after the other.

    Args:
        size: Length of a window.
        offset: Shifts where windows begin (from multiples of size since 1970, UTC); may be
            negative.
        **options: See :class:`WindowOptions`.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return Tumbling(
        size=duration(size), offset=duration(offset, signed=True), **_in_milliseconds(options)
    )


def hopping(
    size: Duration, step: Duration, *, offset: Duration = 0, **options: Unpack[WindowOptions]
) -> Hopping:
    """Return windows of ``size`` that begin every ``step``.

    Args:
        size: Length of a window.
        step: From the beginning of a window to that of the next; at most ``size``.
        offset: Shifts where windows begin (from multiples of step since 1970, UTC); may be
            negative.
        **options: See :class:`WindowOptions`.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return Hopping(
        size=duration(size),
        step=duration(step),
        offset=duration(offset, signed=True),
        **_in_milliseconds(options),
    )


def sliding(size: Duration, **options: Unpack[WindowOptions]) -> Sliding:
    """Return, for each key and distinct event time t, the window (t - size, t].

    Args:
        size: Length of a window.
        **options: See :class:`WindowOptions`.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return Sliding(size=duration(size), **_in_milliseconds(options))


def session(
    gap: Duration, *, max_length: Duration | None = None, **options: Unpack[WindowOptions]
) -> Session:
    """Return, for each key, windows of records less than ``gap`` apart.

    Args:
        gap: The silence that ends a session.
        max_length: Bound for the length of a window, its gap included; None: no bound.
        **options: See :class:`WindowOptions`.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return Session(
        gap=duration(gap),
        max_length=None if max_length is None else duration(max_length),
        **_in_milliseconds(options),
    )
