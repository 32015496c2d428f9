"""Several aggregations compiled into one pass over the records."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import length_hint
from typing import Any, TypeVar

import msgspec

from streamproc.aggregates.base import Aggregate, Composed, Of, Window, described
from streamproc.aggregates.parts import Input, Part, Plain, Scope, Slots, Use
from streamproc.aggregates.plain import readable
from streamproc.aggregates.source import Origin, Placed, loop, others
from streamproc.errors import AggregateError, ConfigurationError, DecodeError, EncodeError

K = TypeVar("K")
Accumulator = list[Any]

#: Part of each fingerprint; to be raised when the built-in parts store something else.
FORMAT = 1
#: MessagePack has no ints beyond 64 bits; sums may have.
WIDE_INT = 1


@dataclass(frozen=True)
class Own(Part):
    """One slot with the state of an aggregation of the user's."""

    aggregate: Aggregate

    @property
    def signature(self) -> str:
        return self.aggregate.signature

    def initial(self, scope: Scope) -> list[str]:
        return [f"{scope.bind(self.aggregate.initialize, 'initialize')}()"]

    def prepare(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        add = scope.bind(self.aggregate.add, "add")
        return [f"{me} = {add}({slots[0]}, {inputs[0].local}, t)"]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        return [f"{slots[0]} = {me}"]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        merge = scope.bind(self.aggregate.merge, "merge")
        return [f"{out[0]} = {merge}({left[0]}, {right[0]})"]

    def plain(self, scope: Scope, slots: Slots, types: Sequence[Any]) -> list[Plain]:
        encode = scope.bind(self.aggregate.encode, "encode")
        decode = scope.bind(self.aggregate.decode, "decode")
        return [(f"{encode}({slots[0]})", f"{decode}({slots[0]})")]


class Program:
    """Aggregations compiled for one pass; see :func:`compile_aggregates`.

    An accumulator is the flat list of all states of one key (in one window).

    Attributes:
        names: Names of the results.
        fingerprint: A text that is another one when stored accumulators can't be read by
            this program, because aggregations or their parameters changed. A function is
            known by its name only. Names of results, the order of aggregations, and
            parameters that only choose what is shown (``q``, ``limit``, ``k``) don't count.
        source: The generated source, to be read by people.
    """

    def __init__(self, aggregates: Mapping[str, Aggregate], value_type: Any = None) -> None:
        self._aggregates = dict(aggregates)
        self.names = tuple(aggregates)
        self._inputs: list[Of] = []
        wanted = [self._wanted(aggregate) for aggregate in self._aggregates.values()]
        self._placed = _placed(self._inputs, [use for uses in wanted for use in uses])
        self._width = sum(each.own for each in self._placed)
        self._found = [[self._place(use) for use in uses] for uses in wanted]
        labels = [_label(self._inputs, each) for each in self._placed]
        self.fingerprint = hashlib.sha256(f"{FORMAT} {labels}".encode()).hexdigest()[:16]
        self._build(_types(self._aggregates, self._inputs, value_type))

    def _wanted(self, aggregate: Aggregate) -> tuple[Use, ...]:
        if aggregate.inlined and isinstance(aggregate, Composed):
            return aggregate.uses(*map(self._number, aggregate.inputs))
        own_pick = type(aggregate).pick is not Aggregate.pick
        return (Use(Own(aggregate), (self._number(aggregate.pick if own_pick else aggregate.of),)),)

    def _number(self, of: Of) -> int:
        """Return the number of an input; the same for the same field or function."""
        for number, known in enumerate(self._inputs):
            if known is of or (isinstance(of, str) and known == of):
                return number
        self._inputs.append(of)
        return len(self._inputs) - 1

    def _place(self, use: Use) -> Placed:
        return next(
            each for each in self._placed if (each.part, each.inputs) == (use.part, use.inputs)
        )

    def _build(self, types: Sequence[Any]) -> None:
        scope = Scope()
        # What is needed goes first; then, as what they change in place is not undone, the
        # user's own go last.
        ordered = sorted(
            self._placed,
            key=lambda each: (isinstance(each.part, Own), len(each.slots) > each.own),
        )
        loop_source = loop(scope, self._inputs, ordered, scope.bind(self._blame, "blame"))
        self._origins = loop_source.origins
        results = {
            name: self._outcome(scope, aggregate, found)
            for (name, aggregate), found in zip(self._aggregates.items(), self._found, strict=True)
        }
        other_source = others(scope, self._placed, self._width, results, types)
        self.source = f"{loop_source.text}\n{other_source}"
        # Of the aggregates in the user's code, not of data: those are its arguments.
        exec(compile(self.source, "<streamproc aggregations>", "exec"), scope.names)  # noqa: S102
        self._update: Callable[..., None] = scope.names["update"]
        self.new: Callable[[], Accumulator] = scope.names["new"]
        self._merge: Callable[[Accumulator, Accumulator], Accumulator] = scope.names["merge"]
        self._result: Callable[..., dict[str, Any]] = scope.names["result"]
        self._plain: Callable[[Accumulator], list[Any]] = scope.names["plain"]
        self._restore: Callable[[list[Any]], Accumulator] = scope.names["restore"]

    def _outcome(self, scope: Scope, aggregate: Aggregate, found: Sequence[Placed]) -> str:
        slots = [slot for each in found for slot in each.slots_of("acc")[: each.own]]
        if aggregate.inlined and isinstance(aggregate, Composed):
            return aggregate.outcome(scope, *slots)
        return f"{scope.bind(aggregate.result, 'result')}({slots[0]}, window)"

    def update(
        self,
        states: dict[K, Accumulator],
        keys: Sequence[K],
        values: Sequence[Any],
        timestamps: Sequence[int],
        missing: Callable[[K], Accumulator],
    ) -> None:
        """Add a batch of records to the accumulators of their keys, in place.

        Args:
            states: Accumulators by key.
            keys: The key of each record, or whatever names its accumulator.
            values: The records: objects with attributes, or dicts.
            timestamps: Their event times, ms since 1970.
            missing: Called for a key that isn't in ``states``; returns its accumulator
                (:meth:`new`, or one read from a store), which is put there.

        Raises:
            AggregateError: A record can't be aggregated; ``row`` says which. Those before
                it are added, it and those after it are not (``missing`` may have been
                called for its key). Only what a user's own ``add`` changed in place
                before it, or another user's own after it, raised is not undone.
            ValueError: The sequences differ in length.
        """
        if values.__class__ is not list:
            values = list(values)
        if not len(keys) == len(values) == len(timestamps):
            raise ValueError(
                f"{len(keys)} keys, {len(values)} values and {len(timestamps)} timestamps"
            )
        self._update(states, keys, values, timestamps, missing)

    def merge(self, left: Accumulator, right: Accumulator) -> Accumulator:
        """Return the accumulator of both, ``left`` of the earlier records; neither changes."""
        return self._merge(left, right)

    def result(self, accumulator: Accumulator, window: Window | None = None) -> dict[str, Any]:
        """Return the results by name.

        Args:
            accumulator: The accumulator; it stays as it is.
            window: Start and end (not included) of its window in ms.
        """
        return self._result(accumulator, window)

    def encode(self, accumulator: Accumulator) -> bytes:
        """Return the accumulator as MessagePack.

        Raises:
            EncodeError: A value kept in it has no plain form.
        """
        plain = self._plain(accumulator)
        try:
            return ENCODE(plain)
        except OverflowError:
            plain = [_widened(value) for value in plain]
        except (TypeError, ValueError) as exc:
            raise EncodeError(f"a state can't be stored: {exc}") from exc
        try:
            return ENCODE(plain)
        except (OverflowError, TypeError, ValueError) as exc:
            raise EncodeError(f"a state can't be stored: {exc}") from exc

    def decode(self, data: bytes) -> Accumulator:
        """Return the accumulator of what :meth:`encode` wrote.

        Raises:
            DecodeError: The bytes aren't one of these aggregations.
        """
        try:
            plain = DECODER.decode(data)
        except msgspec.DecodeError as exc:
            raise DecodeError(f"a stored state can't be read: {exc}") from exc
        if len(plain) != self._width:
            raise DecodeError(
                f"a stored state has {len(plain)} slots, {', '.join(self.names)} "
                f"need {self._width}; was it written by other aggregations?"
            )
        return self._restore(plain)

    def _blame(self, error: Exception, frame: dict[str, Any]) -> AggregateError | None:
        """Return the error to raise for a record, or None if no record is to blame."""
        assert error.__traceback__ is not None
        origin = self._origins.get(error.__traceback__.tb_lineno)
        if origin is None:
            return None
        row = len(frame["values"]) - length_hint(frame["rows"]) - 1
        name, aggregate = self._culprit(origin)
        number = origin.inputs[0]
        field = self._inputs[number]
        shown = field if isinstance(field, str) or field is None else described(field)
        if origin.action == "read":
            value = frame["v"]
            reason = f"{shown!r} can't be read ({type(error).__name__}: {error}) of {_short(value)}"
        else:
            value = frame[f"x{number}"]
            of = "the record" if shown is None else repr(shown)
            if origin.action == "check":
                reason = f"{of} is {_short(value)} ({type(value).__name__}), {error}"
            else:
                reason = f"{type(error).__name__}: {error}; {of} is {_short(value)}"
        message = f"{name}={aggregate!r}: {reason} (row {row} of the batch)"
        return AggregateError(message, aggregate=name, field=shown, value=value, row=row)

    def _culprit(self, origin: Origin) -> tuple[str, Aggregate]:
        """Return the first aggregation that needs what could not be done."""
        for (name, aggregate), found in zip(self._aggregates.items(), self._found, strict=True):
            for each in found:
                used = [
                    numeric or origin.action == "read"
                    for which, numeric in each.reads
                    if which in origin.inputs
                ]
                if each is origin.placed or (origin.placed is None and any(used)):
                    return name, aggregate
        raise AssertionError("an input that no aggregation reads")


def compile_aggregates(aggregates: Mapping[str, Aggregate], value_type: Any = None) -> Program:
    """Compile aggregations into a program that makes one pass over the records.

    Args:
        aggregates: Aggregations by the name of their result.
        value_type: Type of the records, if known: fields are checked now, and values kept
            in a state (first, last, collect...) come back as what they were.

    Raises:
        ConfigurationError: Something isn't an aggregation, or the type has no such field.
    """
    if not aggregates:
        raise ConfigurationError("no aggregations; give at least one, such as n=Count()")
    for name, aggregate in aggregates.items():
        if isinstance(aggregate, type) and issubclass(aggregate, Aggregate):
            raise ConfigurationError(
                f"{name}={aggregate.__name__} is a class; write {name}={aggregate.__name__}()"
            )
        if not isinstance(aggregate, Aggregate):
            raise ConfigurationError(f"{name}={aggregate!r} is not an aggregation")
    return Program(aggregates, value_type)


def _placed(inputs: Sequence[Of], wanted: Sequence[Use]) -> list[Placed]:
    """Give each different part its slots, in an order that doesn't depend on that of ``wanted``."""
    uses: list[Use] = []
    for use in [each for top in wanted for each in (*top.needs, top)]:
        if use not in uses:
            uses.append(use)
    uses.sort(key=lambda use: _label(inputs, use))
    widths = [len(use.part.initial(Scope())) for use in uses]
    starts = accumulate(widths, initial=0)
    slots = [tuple(range(start, start + own)) for start, own in zip(starts, widths, strict=False)]
    return [
        Placed(
            use.part,
            use.inputs,
            slots[number] + sum((slots[uses.index(need)] for need in use.needs), ()),
            widths[number],
        )
        for number, use in enumerate(uses)
    ]


def _label(inputs: Sequence[Of], placed: Use | Placed) -> str:
    read = [described(inputs[number]) for number in placed.inputs]
    return f"{read} {placed.part.signature}"


def _types(aggregates: Mapping[str, Aggregate], inputs: Sequence[Of], value_type: Any) -> list[Any]:
    """Return the type of each input, None where it isn't known.

    Raises:
        ConfigurationError: The records have no such field.
    """
    if not (isinstance(value_type, type) and issubclass(value_type, msgspec.Struct)):
        known = value_type if readable(value_type) else None
        return [known if of is None else None for of in inputs]
    fields = {info.name: info.type for info in msgspec.structs.fields(value_type)}
    for of in inputs:
        if isinstance(of, str) and of not in fields and not hasattr(value_type, of):
            users = [
                f"{name}={aggregate!r}"
                for name, aggregate in aggregates.items()
                if of in (aggregate.inputs if isinstance(aggregate, Composed) else (aggregate.of,))
            ]
            close = difflib.get_close_matches(of, fields, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(fields)}"
            raise ConfigurationError(
                f"{', '.join(users)}: {value_type.__name__} has no field {of!r}{hint}"
            )
    types = [
        value_type if of is None else fields.get(of) if isinstance(of, str) else None
        for of in inputs
    ]
    return [declared if readable(declared) else None for declared in types]


def _widened(value: Any) -> Any:
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return msgspec.msgpack.Ext(WIDE_INT, str(value).encode())
    return value


def _extension(code: int, data: memoryview) -> Any:
    if code != WIDE_INT:
        raise DecodeError(f"a stored state has an extension {code} that is not ours")
    return int(bytes(data))


ENCODE = msgspec.msgpack.Encoder().encode
DECODER = msgspec.msgpack.Decoder(list, ext_hook=_extension)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
