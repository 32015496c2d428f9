"""Internals of aiokafka 0.14, faust-streaming 0.15.3 and mode that the batch path relies on.

One test each, so that an upgrade that changes one breaks a test and not a user.
"""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version

import aiokafka
import faust.agents.agent
import faust.streams
import pytest
from aiokafka.consumer.consumer import AIOKafkaConsumer
from aiokafka.consumer.fetcher import (
    READ_COMMITTED,
    READ_UNCOMMITTED,
    Fetcher,
    FetchError,
    FetchResult,
    PartitionRecords,
)
from aiokafka.consumer.group_coordinator import GroupCoordinator, NoGroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import NotLeaderForPartitionError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from faust.tables.recovery import Recovery
from faust.transport.conductor import Conductor as FaustConductor
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.drivers import aiokafka as driver
from faust.transport.producer import ProducerBuffer
from mode.utils.queues import FlowControlEvent, FlowControlQueue

import streamproc
from streamproc.kafka.fetch import end_fetches, follow_leaders, walk
from streamproc.kafka.producer import ProducerBuffer as OwnProducerBuffer

TP0 = TopicPartition("t", 0)


def names_in(function):
    """The attributes and variables that a function's code uses."""
    code = inspect.unwrap(function).__code__
    return {*code.co_names, *code.co_varnames}


def instance_attributes(cls):
    """Names that ``cls.__init__`` sets."""
    return names_in(cls.__init__)


def test_versions_are_those_checked():
    assert version("aiokafka").startswith("0.14.")
    assert version("faust-streaming") == "0.15.3"


# -- aiokafka: fetching


async def test_an_offset_that_an_old_leader_refuses_is_asked_of_the_new_one():
    assert "_proc_offset_request" in names_in(Fetcher._update_fetch_positions)
    assert "force_metadata_update" not in names_in(Fetcher._update_fetch_positions)

    class Stub:
        looked = 0

        async def _proc_offset_request(self, node_id, topic_data):
            raise NotLeaderForPartitionError

        @property
        def _client(self):
            return self

        def force_metadata_update(self):
            self.looked += 1

    fetcher = Stub()
    follow_leaders(fetcher)
    with pytest.raises(NotLeaderForPartitionError):
        await fetcher._proc_offset_request(1, {})
    assert fetcher.looked == 1


async def test_a_fetcher_closes_whose_fetch_has_failed():
    """aiokafka's close() is cancelled by the fetch that it cancels."""

    class Fetches:
        _retry_backoff = 1000
        _client = property(lambda self: self)
        _closed = False
        _fetch_waiters = ()

        def __init__(self):
            self.failed = asyncio.Event()

        async def send(self, node_id, request):
            self.failed.set()
            raise NotLeaderForPartitionError

        def _invalidate_preferred_read_replica_for_node(self, node_id, request):
            pass

        async def _proc_fetch_request(self, assignment, node_id, request):
            return await Fetcher._proc_fetch_request(self, assignment, node_id, request)

        async def close(self, *, mended):
            if mended:
                end_fetches(self)
            fetch = asyncio.ensure_future(self._proc_fetch_request(None, 1, None))
            self._fetch_task = asyncio.ensure_future(asyncio.Event().wait())
            self._pending_tasks = {fetch}
            await self.failed.wait()
            await Fetcher.close(self)
            assert fetch.done()

    await Fetches().close(mended=True)
    with pytest.raises(asyncio.CancelledError):
        await Fetches().close(mended=False)  # or there is nothing to mend any more


def record_batch(base, values, *, producer_id=-1, transactional=False, headers=()):
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=transactional,
        producer_id=producer_id,
        producer_epoch=0,
        base_sequence=0,
        batch_size=1 << 20,
    )
    for row, value in enumerate(values):
        builder.append(
            row, timestamp=1000 + row, key=b"k%d" % row, value=value, headers=list(headers)
        )
    payload = bytearray(builder.build())
    payload[0:8] = base.to_bytes(8, "big")
    return bytes(payload)


def partition_records(payload, *, position=0, isolation=READ_UNCOMMITTED, aborted=()):
    return PartitionRecords(
        TP0, MemoryRecords(payload), list(aborted), position, None, None, True, isolation
    )


def test_partition_records_are_walked_in_whole():
    payload = record_batch(0, [b"a", b"b"]) + record_batch(2, [b"c"], headers=[("h", b"1")])
    records = partition_records(payload, position=1)
    raw = walk(records, 10)
    assert raw.offsets == [1, 2]
    assert raw.values == [b"b", b"c"]
    assert raw.keys == [b"k1", b"k0"]
    assert raw.timestamps == [1001, 1000]
    assert raw.headers == [(), (("h", b"1"),)]
    assert (raw.next_offset, raw.high_watermark) == (3, 10)
    assert records.next_fetch_offset == 3


def test_the_walk_finds_what_aiokafka_itself_finds():
    payload = b"".join(record_batch(n * 3, [b"%d" % n] * 3) for n in range(4))
    expected = [(each.offset, each.value) for each in partition_records(payload, position=2)]
    raw = walk(partition_records(payload, position=2), 12)
    assert list(zip(raw.offsets, raw.values, strict=True)) == expected


def test_records_of_aborted_transactions_are_passed_over():
    payload = record_batch(0, [b"gone"], producer_id=7, transactional=True)
    payload += record_batch(1, [b"kept"], producer_id=8, transactional=True)
    raw = walk(partition_records(payload, isolation=READ_COMMITTED, aborted=[(7, 0)]), 2)
    assert raw.values == [b"kept"]
    assert raw.next_offset == 2


def test_a_damaged_batch_is_refused():
    payload = bytearray(record_batch(0, [b"a" * 50]))
    payload[-5] ^= 0xFF
    with pytest.raises(aiokafka.errors.CorruptRecordException):
        walk(partition_records(bytes(payload)), 1)


@pytest.mark.parametrize(
    "name",
    [
        "_tp",
        "next_fetch_offset",
        "_records",
        "_check_crcs",
        "_isolation_level",
        "_aborted_producers",
    ],
)
def test_attributes_of_partition_records(name):
    assert hasattr(partition_records(record_batch(0, [b"a"])), name)


@pytest.mark.parametrize("name", ["_consume_aborted_up_to", "_contains_abort_marker"])
def test_methods_of_partition_records(name):
    assert callable(getattr(PartitionRecords, name))


@pytest.mark.parametrize("name", ["check_assignment", "has_more", "_update_position"])
def test_methods_of_fetch_results(name):
    assert callable(getattr(FetchResult, name))


def test_a_fetch_result_holds_records_and_assignment():
    assert {"_partition_records", "_assignment"} <= instance_attributes(FetchResult)
    assert callable(FetchError.check_raise)


@pytest.mark.parametrize("name", ["_records", "_subscriptions", "_closed", "_wait_consume_future"])
def test_attributes_of_the_fetcher(name):
    assert name in instance_attributes(Fetcher)


@pytest.mark.parametrize("name", ["_create_fetch_waiter", "_notify"])
def test_methods_of_the_fetcher(name):
    assert callable(getattr(Fetcher, name))


def test_the_fetcher_keeps_what_is_fetched_until_its_place_is_given_free():
    """Back-pressure: a partition with a result in ``_records`` isn't fetched again."""
    assert "_records" in names_in(Fetcher._get_actions_per_node)


@pytest.mark.parametrize(
    "name",
    ["reassignment_in_progress", "wait_for_assignment", "is_assigned", "fetch_context"],
)
def test_the_subscription_state(name):
    assert hasattr(SubscriptionState, name)


def test_the_consumer_has_its_parts():
    expected = {"_fetcher", "_subscription", "_client", "_closed"}
    assert expected <= {*instance_attributes(AIOKafkaConsumer), *names_in(AIOKafkaConsumer.start)}
    assert callable(AIOKafkaConsumer.highwater)
    for coordinator in (GroupCoordinator, NoGroupCoordinator):
        assert callable(coordinator.check_errors)


async def test_the_producers_parts_for_whole_batches():
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers="127.0.0.1:1")
    assert callable(producer.client._wait_on_metadata)
    assert producer.client.cluster.partitions_for_topic("unknown") is None
    assert list(inspect.signature(producer._partition).parameters) == [
        "topic",
        "partition",
        "key",
        "value",
        "serialized_key",
        "serialized_value",
    ]
    builder = producer.create_batch()
    assert builder.append(key=b"k", value=b"v", timestamp=1, headers=[]) is not None
    assert builder.record_count() == 1
    await producer.stop()


# -- Faust: transport


@pytest.mark.parametrize(
    "name",
    [
        "flow_active",
        "can_resume_flow",
        "suspend_flow",
        "not_waiting_next_records",
        "_read_offset",
        "_committed_offset",
    ],
)
def test_attributes_of_fausts_consumer(name):
    assert hasattr(FaustConsumer, name) or name in instance_attributes(FaustConsumer)


@pytest.mark.parametrize(
    "name",
    [
        "_drain_messages",
        "_get_active_partitions",
        "_handle_attached",
        "perform_seek",
        "on_partitions_assigned",
        "on_partitions_revoked",
        "resume_partitions",
        "wait_empty",
        "force_commit",
        "ack",
    ],
)
def test_methods_of_fausts_consumer(name):
    assert callable(getattr(driver.Consumer, name))


def test_fausts_fetcher_runs_the_drain_loop_of_the_consumer():
    from faust.transport.consumer import Fetcher as FaustFetcher

    assert "_drain_messages" in names_in(FaustFetcher._fetcher.fun)


@pytest.mark.parametrize(
    "name", ["_create_worker_consumer", "_ensure_consumer", "call_thread", "_highwaters"]
)
def test_methods_of_fausts_consumer_thread(name):
    assert callable(getattr(driver.AIOKafkaConsumerThread, name))


@pytest.mark.parametrize(
    "name", ["server_list", "credentials_to_aiokafka_auth", "ensure_aiokafka_TP"]
)
def test_helpers_of_fausts_driver(name):
    assert callable(getattr(driver, name))


def test_recovery_resumes_partitions_before_it_seeks():
    """Why fetching of source partitions waits for perform_seek."""
    for method in (Recovery.on_recovery_completed, Recovery._resume_streams):
        source = inspect.getsource(method)
        assert source.index("resume_partitions(") < source.index("perform_seek()")


@pytest.mark.parametrize("name", ["_topics", "_tp_index", "_tp_to_callback", "_acking_topics"])
def test_attributes_of_fausts_conductor(name):
    assert name in instance_attributes(FaustConductor)


@pytest.mark.parametrize("name", ["_build_handler", "on_client_only_start", "acks_enabled_for"])
def test_methods_of_fausts_conductor(name):
    assert callable(getattr(FaustConductor, name))


def test_the_conductor_waits_between_two_subscriptions():
    assert FaustConductor._resubscribe_sleep_lock_seconds == 45.0


async def test_the_producer_has_a_buffer_that_is_flushed_to_the_end():
    # Faust makes one of its own in __init__, after all methods that it calls there.
    app = streamproc.App("buffered", broker="kafka://nowhere")
    assert type(app.producer.buffer) is OwnProducerBuffer


def test_fausts_producer_buffer():
    assert {"_send_pending", "flush_atmost", "flush"} <= set(dir(ProducerBuffer))
    assert {"message_sent"} <= {
        *names_in(ProducerBuffer.__post_init__),
        *names_in(ProducerBuffer._send_pending),
    }
    assert isinstance(ProducerBuffer.size, property)


# -- Faust: streams and agents


@pytest.mark.parametrize(
    "name",
    [
        "_chain",
        "_format_key",
        "_passive_drainer",
        "_channel_stop_iteration",
        "_iter_ll_forwards",
        "get_active_stream",
        "on_merge",
        "derive_topic",
        "noack",
    ],
)
def test_methods_of_fausts_stream(name):
    assert callable(getattr(faust.streams.Stream, name))


@pytest.mark.parametrize("name", ["_processors", "_finalized", "_next", "_prev", "_passive"])
def test_attributes_of_fausts_stream(name):
    assert hasattr(faust.streams.Stream, name) or name in instance_attributes(faust.streams.Stream)


def test_the_current_event_is_what_a_callable_returns():
    """Faust keeps a weak reference there; ours makes the event when it is asked for."""
    event = object()
    token = faust.streams._current_event.set(lambda: event)
    try:
        assert faust.current_event() is event
    finally:
        faust.streams._current_event.reset(token)


@pytest.mark.parametrize(
    "name", ["_execute_actor", "_slurp", "_reply", "_delegate_to_sinks", "actor_from_stream"]
)
def test_methods_of_fausts_agent(name):
    assert callable(getattr(faust.agents.agent.Agent, name))


def test_the_agents_task_runs_execute_actor_and_slurp():
    assert {"_execute_actor", "_slurp"} <= names_in(faust.agents.agent.Agent._prepare_actor)


def test_requests_to_agents_say_in_headers_who_asks():
    source = inspect.getsource(faust.agents.agent)
    assert '"Faust-Ag-ReplyTo"' in source
    assert '"Faust-Ag-CorrelationId"' in source


async def test_a_flow_control_queue_takes_things_past_its_bound():
    queue = FlowControlQueue(flow_control=FlowControlEvent(), maxsize=1)
    for number in range(3):
        queue.force_put_nowait(number)
    assert [await queue.get() for _ in range(3)] == [0, 1, 2]


def test_settings_name_the_classes_to_replace():
    app = streamproc.App("internals", broker="kafka://127.0.0.1:1")
    for name in ("Stream", "Topic", "Agent"):
        assert getattr(app.conf, name) is getattr(streamproc, name)
    transport = app.transport
    assert transport.Consumer is not driver.Consumer
    assert issubclass(transport.Consumer, driver.Consumer)


def test_the_event_loop_of_an_app_is_not_bound_at_import():
    async def loop_of():
        app = streamproc.App("internals-loop", broker="kafka://127.0.0.1:1")
        return app.loop is asyncio.get_running_loop()

    assert asyncio.run(loop_of())
