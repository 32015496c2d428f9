"""The operators of flows that keep state by key in event time, join, or look up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Optional, get_origin

from faust.models.base import Model as FaustModel

from streamproc.errors import ConfigurationError
from streamproc.records.durations import Duration, duration
from streamproc.records.record import Record
from streamproc.streams.asof import AsofJoin, asof_watermarks
from streamproc.streams.copartition import Copartitioned
from streamproc.streams.enrich import Cache, Enrich
from streamproc.streams.intervals import IntervalJoin, TwoInputs
from streamproc.streams.joins import (
    JoinedTables,
    LatestJoin,
    TableJoin,
    latest_form,
    look_up_in,
)
from streamproc.streams.limits import COUNTED, PASSED, Deduplicate, Throttle
from streamproc.streams.stateful import Context, Stateful, state_form
from streamproc.streams.steps import Map, Picker, Step, picker
from streamproc.streams.timing import Inlet, Inputs, Timing
from streamproc.tables.joinstate import sides_form
from streamproc.tables.timedstate import TimedTable

if TYPE_CHECKING:
    from streamproc.streams.flow import Flow

Pairing = Callable[[Any, Any], Any]


class StateOperators:
    """The part of :class:`~streamproc.streams.flow.Flow` that is about state by key."""

    app: Any
    value_type: Any
    _source: Any
    _nodes: list[Any]
    _then: Callable[..., Flow]
    _table_name: Callable[[str | None, str], str]
    key_type: Any
    _inputs: Inputs

    def _timed_table(self, name: str | None, kind: str, **options: Any) -> TimedTable:
        table = TimedTable(
            self.app,
            name=self._table_name(name, kind),
            beacon=self.app.tables.beacon,
            source=self._source,
            key_type=self.key_type,
            **options,
        )
        self.app.tables.add(table)
        return table

    # -- by what came before

    def deduplicate(
        self,
        key: Picker | None = None,
        within: Duration = "10m",
        *,
        out_of_orderness: Duration = 0,
        idle_timeout: Duration | None = "10s",
        name: str | None = None,
    ) -> Flow:
        """Let the first record of a key pass, and drop others within a time of it.

        A record is dropped whose event time is less than ``within`` away from that of one
        that passed. A record that passed is remembered until the watermark is ``within``
        past it.

        Args:
            key: What is the same in duplicates: a field's name, or a function of the
                value; the record's key if None. Those that are equal must be in one
                partition.
            within: How long, in event time.
            out_of_orderness: How far behind the highest event time records are expected.
            idle_timeout: After how much silence an upstream partition doesn't hold back
                the others' time.
            name: Name of the table that remembers; made from the flow's if None.
        """
        timing = Timing.of(out_of_orderness, idle_timeout)
        table = self._timed_table(
            name, "deduplicate", form=PASSED, watermarks=timing.watermarks(self._inputs)
        )
        pick = None if key is None else picker(key, self.value_type)
        step = Deduplicate(table.name, table, self._inputs, _positive("within", within), pick)
        return self._then(step, self.value_type)

    def throttle(
        self,
        limit: int,
        per: Duration = "1s",
        by_key: bool = True,
        *,
        out_of_orderness: Duration = 0,
        idle_timeout: Duration | None = "10s",
        name: str | None = None,
    ) -> Flow:
        """Let at most ``limit`` records of a key pass in each period of event time.

        Periods begin at multiples of their length since 1970. Records of a period that the
        watermark has passed are dropped.

        Args:
            limit: How many pass.
            per: Length of a period.
            by_key: False: so many of each partition, whatever their keys.
            out_of_orderness: How far behind the highest event time records are expected.
            idle_timeout: As for :meth:`deduplicate`.
            name: Name of the table that counts; made from the flow's if None.
        """
        if limit < 1:
            raise ConfigurationError(f"throttle({limit}) would let nothing pass")
        timing = Timing.of(out_of_orderness, idle_timeout)
        table = self._timed_table(
            name, "throttle", form=COUNTED, watermarks=timing.watermarks(self._inputs)
        )
        step = Throttle(table.name, table, self._inputs, limit, _positive("per", per), by_key)
        return self._then(step, self.value_type)

    # -- own logic

    def stateful(
        self,
        function: Callable[[Any, Any, Context], Any],
        *,
        on_timer: Callable[[Any, Any, Context], Any] | None = None,
        state: Any = None,
        name: str | None = None,
        value_type: Any = None,
        out_of_orderness: Duration = 0,
        idle_timeout: Duration | None = "10s",
    ) -> Flow:
        """Call ``function(key, value, context)`` for each record, with state and timers.

        See :class:`~streamproc.streams.stateful.Context`: ``context.state``, ``.time``,
        ``.watermark``, ``.emit(value)``, ``.set_timer(time, tag)``, ``.cancel_timer()``.

        Args:
            function: Called for each record, in order; what it returns doesn't count.
            on_timer: Called as ``on_timer(key, tag, context)`` when the watermark has
                passed a timer, in the order of timers' times.
            state: Type of the state (it is made without arguments), or a function that
                makes one. Types other than plain ones are kept as JSON of that type.
            name: Name of the table of states; made from the flow's if None.
            value_type: Type of what is emitted.
            out_of_orderness: How far behind the highest event time records are expected.
            idle_timeout: After how much silence time goes on without records; None: never.
        """
        form, make = state_form(state)
        timing = Timing.of(out_of_orderness, idle_timeout)
        table = self._timed_table(
            name, "stateful", form=form, watermarks=timing.watermarks(self._inputs)
        )
        step = Stateful(table.name, table, self._inputs, function, on_timer, make)
        return self._then(step, value_type, inputs=1, rekeys=True)

    # -- joins

    def join(
        self,
        table: Any,
        how: str = "inner",
        fn: Pairing | None = None,
        *,
        on: Picker | None = None,
        value_type: Any = None,
    ) -> Flow:
        """Join each record with what a table has of its key at that moment.

        Args:
            table: A table with as many partitions, its keys in the same ones; a
                GlobalTable; or ``join_tables(...)``.
            how: "inner": records whose key isn't there are dropped; "left": they go on
                with None.
            fn: Makes a value of both; ``(value, found)`` if None.
            on: With a GlobalTable: a field's name, or a function from the value to the
                key to look up.
            value_type: Type of the results.

        Raises:
            ConfigurationError: It can't be joined so; at start if the numbers of
                partitions differ.
        """
        tables = table.leaves if isinstance(table, JoinedTables) else [table]
        local = [each for each in tables if not getattr(each, "is_replicated", False)]
        look_up = look_up_in(table)
        if on is not None and local:
            raise ConfigurationError(
                f"Table {local[0].name!r} has each key in one partition: on= needs a GlobalTable. "
                "Give the records that key by key_by() before the join."
            )
        name = f"{self._source.name}-join-{'-'.join(each.name for each in tables)}"
        self._source.alike += [Copartitioned(name, each) for each in local]
        if on is None:
            for each in tables:
                _check_keys(self.key_type, each.key_type, f"table {each.name!r}")
        pick = None if on is None else picker(on, self.value_type)
        joined = self._then(TableJoin(name, look_up, how, pick))
        return _paired(joined, fn, value_type, self.value_type, tables[0].value_type)

    def interval_join(
        self,
        other: Any,
        before: Duration = "5s",
        after: Duration = "5s",
        how: str = "inner",
        fn: Pairing | None = None,
        *,
        grace: Duration = 0,
        out_of_orderness: Duration = 0,
        idle_timeout: Duration | None = "10s",
        late: Any = None,
        name: str | None = None,
        value_type: Any = None,
    ) -> Flow:
        """Join records of the same key whose event times are near each other.

        A record of ``other`` matches from ``before`` ahead of this flow's record to
        ``after`` behind it, both included. Each match is given once, with the later of
        both event times. A record without a match is given when the watermark (the lower
        one of both sides) says that none can come, with its own event time.

        Args:
            other: The other flow, or stream; its topic needs as many partitions.
            before: How far ahead of a record its match may be.
            after: How far behind it.
            how: "inner"; "left": also this flow's records without a match, as
                ``(value, None)``; "outer": also the other's, as ``(None, value)``.
            fn: Makes a value of both; ``(left, right)`` if None.
            grace: How long after the watermark passed its event time a record is taken.
            out_of_orderness: How far behind the highest event time records are expected.
            idle_timeout: After how much silence a side doesn't hold back the other, or
                time goes on if both are silent; None: never.
            late: What becomes of late records: None (they are counted), "dead-letter", a
                callback or a topic.
            name: Name of the table of records that wait; made from the flow's if None.
            value_type: Type of the results.
        """
        timing = Timing.of(out_of_orderness, idle_timeout)
        other = _as_flow(other)
        inputs = self._with(other)
        table = self._timed_table(
            name,
            "interval-join",
            form=sides_form("interval-join", self.value_type, other.value_type),
            watermarks=timing.watermarks(inputs.count),
        )
        step = IntervalJoin(
            table.name,
            table,
            inputs,
            before=duration(before),
            after=duration(after),
            how=how,
            grace=duration(grace),
            late=late,
        )
        joined = self._meet(other, step, inputs)
        return _paired(joined, fn, value_type, self.value_type, other.value_type)

    def asof_join(
        self,
        other: Any,
        tolerance: Duration = "1m",
        how: str = "left",
        fn: Pairing | None = None,
        *,
        grace: Duration = 0,
        out_of_orderness: Duration = 0,
        idle_timeout: Duration | None = "10s",
        late: Any = None,
        name: str | None = None,
        value_type: Any = None,
    ) -> Flow:
        """Join each record with the latest of ``other`` at or before its event time.

        It waits until the other side's watermark has passed its time, so that what it is
        joined with depends on event times alone.

        Args:
            other: The other flow, or stream; its topic needs as many partitions.
            tolerance: How old the other record may be.
            how: "left": a record without one goes on with None; "inner": it is dropped.
            fn: Makes a value of both; ``(left, right)`` if None.
            grace: As for :meth:`interval_join`.
            out_of_orderness: As for :meth:`interval_join`.
            idle_timeout: As for :meth:`interval_join`.
            late: As for :meth:`interval_join`.
            name: Name of the table of records that wait; made from the flow's if None.
            value_type: Type of the results.
        """
        timing = Timing.of(out_of_orderness, idle_timeout)
        other = _as_flow(other)
        inputs = self._with(other)
        table = self._timed_table(
            name,
            "asof-join",
            form=sides_form("asof-join", self.value_type, other.value_type, dues=2),
            watermarks=asof_watermarks(timing, inputs),
        )
        step = AsofJoin(
            table.name,
            table,
            inputs,
            tolerance=duration(tolerance),
            how=how,
            grace=duration(grace),
            late=late,
        )
        joined = self._meet(other, step, inputs)
        return _paired(joined, fn, value_type, self.value_type, other.value_type)

    def join_updates(
        self,
        other: Any,
        how: str = "inner",
        fn: Pairing | None = None,
        *,
        name: str | None = None,
        value_type: Any = None,
    ) -> Flow:
        """Join the latest values of both flows by key; each update of either gives a result.

        That is a join of two tables, where the flows are the changes of the tables. The
        latest values stay in the table ``name`` (as pairs), for as long as the app lives.

        Args:
            other: The other flow, or stream; its topic needs as many partitions.
            how: "inner": results once both sides have a value; "left": once this one has;
                "outer": always. What isn't there is None.
            fn: Makes a value of both; ``(left, right)`` if None.
            name: Name of the table; made from the flow's if None.
            value_type: Type of the results.
        """
        other = _as_flow(other)
        inputs = self._with(other)
        form = latest_form(self.value_type, other.value_type)
        table = self._timed_table(name, "latest", form=form, watermarks=lambda plain: {})
        joined = self._meet(other, LatestJoin(table.name, table, inputs, how), inputs)
        return _paired(joined, fn, value_type, self.value_type, other.value_type)

    def _with(self, other: Flow) -> TwoInputs:
        if other.app is not self.app:
            raise ConfigurationError("Flows of two apps can't be joined")
        _check_keys(self.key_type, other.key_type, f"flow {other._source.name!r}")
        return TwoInputs(self._inputs, other._inputs, _sources(self), _sources(other))

    def _meet(self, other: Any, step: Step, inputs: TwoInputs) -> Flow:
        mine = self._then(Inlet(step.name, lambda: 0))
        theirs = other._then(Inlet(step.name, inputs.left))
        for source in inputs.left_sources:
            source.alike += [Copartitioned(step.name, each) for each in inputs.right_sources]
        for source in inputs.right_sources:
            source.alike += [Copartitioned(step.name, each) for each in inputs.left_sources]
        return mine._and(theirs)._then(step, inputs=1)

    # -- look-ups

    def enrich(
        self,
        lookup: Callable[[Any], Awaitable[Any]],
        *,
        key: Picker | None = None,
        batched: bool = True,
        concurrency: int = 16,
        cache_ttl: Duration = "5m",
        cache_size: int = 100_000,
        timeout: Duration = "2s",
        retries: int = 3,
        max_keys: int = 1000,
        on_missing: str = "pass",
        on_error: str = "dead-letter",
        fn: Pairing | None = None,
        name: str | None = None,
        value_type: Any = None,
    ) -> Flow:
        """Look up each record's key in a server, by the batch and through a cache.

        A batch asks once for its distinct keys that aren't in the cache. Records keep
        their order. While it waits, a checkpoint needn't, if it comes before operators
        with state: put it there where you can.

        Args:
            lookup: Async function of a list of keys that returns a dict by key, or a list
                parallel to them (None: not found); or of one key, with ``batched=False``.
            key: What to look up: a field's name, or a function of the value; the record's
                key if None.
            batched: Whether ``lookup`` takes a list.
            concurrency: How many calls may run at once.
            cache_ttl: How long what was found (or wasn't) is good.
            cache_size: Most keys that are remembered; the least recently used go first.
            timeout: How long one call may take.
            retries: How often a call that failed is made again, after 0.1 s, 0.2 s, ...
            max_keys: Most keys in one call.
            on_missing: A key that isn't found: "pass" (with None), "drop", "dead-letter".
            on_error: A look-up that failed for good: "dead-letter", "pass" (with None),
                "fail" (the worker stops, and nothing is lost).
            fn: Makes a value of both; ``(value, found)`` if None.
            name: What errors and logs call it.
            value_type: Type of the results.
        """
        step = Enrich(
            name or f"{self._source.name}-enrich",
            self.app,
            lookup,
            pick=None if key is None else picker(key, self.value_type),
            batched=batched,
            concurrency=concurrency,
            cache=Cache(cache_size, duration(cache_ttl) / 1000),
            timeout=duration(timeout) / 1000,
            retries=retries,
            max_keys=max_keys,
            on_missing=on_missing,
            on_error=on_error,
        )
        return _paired(self._then(step), fn, value_type)


def _as_flow(other: Any) -> Flow:
    """Return a flow, or a stream as one.

    Raises:
        ConfigurationError: It is neither.
    """
    if not isinstance(other, StateOperators):
        if not hasattr(other, "flow"):
            raise ConfigurationError(
                f"{other!r} is neither a flow nor a stream: join() is for tables"
            )
        other = other.flow()
    flow: Flow = other
    return flow


def _check_keys(mine: Any, others: Any, what: str) -> None:
    """See that keys can be equal, which bytes and what is decoded never are.

    Raises:
        ConfigurationError: They can't.
    """
    if None in (mine, others) or Any in (mine, others) or (mine is bytes) == (others is bytes):
        return
    raise ConfigurationError(
        f"Keys of the flow are of type {_named(mine)}, and those of {what} of {_named(others)}: "
        "they are never equal. Declare key_type= for both topics (without it keys are bytes)."
    )


def _named(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _positive(name: str, value: Duration) -> int:
    milliseconds = duration(value)
    if not milliseconds:
        raise ConfigurationError(f"{name} must be above 0")
    return milliseconds


def _is_known(declared: Any) -> bool:
    """Return whether pairs of such values have a type that they can be decoded by."""
    if get_origin(declared) is None and isinstance(declared, type):
        return issubclass(declared, Record) or not issubclass(declared, FaustModel)
    return declared not in (None, Any)


def _sources(flow: Any) -> frozenset[Any]:
    sources: frozenset[Any] = frozenset().union(*(node.sources for node in flow._nodes))
    return sources


def _paired(
    flow: Flow, fn: Pairing | None, value_type: Any, left: Any = None, right: Any = None
) -> Flow:
    """Apply a join's function to its pairs, if it has one, and say what type results have."""
    if fn is None:
        if value_type is None and _is_known(left) and _is_known(right):
            value_type = tuple[Optional[left], Optional[right]]  # noqa: UP045 - may be any type
        flow.value_type = value_type
        return flow
    pairing = fn
    label = getattr(fn, "__name__", "join")
    return flow._then(Map(f"join {label}", lambda pair: pairing(*pair)), value_type)
