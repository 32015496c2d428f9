"""What windows a table or stream has: kinds, sizes and options.

A window is a half-open interval of event time [start, end) in ms: a record at ``start``
belongs to it, one at ``end`` doesn't. The kinds (after Akidau et al., "The Dataflow Model",
VLDB 2015):

- tumbling: one after the other, aligned for all keys; a record belongs to one;
- hopping: of one size, beginning every ``step``; a record belongs to several;
- sliding: for each key and distinct event time t, the ``size`` up to and with t;
- session: for each key, as long as records come less than ``gap`` apart.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from streamproc.errors import ConfigurationError
from streamproc.windows.aligned import AlignedOperator
from streamproc.windows.operator import WindowOperator
from streamproc.windows.sessions import SessionOperator
from streamproc.windows.sliding import SlidingOperator
from streamproc.windows.state import KeyedState, Program, WindowState
from streamproc.windows.watermark import ClockWatermark, Watermark

Emit = Literal["final", "updates"]
Time = Literal["event", "processing"]


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """What all kinds of windows have. Times are in ms.

    Attributes:
        grace: How long after its end a window still takes records.
        emit: "final": one result, when the watermark passes end + grace; "updates": a
            result with each batch that changes the window, and none at its closing.
        time: "event": the records' event times; "processing": the clock at processing.
        out_of_orderness: Bound for how far behind the highest event time a record is still
            expected: the watermark is that much behind.
        idle_timeout: How long nothing must come until time goes on without records (see
            :class:`~streamproc.windows.watermark.Watermark`); None: it never does.
        late: What becomes of late records, beside being counted: None, "dead-letter", a
            callback or a topic. Windows themselves don't use it.
    """

    grace: int = 0
    emit: Emit = "final"
    time: Time = "event"
    out_of_orderness: int = 0
    idle_timeout: int | None = 10_000
    late: Any = None

    def __post_init__(self) -> None:
        _one_of("emit", self.emit, ("final", "updates"))
        _one_of("time", self.time, ("event", "processing"))
        for name in ("grace", "out_of_orderness"):
            value = getattr(self, name)
            if value < 0:
                raise ConfigurationError(f"{name} must not be negative, is {value} ms")
            if value and self.time == "processing":
                raise ConfigurationError(
                    f"{name} has no meaning in processing time, where nothing is late; "
                    'leave it out, or use time="event"'
                )
        if self.idle_timeout is not None and self.idle_timeout <= 0:
            raise ConfigurationError(
                f"idle_timeout must be above 0, is {self.idle_timeout} ms; None waits for ever"
            )

    def watermark(self, inputs: int = 1, plain: dict[str, Any] | None = None) -> Watermark:
        """Return the watermark for these windows.

        Args:
            inputs: Number of inputs.
            plain: State of an earlier one (``Watermark.to_plain()``) to go on from.
        """
        kind = ClockWatermark if self.time == "processing" else Watermark
        if plain is None:
            return kind(self.out_of_orderness, self.idle_timeout, inputs)
        return kind.from_plain(plain, self.out_of_orderness, self.idle_timeout, inputs)


@dataclass(frozen=True)
class AlignedSpec(WindowSpec):
    """Windows that are the same for all keys: they begin at ``offset`` plus multiples of a step.

    Attributes:
        size: Length of a window.
    """

    size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("size", self.size)

    def starts(self, timestamp: int) -> range:
        """Return the starts of the windows that a time belongs to, the earliest first."""
        raise NotImplementedError

    def group(self, timestamps: Sequence[int]) -> Mapping[int, Sequence[int]]:
        """Return the starts of the windows that occur, and for each its rows in order."""
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for row, timestamp in enumerate(timestamps):
            for start in self.starts(timestamp):
                groups[start].append(row)
        return groups

    def single(self, lowest: int, highest: int) -> range | None:
        """Return the starts of the windows of all times from ``lowest`` to ``highest``.

        None if not all of these times belong to the same windows.
        """
        starts = self.starts(lowest)
        return starts if starts == self.starts(highest) else None

    def latest_end(self, timestamp: int) -> int:
        """Return the end of the last window that a time belongs to."""
        return self.starts(timestamp)[-1] + self.size

    def operator(
        self, program: Program, state: WindowState, watermark: Watermark | None = None
    ) -> WindowOperator:
        """Return what computes these windows.

        Args:
            program: The aggregation.
            state: Where open windows are kept.
            watermark: One to go on from (``self.watermark(plain=...)``) or with several
                inputs; it belongs to this operator alone. Default: a new one.
        """
        return AlignedOperator(self, program, state, watermark or self.watermark())


@dataclass(frozen=True)
class Tumbling(AlignedSpec):
    """Windows [k * size + offset, (k + 1) * size + offset), for all whole k."""

    offset: int = 0

    def starts(self, timestamp: int) -> range:
        """Return the start of the window that a time belongs to."""
        start = timestamp - (timestamp - self.offset) % self.size
        return range(start, start + 1)

    def assign(self, timestamps: Sequence[int]) -> list[int]:
        """Return the start of the window of each time."""
        size, offset = self.size, self.offset % self.size
        if offset:
            return [time - (time - offset) % size for time in timestamps]
        return [time - time % size for time in timestamps]

    def group(self, timestamps: Sequence[int]) -> Mapping[int, Sequence[int]]:
        """Return the starts of the windows that occur, and for each its rows in order.

        Rows are a range if all that is of one window comes together.
        """
        starts = self.assign(timestamps)
        if starts == sorted(starts):
            runs: dict[int, range] = {}
            row = 0
            while row < len(starts):
                after = bisect_right(starts, starts[row], row)
                runs[starts[row]] = range(row, after)
                row = after
            return runs
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for row, start in enumerate(starts):
            groups[start].append(row)
        return groups

    def latest_end(self, timestamp: int) -> int:
        """Return the end of the window that a time belongs to."""
        return timestamp - (timestamp - self.offset) % self.size + self.size


@dataclass(frozen=True)
class Hopping(AlignedSpec):
    """Windows [k * step + offset, k * step + offset + size), for all whole k.

    Attributes:
        step: From the beginning of a window to that of the next.
    """

    step: int
    offset: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("step", self.step)
        if self.step > self.size:
            raise ConfigurationError(
                f"step ({self.step} ms) is longer than size ({self.size} ms): records between "
                "windows would be lost; make step at most size"
            )

    def starts(self, timestamp: int) -> range:
        """Return the starts of the windows that a time belongs to, the earliest first."""
        step = self.step
        last = timestamp - (timestamp - self.offset) % step
        first = last - (last - (timestamp - self.size) - 1) // step * step
        return range(first, last + 1, step)

    def latest_end(self, timestamp: int) -> int:
        """Return the end of the last window that a time belongs to."""
        return timestamp - (timestamp - self.offset) % self.step + self.size


@dataclass(frozen=True)
class Sliding(WindowSpec):
    """For each key and distinct event time t of it, the window (t - size, t].

    In whole ms that is [t - size + 1, t + 1).

    Attributes:
        size: Length of a window.
    """

    size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("size", self.size)

    def latest_end(self, timestamp: int) -> int:
        """Return the end of the window that a record of this time makes."""
        return timestamp + 1

    def operator(
        self, program: Program, state: KeyedState, watermark: Watermark | None = None
    ) -> WindowOperator:
        """Return what computes these windows; see :meth:`AlignedSpec.operator`."""
        return SlidingOperator(self, program, state, watermark or self.watermark())


@dataclass(frozen=True)
class Session(WindowSpec):
    """For each key, windows [first, last + gap) of records less than ``gap`` apart.

    Attributes:
        gap: The silence that ends a session.
        max_length: Bound for the length of a window (with its gap): a record that would
            make a session longer begins another. None: no bound.
    """

    gap: int
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("gap", self.gap)
        if self.max_length is not None and self.max_length < self.gap:
            raise ConfigurationError(
                f"max_length ({self.max_length} ms) is shorter than gap ({self.gap} ms), "
                "which is the length of a session of one record"
            )

    def latest_end(self, timestamp: int) -> int:
        """Return the end of a session of one record at this time."""
        return timestamp + self.gap

    def operator(
        self, program: Program, state: KeyedState, watermark: Watermark | None = None
    ) -> WindowOperator:
        """Return what computes these windows; see :meth:`AlignedSpec.operator`."""
        return SessionOperator(self, program, state, watermark or self.watermark())


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ConfigurationError(
            f"{name} must be {' or '.join(repr(one) for one in valid)}, is {value!r}"
        )


def _positive(name: str, value: int) -> None:
    if value <= 0:
        raise ConfigurationError(f"{name} must be above 0, is {value} ms")
