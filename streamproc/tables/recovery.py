"""Recovery: from a rebalance to tables that are up to date, and standbys that stay so.

One task a rebalance: it opens the state of the partitions assigned, reads the rest of
their changelogs in bulk, lets the streams go on, and then follows the changelogs of
standbys and replicated tables until the next rebalance ends it. State of partitions
that stay is left open, and what of it was never checkpointed is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from time import monotonic
from typing import Any

from faust.types import TP
from mode import Service

from streamproc.errors import Fenced, StreamprocError
from streamproc.kafka.changelogs import ChangelogReader
from streamproc.kafka.committed import Committed
from streamproc.kafka.fetch import RawBatch
from streamproc.tables.changelog import Applier, common_positions

#: Seconds between two reports of a recovery that takes long.
REPORT_INTERVAL = 2.0
#: Seconds before another rebalance is asked for since a changelog was missing: the first
#: time and, doubled each time, at most.
REJOIN_INTERVAL, LONGEST_REJOIN_INTERVAL = 0.5, 10.0
#: Seconds after which a changelog that ends before what the local state has counts as new.
SHRUNK_TIMEOUT = 2.0
#: Longest wait of a fetch in seconds, while catching up and while following.
CATCH_UP_WAIT, FOLLOW_WAIT = 0.02, 0.5


class Recovery(Service):  # type: ignore[misc]
    """Brings tables up to date after each rebalance."""

    def __init__(self, app: Any, manager: Any, **kwargs: Any) -> None:
        self.app = app
        self.manager = manager
        self.completed = asyncio.Event()
        self.reader = ChangelogReader(app)
        self._connected = False
        self._task: asyncio.Task[None] | None = None
        self._revoked_at: float | None = None
        self._rejoins = 0
        self._shrunk_until = 0.0
        #: What the group has of the partitions assigned.
        self._committed: dict[TP, Committed] = {}
        #: Seconds that processing stood still in the last rebalance.
        self.last_pause = 0.0
        super().__init__(**kwargs)

    async def on_stop(self) -> None:
        await self._end_task()
        await self.reader.stop()

    async def _end_task(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    # -- rebalance

    def on_partitions_revoked(self, revoked: Collection[TP]) -> None:
        """Stop reading changelogs: the partitions may go to another worker."""
        self.completed.clear()
        if self._revoked_at is None:
            self._revoked_at = monotonic()
        if self._task is not None:
            self._task.cancel()

    async def on_rebalance(
        self,
        assigned: set[TP],
        revoked: set[TP],
        newly_assigned: set[TP],
        generation_id: int = 0,
    ) -> None:
        """Recover what is assigned now, in the background."""
        if generation_id != self.app.consumer_generation_id:
            self.log.info("Another rebalance has begun; this one is left to it")
            return
        await self._end_task()
        self.completed.clear()
        if self.should_stop:
            # The group went on assigning while the worker stops: nothing is to be read anymore.
            return
        self._task = asyncio.ensure_future(self._run(generation_id))

    async def _run(self, generation_id: int) -> None:
        try:
            await self._recover(generation_id)
        except asyncio.CancelledError:
            raise
        except Fenced as exc:
            self.log.warning("%s: rebalancing again", exc)
            # The next recovery begins with a new transaction.
            self.app.checkpoint.make_void()
            await self.app.consumer.rejoin()
        except StreamprocError as exc:
            self.log.error("Tables can't be recovered: %s", exc)
            await self.app.crash(exc)
        except Exception as exc:
            self.log.exception("Recovery failed: %r", exc)
            await self.app.crash(exc)

    async def _recover(self, generation_id: int) -> None:
        manager = self.manager
        await self.app.checkpoint.clear()
        if manager or self.app.checkpoint.is_exact:
            self._committed = await self.app.consumer.begin()
            self.app.checkpoint.claims.note(self._committed)
        actives, followed = manager.open_assigned()
        if missing := manager.missing_partitions():
            await self._rejoin(missing)
            return
        self._rejoins = 0
        if actives or followed:
            if not self._connected:
                await self.reader.start(self)
                self._connected = True
            self.app.in_recovery = True
            try:
                await self._identify({**actives, **followed})
                manager.check_beginnings(actives, await self.reader.starts(actives))
                catching_up = {**actives, **manager.only_replicated(followed)}
                await self._catch_up(catching_up)
            finally:
                self.app.in_recovery = False
            self._finish(actives)
            manager.check_complete(self._committed)
            manager.check_formats()
            await self._write_repairs()
            self.app.topics.start_at(manager.start_positions())
        self.app.topics.start_at(self.app.consumer.positions)
        await self._resume_streams(generation_id)
        await manager.on_recovered()
        if followed:
            await self._follow(followed)

    async def _write_repairs(self) -> None:
        app, manager = self.app, self.manager
        repairs = manager.take_repairs()
        if not app.exactly_once:
            await manager.write(repairs)
            return
        async with app.producer.alone():
            sent = await manager.send(repairs)
            await app.producer.flush()
            offsets = {tp: found.offset for tp, found in self._committed.items()}
            noted = app.checkpoint.claims.noted(offsets, app.consumer.positions)
            await app.producer.end_transaction(noted, app.consumer.member)
        # Not before: the group may refuse it, and others have written there meanwhile.
        manager.keep(sent)

    async def _rejoin(self, missing: list[TP]) -> None:
        self.log.warning(
            "The group's leader didn't know of all changelogs yet (%s): rebalancing again",
            ", ".join(f"{tp.topic}/{tp.partition}" for tp in missing[:3]),
        )
        await asyncio.sleep(min(REJOIN_INTERVAL * 2.0**self._rejoins, LONGEST_REJOIN_INTERVAL))
        self._rejoins += 1
        await self.app.consumer.rejoin()

    # -- reading changelogs

    async def _identify(self, appliers: dict[TP, Applier]) -> None:
        ids = await self.reader.topic_ids({tp.topic for tp in appliers})
        for tp, applier in appliers.items():
            applier.state.identify(ids.get(tp.topic, ""))

    async def _catch_up(self, appliers: dict[TP, Applier]) -> None:
        self.reader.assign({tp: each.begin for tp, each in appliers.items()})
        started = reported = monotonic()
        self._shrunk_until = started + SHRUNK_TIMEOUT
        pending = set(appliers)
        while pending:
            batches = await self.reader.fetch(CATCH_UP_WAIT)
            self._apply(batches, appliers)
            pending = {tp for tp in pending if not self._is_caught_up(tp)}
            if monotonic() - reported > REPORT_INTERVAL:
                reported = monotonic()
                self._report(appliers, pending, reported - started)
            # Other tasks of this loop: the web server, and the revoke that ends this one.
            await asyncio.sleep(0)
        records = sum(each.records for each in appliers.values())
        if records:
            seconds = monotonic() - started
            self.log.info(
                "Tables recovered: %s records, %.1f MB in %.2f s (%s records/s)",
                f"{records:,}",
                sum(each.bytes for each in appliers.values()) / 1e6,
                seconds,
                f"{records / max(seconds, 1e-6):,.0f}",
            )

    def _finish(self, actives: dict[TP, Applier]) -> None:
        by_partition: dict[int, list[Applier]] = {}
        ends = {tp: self._end(tp, applier) for tp, applier in actives.items()}
        for tp, applier in actives.items():
            by_partition.setdefault(tp.partition, []).append(applier)
        common = {part: common_positions(each) for part, each in by_partition.items()}
        for tp, applier in actives.items():
            applier.finish(ends[tp], common[tp.partition])

    def _is_caught_up(self, tp: TP) -> bool:
        end, position = self.reader.high_watermark(tp), self.reader.position(tp)
        if end is None or position is None or position < end:
            return False
        # A broker that has just become the leader may not know yet how far it goes.
        return position == end or monotonic() > self._shrunk_until

    def _end(self, tp: TP, applier: Applier) -> int:
        state = applier.state
        position, high_watermark = self.reader.position(tp), self.reader.high_watermark(tp)
        end = min(position or 0, high_watermark or 0)
        if end < state.changelog_offset:
            self._refuse_loss(tp)
            self.log.warning(
                "Changelog %s/%s ends at %s, before the %s that the local state has: it was "
                "deleted or made anew. The state is rebuilt from it.",
                tp.topic,
                tp.partition,
                end,
                state.changelog_offset,
            )
            applier.reset()
        return end

    def _apply(self, batches: Iterable[RawBatch], appliers: dict[TP, Applier]) -> None:
        for raw in batches:
            tp = TP(raw.topic, raw.partition)
            applier = appliers[tp]
            is_anew = applier.state.is_of_another
            if raw.offsets and (is_anew or raw.offsets[0] < applier.read_to):
                # Whether it is complete shows at its end: others may have built it again.
                self.log.warning(
                    "Changelog %s/%s was made anew since the local state was written; the state "
                    "is rebuilt from it.",
                    tp.topic,
                    tp.partition,
                )
                applier.reset()
            elif raw.offsets and applier.state.is_stale:
                self.log.info(
                    "Local state of %s/%s is so old that its changelog may have forgotten "
                    "deletions since; it is rebuilt.",
                    tp.topic,
                    tp.partition,
                )
                applier.reset()
                self.reader.seek(tp, 0)
                continue
            applier.apply(raw)

    def _refuse_loss(self, changelog: TP) -> None:
        """Keep the local state, which may be all that is left, and stop.

        Raises:
            TableError: The group counts on what the changelog has lost.
        """
        table = self.manager._changelogs[changelog.topic]
        self.manager.refuse_loss(table, changelog.partition, self._committed)

    def _report(self, appliers: dict[TP, Applier], pending: set[TP], seconds: float) -> None:
        done = sum(each.records for each in appliers.values())
        left = sum(
            max(0, (self.reader.high_watermark(tp) or 0) - (self.reader.position(tp) or 0))
            for tp in pending
        )
        self.log.info(
            "Recovering tables: %s records, %.1f MB read, %s left in %s partitions, about %.0f s",
            f"{done:,}",
            sum(each.bytes for each in appliers.values()) / 1e6,
            f"{left:,}",
            len(pending),
            left * seconds / max(done, 1),
        )

    async def _follow(self, followed: dict[TP, Applier]) -> None:
        self.reader.assign({tp: each.begin for tp, each in followed.items()})
        while not self.should_stop:
            self._apply(await self.reader.fetch(FOLLOW_WAIT), followed)
            await asyncio.sleep(0)

    # -- going on

    async def _resume_streams(self, generation_id: int) -> None:
        app, consumer = self.app, self.app.consumer
        await app.on_rebalance_complete.send()
        if app.consumer_generation_id != generation_id:
            self.log.info("Another rebalance has begun; streams wait for it")
            return
        assignment = consumer.assignment()
        if assignment:
            changelogs = self.manager.changelog_topics
            consumer.resume_partitions({tp for tp in assignment if tp.topic not in changelogs})
            await consumer.perform_seek()
        self.completed.set()
        app.flow_control.resume()
        consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.manager.on_actives_ready()
        self.manager.on_standbys_ready()
        app.on_rebalance_end()
        if self._revoked_at is not None:
            self.last_pause = monotonic() - self._revoked_at
            self._revoked_at = None
            self.log.info("Worker ready; the rebalance took %.2f s", self.last_pause)
        else:
            self.log.info("Worker ready")
