"""The graph of operators behind a flow, and the agents that run it.

One agent a source topic. It drives a batch's rows through the graph in one synchronous go,
then awaits what has to be awaited: writes to sinks and topics, dead letters. Time drives
the graph too: see :class:`Ticker`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from inspect import isawaitable
from typing import Any

from streamproc.errors import EncodeError, LateRecord
from streamproc.streams.batch import Batch
from streamproc.streams.repartition import Repartition
from streamproc.streams.rows import Rows
from streamproc.streams.steps import Emit, Rejected, Step, Task

#: Seconds between two looks at whether time alone closes a window.
TICK_INTERVAL = 0.5


class Node:
    """A place in the graph: a step, and where its rows go."""

    def __init__(self, step: Step | None = None) -> None:
        self.step = step
        self.children: list[Node] = []

    def add(self, step: Step) -> Node:
        """Append a step."""
        node = Node(step)
        self.children.append(node)
        return node

    def push(self, rows: Rows, task: Task) -> None:
        """Drive rows through this node and what follows it."""
        if self.step is not None:
            rows = self.step.process(rows, task)
        if rows.values:
            for child in self.children:
                child.push(rows, task)

    def walk(self) -> Iterator[Node]:
        """Iterate over this node and all that follow it."""
        yield self
        for child in self.children:
            yield from child.walk()


class Source(Node):
    """Where a graph begins: a topic, read by an agent of its own.

    Args:
        app: The App.
        topic: The topic.
        name: Name of the agent.
    """

    def __init__(self, app: Any, topic: Any, name: str) -> None:
        super().__init__()
        self.app = app
        self.topic = topic
        self.name = name
        #: How many upstream partitions send to the topic, if it is one between two parts of
        #: a flow; their number comes in a header, so that the slowest holds the watermark.
        self.upstream: Source | None = None
        app.agent(topic, name=name)(self._run)
        if not app.flows:
            app.timer(TICK_INTERVAL)(Ticker(app).tick)
        app.flows.append(self)

        #: Number of inputs that rows of this source are told apart by.
        self.inputs = 1
        self.partitions: int | None = None

    def settle(self, counts: Mapping[str, int]) -> None:
        """Learn how many partitions the topic has; one of a flow gets those of its upstream.

        Args:
            counts: Partitions of the topics that are there.
        """
        name = self.topic.get_topic_name()
        upstream = self.upstream
        if upstream is not None:
            self.inputs = upstream.partitions or 1
            self.topic.partitions = counts.get(name, upstream.partitions)
        self.partitions = counts.get(name, self.topic.partitions)

    # -- running

    async def _run(self, stream: Any) -> None:
        app, loop = self.app, asyncio.get_running_loop()
        for node in self.walk():
            if isinstance(node.step, Emit) and hasattr(node.step.target, "flush"):
                await app.open_sink(node.step.target)
        times = self.topic.event_times if self.upstream is None else None
        async for batch in stream.batches():
            task = Task(batch.partition, loop.time(), time.time())
            try:
                for rows in self._rows_of(batch, times):
                    self.push(rows, task)
                await self._finish(task, stream)
            except Exception as exc:
                # To give the batch again would count it twice in the operators' state.
                self.app.log.exception("Flow %s failed: %r", self.name, exc)
                await app.checkpoint.abandon(exc)
                await asyncio.Event().wait()

    def _rows_of(self, batch: Batch[Any], times: Any) -> Iterator[Rows]:
        event_times = batch.timestamps if times is None else times(batch.values, batch.timestamps)
        keys: Sequence[Any] = batch.keys
        if self.upstream is not None:
            keys = [tuple(key) if type(key) is list else key for key in keys]
        rows = Rows(keys, batch.values, event_times, range(len(batch)))
        if None in batch.values:
            rows = rows.keep([value is not None for value in batch.values])
        if self.upstream is None:
            yield rows
            return
        # Rows of one upstream partition come in runs.
        inputs = [int(head[0][1]) if head else 0 for head in batch.headers]
        begin = 0
        for row in range(1, len(inputs) + 1):
            if row == len(inputs) or inputs[row] != inputs[begin]:
                part = rows.pick(range(begin, row))
                part.input = inputs[begin]
                yield part
                begin = row

    async def tick(self, partition: int) -> None:
        """Let time pass for one partition."""
        task = Task(partition, asyncio.get_running_loop().time(), time.time())
        for node in self.walk():
            if node.step is not None and node.step.ticks:
                rows = node.step.tick(task)
                if rows is not None and rows.values:
                    for child in node.children:
                        child.push(rows, task)
        await self._finish(task, None)

    async def _finish(self, task: Task, stream: Any) -> None:
        for rejected in task.rejected:
            await self._reject(rejected, task, stream)
        for policy, rows in task.late:
            await self._late(policy, rows, task, stream)
        for target, rows in task.emitted:
            await self._emit(target, rows, task, stream)

    async def _emit(self, target: Any, rows: Rows, task: Task, stream: Any) -> None:
        if hasattr(target, "flush"):
            await target.write(_as_batch(self.name, rows, task))
        elif hasattr(target, "states"):
            target.states[task.partition].set_many(rows.keys, rows.values)
        elif hasattr(target, "send_batch"):
            await self._send(target, rows, task, stream)
        else:
            await self._call(target, rows, task, stream)

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
        self, stage: str, error: Exception, rows: Rows, row: int, task: Task, stream: Any
    ) -> None:
        rejected = Rejected(stage, error, rows.keys[row], rows.values[row], rows.origin(row))
        await self._reject(rejected, task, stream)

    async def _reject(self, rejected: Rejected, task: Task, stream: Any) -> None:
        letters = self.app.dead_letters
        stage = f"{self.name} {rejected.stage}"
        if rejected.origin is None or stream is None:
            await letters.send_result(
                self.name, task.partition, rejected.key, rejected.value, stage, rejected.error
            )
            return
        (span,) = stream._open
        await letters.send(span.delivery, span.start + rejected.origin, stage, rejected.error)


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

    async def tick(self) -> None:
        """Tick each source in each of its partitions that is read to the end."""
        app = self.app
        if app.rebalancing or not app.tables.recovery.completed.is_set():
            return
        for source in app.flows:
            if not any(node.step is not None and node.step.ticks for node in source.walk()):
                continue
            topic = source.topic.get_topic_name()
            for partition in app.topics.quiet_partitions(topic):
                await app.checkpoint.gate.enter(self)
                try:
                    await source.tick(partition)
                finally:
                    app.checkpoint.gate.leave(self)
