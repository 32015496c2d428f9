"""Transactions of the producer, fenced by the consumer group.

aiokafka commits a transaction's offsets without saying who it is that commits, so the
group can't refuse a worker that has lost its partitions. Added here are the versions of
two requests that KIP-447 brought (Kafka 2.5): a commit of offsets that names member and
generation, and a fetch of offsets that waits for those of a transaction that is ending.
Checked against aiokafka 0.14.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any, NamedTuple

import aiokafka
from aiokafka import errors
from aiokafka.client import CoordinationType
from aiokafka.producer.sender import AddOffsetsToTxnHandler, Sender, TxnOffsetCommitHandler
from aiokafka.producer.transaction_manager import TransactionState
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streamproc.errors import ConfigurationError, Fenced, TransactionAborted

#: What clients raise, for doubles of them in tests.
KafkaError, ProducerFenced = errors.KafkaError, errors.ProducerFenced

#: What the group answers to one that it doesn't count as the partitions' owner.
REFUSED = {
    22: "its generation is over",
    25: "it is no member any more",
    82: "another worker has its group_instance_id",
}
#: Offsets of a transaction that is ending are not known yet (KIP-447).
UNSTABLE_OFFSET_COMMIT = 88
NO_LEADER_EPOCH = -1

NO_TRANSACTIONS = (
    'processing_guarantee="exactly_once" needs a broker with transactions as Apache Kafka 2.5 and '
    "newer have them. This one has none, as the embedded Kafka of `streamproc dev`: use "
    "`streamproc dev --kafka apache`"
)


class GroupMember(str):
    """A consumer group's id, with who it is that commits."""

    __slots__ = ("generation", "instance_id", "member_id")

    generation: int
    member_id: str
    instance_id: str | None

    def __new__(
        cls, group: str, generation: int, member_id: str, instance_id: str | None = None
    ) -> GroupMember:
        self = super().__new__(cls, group)
        self.generation, self.member_id, self.instance_id = generation, member_id, instance_id
        return self


class TxnOffsetCommitResponse_v3(Response):  # type: ignore[misc]
    API_KEY = 28
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "errors",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partition_errors",
                    CompactArray(
                        ("partition", Int32), ("error_code", Int16), ("tags", TaggedFields)
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class TxnOffsetCommitRequest_v3(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 28
    API_VERSION = 3
    RESPONSE_TYPE = TxnOffsetCommitResponse_v3
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("group_id", CompactString("utf-8")),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", CompactString("utf-8")),
        ("group_instance_id", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class MemberOffsetCommitRequest(Request[TxnOffsetCommitRequest_v3]):  # type: ignore[misc]
    """Offsets of a transaction, committed by a member of the group."""

    API_KEY = 28

    def __init__(self, *fields: Any) -> None:
        self._fields = fields

    def build(
        self, request_struct_class: type[TxnOffsetCommitRequest_v3]
    ) -> TxnOffsetCommitRequest_v3:
        return request_struct_class(*self._fields, {})


class OffsetFetchResponse_v7(Response):  # type: ignore[misc]
    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("error_code", Int16),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("error_code", Int16),
        ("tags", TaggedFields),
    )


class OffsetFetchRequest_v7(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 9
    API_VERSION = 7
    RESPONSE_TYPE = OffsetFetchResponse_v7
    SCHEMA = Schema(
        ("consumer_group", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                ("partitions", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("require_stable", Boolean),
        ("tags", TaggedFields),
    )


class StableOffsetFetchRequest(Request[OffsetFetchRequest_v7]):  # type: ignore[misc]
    """Committed offsets, none of which a transaction that is ending may still change."""

    API_KEY = 9

    def __init__(self, group: str, partitions: Collection[TopicPartition]) -> None:
        self._group = group
        self._topics = by_topic({tp: tp.partition for tp in partitions})

    def build(self, request_struct_class: type[OffsetFetchRequest_v7]) -> OffsetFetchRequest_v7:
        topics: list[Any] = [(topic, parts, {}) for topic, parts in self._topics.items()]
        return request_struct_class(self._group, topics, True, {})


def by_topic(values: Mapping[TopicPartition, Any]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = defaultdict(list)
    for tp, value in values.items():
        grouped[tp.topic].append(value)
    return grouped


async def fetch_stable_offsets(
    coordinator: Any, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Fetch the committed offsets of a group, as its coordinator's own method does.

    Raises:
        KafkaError: The coordinator isn't there, or a transaction is ending: to be tried
            again (``retriable``).
    """
    request = StableOffsetFetchRequest(coordinator.group_id, partitions)
    response = await coordinator._send_req(request)
    offsets = {}
    codes = {response.error_code}
    for topic, parts, _ in response.topics:
        for partition, offset, _, metadata, code, _ in parts:
            codes.add(code)
            if offset >= 0:
                offsets[TopicPartition(topic, partition)] = OffsetAndMetadata(offset, metadata)
    for code in codes - {0}:
        if code == UNSTABLE_OFFSET_COMMIT:
            raise errors.GroupLoadInProgressError  # one that aiokafka tries again
        error = errors.for_code(code)
        if error is errors.NotCoordinatorForGroupError:
            coordinator.coordinator_dead()
        raise error(f"Offsets of group {coordinator.group_id!r} can't be fetched")
    return offsets


class _Errors(NamedTuple):
    errors: list[Any]


class MemberOffsetCommitHandler(TxnOffsetCommitHandler):  # type: ignore[misc]
    """Commits offsets of a transaction in the name of a member of the group."""

    def create_request(self) -> Any:
        member, transactions = self._group_id, self._sender._txn_manager
        rows: dict[TopicPartition, Any] = {
            tp: (tp.partition, each.offset, NO_LEADER_EPOCH, each.metadata, {})
            for tp, each in sorted(self._offsets.items())
        }
        return MemberOffsetCommitRequest(
            transactions.transactional_id,
            str(member),
            transactions.producer_id,
            transactions.producer_epoch,
            member.generation,
            member.member_id,
            member.instance_id,
            [(topic, parts, {}) for topic, parts in by_topic(rows).items()],
        )

    def handle_response(self, response: Any) -> float | None:
        codes = {code for _, parts, _ in response.errors for _, code, _ in parts}
        refusal = next((REFUSED[code] for code in codes if code in REFUSED), None)
        if refusal is not None:
            error = Fenced(f"Group {self._group_id!s} refuses this worker: {refusal}")
            self._sender._txn_manager.error_transaction(error)
            return None
        plain = [
            (topic, [(partition, code) for partition, code, _ in parts])
            for topic, parts, _ in response.errors
        ]
        backoff: float | None = super().handle_response(_Errors(plain))
        return backoff


class WatchedClient:
    """aiokafka's client, noting whether a request was left without an answer."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.is_in_doubt = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await self._client.send(*args, **kwargs)
        except BaseException:
            self.is_in_doubt = True
            raise


class MemberSender(Sender):  # type: ignore[misc]
    """aiokafka's sender, with offsets committed by a member of the group."""

    async def add_group(self, group: GroupMember) -> None:
        """Make the group's offsets a part of the transaction."""
        added = False
        while not added:
            key = self._txn_manager.transactional_id
            node = await self._find_coordinator(CoordinationType.TRANSACTION, key)
            added = await AddOffsetsToTxnHandler(self, group).do(node)

    async def _do_txn_offset_commit(self, offsets: Any, group_id: GroupMember) -> None:
        node = await self._find_coordinator(CoordinationType.GROUP, group_id)
        await MemberOffsetCommitHandler(self, offsets, group_id).do(node)


class TransactionalProducer(aiokafka.AIOKafkaProducer):  # type: ignore[misc]
    """aiokafka's producer in transactions that begin by themselves."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        #: Partitions that the transaction has written to.
        self.written: set[TopicPartition] = set()
        #: The broker was asked to commit it: how it ended is the broker's to know.
        self.is_ending = False
        #: The group whose offsets are in the transaction.
        self.group: GroupMember | None = None
        add, complete = (
            self._txn_manager.maybe_add_partition_to_txn,
            self._txn_manager.complete_transaction,
        )

        def maybe_add_partition_to_txn(tp: TopicPartition) -> None:
            self.written.add(tp)
            add(tp)

        def complete_transaction() -> None:
            self.written.clear()
            self.is_ending, self.group = False, None
            complete()

        self._txn_manager.maybe_add_partition_to_txn = maybe_add_partition_to_txn
        self._txn_manager.complete_transaction = complete_transaction
        self._watched = WatchedClient(self.client)
        self._sender = MemberSender(
            self._watched,
            acks=-1,
            txn_manager=self._txn_manager,
            message_accumulator=self._message_accumulator,
            retry_backoff_ms=options.get("retry_backoff_ms", 100),
            request_timeout_ms=self._request_timeout_ms,
        )

    async def start(self) -> None:
        """Connect, and end what an earlier producer with this transactional id left open.

        Raises:
            ConfigurationError: The broker has no transactions, or not those of KIP-447.
        """
        try:
            await super().start()
        except (errors.UnknownError, errors.IncompatibleBrokerVersion, NotImplementedError) as exc:
            await self.stop()
            raise ConfigurationError(f"{NO_TRANSACTIONS} (it answered {exc!r})") from exc
        versions: Any = next((each._versions for each in self.client._conns.values()), {})
        for request in (TxnOffsetCommitRequest_v3, OffsetFetchRequest_v7):
            if versions.get(request.API_KEY, (0, 0))[1] < request.API_VERSION:
                await self.stop()
                raise ConfigurationError(NO_TRANSACTIONS)

    def ensure_begun(self) -> None:
        """Be in a transaction.

        Raises:
            TransactionAborted: The last one has failed, and is to be aborted.
        """
        state = self._txn_manager.state
        if state is TransactionState.READY:
            self._txn_manager.begin_transaction()
        elif state is not TransactionState.IN_TRANSACTION:
            raise TransactionAborted(
                f"The transaction can't be used any more ({state.name.lower()})"
            )

    @property
    def is_in_doubt(self) -> bool:
        """True when a request was left without an answer, and may still reach the broker.

        It would be taken for one of a later transaction: nothing in the protocol orders them
        but the producer's epoch (Jepsen on Bufstream 0.1.0, 2024; KIP-890).
        """
        return self._watched.is_in_doubt

    @property
    def has_begun(self) -> bool:
        """True when there is something to commit or abort."""
        return self._txn_manager.state is not TransactionState.READY

    async def end(
        self, offsets: Mapping[TopicPartition, OffsetAndMetadata], member: GroupMember
    ) -> None:
        """Commit the transaction, with source offsets.

        Raises:
            Fenced: The group has given the partitions to others.
            KafkaError: The transaction is over, by its time-out for example; or it isn't
                known how it ended.
        """
        if offsets:
            if member.generation < 0:
                # The group would take its offsets unchecked, as those of a client without a group.
                raise Fenced(f"Group {member!s} has no such member any more")
            self.ensure_begun()
            self.group = member
            await self.send_offsets_to_transaction(dict(offsets), member)
        if self.has_begun:
            self.is_ending = True
            await self.commit_transaction()

    async def mark_aborted(
        self, partitions: Collection[TopicPartition], group: GroupMember | None
    ) -> None:
        """Write abort markers for a transaction before that was aborted.

        Args:
            partitions: Those that it wrote to.
            group: The group whose offsets were in it.

        A broker that restarts passes over partitions that it doesn't know yet when it
        aborts a transaction (it says "likely deleted already and hence can be skipped").
        The next commit of the same producer would commit what was written to them.
        """
        self.ensure_begun()
        for tp in partitions:
            self._txn_manager.maybe_add_partition_to_txn(tp)
        # Another producer may have to do it again.
        self.group = group
        if group is not None:
            await self._sender.add_group(group)
        await self.abort_transaction()

    async def drop(self) -> None:
        """Let go of it without waiting for anything; its successor has fenced it."""
        self._closed = True
        task = self._sender.sender_task
        if task is not None:
            task.cancel()
        unsent = self._message_accumulator
        unsent.fail_all(TransactionAborted("The transaction was aborted"))
        batches = [*chain.from_iterable(unsent._batches.values()), *unsent._pending_batches]
        waiters = [self._txn_manager._transaction_waiter, *(each._drain_waiter for each in batches)]
        for waiter in waiters:
            if waiter is not None and waiter.done() and not waiter.cancelled():
                waiter.exception()  # else the loop says that nobody has looked at it
        await self.client.close()
