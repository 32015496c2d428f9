"""What transactions rely on in aiokafka, and what goes over the wire."""

from __future__ import annotations

import asyncio
import gc
import inspect
from functools import partial
from types import SimpleNamespace

import pytest
from aiokafka.errors import (
    GroupLoadInProgressError,
    KafkaConnectionError,
    NotCoordinatorForGroupError,
    ProducerFenced,
    RequestTimedOutError,
)
from aiokafka.producer import sender
from aiokafka.producer.transaction_manager import TransactionManager, TransactionState
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

from streamproc.errors import Fenced, TransactionAborted
from streamproc.kafka import transactions
from streamproc.kafka.committed import (
    MOST_BYTES,
    Committed,
    Notes,
    ahead_of,
    positions_ahead,
    read_committed_offset,
    with_notes,
)
from streamproc.kafka.producer import Producer
from streamproc.kafka.transactions import (
    GroupMember,
    MemberOffsetCommitHandler,
    MemberOffsetCommitRequest,
    OffsetFetchRequest_v7,
    StableOffsetFetchRequest,
    TransactionalProducer,
    TxnOffsetCommitRequest_v3,
    WatchedClient,
    fetch_stable_offsets,
)

MEMBER = GroupMember("group", 7, "member-1", None)
VERSIONS = {28: (0, 5), 9: (1, 9)}


def in_transaction():
    manager = TransactionManager("id", 10_000)
    manager.set_pid_and_epoch(11, 2)
    manager.begin_transaction()
    return manager


async def test_offsets_are_committed_in_the_name_of_the_member():
    manager = in_transaction()
    offsets = {TopicPartition("t", 3): OffsetAndMetadata(42, "tables:a")}
    manager.add_offsets_to_txn(offsets, MEMBER)
    handler = MemberOffsetCommitHandler(
        SimpleNamespace(_txn_manager=manager, _retry_backoff=0.1), offsets, MEMBER
    )
    request = handler.create_request().prepare(VERSIONS)
    decoded = TxnOffsetCommitRequest_v3.decode(request.encode())
    assert (decoded.group_id, decoded.generation_id, decoded.member_id) == ("group", 7, "member-1")
    assert (decoded.transactional_id, decoded.producer_id, decoded.producer_epoch) == ("id", 11, 2)
    assert decoded.topics == [("t", [(3, 42, -1, "tables:a", {})], {})]


@pytest.mark.parametrize("code", [22, 25, 82])
async def test_what_the_group_refuses_is_fenced(code):
    manager = in_transaction()
    offsets = {TopicPartition("t", 0): OffsetAndMetadata(1, "")}
    committed = manager.add_offsets_to_txn(offsets, MEMBER)
    handler = MemberOffsetCommitHandler(
        SimpleNamespace(_txn_manager=manager, _retry_backoff=0.1), offsets, MEMBER
    )
    handler.handle_response(SimpleNamespace(errors=[("t", [(0, code, {})], {})]))
    with pytest.raises(Fenced, match="refuses this worker"):
        await committed
    assert manager.state is TransactionState.ABORTABLE_ERROR
    manager._transaction_waiter.exception()


async def test_what_the_group_takes_is_committed():
    manager = in_transaction()
    offsets = {TopicPartition("t", 0): OffsetAndMetadata(1, "")}
    committed = manager.add_offsets_to_txn(offsets, MEMBER)
    handler = MemberOffsetCommitHandler(
        SimpleNamespace(_txn_manager=manager, _retry_backoff=0.1), offsets, MEMBER
    )
    assert handler.handle_response(SimpleNamespace(errors=[("t", [(0, 0, {})], {})])) is None
    assert committed.done()


class Coordinator:
    group_id = "group"

    def __init__(self, *codes):
        self.codes = list(codes)
        self.is_dead = False

    async def _send_req(self, request):
        asked = OffsetFetchRequest_v7.decode(request.prepare(VERSIONS).encode())
        assert asked.require_stable
        assert asked.topics == [("t", [0, 1], {})]
        parts = [(0, 5, -1, "note", self.codes[0], {}), (1, -1, -1, "", 0, {})]
        return SimpleNamespace(topics=[("t", parts, {})], error_code=0)

    def coordinator_dead(self):
        self.is_dead = True


async def test_stable_offsets_are_fetched():
    wanted = [TopicPartition("t", 0), TopicPartition("t", 1)]
    found = await fetch_stable_offsets(Coordinator(0), wanted)
    assert found == {TopicPartition("t", 0): OffsetAndMetadata(5, "note")}
    with pytest.raises(GroupLoadInProgressError) as unstable:
        await fetch_stable_offsets(Coordinator(transactions.UNSTABLE_OFFSET_COMMIT), wanted)
    assert unstable.value.retriable
    moved = Coordinator(NotCoordinatorForGroupError.errno)
    with pytest.raises(NotCoordinatorForGroupError):
        await fetch_stable_offsets(moved, wanted)
    assert moved.is_dead


def test_requests_of_brokers_that_are_too_old_are_refused():
    for request in (MemberOffsetCommitRequest(), StableOffsetFetchRequest("g", [])):
        with pytest.raises(NotImplementedError):
            request.prepare({28: (0, 2), 9: (0, 6)})


async def test_a_request_without_an_answer_leaves_doubt():
    class Client:
        loop = "its"

        async def send(self, *args, **kwargs):
            raise RequestTimedOutError

    watched = WatchedClient(Client())
    assert watched.loop == "its"
    assert not watched.is_in_doubt
    with pytest.raises(RequestTimedOutError):
        await watched.send(1, None)
    assert watched.is_in_doubt


async def test_a_failed_transaction_takes_nothing_more():
    producer = TransactionalProducer(bootstrap_servers="127.0.0.1:1", transactional_id="id")
    try:
        manager = producer._txn_manager
        manager.set_pid_and_epoch(1, 1)
        assert not producer.has_begun
        producer.ensure_begun()
        producer.ensure_begun()
        assert producer.has_begun
        with pytest.raises(Fenced, match="no such member"):
            await producer.end(
                {TopicPartition("t", 0): OffsetAndMetadata(1, "")}, GroupMember("g", -1, "")
            )
        manager.error_transaction(RuntimeError("lost"))
        with pytest.raises(TransactionAborted, match="abortable_error"):
            producer.ensure_begun()
        assert producer._sender.client is producer._watched
    finally:
        await producer.drop()
    await asyncio.sleep(0)


async def test_partitions_of_a_void_transaction_get_abort_markers():
    producer = TransactionalProducer(bootstrap_servers="127.0.0.1:1", transactional_id="id")
    try:
        manager, tp = producer._txn_manager, TopicPartition("t", 3)
        manager.set_pid_and_epoch(1, 1)
        producer.ensure_begun()
        manager.maybe_add_partition_to_txn(tp)
        assert producer.written == {tp}
        manager.error_transaction(RuntimeError("lost"))
        manager._transaction_waiter.exception()
        assert producer.written == {tp}  # aiokafka has forgotten it
        again = TransactionalProducer(bootstrap_servers="127.0.0.1:1", transactional_id="id")
        again._txn_manager.set_pid_and_epoch(1, 2)
        marking = asyncio.ensure_future(again.mark_aborted(producer.written, None))
        await asyncio.sleep(0)
        assert again._txn_manager.state is TransactionState.ABORTING_TRANSACTION
        assert again._txn_manager.partitions_to_add() == {tp}
        again._txn_manager.partition_added(tp)
        again._txn_manager.complete_transaction()
        await marking
        assert not again.written
        await again.drop()
    finally:
        await producer.drop()


def test_aiokafka_asks_the_sender_as_we_think():
    source = inspect.getsource(sender.Sender._maybe_do_transactional_request)
    assert "_do_txn_offset_commit(offsets, group_id)" in source
    assert "class TxnOffsetCommitHandler(BaseHandler)" in inspect.getsource(sender)


def noted(notes):
    (offset,) = with_notes({TP("t", 0): 5}, {TP("t", 0): notes}).values()
    return offset


def test_offsets_name_what_goes_up_to_them_and_who_is_ahead():
    notes = Notes({"t@a": 6}, ["redis"], ["a", "b"])
    assert read_committed_offset(noted(notes)) == Committed(5, notes)
    assert noted(Notes()) == OffsetAndMetadata(5, "")
    for nothing in ("", "of another client", "[]", '{"tables": 1}'):
        assert read_committed_offset(OffsetAndMetadata(5, nothing)) == Committed(5)


def test_offsets_name_no_more_than_a_broker_takes():
    many = [f"name-{n:04}" for n in range(1000)]
    for notes in (Notes({"t@a": 6}, ["redis"], many), Notes({"t@a": 6}, many, ["table"])):
        cut = noted(notes)
        assert MOST_BYTES * 0.99 < len(cut.metadata) <= MOST_BYTES
        found = read_committed_offset(cut).notes
        assert found.ahead == notes.ahead
        names = found.sinks + found.tables
        assert names == (notes.sinks + notes.tables)[: len(names)]


def test_readers_ahead_are_those_of_the_topic_beyond_the_offset():
    positions = {0: {"t@a": 5, "t@b": 9, "tt@c": 9}, 1: {"t@a": 9}}
    ahead = ahead_of(TP("t", 0), 5, positions)
    assert ahead == {"t@b": 9}
    committed = {TP("t", 0): Committed(5, Notes(ahead)), TP("u", 0): Committed(5)}
    assert positions_ahead(committed) == {0: ahead}


async def test_what_could_not_be_marked_as_aborted_is_known_to_the_next_producer(monkeypatch):
    client = TransactionalProducer(bootstrap_servers="127.0.0.1:1", transactional_id="id")
    client._txn_manager.set_pid_and_epoch(1, 1)

    async def add_group(group):
        raise KafkaConnectionError("gone")

    monkeypatch.setattr(client._sender, "add_group", add_group)
    with pytest.raises(KafkaConnectionError):
        await client.mark_aborted({TopicPartition("t", 0)}, MEMBER)
    assert (client.written, client.group) == ({TopicPartition("t", 0)}, MEMBER)
    await client.drop()


@pytest.mark.parametrize("fails_first", [True, False])
async def test_what_was_sent_in_a_void_transaction_leaves_no_noise(fails_first):
    """Nobody asks what has become of it."""
    said = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: said.append(context["message"]))
    client = TransactionalProducer(bootstrap_servers="127.0.0.1:1", transactional_id="id")
    client._txn_manager.set_pid_and_epoch(1, 1)
    client.ensure_begun()
    users = SimpleNamespace(_unacknowledged=set(), _failure=None)
    users._on_done = partial(Producer._on_done, users)
    builder = client.create_batch()
    builder.append(key=b"k", value=b"v", timestamp=1)
    builder.close()
    accumulator = client._message_accumulator
    sent = await accumulator.add_batch(builder, TopicPartition("t", 0), 1)
    Producer._watch(users, sent)
    users._unacknowledged.clear()
    if fails_first:
        accumulator.fail_all(ProducerFenced())
    await client.drop()
    await asyncio.wait([sent])
    await asyncio.sleep(0)
    del sent, client, accumulator, builder
    gc.collect()
    assert users._failure is None
    assert said == []
