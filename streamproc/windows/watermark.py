"""Watermarks: the event time up to which a partition is believed complete.

The word is that of Akidau et al., "The Dataflow Model" (VLDB 2015): a window can be closed
when the watermark has passed its end, and a record behind the watermark is late. A
watermark is a guess; here it is the simplest one that can be explained: the highest event
time seen, less a bound for how far records may be out of order.

No clock is read here: whoever calls says what time it is (``now``, in seconds), so that
tests and replays run in their own time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, repeat
from math import inf
from typing import Any, Protocol

from streamproc.errors import ConfigurationError


class Bounded(Protocol):
    """What judging lateness needs of a window specification."""

    @property
    def grace(self) -> int:
        """How long after its end a window takes records, in ms."""

    def latest_end(self, timestamp: int) -> int:
        """Return the end of the last window that a record of this time belongs to."""


class Watermark:
    """The event-time watermark of one partition of work.

    - It is the highest event time seen, less ``out_of_orderness``; None before the first
      record. It never goes back.
    - With several ``inputs`` (the upstream partitions of a repartition topic, the sides of
      a join) it is the lowest over the inputs that aren't idle. An input that was never
      heard of holds it back until ``idle_timeout`` after the first call.
    - An input becomes idle when a :meth:`tick` finds that nothing was heard of it for
      ``idle_timeout``, and stops being so with its next record. A batch that comes late is
      not idleness, so :meth:`observe` never makes anything idle: tick only when there is
      nothing left to process, or :meth:`touch` the inputs that have something waiting.
    - When all inputs are idle, event time goes on with the clock: the watermark is the
      highest over the inputs of (its watermark + the time since it was heard of). So a
      window with no more data closes after ``idle_timeout`` or when its end (plus grace
      and out-of-orderness) has passed, whichever is later, just as it would with a
      record a moment. A pause much shorter than a window doesn't cut the window short.
    - Records are judged by where the watermark is, however it came there.

    After a restart (:meth:`to_plain`, :meth:`from_plain`) the watermark is where it was and
    every input counts as alive for another ``idle_timeout``: time spent down isn't silence.

    Args:
        out_of_orderness: Bound for how far behind the highest event time a record may be
            and still be on time, in ms.
        idle_timeout: After how much silence an input is idle, in ms; None: never.
        inputs: Number of inputs.
    """

    def __init__(
        self, out_of_orderness: int = 0, idle_timeout: int | None = 10_000, inputs: int = 1
    ) -> None:
        if inputs < 1:
            raise ConfigurationError(f"a watermark needs at least one input, not {inputs}")
        self.out_of_orderness = out_of_orderness
        self.idle_timeout = idle_timeout
        self.current: int | None = None
        self._highest: list[int | None] = [None] * inputs
        self._heard: list[float] = []
        self._idle = [False] * inputs

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return len(self._highest)

    def observe(self, input: int, max_timestamp: int, now: float) -> bool:
        """Take in the highest event time of a batch.

        Returns:
            Whether the watermark moved.
        """
        self.touch(input, now)
        highest = self._highest[input]
        if highest is None or max_timestamp > highest:
            self._highest[input] = max_timestamp
        return self._advance(self._lowest())

    def touch(self, input: int, now: float) -> None:
        """Note that an input has records waiting, so that it doesn't become idle."""
        self._start(now)
        self._heard[input] = now
        self._idle[input] = False

    def tick(self, now: float) -> bool:
        """Let time pass: find inputs idle, and go on with the clock if all are.

        Returns:
            Whether the watermark moved.
        """
        self._start(now)
        if self.idle_timeout is None:
            return False
        silences = [round((now - heard) * 1000) for heard in self._heard]
        self._idle = [
            idle or silence >= self.idle_timeout
            for idle, silence in zip(self._idle, silences, strict=True)
        ]
        if not all(self._idle):
            return self._advance(self._lowest())
        continued = (
            highest - self.out_of_orderness + silence
            for highest, silence in zip(self._highest, silences, strict=True)
            if highest is not None
        )
        return self._advance(max(continued, default=None))

    def bound(self, max_timestamp: int, input: int = 0) -> float:
        """Return what the watermark will be at most while a batch with this maximum runs."""
        return max(self._floor, min(self._others(input), self._own(max_timestamp, input)))

    def running(self, timestamps: Sequence[int], input: int = 0) -> list[float]:
        """Return, for each row of a batch, the watermark of what came before that row.

        Call it before :meth:`observe`. Minus infinity stands for no watermark.
        """
        floor, others = self._floor, self._others(input)
        if others <= floor:
            return [floor] * len(timestamps)
        own = self._highest[input]
        out_of_orderness = self.out_of_orderness
        before = -inf if own is None else own
        # No row sees more than the others allow, nor less than the watermark that is.
        high = others + out_of_orderness
        low = floor + out_of_orderness
        tops: Iterable[float] = accumulate(timestamps, max, initial=max(before, low))
        if others != inf:
            tops = map(min, tops, repeat(high))
        running = [top - out_of_orderness for top in tops] if out_of_orderness else list(tops)
        running.pop()
        return running

    def late_rows(self, spec: Bounded, timestamps: Sequence[int], input: int = 0) -> list[int]:
        """Return the rows of a batch that are late for every window they belong to.

        A record is late for a window if ``window.end + grace`` is not above the watermark of
        the records before it. So it doesn't matter how records are split into batches.
        Call it before :meth:`observe`.
        """
        if not timestamps:
            return []
        grace, latest_end = spec.grace, spec.latest_end
        if latest_end(min(timestamps)) + grace > self.bound(max(timestamps), input):
            return []
        return [
            row
            for row, (timestamp, watermark) in enumerate(
                zip(timestamps, self.running(timestamps, input), strict=True)
            )
            if latest_end(timestamp) + grace <= watermark
        ]

    def to_plain(self) -> dict[str, Any]:
        """Return the state as a dict of ints and lists, for :meth:`from_plain`."""
        return {"current": self.current, "highest": list(self._highest)}

    @classmethod
    def from_plain(
        cls,
        plain: dict[str, Any],
        out_of_orderness: int = 0,
        idle_timeout: int | None = 10_000,
        inputs: int | None = None,
    ) -> Watermark:
        """Return the watermark that :meth:`to_plain` was called on.

        Args:
            plain: What it returned.
            out_of_orderness: As for the constructor.
            idle_timeout: As for the constructor.
            inputs: Number of inputs now, if it may have changed; new ones were never
                heard of.
        """
        known = plain["highest"]
        watermark = cls(out_of_orderness, idle_timeout, inputs or len(known))
        for input, highest in enumerate(known[: watermark.inputs]):
            watermark._highest[input] = highest
        watermark.current = plain["current"]
        return watermark

    @property
    def _floor(self) -> float:
        return -inf if self.current is None else self.current

    def _start(self, now: float) -> None:
        if not self._heard:
            self._heard = [now] * self.inputs

    def _own(self, max_timestamp: int, input: int) -> float:
        highest = self._highest[input]
        top = max_timestamp if highest is None else max(highest, max_timestamp)
        return top - self.out_of_orderness

    def _others(self, input: int) -> float:
        """Return what the other inputs allow: infinity if they don't hold back."""
        allowed = inf
        for other, highest in enumerate(self._highest):
            if other == input or self._idle[other]:
                continue
            if highest is None:
                return -inf
            allowed = min(allowed, highest - self.out_of_orderness)
        return allowed

    def _lowest(self) -> int | None:
        """Return the lowest of the inputs that aren't idle; None if it isn't known."""
        alive = [
            highest for highest, idle in zip(self._highest, self._idle, strict=True) if not idle
        ]
        known = [highest for highest in alive if highest is not None]
        if not known or len(known) < len(alive):
            return None
        return min(known) - self.out_of_orderness

    def _advance(self, to: int | None) -> bool:
        if to is None or (self.current is not None and to <= self.current):
            return False
        self.current = to
        return True


class ClockWatermark(Watermark):
    """The watermark of processing time: the clock itself, in ms, never going back.

    ``now`` is seconds since 1970 here.
    """

    def timestamp(self, now: float) -> int:
        """Return the time of a record that is processed now."""
        time = round(now * 1000)
        return time if self.current is None else max(time, self.current)

    def observe(self, input: int, max_timestamp: int, now: float) -> bool:
        """Move to the time that it is."""
        return self.tick(now)

    def tick(self, now: float) -> bool:
        """Move to the time that it is."""
        return self._advance(round(now * 1000))
