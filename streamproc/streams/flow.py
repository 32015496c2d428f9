"""Flows: streams as a chain of operators, beside agents.

    (
        app.stream(readings)
        .filter(lambda reading: reading.value >= 0)
        .key_by("sensor")
        .window(tumbling("10s"))
        .aggregate(n=Count(), mean=Mean("value"))
        .to(RedisHash("stats:{key}"))
    )

A chain is fused: a batch goes through all of it in one synchronous function. Chains may
share their beginning, which is then run once.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from streamproc.aggregates import Aggregate, compile_aggregates
from streamproc.errors import ConfigurationError
from streamproc.streams.flowstate import StateOperators
from streamproc.streams.graph import Node, Source
from streamproc.streams.policies import Policy, without_retries
from streamproc.streams.repartition import Repartition
from streamproc.streams.steps import (
    Emit,
    Filter,
    FlatMap,
    Map,
    Merge,
    Peek,
    Picker,
    Rekey,
    Step,
    picker,
)
from streamproc.streams.timing import Inputs
from streamproc.streams.windowing import AggregateStep, WindowStep
from streamproc.tables.windowtable import AccumulatorTable, WindowTable
from streamproc.windows import WindowSpec

logger = logging.getLogger(__name__)


class Flow(StateOperators):
    """A stream of records under way; each method returns what comes after an operator.

    Nothing happens before the worker starts. A flow that ends nowhere (without
    :meth:`to`) is run all the same, for what its functions do.
    """

    def __init__(
        self,
        app: Any,
        source: Source,
        nodes: list[Node],
        value_type: Any = None,
        inputs: Inputs | None = None,
        key_type: Any = None,
    ) -> None:
        self.app = app
        self._source = source
        self._nodes = nodes
        self._inputs = inputs or Inputs(source)
        #: Type of the keys, where it is known.
        self.key_type = key_type
        #: Type of the values, where it is known.
        self.value_type = value_type

    @classmethod
    def of(cls, app: Any, topic: Any, name: str | None = None) -> Flow:
        """Return the flow of a topic's records."""
        source = Source(app, topic, _free_name(app, name or f"flow-{topic.get_topic_name()}"))
        return cls(app, source, [source], topic.value_type, key_type=topic.key_type or bytes)

    @property
    def name(self) -> str:
        """Name of the flow, of its agent, and the beginning of its tables' names."""
        return str(self._source.name)

    def _then(
        self, step: Step, value_type: Any = None, inputs: int | None = None, rekeys: bool = False
    ) -> Flow:
        """Return what comes after a step.

        Args:
            step: The step.
            value_type: Type of the values that it gives.
            inputs: How many inputs their rows are told apart by; None: those of before.
            rekeys: Whether keys may be others than before.
        """
        first, *others = self._nodes
        node = first.add(step)
        for other in others:
            other.join(node)
        after = Inputs(self._source, inputs) if inputs else self._inputs
        key_type = None if rekeys else self.key_type
        return Flow(self.app, self._source, [node], value_type, after, key_type)

    def _and(self, other: Flow) -> Flow:
        key_type = self.key_type if self.key_type == other.key_type else None
        return Flow(self.app, self._source, self._nodes + other._nodes, key_type=key_type)

    def _step_name(self, kind: str, function: Any = None) -> str:
        """Return what errors call a step.

        Raises:
            ConfigurationError: Its function is one that has to be awaited.
        """
        label = getattr(function, "__name__", "")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                f"Flow {self.name!r}: {kind}({label}) is given an async function, which nobody "
                "would await: use a plain one, enrich() for look-ups, to(), or an agent"
            )
        return f"{kind} {label}" if label and label != "<lambda>" else kind

    # -- without state

    def map(self, function: Callable[[Any], Any], value_type: Any = None) -> Flow:
        """Replace each value by ``function(value)``."""
        return self._then(Map(self._step_name("map", function), function), value_type)

    def filter(self, function: Callable[[Any], Any]) -> Flow:
        """Keep the values for which ``function(value)`` is true."""
        return self._then(Filter(self._step_name("filter", function), function), self.value_type)

    def flat_map(self, function: Callable[[Any], Iterable[Any]], value_type: Any = None) -> Flow:
        """Replace each value by the values that ``function(value)`` gives."""
        return self._then(FlatMap(self._step_name("flat_map", function), function), value_type)

    def peek(self, function: Callable[[Any], Any]) -> Flow:
        """Call ``function(value)`` for what it does."""
        return self._then(Peek(self._step_name("peek", function), function), self.value_type)

    def branch(self, *conditions: Callable[[Any], Any]) -> tuple[Flow, ...]:
        """Return a flow for each condition, and one more for what meets none.

        A value goes to the first flow whose condition it meets.
        """
        for condition in conditions:
            self._step_name("branch", condition)

        def takes(number: int) -> Callable[[Any], bool]:
            def decide(value: Any) -> bool:
                if any(condition(value) for condition in conditions[:number]):
                    return False
                return number == len(conditions) or bool(conditions[number](value))

            return decide

        return tuple(
            self._then(Filter(f"branch {number}", takes(number)), self.value_type)
            for number in range(len(conditions) + 1)
        )

    def merge(self, *others: Flow) -> Flow:
        """Return this flow's records and those of ``others`` together.

        Their partitions are taken together as they are: the topics need as many partitions
        as each other if something keyed follows.
        """
        flows = self, *others
        nodes = [
            node.add(Merge("merge", number))
            for number, node in enumerate(node for flow in flows for node in flow._nodes)
        ]
        key_types = {flow.key_type for flow in flows}
        merged = Flow(
            self.app,
            self._source,
            nodes,
            self.value_type,
            Inputs(self._source, len(nodes), tuple(node.sources for node in nodes)),
            key_types.pop() if len(key_types) == 1 else None,
        )
        return merged._then(Peek("merge", lambda value: None), self.value_type)

    # -- keys

    def key_by(self, key: Picker, *, repartition: bool = True, value_type: Any = None) -> Flow:
        """Give records another key: a field's name, or a function of the value.

        Records of one key must be in one partition, so they go through a topic of their
        own, ``<app id>-<flow>-by-<key>``.

        Args:
            key: Name of a field, or a function.
            repartition: False where the partitions are right already: the records' key in
                the source topic decides the partition in the same way.
            value_type: Type of the values in that topic, if ``map`` made others.
        """
        pick = picker(key, self.value_type)
        label = key if isinstance(key, str) else getattr(key, "__name__", "key").strip("<>")
        rekeyed = self._then(Rekey(f"key_by {label}", pick), self.value_type, rekeys=True)
        if not repartition:
            return rekeyed
        declared = value_type or self.value_type
        name = _free_name(self.app, f"{self.name}-by-{label}")
        topic_name = f"{self.app.conf.id}-{name}"
        topic = self.app.topic(
            topic_name,
            internal=True,
            value_type=declared,
            key_type=bytes,
            key_serializer="raw",
            value_serializer="json",
        )
        logger.info(
            "Flow %s: key_by %s repartitions through topic %s", self.name, label, topic_name
        )
        rekeyed._then(Emit("repartition", Repartition(topic)), declared)
        flow = Flow.of(self.app, topic, name)
        flow._source.upstream = self._source
        flow.key_type = None
        return flow

    # -- errors

    def on_error(self, policy: Policy) -> Flow:
        """Say what becomes of records that fail: ``dead_letter`` (the default), ``skip``, ``stop``.

        It holds for the whole flow, from its topic on.

        Raises:
            ConfigurationError: It is something else.
        """
        allowed = without_retries(
            policy,
            f"Flow {self.name!r}",
            "functions of flows don't have, since what follows could not wait: call what may "
            "fail for a moment by enrich(retries=...), or in an agent",
        )
        for source in {source for node in self._nodes for source in node.sources}:
            source.on_error(allowed)
        return self

    # -- state

    def window(self, spec: WindowSpec) -> WindowedFlow:
        """Return the flow in windows, to be aggregated."""
        if not isinstance(spec, WindowSpec):
            raise ConfigurationError(
                f"{spec!r} is no window: use tumbling(), hopping(), sliding() or session()"
            )
        return WindowedFlow(self, spec)

    def _table_name(self, name: str | None, kind: str) -> str:
        base = name or f"{self.name}-{kind}"
        unique, number = base, 2
        while unique in self.app.tables:
            if name:
                raise ConfigurationError(f"There is a table named {name!r} already")
            unique, number = f"{base}-{number}", number + 1
        return unique

    def aggregate(self, *, name: str | None = None, **aggregates: Aggregate) -> Flow:
        """Aggregate each key from its first record on; each batch gives the changed results.

        Args:
            name: Name of the table that keeps the state; made from the flow's if None.
            **aggregates: The aggregations, by the name of their field in the results.
        """
        program = compile_aggregates(aggregates, self.value_type)
        table = AccumulatorTable(
            self.app,
            name=self._table_name(name, "aggregate"),
            program=program,
            beacon=self.app.tables.beacon,
            source=self._source,
            key_type=self.key_type,
        )
        self.app.tables.add(table)
        step = AggregateStep(table.name, table)
        return self._then(step, step.result_type)

    # -- ends

    def to(self, *targets: Any) -> Flow:
        """Send the records to sinks, topics (or their names), tables or functions."""
        for target in targets:
            if isinstance(target, str):
                target = self.app.topic(target)
            if not (callable(target) or any(map(partial(hasattr, target), _TAKES))):
                raise ConfigurationError(
                    f"{target!r} is no sink, topic, table or function that records can go to"
                )
            self._then(Emit("to", target), self.value_type)
        return self


def _free_name(app: Any, base: str) -> str:
    """Return a name that no flow has yet."""
    taken = {source.name for source in app.flows}
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name


#: What tables, topics and sinks have, by which they are known.
_TAKES = ("states", "send_batch", "write")

#: What a stream does as a flow.
FLOW_OPERATORS = frozenset(
    name
    for name, value in (vars(StateOperators) | vars(Flow)).items()
    if callable(value) and not name.startswith("_")
) - {"of", "filter"}


class WindowedFlow:
    """A flow in windows."""

    def __init__(self, flow: Flow, spec: WindowSpec) -> None:
        self._flow = flow
        self._spec = spec

    def aggregate(self, *, name: str | None = None, **aggregates: Aggregate) -> Flow:
        """Aggregate each key in each window.

        Results have ``key``, ``window_start``, ``window_end`` (datetimes) and a field for
        each aggregation. Their event time is the last millisecond of the window.

        Args:
            name: Name of the table of open windows; made from the flow's if None.
            **aggregates: The aggregations, by the name of their field in the results.
        """
        flow = self._flow
        program = compile_aggregates(aggregates, flow.value_type)
        table = WindowTable(
            flow.app,
            name=flow._table_name(name, type(self._spec).__name__.lower()),
            spec=self._spec,
            program=program,
            beacon=flow.app.tables.beacon,
            source=flow._source,
            key_type=flow.key_type,
            inputs=flow._inputs.fixed,
        )
        flow.app.tables.add(table)
        step = WindowStep(table.name, table, flow._inputs)
        return flow._then(step, step.result_type, inputs=1)
