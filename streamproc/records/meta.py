"""The metaclass of records: Faust's class options, on a msgspec Struct."""

from __future__ import annotations

from types import MemberDescriptorType
from typing import Any, cast

import msgspec
from faust.models.base import registry
from faust.types.models import ModelT

from streamproc.errors import ConfigurationError
from streamproc.records.fields import adapt_fields, own_annotations, plain_type, resolved
from streamproc.records.lenient import coerced
from streamproc.records.options import KEPT, NAMES, Options
from streamproc.records.times import milliseconds
from streamproc.records.validators import own_validators, post_init


class FaustModel(ModelT):  # type: ignore[misc]
    """Makes ``isinstance(record, ModelT)`` true, which Faust asks in many places.

    msgspec refuses a base class with an ``__init__`` in its own body, as ModelT has; a
    class between the two is accepted, and Python then lays out the instances for both.
    """

    __slots__ = ()


class RecordMeta(type(msgspec.Struct)):  # type: ignore[misc]
    """Takes Faust's class options, and gives field descriptors on the class."""

    def __new__(
        mcls, name: str, bases: tuple[type, ...], body: dict[str, Any], /, **given: Any
    ) -> RecordMeta:
        chosen = {key: given.pop(key) for key in NAMES & given.keys()}
        chosen = {**_inner_options(body), **chosen}
        inherited = next((base._options for base in bases if hasattr(base, "_options")), None)
        if inherited is None:
            return cast(RecordMeta, super().__new__(mcls, name, bases, body, **given))
        _refuse_init(name, body)
        renamed = adapt_fields(name, body)
        if renamed:
            given.setdefault("rename", renamed)
        if _needs_keywords(bases, body):
            given.setdefault("kw_only", True)
        event_time = chosen.get("event_time") or inherited.event_time
        validators = (
            *inherited.validators,
            *_event_time_check(event_time, body),
            *own_validators(body),
        )
        validates = _validates_itself(bases, body, chosen.get("validation"))
        if validators or validates:
            hook = body.get("__post_init__") or _inherited_hook(bases)
            body["__post_init__"] = post_init(hook, validators, validates)
        if any(chosen.get(key) for key in ("abstract", "coerce", "validation")):
            mcls = _CheckedMeta
        cls = cast(Any, super().__new__(mcls, name, bases, body, **given))
        options = Options(cls, inherited, chosen)
        options.validators = validators
        _check_event_time(cls, options.event_time)
        cls.__is_abstract__ = bool(chosen.get("abstract"))
        cls._options = options
        if not cls.__is_abstract__:
            registry[options.namespace] = cls
        return cast(RecordMeta, cls)

    def __getattribute__(cls, name: str) -> Any:
        # Only attributes looked up on the class come here, never those of instances.
        value = super().__getattribute__(name)
        if type(value) is MemberDescriptorType and name in cls.__struct_fields__:
            return cls._options.descriptors[name]
        return value


class _CheckedMeta(RecordMeta):
    """Classes whose records are coerced or validated when constructed in Python.

    Decoding doesn't come here: msgspec makes records itself.
    """

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        if cls.__is_abstract__:
            raise NotImplementedError(
                f"{cls.__name__} is abstract; make a record of one of its subclasses"
            )
        record = super().__call__(*args, **fields)
        options = cls._options
        if options.coerce:
            coerced(options, record)
        if options.validation:
            record.validate_or_raise()
        return record


def _inner_options(namespace: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a ``class Options:`` in the class body, as Faust does."""
    inner = namespace.pop("Options", None)
    if inner is None:
        return {}
    return {key: value for key, value in vars(inner).items() if key in (*KEPT, "namespace")}


def _refuse_init(name: str, namespace: dict[str, Any]) -> None:
    if "__init__" in namespace:
        raise ConfigurationError(
            f"{name}: records can't define __init__; use __post_init__, or keep this model a "
            "faust.models.Record"
        )


def _needs_keywords(bases: tuple[type, ...], namespace: dict[str, Any]) -> bool:
    """True if required fields are added after inherited ones that have defaults."""
    if not any(getattr(base, "__struct_defaults__", ()) for base in bases):
        return False
    inherited = {field for base in bases for field in getattr(base, "__struct_fields__", ())}
    return any(field not in namespace for field in own_annotations(namespace).keys() - inherited)


def _validates_itself(
    bases: tuple[type, ...], namespace: dict[str, Any], validation: bool | None
) -> bool:
    """True if the class has ``validation`` and a ``validate`` of its own, to be called."""
    if validation is None:
        validation = any(base._options.validation for base in bases if hasattr(base, "_options"))
    own = namespace.get("validate") or getattr(bases[0], "validate", None)
    return bool(validation) and getattr(own, "__module__", None) != "streamproc.records.record"


def _inherited_hook(bases: tuple[type, ...]) -> Any:
    for base in bases:
        hook = getattr(base, "__post_init__", None)
        if hook is not None:
            return getattr(hook, "__user_hook__", hook)
    return None


def _event_time_check(field: str | None, namespace: dict[str, Any]) -> tuple[Any, ...]:
    """Check event times while decoding where the type alone doesn't say that they are times."""
    annotation = own_annotations(namespace).get(field or "")
    if annotation is None:
        return ()
    declared = plain_type(resolved(annotation, namespace))
    if isinstance(declared, type) and declared.__name__ in ("int", "datetime", "date"):
        return ()
    return ((field, _is_time),)


def _is_time(record: Any, value: Any) -> None:
    if value is not None:
        milliseconds(value)


def _check_event_time(cls: Any, field: str | None) -> None:
    if field and field not in cls.__struct_fields__:
        raise ConfigurationError(
            f"{cls.__name__}: event_time names {field!r}, which isn't one of its fields "
            f"({', '.join(cls.__struct_fields__)})"
        )
