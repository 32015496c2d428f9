"""Checks of one's own on the fields of a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

C = TypeVar("C", bound=Callable[[Any, Any], None])
Hook = Callable[[Any], None]


def validator(*fields: str) -> Callable[[C], C]:
    """Mark a method as the check of some fields; it gets the value and may raise ValueError.

    Runs when a record is decoded or constructed, not on assignment. A class without
    validators pays nothing for them.

    >>> from streamproc.records import Record
    >>> class Reading(Record):
    ...     value: float
    ...
    ...     @validator("value")
    ...     def _plausible(self, value):
    ...         if value > 1000:
    ...             raise ValueError("is above 1000")
    >>> Reading.loads(b'{"value": 2000}')
    Traceback (most recent call last):
    streamproc.errors.DecodeError: value is above 1000
    """

    def mark(check: C) -> C:
        check.__checked_fields__ = fields  # type: ignore[attr-defined]
        return check

    return mark


def own_validators(namespace: dict[str, Any]) -> tuple[tuple[str, Callable[..., None]], ...]:
    """Return the (field, check) pairs that a class body declares."""
    return tuple(
        (field, check)
        for check in namespace.values()
        for field in getattr(check, "__checked_fields__", ())
    )


def post_init(
    hook: Hook | None, checks: tuple[tuple[str, Callable[..., None]], ...], validates: bool
) -> Hook:
    """Return a ``__post_init__`` that runs the user's own, the checks, and ``validate()``."""

    def __post_init__(record: Any) -> None:
        if hook is not None:
            hook(record)
        for field, check in checks:
            try:
                check(record, getattr(record, field))
            except (ValueError, TypeError, AssertionError) as exc:
                raise ValueError(f"{field} {exc}") from exc
        if validates:
            record.validate_or_raise()

    __post_init__.__user_hook__ = hook  # type: ignore[attr-defined]
    return __post_init__
