"""What the group last said, how far partitions go, and commits that are tried again."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import TopicPartitionState
from aiokafka.errors import (
    CommitFailedError,
    CoordinatorLoadInProgressError,
    GroupAuthorizationFailedError,
    IllegalGenerationError,
    IllegalStateError,
    NotCoordinatorError,
    RebalanceInProgressError,
    RequestTimedOutError,
    UnknownMemberIdError,
)
from aiokafka.structs import TopicPartition
from faust.types import TP

from streamproc.kafka import membership, repeats
from streamproc.kafka.membership import Heartbeats, Span, commit, has_leader, span_of

TP0 = TopicPartition("t", 0)


def names_in(function):
    return {*function.__code__.co_names, *function.__code__.co_varnames}


def test_internals_of_aiokafka():
    """What the module relies on, so that an upgrade that changes it breaks a test."""
    routine = names_in(GroupCoordinator._heartbeat_routine)
    assert {"_do_heartbeat", "ensure_coordinator_known", "member_id"} <= routine
    assert "_start_heartbeat_task" in names_in(GroupCoordinator.ensure_active_group)
    assert {"generation", "DEFAULT_GENERATION_ID"} <= names_in(GroupCoordinator.reset_generation)
    assert {"_commit_lock", "_do_commit_offsets"} <= names_in(GroupCoordinator.commit_offsets)
    assert {"highwater", "lso"} <= names_in(TopicPartitionState.__init__)
    assert "_conns" in names_in(AIOKafkaClient.__init__)


class Coordinator:
    """The parts of aiokafka's GroupCoordinator that are relied on."""

    def __init__(self, *answers):
        self.generation = 3
        self.answers = list(answers)
        self.committed = []
        self.calls = 0
        self._commit_lock = asyncio.Lock()
        self.started = 0

    async def ensure_coordinator_known(self):
        pass

    async def _do_commit_offsets(self, assignment, offsets):
        self.calls += 1
        answer = self.answers.pop(0) if self.answers else None
        if answer is asyncio.Event:
            await asyncio.Event().wait()
        if answer is not None:
            raise answer
        self.committed.append(offsets)

    async def _do_heartbeat(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start_heartbeat_task(self):
        self.started += 1


def consumer(coordinator, tps=(TP0,)):
    assignment = SimpleNamespace(tps=frozenset(tps))
    subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    return SimpleNamespace(_coordinator=coordinator, _subscription=subscription)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Short pauses; gives those that were asked for."""
    monkeypatch.setattr(membership, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(membership, "LONGEST_PAUSE", 0.004)
    found = []
    sleep = asyncio.sleep

    async def noted(seconds):
        found.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(membership.asyncio, "sleep", noted)
    return found


async def test_errors_that_pass_are_tried_again_with_growing_uneven_pauses(pauses):
    passing = [
        NotCoordinatorError(),
        CoordinatorLoadInProgressError(),
        RequestTimedOutError(),
        NotCoordinatorError(),
    ]
    coordinator = Coordinator(*passing)
    await commit(consumer(coordinator), {TP0: 7}, timeout=5)
    assert coordinator.committed == [{TP0: 7}]
    assert coordinator.calls == 5
    for pause, most in zip(pauses, (0.001, 0.002, 0.004, 0.004), strict=True):
        assert most / 2 <= pause <= most
    assert len({pause / most for pause, most in zip(pauses, (1, 2, 4, 4), strict=True)}) > 1


async def test_other_errors_are_not():
    coordinator = Coordinator(GroupAuthorizationFailedError("g"))
    with pytest.raises(GroupAuthorizationFailedError):
        await commit(consumer(coordinator), {TP0: 7}, timeout=5)
    assert coordinator.calls == 1


@pytest.mark.parametrize(
    "error", [IllegalGenerationError, UnknownMemberIdError, RebalanceInProgressError]
)
async def test_a_group_that_went_on_without_us(error):
    coordinator = Coordinator(error())
    with pytest.raises(CommitFailedError):
        await commit(consumer(coordinator), {TP0: 7}, timeout=5)
    assert coordinator.calls == 1


async def test_partitions_of_others_are_not_committed():
    coordinator = Coordinator()
    with pytest.raises(IllegalStateError):
        await commit(consumer(coordinator, tps=()), {TP0: 7}, timeout=5)
    assert coordinator.calls == 0


async def test_it_ends_in_time():
    coordinator = Coordinator(*[NotCoordinatorError() for _ in range(10_000)])
    with pytest.raises((NotCoordinatorError, asyncio.TimeoutError)):
        await commit(consumer(coordinator), {TP0: 7}, timeout=0.05)
    assert 1 < coordinator.calls < 100
    with pytest.raises(asyncio.TimeoutError):
        await commit(consumer(Coordinator(asyncio.Event)), {TP0: 7}, timeout=0.05)


async def test_heartbeats_count_from_when_they_were_sent(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(membership, "monotonic", lambda: now[0])
    coordinator = Coordinator(True, False)
    heartbeats = Heartbeats(coordinator)
    assert heartbeats.age is None

    coordinator._start_heartbeat_task()  # the group took it in
    assert coordinator.started == 1
    now[0] = 103.0
    assert heartbeats.age == 3.0

    beat = coordinator._do_heartbeat()
    assert await beat is True
    assert heartbeats.age == 0.0
    now[0] = 110.0
    assert await coordinator._do_heartbeat() is False
    assert heartbeats.age == 7.0

    coordinator.generation = -1  # what aiokafka sets when the group doesn't know it
    assert heartbeats.age is None


@pytest.mark.parametrize("name", ["aiokafka", "aiokafka.test_repeats"])  # its client has the first
def test_a_broker_that_is_away_is_not_said_forty_times_a_second(name, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(repeats, "monotonic", lambda: now[0])
    monkeypatch.setattr(repeats, "_repeats", repeats.Repeats())
    log = logging.getLogger(name)
    repeats.thin_out()
    repeats.thin_out()
    for step in range(100):
        now[0] = step * 0.3
        log.error("Unable connect to node %s", step)
        log.info("Something else")
    log.warning("Another one")
    said = [each.getMessage() for each in caplog.records if each.levelno > logging.INFO]
    assert said == [
        "Unable connect to node 0",
        "Unable connect to node 34 (33 more like it in 10 s)",
        "Unable connect to node 68 (33 more like it in 10 s)",
        "Another one",
    ]
    log.removeFilter(repeats._repeats)


def test_records_of_an_open_transaction_are_not_behind():
    state = SimpleNamespace(has_valid_position=True, position=5, highwater=9, lso=7)
    assignment = SimpleNamespace(state_value={TP0: state}.get)
    fetching = SimpleNamespace(
        _subscription=SimpleNamespace(subscription=SimpleNamespace(assignment=assignment)),
        _isolation_level="read_committed",
    )
    assert span_of(fetching, TP("t", 0)) == Span(5, 7)
    fetching._isolation_level = "read_uncommitted"
    assert span_of(fetching, TP("t", 0)) == Span(5, 9)
    assert span_of(fetching, TP("t", 1)) is None
    state.highwater = None
    assert span_of(fetching, TP("t", 0)) is None


def test_a_leader_is_one_that_we_are_connected_to():
    leaders = {TP0: 2}
    connection = SimpleNamespace(connected=lambda: True)
    client = SimpleNamespace(
        cluster=SimpleNamespace(leader_for_partition=leaders.get), _conns={(2, 0): connection}
    )
    reader = SimpleNamespace(_client=client)
    assert has_leader(reader, TP("t", 0))
    assert not has_leader(reader, TP("t", 1))
    leaders[TP0] = -1
    assert not has_leader(reader, TP("t", 0))
    leaders[TP0] = 2
    connection.connected = lambda: False
    assert not has_leader(reader, TP("t", 0))
