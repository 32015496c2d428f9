"""The app that is simulated, and what its results ought to be."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import streamproc
from streamproc.aggregates import Count, Sum
from streamproc.windows import tumbling
from tests.simulation.redis import SimSink

KEYS = "abcd"
WINDOW = 10_000


class Number(streamproc.Record):
    id: int
    n: int


class Total(streamproc.Record):
    id: int
    total: int


class SimApp:
    """Totals by key: in a table, to a topic, to a sink; and windows in a flow."""

    def __init__(self, guarantee: str) -> None:
        self.app = app = streamproc.App(
            "sim",
            broker="kafka://nowhere",
            processing_guarantee=guarantee,
            broker_commit_interval=0.7,
            transaction_timeout=8.0,
            drain_timeout=2.0,
            batch_size=7,
        )
        self.world: Any = None
        self.numbers = app.topic("numbers", key_type=str, value_type=Number)
        self.totals_topic = app.topic("totals", key_type=str, value_type=Total)
        self.totals = app.Table("totals", key_type=str, value_type=int, default=int)
        self.seen = app.Table("seen", key_type=str, value_type=int, default=int)
        self.sink = SimSink()

        @app.agent(self.numbers, sink=[self.sink])
        async def total(stream):
            async for key, number in stream.items():
                self.totals[key] += number.n
                await self.totals_topic.send(
                    key=key, value=Total(id=number.id, total=self.totals[key])
                )
                self.world.maybe_fail(number.id)
                yield Total(id=number.id, total=self.totals[key])

        @app.agent(self.numbers)
        async def see(stream):
            async for batch in stream.batches():
                self.seen.update(batch, lambda count, number: count + 1)

        (
            app.stream(self.numbers)
            .window(tumbling(WINDOW / 1000, idle_timeout=None))
            .aggregate(name="windows", n=Count(), total=Sum("n"))
            .to("closed")
        )


class Expected:
    """What comes of records, computed from them."""

    def __init__(self, records: list[tuple[str, Number, int]]) -> None:
        self.totals: dict[str, int] = defaultdict(int)
        self.seen: dict[str, int] = defaultdict(int)
        self.outputs: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.windows: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
        for key, number, timestamp in records:
            self.totals[key] += number.n
            self.seen[key] += 1
            self.outputs[key].append((number.id, self.totals[key]))
            window = self.windows[key, timestamp - timestamp % WINDOW]
            window[0] += 1
            window[1] += number.n
