"""Transactions in the test driver: what is seen when, and what a crash leaves of them."""

import asyncio

import pytest
from aiokafka.errors import KafkaConnectionError, ProducerFenced

import streamproc
from streamproc.errors import DriverError, Fenced
from streamproc.kafka.consumer import Consumer
from streamproc.tables.manager import TableManager
from streamproc.tables.recovery import Recovery
from streamproc.testing import TestDriver
from streamproc.testing.transport import MemoryClient, MemoryGroup


class Number(streamproc.Record):
    n: int


class DoublingApp:
    """Counts and doubles numbers; fails at one when it is told to."""

    def __init__(self, guarantee="exactly_once"):
        self.app = app = streamproc.App(
            "doubling", broker="kafka://nowhere", processing_guarantee=guarantee
        )
        self.numbers = app.topic("numbers", key_type=str, value_type=Number)
        self.doubles = app.topic("doubles", key_type=str, value_type=Number)
        self.counts = app.Table("counts", key_type=str, value_type=int, default=int)
        self.fails = set()

        @app.agent(self.numbers)
        async def double(stream):
            async for key, number in stream.items():
                self.counts[key] += 1
                await self.doubles.send(key=key, value=Number(n=2 * number.n))
                if number.n in self.fails:
                    self.fails.discard(number.n)
                    raise ValueError(number.n)


@pytest.fixture(scope="module")
def doubling():
    return DoublingApp()


@pytest.fixture
def driver(doubling):
    doubling.fails.clear()
    with TestDriver(doubling.app, partitions=2) as driver:
        yield driver


def numbers(driver):
    return [record.value.n for record in driver.output("doubles").read_all()]


def test_what_is_sent_is_seen_when_it_is_committed(driver):
    driver.topic("numbers").pipe("a", Number(n=1))
    assert numbers(driver) == []
    assert sum(driver.committed.values()) == 0
    driver.advance("1s")
    assert numbers(driver) == [2]
    assert sum(driver.committed.values()) == 1


@pytest.mark.parametrize("steps", range(0, 80, 3))
def test_a_crash_anywhere_leaves_each_once(doubling, driver, steps):
    topic = driver.topic("numbers")
    topic.pipe_many(("abc"[n % 3], Number(n=n)) for n in range(6))
    driver.checkpoint()
    with driver.crash_after(steps):
        topic.pipe_many(("abc"[n % 3], Number(n=n)) for n in range(6, 12))
        driver.checkpoint()
    driver.checkpoint()
    driver.checkpoint()
    assert sorted(numbers(driver)) == [2 * n for n in range(12)]
    assert driver.table("counts") == {"a": 4, "b": 4, "c": 4}


def test_a_transaction_that_a_crash_left_open_ends_in_time(driver):
    driver.topic("numbers").pipe("a", Number(n=1))
    driver.crash()
    driver.checkpoint()
    assert numbers(driver) == [2]
    assert driver.table("counts") == {"a": 1}


def test_a_rebalance_commits(driver):
    driver.topic("numbers").pipe_many((key, Number(n=1)) for key in "abc")
    driver.rebalance(without={0})
    assert numbers(driver) == [2, 2, 2]
    driver.rebalance()
    driver.topic("numbers").pipe("a", Number(n=2))
    driver.restart()
    assert numbers(driver) == [4]


def test_a_commit_whose_answer_is_lost_is_not_done_twice(driver, monkeypatch):
    """Tables are read from the changelogs then, since they may have it."""
    driver.topic("numbers").pipe("a", Number(n=1))
    end = MemoryClient.end
    lost = []

    async def end_and_lose_the_answer(self, offsets, member):
        await end(self, offsets, member)
        if not lost:
            lost.append(offsets)
            raise KafkaConnectionError("gone")

    monkeypatch.setattr(MemoryClient, "end", end_and_lose_the_answer)
    driver.advance("2s")
    assert lost
    assert driver.table("counts") == {"a": 1}
    driver.topic("numbers").pipe("a", Number(n=2))
    driver.checkpoint()
    assert numbers(driver) == [2, 4]
    assert driver.table("counts") == {"a": 2}


def test_a_record_that_fails_leaves_nothing(doubling, driver):
    doubling.fails.add(2)
    driver.topic("numbers").pipe_many(("a", Number(n=n)) for n in range(4))
    driver.checkpoint()
    assert list(map(str, driver.errors)) == ["2"]
    assert numbers(driver) == [0, 2, 4, 6]
    assert driver.table("counts") == {"a": 4}


def test_a_rebalance_takes_over_what_is_being_gone_back_to(doubling, driver, monkeypatch):
    async def hang(self):
        await asyncio.Event().wait()

    rewind = Consumer.rewind
    monkeypatch.setattr(Consumer, "rewind", hang)
    doubling.fails.add(2)
    with pytest.raises(DriverError, match="not done"):
        driver.topic("numbers").pipe_many(("a", Number(n=n)) for n in range(4))
    monkeypatch.setattr(Consumer, "rewind", rewind)
    driver.rebalance()
    driver.checkpoint()
    assert driver.errors
    assert numbers(driver) == [0, 2, 4, 6]
    assert driver.table("counts") == {"a": 4}


def test_what_is_void_since_a_recovery_began_is_gone_back_to_after_it(
    doubling, driver, monkeypatch
):
    catch_up = Recovery._catch_up

    async def catch_up_and_be_fenced(self, appliers):
        monkeypatch.setattr(Recovery, "_catch_up", catch_up)
        await doubling.app.checkpoint.start_over(Fenced("somebody else has them"))
        await catch_up(self, appliers)

    monkeypatch.setattr(Recovery, "_catch_up", catch_up_and_be_fenced)
    driver.rebalance()
    driver.topic("numbers").pipe("a", Number(n=1))
    driver.checkpoint()
    assert numbers(driver) == [2]


def test_no_checkpoint_runs_in_a_recovery(doubling, driver, monkeypatch):
    """It would be about what the last assignment was."""
    catch_up = Recovery._catch_up
    taken = []

    async def catch_up_and_commit(self, appliers):
        monkeypatch.setattr(Recovery, "_catch_up", catch_up)
        monkeypatch.setattr(doubling.app.checkpoint, "_take", lambda: taken.append(1))
        await doubling.app.consumer.commit()
        monkeypatch.undo()
        await catch_up(self, appliers)

    monkeypatch.setattr(Recovery, "_catch_up", catch_up_and_commit)
    driver.rebalance()
    assert not taken


def test_a_rebalance_while_the_worker_stops_forgets_nothing(doubling, driver, monkeypatch):
    """The last checkpoint is of what is done, with the offsets of it."""
    commit = Consumer.force_commit

    async def commit_after_revocation(self, *args, **kwargs):
        monkeypatch.setattr(Consumer, "force_commit", commit)
        if doubling.app.should_stop:
            revoked = asyncio.ensure_future(self.on_partitions_revoked(self.assignment()))
            await asyncio.wait([revoked], timeout=0.1)
        return await commit(self, *args, **kwargs)

    driver.topic("numbers").pipe("a", Number(n=1))
    monkeypatch.setattr(Consumer, "force_commit", commit_after_revocation)
    driver.restart()
    driver.checkpoint()
    assert driver.table("counts") == {"a": 1}
    assert numbers(driver) == [2]


class Claims:
    """A transactional sink of which only the claims are looked at."""

    is_full = has_taken = False
    results_id = ""

    def __init__(self):
        self.count = 0
        self.claimed = {}

    async def claim(self, partitions):
        self.count += 1
        return {}

    def take(self, left_out=()):
        pass

    async def commit(self, positions):
        pass

    def discard(self):
        pass


def test_a_claim_of_who_is_no_member_any_more_is_not_relied_on(doubling, driver, monkeypatch):
    """It may have come after that of the partitions' next owner."""
    driver.topic("numbers").pipe("a", Number(n=1))
    driver.checkpoint()
    claims = Claims()
    doubling.app.checkpoint.claims.sinks.append(claims)

    async def refuse(self, known):
        monkeypatch.undo()
        return False

    monkeypatch.setattr(MemoryGroup, "is_member", refuse)
    driver.rebalance()
    assert claims.count == 2
    driver.topic("numbers").pipe("a", Number(n=2))
    driver.checkpoint()
    assert numbers(driver) == [2, 4]


@pytest.mark.parametrize("committed", [0, 1])
def test_a_zombie_writes_no_tables_when_it_learns_that_it_is_one(monkeypatch, committed):
    """Its last checkpoint is when the partitions are revoked, which others have by then."""
    app = DoublingApp("at_least_once").app
    written = []

    async def refuse(self, known):
        return False

    async def write(self, flushes):
        written.extend(flushes)

    with TestDriver(app, partitions=1) as driver:
        for _ in range(committed):
            driver.topic("numbers").pipe("a", Number(n=1))
            driver.checkpoint()
        driver.topic("numbers").pipe("a", Number(n=2))
        with monkeypatch.context() as patch:
            patch.setattr(MemoryGroup, "is_member", refuse)
            patch.setattr(TableManager, "write", write)
            driver.rebalance()
        assert not written
        driver.checkpoint()
        assert driver.table("counts") == {"a": committed + 1}


def test_a_recovery_whose_transaction_was_aborted_begins_another(doubling, driver, monkeypatch):
    catch_up = Recovery._catch_up

    async def catch_up_too_late(self, appliers):
        monkeypatch.setattr(Recovery, "_catch_up", catch_up)
        client = doubling.app.producer._producer
        client.has_begun, client._error = True, ProducerFenced()
        await catch_up(self, appliers)

    monkeypatch.setattr(Recovery, "_catch_up", catch_up_too_late)
    driver.rebalance()
    driver.topic("numbers").pipe("a", Number(n=1))
    driver.checkpoint()
    assert numbers(driver) == [2]
    assert driver.table("counts") == {"a": 1}


@pytest.mark.parametrize("end", ["crash", "restart", "rebalance"])
def test_a_reader_ahead_of_another_sends_nothing_twice(end):
    """The offset is that of the slower one."""
    app = streamproc.App("ahead", broker="kafka://nowhere", processing_guarantee="exactly_once")
    numbers = app.topic("numbers", value_type=int)
    fast, slow = app.topic("fast", value_type=int), app.topic("slow", value_type=int)
    waits = [True]

    @app.agent(numbers)
    async def hurry(stream):
        async for number in stream:
            await fast.send(value=number)

    @app.agent(numbers)
    async def dawdle(stream):
        if waits:
            await asyncio.sleep(20_000)
        async for number in stream:
            await slow.send(value=number)

    with TestDriver(app, partitions=2) as driver:
        with pytest.raises(DriverError, match="not done"):
            driver.topic("numbers").pipe_many((str(n), n) for n in range(10))
        waits.clear()
        getattr(driver, end)()
        driver.advance("6h")
        for topic in ("fast", "slow"):
            sent = [record.value for record in driver.output(topic).read_all()]
            assert sorted(sent) == list(range(10))
