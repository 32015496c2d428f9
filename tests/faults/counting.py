"""The app under test: counts, sums and extremes by key, in a table, a topic and Redis.

How it counts is MODE: an agent by records or by batches, or a flow. Files in the folder
CONTROL make its code misbehave: ``raise``, ``hang`` (awaits), ``block`` (doesn't), and
``clock`` (seconds by which its clock is wrong).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from faults.counting_values import RAISES_ALWAYS

CONTROL = Path(os.environ["CONTROL"])


class _Clock:
    """The machine's clock with jumps."""

    def __init__(self) -> None:
        self.real, self.looked, self.offset = time.time, 0.0, 0.0

    def __call__(self) -> float:
        now = time.monotonic()
        if now - self.looked > 0.2:
            self.looked = now
            try:
                self.offset = float((CONTROL / "clock").read_text() or 0)
            except OSError:
                self.offset = 0.0
        return self.real() + self.offset


_clock = _Clock()
time.time = _clock  # before anybody imports it by name
time.time_ns = lambda: int(_clock() * 1e9)

import streamproc  # noqa: E402
from streamproc.aggregates import Count, Max, Min, Sum  # noqa: E402
from streamproc.sinks import RedisCounter, RedisList  # noqa: E402

TOPIC, MODE = os.environ["TOPIC"], os.environ["MODE"]
EXACT = os.environ["GUARANTEE"] == "exactly_once"
SINKS = {"exactly_once": True} if os.environ["GUARANTEE"] == "exact_redis" else {}


class Item(streamproc.Record):
    id: int
    n: int


class Stats(streamproc.Record):
    count: int = 0
    total: int = 0
    low: int = 0
    high: int = 0
    last: int = -1

    def plus(self, item: Item) -> Stats:
        if not self.count:
            return Stats(1, item.n, item.n, item.n, item.id)
        low, high = min(self.low, item.n), max(self.high, item.n)
        return Stats(self.count + 1, self.total + item.n, low, high, item.id)


app = streamproc.App(
    os.environ["APP_ID"],
    broker="kafka://" + os.environ["BOOTSTRAP"].replace(",", ";"),
    redis=os.environ["REDIS_URL"],
    broker_session_timeout=float(os.environ["SESSION_TIMEOUT"]),
    broker_heartbeat_interval=1.0,
    broker_commit_interval=0.5,
    consumer_auto_offset_reset="earliest",
    topic_disable_leader=True,
    topic_replication_factor=int(os.environ["COPIES"]),
    read_committed=True,
    tabledir=os.environ["TABLES"],
    table_standby_replicas=int(os.environ["STANDBYS"]),
    batch_size=500,
    when_sink_behind=os.environ.get("WHEN_SINK_BEHIND") or None,
    **({"processing_guarantee": "exactly_once"} if EXACT else {}),
)
items = app.topic(TOPIC, key_type=str, value_type=Item)
results = app.topic(TOPIC + "-results", key_type=str)
counts = RedisCounter("count:{key}", **SINKS)
totals = RedisCounter("total:{key}", amount="n", **SINKS)
ids = RedisList("ids:{key}", value="id", **SINKS)
_raised: set[int] = set()


def misbehave(item: Item) -> None:
    """Do what the files say, after the record has left traces."""
    if item.n == RAISES_ALWAYS:
        raise ValueError(f"poison {item.id}")
    # Flows give no second chance: what fails once is a dead letter.
    may_raise = MODE != "flow" and item.id % 50 == 0 and item.id not in _raised
    if may_raise and (CONTROL / "raise").exists():
        _raised.add(item.id)
        raise RuntimeError(f"item {item.id} fails the first time")
    if item.id % 20 == 0:
        while (CONTROL / "block").exists():
            time.sleep(0.05)


async def hang() -> None:
    while (CONTROL / "hang").exists():  # noqa: ASYNC110 - the file is another process's
        await asyncio.sleep(0.05)


def output(key: str, stats: Stats) -> dict[str, Any]:
    return {
        "key": key,
        "count": stats.count,
        "total": stats.total,
        "low": stats.low,
        "high": stats.high,
        "id": stats.last,
    }


if MODE == "flow":
    source = app.stream(items).flow("counting")
    checked = source.peek(misbehave)
    checked.aggregate(name="stats", count=Count(), total=Sum("n"), low=Min("n"), high=Max("n")).to(
        results
    )
    checked.to(counts, totals, ids)
else:
    table = app.Table("stats", key_type=str, value_type=Stats, default=Stats)

if MODE == "records":

    @app.agent(items)
    async def count_records(stream):  # type: ignore[no-untyped-def]
        async for key, item in stream.items():
            await hang()
            stats = table[key] = table[key].plus(item)
            await results.send(key=key, value=output(key, stats))
            await counts.write([(key, item)])
            misbehave(item)
            await totals.write([(key, item)])
            await ids.write([(key, item)])


if MODE == "batches":

    @app.agent(items)
    async def count_batches(stream):  # type: ignore[no-untyped-def]
        async for batch in stream.batches():
            await hang()
            out = []
            for key, item in zip(batch.keys, batch.values, strict=True):
                stats = table[key] = table[key].plus(item)
                out.append(output(key, stats))
                misbehave(item)
            await results.send_batch(out, keys=batch.keys)
            for sink in (counts, totals, ids):
                await sink.write(batch)


@app.timer(0.5)
async def report() -> None:
    """Write down what the tables hold, when asked to."""
    if (CONTROL / "ask").exists():
        found = {}
        for each in app.tables.values():
            for partition, state in each.states.items():
                held = {key: _plain(value) for key, value in state.scan()}
                found[f"{each.name}/{partition}"] = held
        path = CONTROL / f"answer-{os.getpid()}"
        path.with_suffix(".new").write_text(json.dumps(found))
        path.with_suffix(".new").replace(path)


def _plain(value: Any) -> Any:
    return [value.count, value.total, value.low, value.high] if type(value) is Stats else None
