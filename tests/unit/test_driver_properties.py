"""Whatever is crashed, stopped and rebalanced in between, tables count each record once."""

import itertools
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamproc
from streamproc.aggregates import Count, Sum
from streamproc.testing import TestDriver
from streamproc.windows import tumbling

START = 1767225600000
KEYS = "abcdef"

# More than a handful of records at once, so that batches are cut and retried in the middle.
PIPE = st.tuples(st.just("pipe"), st.lists(st.sampled_from(KEYS), min_size=1, max_size=8))
LIFE = st.sampled_from(
    [("checkpoint",), ("crash",), ("restart",), ("advance", 0.4), ("advance", 1.5)]
    + [("rebalance", without) for without in ((), (0,), (1, 2), (0, 1, 2))]
)
#: Crash that many rounds of the event loop after more was put in, or after a checkpoint began.
KILL = st.tuples(st.just("kill"), st.integers(0, 60), st.lists(st.sampled_from(KEYS), max_size=8))
STEPS = st.lists(st.one_of(PIPE, LIFE, KILL), max_size=25)


class Number(streamproc.Record):
    n: int


class CountingApp:
    """Counts in three ways, in three agents and a flow, one of which fails now and then."""

    def __init__(self):
        self.app = app = streamproc.App("counting", broker="kafka://nowhere")
        self.topic = app.topic("numbers", key_type=str, value_type=Number)
        self.counts = app.Table("counts", key_type=str, value_type=int, default=int)
        self.sums = app.Table("sums", key_type=str, value_type=int, default=int)
        self.last = app.Table("last", key_type=str, value_type=int, default=int)
        self.fails = set()

        @app.agent(self.topic)
        async def count(stream):
            async for key, _ in stream.items():
                self.counts[key] += 1

        @app.agent(self.topic)
        async def add(stream):
            async for batch in stream.batches():
                self.sums.update(batch, lambda total, number: total + number.n)

        @app.agent(self.topic)
        async def keep_last(stream):
            async for key, number in stream.items():
                if number.n in self.fails:
                    self.fails.discard(number.n)
                    raise ValueError(number.n)
                self.last[key] = number.n

        (
            app.stream(self.topic)
            .window(tumbling("1d"))
            .aggregate(name="windows", n=Count(), total=Sum("n"))
        )


@pytest.fixture(scope="module")
def counting():
    return CountingApp()


def run(counting, driver, steps):
    """Do the steps; return the numbers that were piped, by key."""
    piped = {key: [] for key in KEYS}
    numbers = itertools.count(1)

    def pipe(keys):
        records = []
        for key, number in zip(keys, numbers, strict=False):
            piped[key].append(number)
            records.append((key, Number(n=number), START))
            if number % 7 == 0:
                counting.fails.add(number)
        driver.topic("numbers").pipe_many(records)

    for name, *args in steps:
        if name == "pipe":
            pipe(*args)
        elif name == "kill":
            rounds, keys = args
            with driver.crash_after(rounds):
                pipe(keys)
                driver.checkpoint()
        else:
            getattr(driver, name)(*args)
    return piped


@pytest.mark.parametrize("stores", ["memory", "app"])
def test_each_record_counts_once(counting, stores):
    @settings(
        max_examples=40 if stores == "memory" else 4,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(STEPS)
    def check(steps):
        counting.fails.clear()
        with TestDriver(counting.app, partitions=3, stores=stores) as driver:
            piped = run(counting, driver, steps)
            driver.rebalance()
            there = {key: numbers for key, numbers in piped.items() if numbers}
            assert driver.table("counts") == {key: len(each) for key, each in there.items()}
            assert driver.table("sums") == {key: sum(each) for key, each in there.items()}
            assert driver.table("last") == {key: each[-1] for key, each in there.items()}
            window = (START, START + 86_400_000)
            for key, numbers in there.items():
                assert driver.table("windows").windows(key) == {
                    window: {"n": len(numbers), "total": sum(numbers)}
                }
            driver.checkpoint()
            ends = Counter()
            for (_, partition), offset in driver.committed.items():
                ends[partition] += offset
            assert sum(ends.values()) == sum(map(len, piped.values()))
            assert driver.dead_letters() == []

    check()
