"""Topics full of readings or of keys, made when a system first asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from benchmarks.broker import Broker
from benchmarks.readings import (
    Hashes,
    Reading,
    closing_readings,
    expected_hashes,
    expected_output,
    expected_tables,
    expected_windows,
    make_readings,
)
from benchmarks.systems import System


class Input:
    """A topic full of readings, and what must come out of them."""

    def __init__(self, topic: str, readings: list[Reading], closing: list[Reading]) -> None:
        self.topic = topic
        self.count = len(readings) + len(closing)
        self.all = readings + closing
        self._readings = readings

    @cached_property
    def hashes(self) -> Hashes:
        return expected_hashes(self._readings)

    @cached_property
    def windows(self) -> Hashes:
        return expected_windows(self._readings)

    @cached_property
    def output(self) -> dict[bytes, list[dict]]:
        return expected_output(self._readings)

    @cached_property
    def tables(self) -> tuple[dict[str, float], dict[str, float]]:
        return expected_tables(self._readings)


class Inputs:
    """The inputs of all systems, in one broker.

    Args:
        sizes: Readings by ``System.size``.
    """

    def __init__(self, broker: Broker, sizes: Mapping[str, int]) -> None:
        self._broker = broker
        self._sizes = sizes
        self._inputs: dict[str, Input] = {}

    def of(self, system: System) -> Input:
        """Return the input of ``system``; its topic is filled at the first call."""
        windows = system.job == "windows"
        topic = f"{'windows' if windows else 'readings'}-{system.size}"
        if topic not in self._inputs:
            readings = make_readings(self._sizes[system.size], step=1 if windows else 10)
            closing = closing_readings(readings) if windows else []
            self._inputs[topic] = Input(topic, readings, closing)
            self._broker.fill(topic, self._inputs[topic].all)
        return self._inputs[topic]


def keys(count: int) -> Iterable[bytes]:
    """Return ``count`` distinct keys, neighbours far apart."""
    step = 7_368_787  # a prime: it meets every number below a count that it doesn't divide
    return (b"key-%08d" % (number * step % count) for number in range(count))


def number_of(key: bytes | str) -> int:
    """Return the number that a key of :func:`keys` has."""
    return int(key[4:])
