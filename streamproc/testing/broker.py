"""Topics in memory: what a broker is to an app under test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from itertools import islice
from typing import Any

from faust.types import TP

from streamproc.errors import Fenced, ProducerError
from streamproc.kafka.committed import OffsetAndMetadata, TopicPartition
from streamproc.kafka.fetch import RECORD_OVERHEAD, Headers, RawBatch
from streamproc.kafka.producer import partition_of
from streamproc.kafka.transactions import GroupMember, ProducerFenced

#: Order of arrival of what no reader of committed records has seen yet.
UNSEEN = -1

Offsets = Mapping[TopicPartition, OffsetAndMetadata]
Later = Callable[[float, Callable[[], None]], Any]


class State(Enum):
    """How far a transaction is."""

    OPEN = auto()
    COMMITTED = auto()
    ABORTED = auto()


class Transaction:
    """What a producer has sent since it ended its last transaction."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.state = State.OPEN
        #: Where it has begun in each partition that it wrote to.
        self.firsts: dict[Log, int] = {}
        self.offsets: dict[TP, OffsetAndMetadata] = {}


class Session:
    """A transactional producer; the next one with the same id fences it."""

    def __init__(self, transactional_id: str, timeout: float) -> None:
        self.transactional_id = transactional_id
        self.timeout = timeout
        self.transaction: Transaction | None = None


class Log:
    """One partition: parallel lists, an index of which is an offset.

    The mark that ends a transaction has an offset, too.
    """

    __slots__ = (
        "headers",
        "is_plain",
        "keys",
        "marks",
        "open",
        "sequences",
        "timestamps",
        "transactions",
        "values",
    )

    def __init__(self) -> None:
        self.timestamps: list[int] = []
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.headers: list[Headers] = []
        #: Order of arrival over all partitions, as a reader of committed records sees it.
        self.sequences: list[int] = []
        self.transactions: list[Transaction | None] = []
        #: Transactions that aren't ended here, and their first offsets.
        self.open: dict[Transaction, int] = {}
        self.marks: set[int] = set()
        #: True while no transaction has been here, which is what most tests are about.
        self.is_plain = True

    def __len__(self) -> int:
        return len(self.values)

    @property
    def stable_end(self) -> int:
        """Offset up to which readers of committed records may read."""
        return min(self.open.values()) if self.open else len(self.values)

    def is_seen(self, offset: int) -> bool:
        """True for a record that is committed."""
        transaction = self.transactions[offset]
        return offset not in self.marks and (
            transaction is None or transaction.state is State.COMMITTED
        )

    def end(self, transaction: Transaction, timestamp: int) -> None:
        """Write the mark that ends a transaction."""
        self.open.pop(transaction, None)
        self.marks.add(len(self))
        self.append(timestamp, None, None, (), UNSEEN, transaction)

    def append(
        self,
        timestamp: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        sequence: int,
        transaction: Transaction | None,
    ) -> None:
        self.timestamps.append(timestamp)
        self.keys.append(key)
        self.values.append(value)
        self.headers.append(headers)
        self.sequences.append(sequence)
        self.transactions.append(transaction)


class MemoryBroker:
    """Topics, their records, and the offsets that a group has committed.

    It outlives the app's restarts and crashes.

    Args:
        partitions: Number of partitions of a topic, by its name.
        now: The time of records that are sent without one, in milliseconds.
        later: Calls a function after some seconds, whatever becomes of the app.
    """

    def __init__(
        self, partitions: Callable[[str], int], now: Callable[[], int], later: Later
    ) -> None:
        self.topics: dict[str, list[Log]] = {}
        self.committed: dict[TP, int] = {}
        #: The same with what was noted beside.
        self.found: dict[TP, OffsetAndMetadata] = {}
        #: The group's generation, and who is in it.
        self.generation = 0
        self.members: set[str] = set()
        self._partitions = partitions
        self._now = now
        self._later = later
        self._count = 0
        self._keyless: dict[str, int] = {}
        #: In the order they came.
        self._waiting: dict[asyncio.Event, None] = {}
        self._sessions: dict[str, Session] = {}
        #: Transactions that would change the committed offset of a partition.
        self._unstable: dict[TP, set[Transaction]] = {}

    def create(self, topic: str, partitions: int | None = None) -> list[Log]:
        """Create a topic if it isn't there, and return its partitions."""
        logs = self.topics.get(topic)
        if logs is None:
            count = partitions or self._partitions(topic)
            logs = self.topics[topic] = [Log() for _ in range(count)]
        return logs

    def partition(self, topic: str, key: bytes | None) -> int:
        """Return the partition of a key, as Kafka chooses; keyless records take turns."""
        count = len(self.create(topic))
        if key is not None:
            return partition_of(key, count)
        turn = self._keyless[topic] = self._keyless.get(topic, -1) + 1
        return turn % count

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers = (),
        session: Session | None = None,
    ) -> tuple[int, int]:
        """Append a record; return its partition and offset.

        Raises:
            ProducerError: There's no such partition.
            ProducerFenced: The ``session`` is over.
        """
        logs = self.create(topic)
        if partition is None:
            partition = self.partition(topic, key)
        if not 0 <= partition < len(logs):
            raise ProducerError(
                f"Topic {topic!r} has no partition {partition}: it has {len(logs)}, from 0"
            )
        log = logs[partition]
        transaction = None if session is None else self._transaction(session)
        if transaction is not None:
            log.is_plain = False
            first = transaction.firsts.setdefault(log, len(log))
            log.open.setdefault(transaction, first)
        timestamp = self._now() if timestamp is None else timestamp
        sequence = self._next_sequence() if transaction is None else UNSEEN
        log.append(timestamp, key, value, headers, sequence, transaction)
        self._wake()
        return partition, len(log) - 1

    def _next_sequence(self) -> int:
        self._count += 1
        return self._count

    def _wake(self) -> None:
        for event in list(self._waiting):
            event.set()

    # -- transactions

    def open_session(self, transactional_id: str, timeout: float) -> Session:
        """Begin to take transactions of a producer; what its predecessor left is aborted."""
        old = self._sessions.get(transactional_id)
        session = self._sessions[transactional_id] = Session(transactional_id, timeout)
        if old is not None and old.transaction is not None:
            self._end(old.transaction, State.ABORTED)
        return session

    def _check(self, session: Session) -> None:
        if self._sessions.get(session.transactional_id) is not session:
            raise ProducerFenced

    def _transaction(self, session: Session) -> Transaction:
        self._check(session)
        if session.transaction is None:
            transaction = session.transaction = Transaction(session)
            self._later(session.timeout, lambda: self._time_out(transaction))
        return session.transaction

    def _time_out(self, transaction: Transaction) -> None:
        session = transaction.session
        if session.transaction is transaction:
            self._sessions.pop(session.transactional_id, None)
            self._end(transaction, State.ABORTED)

    def add_offsets(self, session: Session, offsets: Mapping[TP, int], member: GroupMember) -> None:
        """Let a transaction commit source offsets, in the name of a member of the group.

        Raises:
            Fenced: It isn't in the group's generation.
            ProducerFenced: The ``session`` is over.
        """
        transaction = self._transaction(session)
        if not self.is_member(member):
            raise Fenced(f"Group {member!s} refuses this worker: its generation is over")
        transaction.offsets.update({TP(*tp): each for tp, each in offsets.items()})
        for tp in transaction.offsets:
            self._unstable.setdefault(tp, set()).add(transaction)

    def end(self, session: Session, *, commit: bool) -> None:
        """End the transaction of a session, if it has one.

        Raises:
            ProducerFenced: The ``session`` is over.
        """
        self._check(session)
        if session.transaction is not None:
            self._end(session.transaction, State.COMMITTED if commit else State.ABORTED)

    def _end(self, transaction: Transaction, state: State) -> None:
        transaction.state = state
        transaction.session.transaction = None
        self.write_marks(transaction)

    def write_marks(self, transaction: Transaction) -> None:
        """Make the end of a transaction known to readers."""
        for log in transaction.firsts:
            self.mark(log, transaction)
        self.end_offsets(transaction)

    def mark(self, log: Log, transaction: Transaction) -> None:
        """Make the end of a transaction known to the readers of one partition."""
        if transaction.state is State.COMMITTED:
            for offset in range(transaction.firsts[log], len(log)):
                if log.transactions[offset] is transaction:
                    log.sequences[offset] = self._next_sequence()
        log.end(transaction, self._now())
        self._wake()

    def end_offsets(self, transaction: Transaction) -> None:
        """Make the end of a transaction known to the group."""
        for tp in transaction.offsets:
            self._unstable[tp].discard(transaction)
        if transaction.state is State.COMMITTED:
            self._keep(transaction.offsets)
        self._wake()

    # -- the group

    def join(self) -> tuple[int, str]:
        """Begin a new generation with one member; return its number and the member's id."""
        self.generation += 1
        member_id = f"member-{self.generation}"
        self.members = {member_id}
        return self.generation, member_id

    def commit(self, member: GroupMember, offsets: Offsets) -> bool:
        """Commit source offsets; False if the group refuses the member."""
        if not self.is_member(member):
            return False
        self._keep(offsets)
        return True

    def _keep(self, offsets: Offsets) -> None:
        for tp, each in offsets.items():
            self.committed[TP(*tp)], self.found[TP(*tp)] = each.offset, each

    def is_member(self, member: GroupMember) -> bool:
        """True for who is in the group's generation."""
        return member.member_id in self.members and member.generation == self.generation

    def are_stable(self, tps: Iterable[TP]) -> bool:
        """True when no transaction may still change the committed offsets."""
        return not any(self._unstable.get(tp) for tp in tps)

    # -- reading

    def end_of(self, tp: TP, *, committed: bool) -> int:
        """Return the offset after the last record that a reader may read."""
        logs = self.topics.get(tp.topic, ())
        if tp.partition >= len(logs):
            return 0
        log = logs[tp.partition]
        return log.stable_end if committed else len(log)

    def high_watermark(self, tp: TP) -> int:
        """Return the offset after the last record."""
        return self.end_of(tp, committed=False)

    def read(self, tp: TP, offset: int, *, committed: bool = False) -> RawBatch:
        """Return the records of a partition from ``offset`` on.

        Args:
            committed: Pass over those of transactions that were aborted, and stop before
                those of one that is open.
        """
        log = self.topics[tp.topic][tp.partition]
        end = self.end_of_fetch(offset, log.stable_end if committed else len(log))
        if log.is_plain:
            rows: Sequence[int] = range(offset, end)
        elif committed:
            rows = [row for row in range(offset, end) if log.is_seen(row)]
        else:
            rows = [row for row in range(offset, end) if row not in log.marks]
        headers = [log.headers[row] for row in rows]
        values, keys = [log.values[row] for row in rows], [log.keys[row] for row in rows]
        payload = _bytes_in(keys) + _bytes_in(values)
        return RawBatch(
            tp.topic,
            tp.partition,
            list(rows),
            [log.timestamps[row] for row in rows],
            keys,
            values,
            headers if any(headers) else None,
            end,
            len(log),
            0,
            payload + RECORD_OVERHEAD * len(values),
        )

    def end_of_fetch(self, offset: int, end: int) -> int:
        """Return how much of what there is a fetch returns: all of it."""
        return end

    def subscribe(self, event: asyncio.Event) -> None:
        """Set ``event`` whenever a record arrives."""
        self._waiting[event] = None

    def unsubscribe(self, event: asyncio.Event) -> None:
        """End :meth:`subscribe`."""
        self._waiting.pop(event, None)

    def in_order(self, topic: str, start: int = 0) -> list[tuple[int, int]]:
        """Return partition and offset of the topic's records in the order they came.

        Those of a transaction come when it is committed.
        """
        logs = self.topics.get(topic, ())
        found = sorted(
            (sequence, partition, offset)
            for partition, log in enumerate(logs)
            for offset, sequence in enumerate(log.sequences)
            if sequence != UNSEEN
        )
        return [(partition, offset) for _, partition, offset in islice(found, start, None)]


def _bytes_in(column: Sequence[bytes | None]) -> int:
    return sum(map(len, filter(None, column)))
