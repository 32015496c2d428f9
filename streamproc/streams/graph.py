"""The graph of operators behind a flow, and the agents that run it.

One agent a source topic. It drives a batch's rows through the graph in one synchronous go,
then awaits what has to be awaited: writes to sinks and topics, dead letters. Time drives
the graph too: see :class:`Ticker`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

from streamproc.errors import EncodeError, Fenced, LateRecord, SinkError
from streamproc.streams.batch import Batch
from streamproc.streams.copartition import Copartitioned
from streamproc.streams.policies import Action, Policy
from streamproc.streams.repartition import Repartition, keys_of, upstream_of
from streamproc.streams.rows import Rows
from streamproc.streams.steps import AsyncStep, Emit, Rejected, Step, Task
from streamproc.tables.place import Place, current_place

#: Seconds between two looks at whether time alone closes a window.
TICK_INTERVAL = 0.5


class Node:
    """A place in the graph: a step, and where its rows go."""

    def __init__(self, step: Step | None = None) -> None:
        self.step = step
        self.children: list[Node] = []
        #: The sources that rows come from.
        self.sources: frozenset[Source] = frozenset()
        self._is_async = isinstance(step, AsyncStep)
        self._keeps_state = step is not None and step.table is not None
        #: By partition, when the last rows that came to an asynchronous step are through.
        self._last_turn: dict[int, asyncio.Future[None]] = {}

    def add(self, step: Step) -> Node:
        """Append a step."""
        node = Node(step)
        self.join(node)
        return node

    def join(self, node: Node) -> None:
        """Let rows go on to a node that others lead to as well."""
        self.children.append(node)
        node.sources |= self.sources

    def push(self, rows: Rows, task: Task) -> None:
        """Drive rows through this node and what follows it."""
        if self.step is not None:
            if self._is_async:
                self._queue(rows, task)
                return
            task.keeps_state |= self._keeps_state
            rows = self.step.process(rows, task)
        self.pass_on(rows, task)

    def pass_on(self, rows: Rows, task: Task) -> None:
        """Drive rows through what follows."""
        if rows.values:
            for child in self.children:
                child.push(rows, task)

    def _queue(self, rows: Rows, task: Task) -> None:
        mine = asyncio.get_running_loop().create_future()
        before = self._last_turn.get(task.partition)
        self._last_turn[task.partition] = mine
        task.waiting.append(Waiting(self, rows, before, mine))

    def walk(self) -> Iterator[Node]:
        """Iterate over this node and all that follow it, each once."""
        seen: dict[Node, None] = {}
        ahead = [self]
        while ahead:
            node = ahead.pop()
            if node not in seen:
                seen[node] = None
                yield node
                ahead += reversed(node.children)


@dataclass(slots=True)
class Waiting:
    """Rows before an asynchronous step.

    Attributes:
        node: The step's node.
        rows: The rows.
        before: Done when the rows before them are through; None if there are none.
        turn: To be done when these are through.
    """

    node: Node
    rows: Rows
    before: asyncio.Future[None] | None
    turn: asyncio.Future[None]

    async def run(self, task: Task) -> Rows:
        """Return what comes out of the step, in turn."""
        if self.before is not None:
            await asyncio.wait([self.before])
        assert isinstance(self.node.step, AsyncStep)
        return await self.node.step.run(self.rows, task)

    def pass_turn(self) -> None:
        """Let the rows behind these go on."""
        if not self.turn.done():
            self.turn.set_result(None)


class Source(Node):
    """Where a graph begins: a topic, read by an agent of its own.

    Args:
        app: The App.
        topic: The topic.
        name: Name of the agent.
    """

    def __init__(self, app: Any, topic: Any, name: str) -> None:
        super().__init__()
        self.sources = frozenset([self])
        #: What needs as many partitions.
        self.alike: list[Copartitioned] = []
        self.app = app
        self.topic = topic
        self.name = name
        #: How many upstream partitions send to the topic, if it is one between two parts of
        #: a flow; their number comes in a header, so that the slowest holds the watermark.
        self.upstream: Source | None = None

        async def run(stream: Any) -> None:
            await self._run(stream)

        run.__name__ = run.__qualname__ = name  # what the log calls the agent
        app.agent(topic, name=name)(run)
        if not app.flows:
            app.timer(TICK_INTERVAL)(Ticker(app).tick)
        app.flows.append(self)

        self._policy: Policy | None = None
        #: Number of inputs that rows of this source are told apart by.
        self.inputs = 1
        self.partitions: int | None = None
        self._behind: frozenset[int] = frozenset()

    def on_error(self, policy: Policy) -> None:
        """Say what becomes of records that fail."""
        self._policy = policy

    @property
    def policy(self) -> Policy:
        """What becomes of records that fail here: by default what did upstream."""
        if self._policy is not None:
            return self._policy
        policy: Policy = self.app.error_policy if self.upstream is None else self.upstream.policy
        return policy

    def settle(self, counts: Mapping[str, int]) -> None:
        """Learn how many partitions the topic has; one of a flow gets those of its upstream.

        Args:
            counts: Partitions of the topics that are there.
        """
        name = self.topic.get_topic_name()
        upstream = self.upstream
        if upstream is not None:
            self.inputs = upstream.partitions or 1
            joined = next((each.count(counts) for each in self.alike if each.count(counts)), None)
            self.topic.partitions = counts.get(name, joined or upstream.partitions)
            # Its agent, which has begun already, reads a copy.
            for channel in self.app.topics:
                if name in getattr(channel, "topics", ()):
                    channel.partitions = self.topic.partitions
        self.partitions = counts.get(name, self.topic.partitions)

    def check(self, counts: Mapping[str, int]) -> None:
        """See that what its records are joined with has as many partitions.

        Args:
            counts: Partitions of the topics that are there.

        Raises:
            ConfigurationError: Something has more or fewer.
        """
        for other in self.alike:
            other.check(self.topic.get_topic_name(), self.partitions, counts)

    # -- running

    async def _run(self, stream: Any) -> None:
        app, loop = self.app, asyncio.get_running_loop()
        for node in self.walk():
            if isinstance(node.step, Emit) and hasattr(node.step.target, "flush"):
                await app.open_sink(node.step.target)
        stream.on_error(self.policy)
        times = self.topic.event_times if self.upstream is None else None
        async for batch in stream.batches():
            task = Task(batch.partition, loop.time(), time.time())
            app.checkpoint.gate.keep_out(stream, batch.partition)
            try:
                for rows in self._rows_of(batch, times):
                    self.push(rows, task)
                if task.waiting:
                    await self._wait(task, stream)
                await self._finish(task, stream)
            except Exception as exc:
                if isinstance(exc, Fenced) or app.checkpoint.is_void:
                    await app.checkpoint.start_over(exc)
                    continue
                # To give the batch again would count it twice in the operators' state.
                self.app.log.exception("Flow %s failed: %r", self.name, exc)
                await app.checkpoint.halt(exc)

    def _rows_of(self, batch: Batch[Any], times: Any) -> Iterator[Rows]:
        event_times = batch.timestamps if times is None else times(batch.values, batch.timestamps)
        keys: Sequence[Any] = batch.keys
        if self.upstream is not None:
            keys = keys_of(keys, batch.headers)
        rows = Rows(keys, batch.values, event_times, range(len(batch)))
        if None in batch.values:
            rows = rows.keep([value is not None for value in batch.values])
        if self.upstream is None:
            yield rows
            return
        # Rows of one upstream partition come in runs.
        inputs = upstream_of(batch.headers)
        begin = 0
        for row in range(1, len(inputs) + 1):
            if row == len(inputs) or inputs[row] != inputs[begin]:
                part = rows.pick(range(begin, row))
                part.input = inputs[begin]
                yield part
                begin = row

    async def _wait(self, task: Task, stream: Any) -> None:
        """Run asynchronous steps, and what follows them.

        If no state has changed yet, a checkpoint need not wait for it: the batch counts as
        not begun.
        """
        try:
            while task.waiting:
                waiting = task.waiting[0]
                rows = await self._run_step(waiting, task, stream)
                waiting.node.pass_on(rows, task)
                task.waiting.popleft().pass_turn()
        finally:
            for waiting in task.waiting:
                waiting.pass_turn()

    async def _run_step(self, waiting: Waiting, task: Task, stream: Any) -> Rows:
        if stream is None or task.keeps_state:
            return await waiting.run(task)
        gate = self.app.checkpoint.gate
        gate.leave(stream)
        try:
            return await waiting.run(task)
        finally:
            await gate.enter(stream)
            gate.keep_out(stream, task.partition)

    async def behind(self) -> frozenset[int]:
        """Return the upstream partitions from which records may still come, in any worker.

        Those of the last time are among them: what they had may be on its way.
        """
        if self.upstream is None:
            return frozenset()
        before, self._behind = self._behind, await self._find_behind(self.upstream)
        return before | self._behind

    async def _find_behind(self, upstream: Source) -> frozenset[int]:
        app = self.app
        inputs = set(range(self.inputs))
        if await upstream.behind():
            return frozenset(inputs)
        topic = upstream.topic.get_topic_name()
        mine = {tp.partition for tp in app.consumer.assignment() if tp.topic == topic}
        behind = mine.difference(app.topics.quiet_partitions(topic))
        if inputs - mine:
            behind |= await app.consumer.behind(topic, inputs - mine)
        return frozenset(behind)

    async def tick(self, task: Task) -> None:
        """Let time pass for one partition."""
        task.source = self
        try:
            for node in self.walk():
                step = node.step
                if step is None or not step.ticks:
                    continue
                if step.ticks_busy or node.sources <= task.quiet:
                    rows = step.tick(task)
                    if rows is not None:
                        task.keeps_state = True
                        node.pass_on(rows, task)
            if task.waiting:
                await self._wait(task, None)
            await self._finish(task, None)
        except Fenced as exc:
            await self.app.checkpoint.start_over(exc)
        except Exception as exc:
            await self.app.checkpoint.abandon(exc)
            raise

    async def _finish(self, task: Task, stream: Any) -> None:
        for rejected in task.rejected:
            await self._reject(rejected, task, stream)
        for policy, rows in task.late:
            await self._late(policy, rows, task, stream)
        for target, rows in task.emitted:
            await self._emit(target, rows, task, stream)

    async def _emit(self, target: Any, rows: Rows, task: Task, stream: Any) -> None:
        if hasattr(target, "flush"):
            await self._write(target, rows, task, stream)
        elif hasattr(target, "states"):
            target.states[task.partition].set_many(rows.keys, rows.values)
        elif hasattr(target, "send_batch"):
            await self._send(target, rows, task, stream)
        else:
            await self._call(target, rows, task, stream)

    async def _write(self, target: Any, rows: Rows, task: Task, stream: Any) -> None:
        """Write rows to a sink; those that don't fit it don't hold up the others."""
        try:
            await target.write(_as_batch(self.name, rows, task))
        except SinkError as exc:
            if not exc.misfits:
                raise
            for error in exc.misfits:
                policy = getattr(target, "on_error", None)
                await self._reject_row("to", error, rows, error.row or 0, task, stream, policy)

    async def _send(self, target: Any, rows: Rows, task: Task, stream: Any) -> None:
        """Send rows to a topic; one that can't be encoded doesn't hold up the others."""
        try:
            await target.send_batch(**_columns(target, rows, task))
        except EncodeError:
            for row in range(len(rows)):
                try:
                    await target.send_batch(**_columns(target, rows.pick([row]), task))
                except EncodeError as exc:
                    await self._reject_row("to", exc, rows, row, task, stream)

    async def _call(self, target: Any, rows: Rows, task: Task, stream: Any) -> None:
        for row, value in enumerate(rows.values):
            try:
                result = target(value)
                if isawaitable(result):
                    await result
            except Exception as exc:  # noqa: BLE001 - user code may raise anything
                await self._reject_row("to", exc, rows, row, task, stream)

    async def _late(self, policy: Any, rows: Rows, task: Task, stream: Any) -> None:
        if policy is None:
            return
        if policy != "dead-letter":
            await self._emit(policy, rows, task, stream)
            return
        for row in range(len(rows)):
            error = LateRecord(f"event time {rows.times[row]} ms is behind the watermark")
            await self._reject_row("window", error, rows, row, task, stream)

    async def _reject_row(
        self,
        stage: str,
        error: Exception,
        rows: Rows,
        row: int,
        task: Task,
        stream: Any,
        policy: Policy | None = None,
    ) -> None:
        rejected = Rejected(stage, error, rows.keys[row], rows.values[row], rows.origin(row))
        await self._reject(rejected, task, stream, policy)

    async def _reject(
        self, rejected: Rejected, task: Task, stream: Any, policy: Policy | None = None
    ) -> None:
        stage = f"{self.name} {rejected.stage}"
        action = (policy or self.policy).action
        if action is Action.STOP:
            # What runs it stops the worker.
            raise rejected.error
        letters = self.app.dead_letters
        if rejected.origin is None or stream is None:
            if action is Action.SKIP:
                letters.skip_result(self.name, task.partition, stage, rejected.error)
                return
            await letters.send_result(
                self.name, task.partition, rejected.key, rejected.value, stage, rejected.error
            )
            return
        (span,) = stream._open
        row = span.start + rejected.origin
        if action is Action.SKIP:
            letters.skip(span.delivery, row, stage, rejected.error)
        else:
            await letters.send(span.delivery, row, stage, rejected.error)


def _columns(target: Any, rows: Rows, task: Task) -> dict[str, Any]:
    columns: dict[str, Any] = {"values": rows.values, "keys": rows.keys, "timestamps": rows.times}
    if isinstance(target, Repartition):
        columns["partition_from"] = task.partition
    return columns


def _as_batch(name: str, rows: Rows, task: Task) -> Batch[Any]:
    offsets = [-1] * len(rows)
    return Batch(
        name, task.partition, list(rows.keys), list(rows.values), offsets, list(rows.times)
    )


class Ticker:
    """Lets time pass for windows and timers in partitions where nothing comes.

    A partition with records waiting is left alone: what is in them decides.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._ticked_at = 0.0

    @property
    def _may_tick(self) -> bool:
        app = self.app
        return not app.rebalancing and app.tables.recovery.completed.is_set()

    async def tick(self) -> None:
        """Tick each source in each of its partitions that is read to the end."""
        app, loop = self.app, asyncio.get_running_loop()
        if not self._may_tick:
            return
        is_delayed = loop.time() - self._ticked_at > 2 * TICK_INTERVAL
        self._ticked_at = loop.time()
        quiet: dict[Source, set[int]] = {
            source: set(app.topics.quiet_partitions(source.topic.get_topic_name()))
            for source in app.flows
        }
        for source in app.flows:
            if not any(node.step is not None and node.step.ticks for node in source.walk()):
                continue
            behind = await source.behind() if quiet[source] else frozenset()
            for partition in sorted(quiet[source]):
                await app.checkpoint.gate.enter(self)
                app.checkpoint.gate.keep_out(self, partition)
                place = Place()
                place.partition = partition
                token = current_place.set(place)
                try:
                    if not self._may_tick:
                        return
                    others = frozenset(each for each in quiet if partition in quiet[each])
                    now = loop.time()
                    task = Task(partition, now, time.time(), others, behind, is_delayed)
                    await source.tick(task)
                finally:
                    current_place.reset(token)
                    app.checkpoint.gate.leave(self)
