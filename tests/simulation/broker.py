"""A broker whose transactions end in steps, and a group whose members come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from faust.types import TP

from streamproc.kafka.transactions import GroupMember
from streamproc.testing.broker import MemoryBroker, Offsets, Session, State, Transaction

#: Seconds: after which a silent member is out, and between two signs of life.
SESSION_TIMEOUT, HEARTBEAT = 3.0, 1.0


@dataclass
class Member:
    """A member of the group, as its coordinator knows it."""

    topics: set[str]
    seen: float
    waiting: asyncio.Future[Any] | None = None
    partitions: set[TP] = field(default_factory=set)


class SimBroker(MemoryBroker):
    """The broker, and the coordinator of the only group."""

    def __init__(self, world: Any, partitions: int) -> None:
        super().__init__(lambda topic: partitions, lambda: world.milliseconds, world.later)
        self.world = world
        self._ending: dict[Transaction, set[Any]] = {}
        #: Those that end in the group, though they have no offsets.
        self._with_group: set[Transaction] = set()
        #: True while it restarts: it passes over partitions that it doesn't know yet when it
        #: aborts a transaction, as a lone Apache Kafka 4.3.1 does.
        self._is_restarting = False
        #: By producer and partition (or "offsets"), the transactions that aren't ended there.
        self._passed_over: dict[tuple[str, Any], list[Transaction]] = {}
        self._of_group: dict[str, Member] = {}
        self._joins = 0
        self._numbers: dict[str, int] = {}
        self._is_rebalancing = False
        self.on_commit: Callable[[Offsets], None] = lambda offsets: None

    def append(self, topic: str, *args: Any, **kwargs: Any) -> tuple[int, int]:
        place = super().append(topic, *args, **kwargs)
        self.world.trace("append", topic, *place, *args[:2])
        return place

    def end_of_fetch(self, offset: int, end: int) -> int:
        return self.world.part_of(offset, end)

    # -- transactions

    def is_ending(self, transactional_id: str) -> bool:
        """True while marks of its last transaction are not yet written."""
        return any(each.session.transactional_id == transactional_id for each in self._ending)

    def write_marks(self, transaction: Transaction) -> None:
        """Write the mark of each partition at a time of its own, as Kafka does."""
        producer = transaction.session.transactional_id
        self.world.trace("end", self._number(producer), transaction.state.name)
        places: list[Any] = [*transaction.firsts]
        if transaction.offsets or transaction in self._with_group:
            places.append("offsets")
        told = [each for each in places if not (self._is_restarting and self.world.happens(0.5))]
        for place in places:
            if place not in told:
                self.world.trace("pass over", self._number(producer))
                self._passed_over.setdefault((producer, place), []).append(transaction)
        if told:
            self._ending[transaction] = {*told}
        for place in told:
            self.world.later(self.world.some_time(), self._step(transaction, place))

    def _take_in(self, transaction: Transaction, what: Any) -> None:
        """Let what was passed over end as the producer's next transaction there does."""
        for old in self._passed_over.pop((transaction.session.transactional_id, what), ()):
            if what == "offsets":
                for tp in old.offsets:
                    self._unstable[tp].discard(old)
                transaction.offsets = {**old.offsets, **transaction.offsets}
            else:
                what.open.pop(old)
                for offset in range(old.firsts[what], len(what)):
                    if what.transactions[offset] is old:
                        what.transactions[offset] = transaction
                transaction.firsts[what] = min(old.firsts[what], transaction.firsts[what])

    def end_passed_over(self, producers: Collection[str]) -> None:
        """Abort what was passed over of producers that are gone, as an operator does."""
        for producer, place in [each for each in self._passed_over if each[0] in producers]:
            for old in self._passed_over.pop((producer, place)):
                if place == "offsets":
                    self.end_offsets(old)
                else:
                    self.mark(place, old)

    def _step(self, transaction: Transaction, what: Any) -> Callable[[], None]:
        def step() -> None:
            self._take_in(transaction, what)
            if what == "offsets":
                if transaction.state is State.COMMITTED:
                    self.on_commit(transaction.offsets)
                self.end_offsets(transaction)
            else:
                self.mark(what, transaction)
            left = self._ending[transaction]
            left.discard(what)
            if not left:
                del self._ending[transaction]

        return step

    def add_offsets(self, session: Session, offsets: Offsets, member: GroupMember) -> None:
        super().add_offsets(session, offsets, member)
        self.world.trace("offsets", member.member_id)

    def open_session(self, transactional_id: str, timeout: float) -> Session:
        self.world.trace("session", self._number(transactional_id))
        self._is_restarting = self.world.happens(0.5)
        try:
            return super().open_session(transactional_id, timeout)
        finally:
            self._is_restarting = False

    def add_partitions(
        self, session: Session, partitions: Collection[TP], member: GroupMember | None
    ) -> None:
        """Let a transaction end in partitions, and in the group, in which nothing of it is."""
        transaction = self._transaction(session)
        for tp in partitions:
            log = self.create(tp.topic)[tp.partition]
            log.is_plain = False
            log.open.setdefault(transaction, transaction.firsts.setdefault(log, len(log)))
        if member is not None:
            self._with_group.add(transaction)

    def _number(self, transactional_id: str) -> str:
        # The ids are random.
        return f"producer-{self._numbers.setdefault(transactional_id, len(self._numbers))}"

    # -- the group

    def commit(self, member: GroupMember, offsets: Offsets) -> bool:
        done = super().commit(member, offsets)
        places = sorted((*tp, each.offset) for tp, each in offsets.items())
        self.world.trace("commit", done, *places)
        if done:
            self.on_commit(offsets)
        return done

    def enter(self, member_id: str, topics: set[str]) -> str:
        """Take a member into the next generation; return its id."""
        if member_id not in self._of_group:
            self._joins += 1
            member_id = f"member-{self._joins}"
            self._of_group[member_id] = Member(topics, self.world.now)
            self._watch(member_id)
        member = self._of_group[member_id]
        member.topics, member.seen = topics, self.world.now
        member.waiting = asyncio.get_running_loop().create_future()
        self.world.trace("join", member_id)
        self._begin_rebalance()
        self._complete()
        return member_id

    def _begin_rebalance(self) -> None:
        if self._is_rebalancing:
            return
        self._is_rebalancing = True
        for member in self._of_group.values():
            member.seen = max(member.seen, self.world.now)

    def _complete(self) -> None:
        if not self._is_rebalancing or not self._of_group:
            return
        if any(member.waiting is None for member in self._of_group.values()):
            return
        self._is_rebalancing = False
        self.generation += 1
        self.members = set(self._of_group)
        ids = list(self._of_group)
        shift = self.world.rng.randrange(len(ids))
        for number, (member_id, member) in enumerate(self._of_group.items()):
            member.partitions = {
                TP(topic, partition)
                for topic in member.topics
                for partition in range(len(self.create(topic)))
                if (partition + shift) % len(ids) == number
            }
            waiting, member.waiting = member.waiting, None
            member.seen = self.world.now
            if waiting is not None and not waiting.done():
                waiting.set_result((self.generation, member.partitions))
            parts = sorted({tp.partition for tp in member.partitions})
            self.world.trace("assign", self.generation, member_id, *parts)

    def joined(self, member_id: str) -> asyncio.Future[Any]:
        """Return a future of the generation and the partitions of a member."""
        waiting = self._of_group[member_id].waiting
        if waiting is None:
            # It is assigned already.
            waiting = asyncio.get_running_loop().create_future()
            waiting.set_result((self.generation, self._of_group[member_id].partitions))
        return waiting

    def heartbeat(self, member_id: str, generation: int) -> str:
        """Take a member's sign of life; return "", "rebalancing" or "unknown"."""
        member = self._of_group.get(member_id)
        if member is None or generation != self.generation:
            return "unknown"
        member.seen = self.world.now
        return "rebalancing" if self._is_rebalancing else ""

    def leave(self, member_id: str) -> None:
        """Let a member go."""
        if self._of_group.pop(member_id, None) is not None:
            self.world.trace("leave", member_id)
            self.members.discard(member_id)
            self._begin_rebalance()
            self._complete()

    def _watch(self, member_id: str) -> None:
        """See that a member which is silent for too long is out."""

        def look() -> None:
            member = self._of_group.get(member_id)
            if member is None:
                return
            silent = self.world.now - member.seen
            alive = member.waiting is not None and not member.waiting.done()
            if silent < SESSION_TIMEOUT or alive:
                left = SESSION_TIMEOUT - silent
                self.world.later(max(left, 0.1), look)
            else:
                self.leave(member_id)

        self.world.later(SESSION_TIMEOUT, look)
