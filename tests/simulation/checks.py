"""What must be true of the results, when something is committed and in the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from streamproc.records.codecs import get_codec
from streamproc.testing.broker import Offsets
from tests.simulation.apps import Expected


class Violation(Exception):
    """What must be true isn't."""


class Checks:
    """The checks of one run; all raise a Violation.

    Args:
        world: What is looked at.
        end: Windows that begin then or later are still open in the end.
    """

    def __init__(self, world: Any, end: int) -> None:
        self._world = world
        self._end = end

    def check_commit(self, offsets: Offsets) -> None:
        """What is committed is durable, wherever that is."""
        world = self._world
        for tp, found in offsets.items():
            offset = found.offset
            if tp.topic != "numbers":
                continue
            expected = Expected(world.kind, world.records[tp.partition][:offset])
            wanted = {number for pairs in expected.outputs.values() for number, _ in pairs}
            there = {value["id"] for _, value in self._outputs("totals", everything=True)}
            if wanted - there:
                raise Violation(f"{tp}: committed to {offset}; outputs lack {wanted - there}")
            there = {number for number, _ in world.server.results(tp.partition)}
            if expected.has_sink and (lost := wanted - there - world.server.lost):
                raise Violation(f"{tp}: committed to {offset}; the sink lacks {lost}")

    def _outputs(self, topic: str, everything: bool = False) -> Iterator[tuple[str, Any]]:
        decode = get_codec("json").decoder(None)
        for log in self._world.broker.topics.get(topic, ()):
            for offset in range(len(log)):
                if offset not in log.marks and (everything or log.is_seen(offset)):
                    yield (log.keys[offset] or b"").decode(), decode(log.values[offset])

    def check_results(self) -> None:
        """Sink and topics have what comes of the records, as often as is promised."""
        world = self._world
        expected = {part: Expected(world.kind, records) for part, records in world.records.items()}
        for part, each in expected.items():
            if each.has_sink:
                self._check_sink(part, each)
        self._check_totals(list(expected.values()))
        self._check_windows(list(expected.values()))

    def _check_sink(self, part: int, expected: Expected) -> None:
        server = self._world.server
        values = server.results(part)
        there = {number for number, _ in values}
        wanted = [
            (number, total)
            for pairs in expected.outputs.values()
            for number, total in pairs
            if number in there or number not in server.lost
        ]
        what = f"sink of partition {part}"
        if self._world.exactly_once:
            self._compare(what, Counter(values), Counter(wanted))
        else:
            # A zombie may have changed the tables, whose totals those are.
            found = Counter(number for number, _ in values)
            self._compare(what, found, Counter(number for number, _ in wanted), exact=True)

    def _check_totals(self, expected: list[Expected]) -> None:
        outputs = [(key, value["id"], value["total"]) for key, value in self._outputs("totals")]
        wanted = [
            (key, *pair)
            for each in expected
            for key, pairs in each.outputs.items()
            for pair in pairs
        ]
        if self._world.exactly_once:
            self._compare("topic totals", Counter(outputs), Counter(wanted))
            self._check_order(outputs, expected)
        else:
            ids = Counter(number for _, number, _ in outputs)
            self._compare("topic totals", ids, Counter(number for _, number, _ in wanted))

    def _check_order(self, outputs: list[tuple[str, int, int]], expected: list[Expected]) -> None:
        by_key: dict[str, list[int]] = defaultdict(list)
        for key, number, _ in outputs:
            by_key[key].append(number)
        for each in expected:
            for key, pairs in each.outputs.items():
                if by_key[key] != [number for number, _ in pairs]:
                    raise Violation(f"topic totals, order of {key}: {by_key[key]}")

    def _check_windows(self, expected: list[Expected]) -> None:
        windows = {
            (key, start): tuple(window)
            for each in expected
            for (key, start), window in each.windows.items()
            if start < self._end
        }
        closed = [
            ((each["key"], _milliseconds(each["window_start"])), (each["n"], each["total"]))
            for _, each in self._outputs("closed")
        ]
        if self._world.exactly_once:
            self._compare("topic closed", Counter(closed), Counter(windows.items()))
            return
        largest: dict[Any, tuple[int, int]] = {}
        for window, result in closed:
            largest[window] = max(result, largest.get(window, result))
        if less := {each: at for each, at in windows.items() if largest.get(each, (0, 0)) < at}:
            raise Violation(f"topic closed: {largest} has less than {less}")

    def _compare(
        self, what: str, found: Counter[Any], wanted: Counter[Any], exact: bool = False
    ) -> None:
        missing, more = wanted - found, found - wanted
        if missing or (more and (exact or self._world.exactly_once)):
            raise Violation(f"{what}: missing {dict(missing)}, too much {dict(more)}")

    def check_tables(self) -> None:
        """Tables of all workers together have what comes of the records."""
        world = self._world
        wanted: dict[str, dict[str, int]] = defaultdict(dict)
        for records in world.records.values():
            for name, table in Expected(world.kind, records).tables.items():
                wanted[name] |= table
        for name, values in wanted.items():
            found: dict[str, int] = {}
            for worker in world.workers:
                found |= worker.table(name)
            if world.exactly_once and found != values:
                raise Violation(f"table {name}: {found}, not {values}")
            less = {key: found.get(key) for key in values if found.get(key, 0) < values[key]}
            if less:
                raise Violation(f"table {name} has lost: {less} of {values}")


def _milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)
