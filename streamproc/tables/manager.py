"""The tables of a worker: which partitions of them are open, and their checkpoints.

Checked against faust-streaming 0.15.3.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from faust.tables.manager import TableManager as FaustTableManager
from faust.types import TP

from streamproc.errors import TableError
from streamproc.kafka.committed import Committed
from streamproc.tables.changelog import Applier, records_of
from streamproc.tables.folder import InstanceFolder
from streamproc.tables.recovery import Recovery
from streamproc.tables.state import Flush, PartitionState
from streamproc.tables.stores import MemoryStore, RocksStore, Store
from streamproc.tables.table import Table

logger = logging.getLogger(__name__)

#: Longest wait for changelog topics to be there, in seconds.
CHANGELOG_TIMEOUT = 30.0


#: Stands beside the readers in the positions of a partition.
CHECKPOINT_NUMBER = "checkpoint"


class SentFlush(NamedTuple):
    """A flush on its way to the changelog."""

    table: Table
    flush: Flush
    batches: list[Any]


class TableManager(FaustTableManager):  # type: ignore[misc]
    """Manages tables, their recovery, and what of them a checkpoint writes."""

    _folder: InstanceFolder | None = None
    _recovery: Any = None

    # -- start and stop

    async def on_start(self) -> None:
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        recovery: Recovery = self._recovery
        return recovery

    @property
    def last_pause(self) -> float:
        """Seconds that processing stood still in the last rebalance."""
        return 0.0 if self._recovery is None else float(self._recovery.last_pause)

    @property
    def changelog_topics(self) -> set[str]:
        """Changelogs whose partitions are assigned with those of the sources."""
        return {name for name, table in self._changelogs.items() if not table.is_replicated}

    async def _update_channels(self) -> None:
        self._tables_finalized.set()
        if any(table not in self._channels for table in self.values()):
            await self._follow_source_partitions()
        for table in self.values():
            if table not in self._channels:
                channel = table.changelog_topic.clone_using_queue(self.changelog_queue)
                if not table.is_replicated:
                    self.app.topics.add(channel)
                self._channels[table] = channel
            await table.maybe_start()
        await self._wait_for_changelogs()
        self._tables_registered.set()

    async def _wait_for_changelogs(self) -> None:
        """Wait until the broker knows all changelogs.

        The group would assign partitions of the sources without those of the tables.
        """
        if not self._changelogs:
            return
        producer = await self.app.maybe_start_producer()
        deadline = monotonic() + CHANGELOG_TIMEOUT
        while missing := set(self._changelogs) - set(await producer.partition_counts()):
            if self.should_stop:
                return
            if monotonic() > deadline:
                raise TableError(
                    f"Changelog topics {', '.join(sorted(missing))} don't exist and could not be "
                    "created: create them (compacted, with as many partitions as the source)."
                )
            await asyncio.sleep(0.05)

    async def _follow_source_partitions(self) -> None:
        """Give tables without a number of partitions as many as all sources have."""
        producer = await self.app.maybe_start_producer()
        counts = await producer.partition_counts()
        for source in self.app.flows:
            source.settle(counts)
        wanted = [table for table in self.values() if table.partitions is None]
        sources = {
            name
            for channel in (*self.app.topics, *(each.channel for each in self.app.agents.values()))
            if getattr(channel, "takes_batches", False) and not channel.internal
            for name in channel.topics
        }
        found = {counts[name] for name in sources if name in counts}
        for table in wanted:
            if table.is_replicated:
                table.partitions = counts.get(table.changelog_topic_name)
            elif table.source is not None:
                table.partitions = table.source.partitions
            elif len(found) == 1:
                (table.partitions,) = found
            # It was made when the table was defined.
            table.changelog_topic.partitions = table.partitions
        for table in self.values():
            if table.source is None and not table.is_replicated:
                self._compare_partitions(table, counts, found)
        for source in self.app.flows:
            source.check(counts)

    def _compare_partitions(
        self, table: Any, counts: Mapping[str, int], sources: Collection[int]
    ) -> None:
        """Tell when a table fits no topic: several workers then share it in another way."""
        count = counts.get(table.changelog_topic_name) or table.partitions
        count = count or int(self.app.conf.topic_partitions)
        if sources and count not in sources:
            logger.warning(
                "Table %r has %s partitions, and the topics that are read have %s. It needs as "
                "many as the topic whose records write to it, or another worker may have their "
                "partition of the table, which stops the worker. Give the table partitions=..., "
                "and another name if its changelog %r exists.",
                table.name,
                count,
                " and ".join(map(str, sorted(sources))),
                table.changelog_topic_name,
            )

    async def on_stop(self) -> None:
        await self.app._fetcher.stop()
        if self._recovery:
            await self._recovery.stop()
        for table in self.values():
            await table.stop()
            for states in (table.states, table.standbys):
                for partition in list(states):
                    states.pop(partition).close()
        if self._folder is not None:
            self._folder.release()
            self._folder = None

    # -- partitions

    def new_store(self, table: Table, partition: int) -> Store:
        """Open the store of one partition of a table."""
        if table.in_memory:
            return MemoryStore()
        if self._folder is None:
            self._folder = InstanceFolder(Path(self.app.conf.tabledir))
        return RocksStore(self._folder.path / table.name / str(partition))

    def open_assigned(self) -> tuple[dict[TP, Applier], dict[TP, Applier]]:
        """Open what is assigned now and close what no longer is.

        Returns appliers of the partitions to be written here, and of those to follow.
        """
        assignor = self.app.assignor
        actives, standbys = assignor.assigned_actives(), assignor.assigned_standbys()
        active_appliers: dict[TP, Applier] = {}
        followers: dict[TP, Applier] = {}
        for topic, table in self._changelogs.items():
            if table.is_replicated:
                parts = range(table.partition_count)
                self._arrange(table, set(parts), set())
                for part in parts:
                    followers[TP(topic, part)] = Applier(table.states[part], whole=False)
                continue
            active = {tp.partition for tp in actives if tp.topic == topic}
            standby = {tp.partition for tp in standbys if tp.topic == topic} - active
            self._arrange(table, active, standby)
            for part in active:
                active_appliers[TP(topic, part)] = Applier(table.states[part])
            for part in standby:
                followers[TP(topic, part)] = Applier(table.standbys[part])
        return active_appliers, followers

    def roll_back(self) -> None:
        """Go back to what the stores have."""
        for table in self.values():
            for state in table.states.values():
                state.roll_back()

    def missing_partitions(self) -> list[TP]:
        """Return changelogs that should have been assigned with sources, and were not.

        That is so when the leader of the group didn't know of them yet.
        """
        consumer = self.app.consumer
        missing = []
        for tp in consumer.assignment():
            if tp.topic in self._changelogs:
                continue
            count = consumer.topic_partitions(tp.topic)
            for topic, table in self._changelogs.items():
                if table.is_replicated or tp.partition in table.states:
                    continue
                if count is not None and count == consumer.topic_partitions(topic):
                    missing.append(TP(topic, tp.partition))
        return missing

    def only_replicated(self, appliers: Mapping[TP, Applier]) -> dict[TP, Applier]:
        """Return those of tables that must be complete before streams go on."""
        return {
            tp: applier
            for tp, applier in appliers.items()
            if self._changelogs[tp.topic].is_replicated
        }

    def _arrange(self, table: Table, active: set[int], standby: set[int]) -> None:
        open_states = {**table.standbys, **table.states}
        for partition in set(open_states) - active - standby:
            open_states.pop(partition).close()
        for state in open_states.values():
            # What no checkpoint took before the rebalance is processed again.
            if state.is_ahead:
                state.roll_back()
        for partition in (active | standby) - set(open_states):
            store = self.new_store(table, partition)
            open_states[partition] = table.new_state(partition, store)
        table.states = {part: open_states[part] for part in sorted(active)}
        table.standbys = {part: open_states[part] for part in sorted(standby)}

    def names_up_to(self, offsets: Mapping[TP, int]) -> dict[TP, list[str]]:
        """Return the tables whose state goes up to an offset that is to be committed."""
        return {
            tp: [
                name
                for name, table in self.items()
                if not table.is_replicated
                and tp.partition in table.states
                and table.states[tp.partition].goes_up_to(tp.topic) >= offset
            ]
            for tp, offset in offsets.items()
        }

    def check_beginnings(self, appliers: Mapping[TP, Applier], starts: Mapping[TP, int]) -> None:
        """See that no changelog begins after the record from which it has to be read.

        Compaction leaves the beginning where it is; only windows make use of retention.

        Raises:
            TableError: One does: a part of the table is lost.
        """
        for changelog, applier in appliers.items():
            table = self._changelogs[changelog.topic]
            start, wanted = starts[changelog], applier.state.changelog_offset
            if start > wanted and not table.changelog_topic.deleting:
                source = next(
                    (
                        tp
                        for tp in self.app.consumer.assignment()
                        if tp.topic not in self._changelogs
                    ),
                    changelog,
                )
                raise TableError(
                    f"Changelog {changelog.topic}/{changelog.partition} of table {table.name!r} "
                    f"begins at offset {start}, and its records from {wanted} on are needed: they "
                    f"were deleted (its cleanup.policy must be compact). {self._advice(source)}, "
                    "after deleting the changelog"
                )

    def check_complete(self, committed: Mapping[TP, Committed]) -> None:
        """See that tables go as far as when the group's offsets were committed.

        Raises:
            TableError: One doesn't: its changelog is lost, and so is its state.
        """
        for table in self.values():
            for partition, state in table.states.items():
                self.refuse_loss(table, partition, committed, state)

    def refuse_loss(
        self,
        table: Table,
        partition: int,
        committed: Mapping[TP, Committed],
        state: PartitionState | None = None,
    ) -> None:
        """See that the group counts on no more of a table than there is.

        Args:
            table: The table.
            partition: Its partition.
            committed: What the group has committed of the sources.
            state: What there is; None: nothing, its changelog was made anew.

        Raises:
            TableError: It does.
        """
        for tp, found in committed.items():
            if tp.partition != partition or table.name not in found.notes.tables:
                continue
            end = state.goes_up_to(tp.topic) if state is not None else 0
            if end < found.offset:
                raise TableError(
                    f"Table {table.name!r} went up to offset {found.offset} of "
                    f"{tp.topic}/{partition}, and its changelog "
                    f"{table.changelog_topic_name}/{partition} goes up to {end}: it was deleted, "
                    f"truncated or restored from an older copy. {self._advice(tp)}"
                )

    def _advice(self, tp: TP) -> str:
        reset = (
            f"kafka-consumer-groups --group {self.app.conf.id} --topic {tp.topic} --reset-offsets"
        )
        return (
            "With all workers stopped, restore it; or build the tables again from the source "
            f"({reset} --to-earliest --execute); or go on without what is lost "
            f"({reset} --to-current --execute)"
        )

    def check_formats(self) -> None:
        """Read some entries of each table, so that a changed type is found at the start.

        Raises:
            StoreError: An entry can't be read as the table's value type.
        """
        for table in self.values():
            for state in table.states.values():
                state.check()

    async def on_recovered(self) -> None:
        """Call what users registered with ``table.on_recover``."""
        for table in self.values():
            await table.call_recover_callbacks()

    # -- checkpoint

    @property
    def is_dirty(self) -> bool:
        """True when a table has something that isn't checkpointed."""
        return any(state.is_dirty for table in self.values() for state in table.states.values())

    @property
    def dirty_count(self) -> int:
        """About how many entries are changed and not yet in the stores."""
        return sum(state.dirty_count for table in self.values() for state in table.states.values())

    def start_positions(self) -> dict[int, dict[str, int]]:
        """Return, by partition, the offset from which each reader's updates are missing.

        It is the least over all tables, since they are written one after the other.
        """
        positions: dict[int, list[dict[str, int]]] = {}
        for table in self.values():
            if table.is_replicated:
                continue
            for partition, state in table.states.items():
                if state.marked or state.positions:
                    positions.setdefault(partition, []).append(state.positions)
        starts: dict[int, dict[str, int]] = {}
        for partition, known in positions.items():
            # What one of them doesn't know, it has none of; a new table isn't asked.
            readers = set(known[0]).intersection(*known)
            starts[partition] = {reader: min(each[reader] for each in known) for reader in readers}
        return starts

    def take(
        self, positions: Mapping[int, dict[str, int]], left_out: Collection[int] = ()
    ) -> list[tuple[Table, Flush]]:
        """Take what a checkpoint has to write.

        Args:
            positions: Offsets of readers, by partition.
            left_out: Partitions that are left to the next checkpoint.
        """
        flushes = []
        numbers = self._next_numbers()
        for table in self.values():
            for partition, state in table.states.items():
                if partition in left_out and not table.is_replicated:
                    continue
                known = {}
                if not table.is_replicated:
                    known = {**positions.get(partition, {}), **numbers.get(partition, {})}
                flush = state.flush(known)
                if flush is not None:
                    flushes.append((table, flush))
        return flushes

    def _next_numbers(self) -> dict[int, dict[str, int]]:
        """Return a number for this checkpoint, for partitions that have changes.

        It is a position of all their tables. Offsets of readers alone don't tell two
        checkpoints apart when time closed windows and no record came.
        """
        numbers: dict[int, dict[str, int]] = {}
        states = [
            (partition, state)
            for table in self.values()
            if not table.is_replicated
            for partition, state in table.states.items()
        ]
        for partition, state in states:
            if state.is_dirty:
                numbers[partition] = {CHECKPOINT_NUMBER: 0}
        for partition, state in states:
            if partition in numbers:
                last = state.positions.get(CHECKPOINT_NUMBER, 0)
                known = numbers[partition]
                known[CHECKPOINT_NUMBER] = max(known[CHECKPOINT_NUMBER], last + 1)
        return numbers

    def take_repairs(self) -> list[tuple[Table, Flush]]:
        """Take what a recovery has to write to the changelogs before streams go on."""
        starts = self.start_positions()
        flushes = []
        for table in self.values():
            for partition, state in table.states.items():
                if not state.needs_repair:
                    continue
                # A new table begins where the others are.
                known = {} if state.marked else starts.get(partition, {})
                flush = state.flush(known)
                if flush is not None:
                    flushes.append((table, flush))
        return flushes

    async def write(self, flushes: list[tuple[Table, Flush]]) -> None:
        """Write to the changelogs, and when they have it to the stores.

        What every worker has goes first: its changelogs don't tell which records they
        go up to, so those records must not count as done before it is durable.

        Raises:
            ProducerError: A changelog did not take it.
            StoreError: A store could not be written.
        """
        replicated = [each for each in flushes if each[0].is_replicated]
        if replicated:
            await self._write(replicated)
        own = [each for each in flushes if not each[0].is_replicated]
        if own:
            await self._write(own)

    async def _write(self, flushes: list[tuple[Table, Flush]]) -> None:
        sent = await self.send(flushes)
        await self.app.producer.flush()
        self.keep(sent)

    async def send(self, flushes: list[tuple[Table, Flush]]) -> list[SentFlush]:
        """Send flushes to the changelogs.

        Raises:
            ProducerError: A changelog did not take it.
        """
        sent = []
        for table, flush in flushes:
            keys, values = (flush.keys, flush.values) if table.is_replicated else records_of(flush)
            batches = await self.app.producer.send_batch(
                table.changelog_topic_name, keys, values, partition=flush.state.partition
            )
            sent.append(SentFlush(table, flush, batches))
        return sent

    def keep(self, sent: list[SentFlush]) -> None:
        """Write flushes to the stores, once the changelogs have them.

        Raises:
            StoreError: A store could not be written.
        """
        for table, flush, batches in sent:
            flush.write(max((each.next_offset for each in batches), default=0))
            self._track(table, len(flush.keys))

    def _track(self, table: Table, updates: int) -> None:
        state = self.app.monitor.tables.get(table.name)
        if state is not None:
            state.keys_updated += updates
