"""The apps that are simulated, and what their results ought to be."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import streamproc
from streamproc.aggregates import Count, Sum
from streamproc.windows import tumbling
from tests.simulation.redis import SimSink

KEYS = "abcd"
WINDOW = 5_000
#: What an app does with numbers; the first one does most of what the others do, and at once.
KINDS = ("all", "tables", "windows", "stateless")


class Number(streamproc.Record):
    id: int
    n: int


class Total(streamproc.Record):
    id: int
    total: int


class SimApp:
    """Totals by key: in a table, to a topic, to a sink; and windows in a flow.

    Args:
        guarantee: Its processing guarantee.
        kind: One of KINDS.
    """

    def __init__(self, guarantee: str, kind: str) -> None:
        self.app = app = streamproc.App(
            f"sim-{kind}",
            broker="kafka://nowhere",
            processing_guarantee=guarantee,
            broker_commit_interval=0.7,
            transaction_timeout=4.0,
            drain_timeout=1.0,
            batch_size=7,
        )
        self.world: Any = None
        self.numbers = app.topic("numbers", key_type=str, value_type=Number)
        self.totals = app.topic("totals", key_type=str, value_type=Total)
        if kind == "all":
            self._add_up(sink=[SimSink()])
            self._count()
            self._close_windows()
        elif kind == "tables":
            self._add_up(sink=[])
            self._count()
        elif kind == "windows":
            self._close_windows()
        else:
            self._pass_on()

    def _add_up(self, sink: list[Any]) -> None:
        table = self.app.Table("totals", key_type=str, value_type=int, default=int)

        @self.app.agent(self.numbers, sink=sink)
        async def total(stream):
            async for key, number in stream.items():
                self.world.maybe_fail(number.id)
                table[key] += number.n
                await self.totals.send(key=key, value=Total(id=number.id, total=table[key]))
                self.world.maybe_fail(number.id)
                yield Total(id=number.id, total=table[key])

    def _count(self) -> None:
        table = self.app.Table("seen", key_type=str, value_type=int, default=int)

        @self.app.agent(self.numbers)
        async def see(stream):
            async for batch in stream.batches():
                table.update(batch, lambda count, number: count + 1)

    def _close_windows(self) -> None:
        (
            self.app.stream(self.numbers)
            .window(tumbling(WINDOW / 1000, idle_timeout=None))
            .aggregate(name="windows", n=Count(), total=Sum("n"))
            .to("closed")
        )

    def _pass_on(self) -> None:
        @self.app.agent(self.numbers, sink=[SimSink()])
        async def pass_on(stream):
            async for key, number in stream.items():
                result = Total(id=number.id, total=number.n)
                await self.totals.send(key=key, value=result)
                self.world.maybe_fail(number.id)
                yield result


class Expected:
    """What comes of the records of a partition, computed from them."""

    def __init__(self, kind: str, records: list[tuple[str, Number, int]]) -> None:
        has_totals = kind != "windows"
        #: Of each table that the app has.
        self.tables: dict[str, dict[str, int]] = {}
        #: Ids and totals by key, as topic and sink have them.
        self.outputs: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.has_sink = kind in ("all", "stateless")
        self.windows: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
        totals: dict[str, int] = defaultdict(int)
        seen: dict[str, int] = defaultdict(int)
        for key, number, timestamp in records:
            totals[key] += number.n
            seen[key] += 1
            if has_totals:
                total = number.n if kind == "stateless" else totals[key]
                self.outputs[key].append((number.id, total))
            if kind in ("all", "windows"):
                window = self.windows[key, timestamp - timestamp % WINDOW]
                window[0] += 1
                window[1] += number.n
        if kind in ("all", "tables"):
            self.tables = {"totals": totals, "seen": seen}
