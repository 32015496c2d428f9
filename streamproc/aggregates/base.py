"""What an aggregation is: the contract for one's own, and the shape of the built-in ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamproc.aggregates.parts import Scope, Use
from streamproc.errors import ConfigurationError

#: Where the value comes from: a field's name, a function of the record, or None, the record.
Of = str | Callable[[Any], Any] | None
#: (start, end) of a window in milliseconds since 1970; the end is not in it.
Window = tuple[int, int]


class Aggregate:
    """Base class of aggregations; derive from it for your own.

    Args:
        of: What to aggregate of each record: the name of a field (an attribute, or a key
            of a dict), a function of the record, or None: the record itself. A record
            whose value is None is skipped (only ``Count()`` counts it).

    The state may be whatever msgspec can encode as MessagePack: numbers, str, bytes, lists
    and dicts of those (a tuple comes back as a list). For another, override
    :meth:`encode` and :meth:`decode`. The order in which records come is not the order of
    their times, so a result should not depend on it.

    >>> class Product(Aggregate):
    ...     def initialize(self):
    ...         return 1
    ...     def add(self, state, value, timestamp):
    ...         return state * value
    ...     def merge(self, left, right):
    ...         return left * right
    """

    of: Of = None

    def __init__(self, of: Of = None) -> None:
        self.of = checked(of)

    def initialize(self) -> Any:
        """Return the state of no records, a new one at each call."""
        raise NotImplementedError(f"{type(self).__name__} needs initialize()")

    def add(self, state: Any, value: Any, timestamp: int) -> Any:
        """Return the state with one more record.

        The state may be changed in place. Check the value before: a state that is half
        changed when ``add`` raises stays so.

        Args:
            state: The state so far.
            value: What ``of`` picked, never None.
            timestamp: Event time of the record, ms since 1970.
        """
        raise NotImplementedError(f"{type(self).__name__} needs add()")

    def merge(self, left: Any, right: Any) -> Any:
        """Return the state of both; ``left`` is of earlier records.

        Neither may be changed: windows that overlap merge the same state more than once.
        """
        raise NotImplementedError(f"{type(self).__name__} needs merge(), for this kind of window")

    def result(self, state: Any, window: Window | None = None) -> Any:
        """Return what to show of a state; the state itself unless overridden.

        Args:
            state: The state; not to be changed.
            window: Start and end (not included) in ms, if it is that of a window.
        """
        return state

    def encode(self, state: Any) -> Any:
        """Return the state as plain data that MessagePack can hold."""
        return state

    def decode(self, plain: Any) -> Any:
        """Return the state that :meth:`encode` made plain."""
        return plain

    def pick(self, record: Any) -> Any:
        """Return of a record what :meth:`add` takes."""
        return picked(self.of, record)

    @property
    def inlined(self) -> bool:
        """Whether a program may use :meth:`uses` and :meth:`outcome` instead of the methods."""
        return False

    @property
    def signature(self) -> str:
        """What must be the same for a stored state to be readable."""
        parameters = [
            f"{name}={described(value)}"
            for name, value in sorted(vars(self).items())
            if not name.startswith("_")
        ]
        cls = type(self)
        return f"{cls.__module__}.{cls.__qualname__}({', '.join(parameters)})"

    def __repr__(self) -> str:
        of = [] if self.of is None else [described(self.of)]
        parameters = [
            f"{name}={described(value)}"
            for name, value in vars(self).items()
            if name != "of" and not name.startswith("_") and value is not None
        ]
        return f"{type(self).__name__}({', '.join(of + parameters)})"


class Composed(Aggregate):
    """An aggregation made of :class:`~streamproc.aggregates.parts.Part` objects."""

    @property
    def inputs(self) -> tuple[Of, ...]:
        """What it reads of a record."""
        return (self.of,)

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        """Return the parts that it needs, reading the inputs of these numbers."""
        raise NotImplementedError

    def outcome(self, scope: Scope, *slots: str) -> str:
        """Return the expression of its result over the slots of its parts, in their order."""
        return slots[0]


def checked(of: Any) -> Of:
    """Return ``of`` if it can pick a value.

    Raises:
        ConfigurationError: It can't.
    """
    if of is None or callable(of) or (isinstance(of, str) and of):
        return of  # type: ignore[no-any-return]
    raise ConfigurationError(
        f"{of!r} picks no value; give the name of a field, a function, or None for the record"
    )


def picked(of: Of, record: Any) -> Any:
    """Return what ``of`` picks of a record."""
    if of is None:
        return record
    if isinstance(of, str):
        return record[of] if isinstance(record, dict) else getattr(record, of)
    return of(record)


def described(value: Any) -> str:
    """Return a text that is the same in each process for the same parameter."""
    if isinstance(value, str | int | float | bytes) or value is None:
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, dict):
        pairs = (f"{described(key)}: {described(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
