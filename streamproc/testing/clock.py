"""The clocks of ``time``, virtual while an app runs in a :class:`VirtualLoop`.

Faust, mode and streamproc read ``time.time``, ``monotonic`` and ``perf_counter`` beside
the loop's own time, and functions of the app may do so too. Those names are replaced in
their modules only, and only while the loop runs: test code, pytest and other libraries
keep the real clocks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from typing import Any

import mode.services
import mode.timers

from streamproc.testing.loop import FIRST_TIME, VirtualLoop

ROOTS = ("streamproc", "faust", "mode")
#: Modules that need real time: this package's.
REAL = "streamproc.testing"

_CLOCKS = {
    id(getattr(time, name)): name
    for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter")
}
_CLOCKS[id(time)] = "module"
_CLOCKS[id(datetime)] = "datetime"

#: Their clock is the default of an argument.
_TIMERS: list[Any] = [mode.services.Service.itertimer, mode.timers.Timer.__init__]

Place = tuple[dict[str, Any], str, str]
_known: dict[str, tuple[int, list[Place]]] = {}


class Clock:
    """Wall clock and monotonic clock of a virtual loop.

    Args:
        loop: The loop.
        start: Wall-clock time at the start, in milliseconds since 1970.
    """

    def __init__(self, loop: VirtualLoop, start: int) -> None:
        self._loop = loop
        self._origin = start / 1000 - FIRST_TIME
        self._places: list[Place] = []
        self.module: Any = _TimeModule(self)
        self.datetime = _virtual_datetime(self)

    def start_at(self, start: int) -> None:
        """Let it be ``start`` (ms since 1970) now."""
        self._origin = start / 1000 - self._loop.time()

    def time(self) -> float:
        return self._origin + self._loop.time()

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def monotonic(self) -> float:
        return self._loop.time()

    perf_counter = monotonic

    def monotonic_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    @property
    def milliseconds(self) -> int:
        """Wall-clock time in milliseconds since 1970."""
        return round(self.time() * 1000)

    def cover(self, modules: Iterable[str]) -> None:
        """Replace the clocks of ``modules`` too, beside those of the framework."""
        names = [name for name in sys.modules if name.split(".")[0] in ROOTS]
        self._places = [
            place
            for name in {*names, *modules}
            if not name.startswith(REAL)
            for place in _places_of(name)
        ]

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Let the modules read these clocks."""
        places = self._places
        saved = [namespace[name] for namespace, name, _ in places]
        defaults = [each.__kwdefaults__ for each in _TIMERS]
        timer_clock = defaults[0]["clock"]
        for namespace, name, kind in places:
            namespace[name] = getattr(self, kind)
        for each in defaults:
            each["clock"] = self.monotonic
        try:
            yield
        finally:
            for (namespace, name, _), value in zip(places, saved, strict=True):
                namespace[name] = value
            for each in defaults:
                each["clock"] = timer_clock


def _places_of(module_name: str) -> list[Place]:
    module = sys.modules.get(module_name)
    namespace = getattr(module, "__dict__", None)
    if namespace is None:
        return []
    size, places = _known.get(module_name, (-1, []))
    if size != len(namespace):
        places = [
            (namespace, name, _CLOCKS[id(value)])
            for name, value in list(namespace.items())
            if id(value) in _CLOCKS
        ]
        places = [place for place in places if place[2] != "datetime" or _is_cron(module_name)]
        _known[module_name] = (len(namespace), places)
    return places


def _is_cron(module_name: str) -> bool:
    # A class in place of datetime breaks isinstance elsewhere.
    return module_name.endswith("utils.cron")


class _TimeModule:
    """The module ``time``, with some functions replaced."""

    def __init__(self, clock: Clock) -> None:
        self.time = clock.time
        self.time_ns = clock.time_ns
        self.monotonic = self.perf_counter = clock.monotonic
        self.monotonic_ns = clock.monotonic_ns

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def _virtual_datetime(clock: Clock) -> type[datetime]:
    class VirtualDatetime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(clock.time(), tz)

    return VirtualDatetime
