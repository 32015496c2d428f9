"""Windows as Faust names and calculates them, in seconds, with exact bounds.

``[start, end)``: a record at ``end`` belongs to the next window. (Faust's own windows end
0.1 s before they do.)
"""

from __future__ import annotations

from typing import Any

from streamproc.errors import ConfigurationError
from streamproc.records.durations import Duration, duration
from streamproc.windows.spec import AlignedSpec, Hopping, Tumbling, WindowSpec

WindowRange = tuple[float, float]


class Window:
    """What the windows of a table have; all times are in seconds since 1970.

    Attributes:
        length: From start to end, in ms.
        grace: How long after its end a window takes records and is kept, in ms; None: for
            ever.
        spec: What else there is to know: out-of-orderness, idle time-out, whose time it is.
    """

    length: int
    grace: int | None
    spec: WindowSpec

    def starts(self, time: int) -> range:
        """Return the starts of the windows that a time belongs to, all in ms."""
        raise NotImplementedError

    @property
    def shape(self) -> str:
        """What stored windows depend on."""
        raise NotImplementedError

    @property
    def expires(self) -> float | None:
        """``grace`` in seconds."""
        return None if self.grace is None else self.grace / 1000

    def range_of(self, start: int) -> WindowRange:
        """Return the bounds of the window that starts at ``start`` (ms), in seconds."""
        return start / 1000, (start + self.length) / 1000

    def ranges(self, timestamp: float) -> list[WindowRange]:
        """Return the windows of a time, the earliest first."""
        return [self.range_of(start) for start in self.starts(_ms(timestamp))]

    def current(self, timestamp: float) -> WindowRange:
        """Return the last window of a time."""
        return self.range_of(self.starts(_ms(timestamp))[-1])

    def earliest(self, timestamp: float) -> WindowRange:
        """Return the first window of a time."""
        return self.range_of(self.starts(_ms(timestamp))[0])

    def delta(self, timestamp: float, d: Duration) -> WindowRange:
        """Return the last window of the time ``d`` before a time."""
        return self.range_of(self.starts(_ms(timestamp) - duration(d))[-1])

    def stale(self, timestamp: float, latest_timestamp: float) -> bool:
        """True when all windows of a time are closed once ``latest_timestamp`` is reached."""
        if self.grace is None:
            return False
        end = self.starts(_ms(timestamp))[-1] + self.length
        return end + self.grace <= _ms(latest_timestamp)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.shape}>"


def _ms(timestamp: float) -> int:
    return round(timestamp * 1000)


def _grace(expires: Duration | None) -> int | None:
    return None if expires is None else duration(expires)


class _Aligned(Window):
    spec: Any

    def starts(self, time: int) -> range:
        starts: range = self.spec.starts(time)
        return starts

    @property
    def step(self) -> float:
        """From the beginning of a window to that of the next, in seconds."""
        return getattr(self.spec, "step", self.length) / 1000

    @property
    def size(self) -> float:
        """Length of a window in seconds."""
        return self.length / 1000

    @property
    def shape(self) -> str:
        step = getattr(self.spec, "step", self.length)
        return f"size={self.length} step={step} offset={self.spec.offset}"


class HoppingWindow(_Aligned):
    """Windows of ``size`` that begin every ``step``.

    Args:
        size: Length (timedelta, seconds, "10s").
        step: From the beginning of a window to that of the next; at most ``size``.
        expires: How long after its end a window is kept, and takes records; None: for ever.

    Raises:
        ConfigurationError: A value is wrong.
    """

    def __init__(self, size: Duration, step: Duration, expires: Duration | None = None) -> None:
        self.spec = Hopping(size=duration(size), step=duration(step))
        self.length = self.spec.size
        self.grace = _grace(expires)


class TumblingWindow(_Aligned):
    """Windows of ``size``, one after the other; see :class:`HoppingWindow`."""

    def __init__(self, size: Duration, expires: Duration | None = None) -> None:
        self.spec = Tumbling(size=duration(size))
        self.length = self.spec.size
        self.grace = _grace(expires)


class SlidingWindow(Window):
    """For each event time t its own window, from ``before`` before it to ``after`` after it.

    A record changes the window of its own time only, as with Faust. For aggregations over
    all that a sliding window covers, use :func:`~streamproc.windows.sliding` with a stream.

    Raises:
        ConfigurationError: A value is wrong.
    """

    def __init__(self, before: Duration, after: Duration, expires: Duration | None) -> None:
        self._before, self._after = duration(before), duration(after)
        self.spec = WindowSpec()
        self.length = self._before + self._after
        if not self.length:
            raise ConfigurationError("A sliding window needs a length: before or after above 0")
        self.grace = _grace(expires)

    @property
    def before(self) -> float:
        """How long before a record its window begins, in seconds."""
        return self._before / 1000

    @property
    def after(self) -> float:
        """How long after a record its window ends, in seconds."""
        return self._after / 1000

    def starts(self, time: int) -> range:
        return range(time - self._before, time - self._before + 1)

    @property
    def shape(self) -> str:
        return f"before={self._before} after={self._after}"


class _OfSpec(_Aligned):
    def __init__(self, spec: AlignedSpec) -> None:
        self.spec = spec
        self.length = spec.size
        self.grace = spec.grace


def window_of(window: Any) -> Window:
    """Return the windows that a table was given: ours, Faust's, or a specification.

    Raises:
        ConfigurationError: It isn't one that tables have.
    """
    if isinstance(window, Window):
        return window
    if isinstance(window, AlignedSpec):
        if window.emit != "final" or window.late is not None:
            raise ConfigurationError(
                "A table's windows have no emit= and no late=: on_window_close= gets what is "
                "final; use .window(...) of a stream for the others"
            )
        return _OfSpec(window)
    expires = getattr(window, "expires", None)
    if hasattr(window, "before") and hasattr(window, "after"):
        return SlidingWindow(window.before, window.after, expires or None)
    if hasattr(window, "size") and hasattr(window, "step"):
        return HoppingWindow(window.size, window.step, expires or None)
    raise ConfigurationError(
        f"{window!r} is no window of a table; there are tumbling, hopping and sliding ones "
        "(for sessions, use .window(session(...)) of a stream)"
    )
