"""The health of an app, in virtual time: each check can fail, and says why."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

import streamproc
from streamproc import retry
from streamproc.errors import SinkUnavailable
from streamproc.health import EXIT_STALLED, EXIT_UNCLEAN
from streamproc.health.sinks import SinkProbe
from streamproc.health.status import _CHECKS
from streamproc.health.worker import STOP_MARGIN
from streamproc.testing import TestDriver
from streamproc.testing.transport import MemoryGroup
from streamproc.web.cluster import NotNow


class Seen:
    """What the health of an app says, second by second."""

    def __init__(self, app):
        self.rows = []
        self.began = None

        @app.timer(1.0)
        async def look():
            health = app.health
            health.look()
            now = app.loop.time()
            if self.began is None:
                self.began = now
            stall = str(health.stall) if health.stall else None
            self.rows.append((round(now - self.began), health.reasons, stall, health.lag()))

    def first(self, check):
        """Return when a check failed first, and why; None if it never did."""
        for second, reasons, _, _ in self.rows:
            for reason in reasons:
                if reason.startswith(f"{check}: "):
                    return second, reason
        return None

    def stalled(self):
        """Return when the app counted as stalled first, and why."""
        return next(((second, stall) for second, _, stall, _ in self.rows if stall), None)


def new_app(wait=None, **settings):
    """An app whose agent waits ``wait`` seconds with a record "slow" in hand."""
    app = streamproc.App("health", broker="kafka://nowhere", store="memory://", **settings)
    topic = app.topic("t", key_type=str, value_type=str)

    @app.agent(topic)
    async def agent(stream):
        async for value in stream:
            if value == "slow":
                await asyncio.sleep(wait)

    return app, Seen(app)


def test_a_worker_that_does_its_work_is_ready():
    app, seen = new_app(stall_timeout=10)
    with TestDriver(app, partitions=2) as driver:
        for _ in range(20):
            driver.topic("t").pipe("k", "v")
            driver.advance("5s")
        assert app.health.ready
        assert app.health.live
        assert app.health.reasons == []
        assert {check.name for check in app.health.checks()} == {
            *("worker", "group", "partitions", "tables"),
            *("topics", "lag", "sinks", "checkpoint", "progress"),
        }
        assert list(app.health.lag().values()) == [0, 0]
        assert app.health.progress_age <= 5
        assert app.health.checkpoint_age <= 5
        driver.advance("10m")  # nothing comes: nothing stands still
        assert app.health.ready
    assert seen.stalled() is None
    assert not any(reasons for second, reasons, _, _ in seen.rows if second)


def test_the_age_of_what_was_done_before_the_first_look():
    app, _ = new_app()
    with TestDriver(app, partitions=1) as driver:
        app.health.look()
        assert (app.health.progress_age, app.health.checkpoint_age) == (None, None)
        driver.topic("t").pipe("k", "v")
        driver.checkpoint()
        app.health.look()
        assert (app.health.progress_age, app.health.checkpoint_age) == (0, 0)
        driver.restart()
        app.health.look()
        assert (app.health.progress_age, app.health.checkpoint_age) == (None, None)


def test_a_record_in_hand_for_too_long():
    app, seen = new_app(wait=200, stall_timeout=120, ready_max_lag=5)
    with TestDriver(app, partitions=1) as driver:
        driver.topic("t").pipe_many([("k", "v")] * 3 + [("k", "slow")] + [("k", "v")] * 10)
        assert app.health.ready
    second, reason = seen.first("progress")
    assert 60 <= second <= 62
    assert "no record of t@" in reason
    assert reason.endswith("was finished for 60 s, and an agent has some in hand")
    second, reason = seen.stalled()
    assert 120 <= second <= 122
    assert "finished for 120 s" in reason
    assert "11 records wait; ready_max_lag is 5" in seen.first("lag")[1]


def test_steady_work_is_no_stall_however_slow_the_whole_is():
    app, seen = new_app(wait=8, stall_timeout=10)
    with TestDriver(app, partitions=2) as driver:
        driver.topic("t").pipe_many([(f"k{n}", "slow") for n in range(40)])
    assert seen.rows[-1][0] > 100
    assert seen.stalled() is None


@pytest.mark.parametrize(
    "policy",
    [retry(40, backoff="200ms"), retry(2, backoff="90s", longest="90s")],
    ids=["many tries", "long pauses"],
)
@pytest.mark.parametrize("changes", [False, True])
def test_tries_of_an_error_policy_are_no_stall_however_many(policy, changes):
    app = streamproc.App("health", broker="kafka://nowhere", store="memory://", stall_timeout=20)
    topic = app.topic("t", key_type=str, value_type=str)
    table = app.Table("n", key_type=str, value_type=int, default=int)
    seen = Seen(app)

    @app.agent(topic, on_error=policy)
    async def agent(stream):
        async for value in stream:
            if changes:
                table[value] += 1
            if value == "bad":
                raise ConnectionError("refused")

    with TestDriver(app, partitions=2) as driver:
        driver.topic("t").pipe_many([("k", "bad"), ("k", "v"), ("l", "v"), ("m", "v")])
        assert len(driver.errors) == policy.retries + 1
        assert len(driver.dead_letters()) == 1
    assert seen.rows[-1][0] > 150
    assert seen.stalled() is None
    assert seen.first("progress") is None


def test_a_try_that_hangs_is_a_stall():
    app = streamproc.App("health", broker="kafka://nowhere", store="memory://", stall_timeout=20)
    topic = app.topic("t", key_type=str, value_type=str)
    seen = Seen(app)
    tries = []

    @app.agent(topic, on_error=retry(None))
    async def agent(stream):
        async for _value in stream:
            tries.append(app.loop.time())
            if len(tries) < 5:
                raise ConnectionError("refused")
            await asyncio.sleep(1000)

    with TestDriver(app, partitions=1) as driver:
        driver.topic("t").pipe("k", "v")
        assert len(driver.errors) == 4
    assert 19 <= seen.stalled()[0] - (tries[-1] - seen.began) <= 22


def test_never_by_request():
    app, seen = new_app(wait=1000, stall_timeout=None)
    with TestDriver(app) as driver:
        driver.topic("t").pipe("k", "slow")
    assert seen.rows[-1][0] > 900
    assert seen.stalled() is None
    assert seen.first("progress") is None


def test_records_that_nobody_takes():
    app, seen = new_app(stall_timeout=20)
    with TestDriver(app, partitions=1) as driver:
        app.checkpoint.gate.set_full(True)

        async def open_later():
            await asyncio.sleep(60)
            app.checkpoint.gate.set_full(False)

        app.loop.create_task(open_later())
        driver.topic("t").pipe("k", "v")
        driver.advance("61s")
        assert app.health.ready
    assert "was finished for 10 s" in seen.first("progress")[1]
    assert 19 <= seen.stalled()[0] <= 22


def test_records_that_are_not_fetched(monkeypatch):
    app, seen = new_app(stall_timeout=20)
    with TestDriver(app, partitions=1) as driver:
        (partition,) = app.health.lag()
        app.consumer.pause_partitions({partition})
        driver.topic("t").pipe("k", "v")  # ends the fetch that is under way
        driver.topic("t").pipe_many([("k", "v")] * 3)
        with monkeypatch.context() as patch:
            patch.setattr(MemoryGroup, "has_leader", lambda self, tp: False)
            driver.advance("50s")
            assert app.health.ready  # they can't be fetched: the partition has no leader
        driver.advance("11s")
        assert app.health.lag() == {partition: 3}
        assert app.health.reasons[0].startswith("progress: records wait, and t@")
        driver.advance("11s")
        assert "finished none for 2" in str(app.health.stall)
        app.consumer.resume_partitions({partition})
        driver.advance("2s")
        assert app.health.ready
    assert 69 <= seen.stalled()[0] <= 73


def test_offsets_that_are_not_committed(monkeypatch):
    app, seen = new_app(stall_timeout=60)
    with TestDriver(app, partitions=1) as driver:
        refuse = True
        commit = MemoryGroup.commit

        async def maybe(self, offsets):
            return False if refuse else await commit(self, offsets)

        monkeypatch.setattr(MemoryGroup, "commit", maybe)
        driver.topic("t").pipe("k", "v")
        driver.advance("100s")
        assert not app.health.ready
        refuse = False
        driver.advance("2s")
        assert app.health.ready
    second, reason = seen.first("checkpoint")
    assert 13 <= second <= 15
    assert reason == "checkpoint: t/0 has been waiting for a commit for 13 s"
    assert 61 <= seen.stalled()[0] <= 63


def test_a_sink_that_is_away_is_no_stall():
    app, seen = new_app(wait=200, stall_timeout=50)
    with TestDriver(app) as driver:
        app._sinks = {AwaySink(): None}
        driver.topic("t").pipe("k", "slow")
        assert app.health.reasons == ["sinks: the sink"]
        app._sinks = {}
        assert app.health.ready
    assert seen.rows[-1][0] > 190
    assert seen.stalled() is None


class AwaySink:
    state = "away"

    def __repr__(self):
        return "the sink"

    async def close(self):
        pass


def test_kafka_away_is_no_stall_and_tables_are_not_answered_for(monkeypatch):
    app, seen = new_app(wait=200, stall_timeout=50)
    with TestDriver(app) as driver:
        app.router.cluster.require_ready()
        monkeypatch.setattr(MemoryGroup, "heartbeat_age", 10.1)
        assert app.health.reasons == [
            "group: Kafka has not answered for 10 s, so the group may have given the partitions "
            "to others"
        ]
        with pytest.raises(NotNow, match="others may have the partitions"):
            app.router.cluster.require_ready()
        driver.topic("t").pipe("k", "slow")
        assert seen.stalled() is None

        monkeypatch.setattr(MemoryGroup, "heartbeat_age", None)
        assert app.health.reasons[0].startswith("group: the worker is not, or no longer, a member")
        monkeypatch.setattr(MemoryGroup, "heartbeat_age", 9.9)
        assert app.health.ready
        app.router.cluster.require_ready()


def test_other_reasons(monkeypatch):
    app, _ = new_app()
    assert app.health.reasons == ["worker: the worker is starting"]
    with TestDriver(app, partitions=1):
        health = app.health
        app.rebalancing = True
        assert health.reasons[0] == "partitions: a rebalance is going on"
        app.rebalancing = False
        app.tables.recovery.completed.clear()
        assert health.reasons == ["tables: partitions are being taken over"]
        app.tables.recovery.completed.set()
        with monkeypatch.context() as patch:
            patch.setattr(MemoryGroup, "span", lambda self, tp: None)
            assert health.reasons == ["lag: not known yet for t/0"]
        health.stopping = True
        assert health.reasons == ["worker: the worker is stopping"]
        assert health.live
        health.stopping = False
        health.gave_up = "it hung"
        assert health.reasons == ["worker: it hung"]
        assert not health.live
        health.gave_up = None
        assert health.ready


def test_a_recovery_that_stands_still():
    app, seen = new_app(stall_timeout=20)
    with TestDriver(app, partitions=1) as driver:
        app.tables.recovery.completed.clear()
        driver.advance("15s")
        app.tables.recovery.reader.assign({streamproc.testing.transport.TP("c", 0): 1})  # it reads
        driver.advance("15s")
        assert app.health.stall is None
        driver.advance("15s")
        assert "recovery of tables has stood still" in str(app.health.stall)
        app.tables.recovery.completed.set()
    assert 34 <= seen.stalled()[0] <= 37


def test_time_in_which_the_process_stood_still_does_not_count():
    app, _ = new_app(stall_timeout=20)
    with TestDriver(app, partitions=1) as driver:
        app.tables.recovery.completed.clear()
        app.health.look()
        driver.advance("30s")
        assert app.health.stall.seconds == pytest.approx(30, abs=1)
        app.health.forgive(25)
        assert app.health.stall is None
        assert app.health.warning is None
        app.tables.recovery.completed.set()


class ServerSink:
    """A sink whose server fails a number of checks."""

    def __init__(self, failures):
        self.failures = failures

    def __repr__(self):
        return "<ServerSink>"

    async def check(self):
        self.failures -= 1
        if self.failures >= 0:
            raise SinkUnavailable("The server is away")
        return "fine"


async def test_sinks_are_asked_also_when_nothing_is_written():
    sink = ServerSink(1)
    probe = SinkProbe(SimpleNamespace(sinks=[sink, object()]))
    await probe.ask()
    assert probe.away == {}  # an idle connection that was closed
    sink.failures = 2
    await probe.ask()
    assert probe.away == {sink: "The server is away"}
    await probe.ask()
    assert probe.away == {}
    sink.check = lambda: 1 / 0
    await probe.ask()
    assert "can't be checked: ZeroDivisionError" in probe.away[sink]


def test_the_page_about_operations_has_every_check_and_exit_code():
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for check in _CHECKS:
        assert f"\n| `{check}` |" in page
    for code in (EXIT_STALLED, EXIT_UNCLEAN):
        assert f"\n| {code} |" in page
    assert f"`drain_timeout` and {STOP_MARGIN:g} s" in page


def test_workers_are_ours():
    app, _ = new_app()
    assert app.conf.Worker is streamproc.Worker
    assert streamproc.Worker.__module__ == "streamproc.health.worker"
