"""Typed records: what a Kafka message's key or value is made of.

A :class:`Record` is a :class:`msgspec.Struct`, so decoding validates and costs about
0.2 µs. It is also accepted wherever Faust takes a model, with the class options and
methods of ``faust.Record`` (checked against faust-streaming 0.15.3).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timezone
from functools import cached_property
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import msgspec
from faust.models.base import registry
from faust.models.fields import FieldDescriptor
from faust.types.models import FieldDescriptorT, ModelOptions

from streamproc.errors import ConfigurationError, DecodeError

R = TypeVar("R", bound="Record")

#: Options of a ``faust.Record`` class that are kept as they are.
FAUST_OPTIONS = (
    "serializer",
    "include_metadata",
    "isodates",
    "decimals",
    "coerce",
    "coercions",
    "validation",
    "polymorphic_fields",
    "allow_blessed_key",
)


class _Options(ModelOptions):  # type: ignore[misc]
    """Options of a record class, in the form that Faust reads."""

    include_metadata = False
    event_time: str | None = None


class RecordMeta(msgspec.StructMeta):
    """Takes Faust's class options, and gives field descriptors on the class."""

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        abstract: bool = False,
        date_parser: Any = None,
        event_time: str | None = None,
        **options: Any,
    ) -> RecordMeta:
        if date_parser is not None:
            raise ConfigurationError(
                f"{name}: date_parser is not supported; declare the field as str and parse it in "
                "__post_init__, or keep this model a faust.models.Record"
            )
        faust_namespace = options.pop("namespace", None)
        faust_options = {key: options.pop(key) for key in FAUST_OPTIONS if key in options}
        cls = super().__new__(mcls, name, bases, namespace, **options)
        inherited = getattr(cls, "_options", None)
        chosen = _Options()
        if inherited is not None:
            chosen.__dict__.update(inherited.__dict__)
        chosen.__dict__.update(
            {key: value for key, value in faust_options.items() if value is not None}
        )
        if faust_options.get("validation"):
            chosen.coerce = True
        chosen.namespace = faust_namespace or f"{cls.__module__}.{cls.__qualname__}"
        chosen.event_time = event_time or chosen.event_time
        if chosen.event_time and chosen.event_time not in cls.__struct_fields__:
            raise ConfigurationError(
                f"{name}: event_time names {chosen.event_time!r}, which isn't one of its fields "
                f"({', '.join(cls.__struct_fields__)})"
            )
        type.__setattr__(cls, "_options", chosen)
        if not abstract:
            registry[chosen.namespace] = cls
        return cls

    def __getattribute__(cls, name: str) -> Any:
        # Only attributes looked up on the class come here, never those of instances.
        value = super().__getattribute__(name)
        if type(value) is MemberDescriptorType and not name.startswith("_"):
            return _field_descriptor(cls, name)
        return value


def _field_descriptor(cls: Any, name: str) -> FieldDescriptorT:
    for field in msgspec.structs.fields(cls):
        if field.name == name:
            return FieldDescriptor(
                field=name, input_name=field.encode_name, type=field.type, model=cls
            )
    raise AttributeError(name)


class Record(msgspec.Struct, metaclass=RecordMeta, abstract=True):
    """Base class of typed records.

    Fields are annotations; a default makes a field optional. Constraints are
    ``Annotated[float, msgspec.Meta(ge=0)]``. A check of your own goes into
    ``__post_init__``, which may raise ``ValueError``. Unknown fields are ignored.

    Class options:
        event_time: Name of the field that holds the event time: a ``datetime`` (without
            a zone: UTC), an ``int`` (milliseconds), a ``float`` (seconds), or a ``str``
            (ISO 8601). Without it the Kafka timestamp is the event time.
        coerce: Take ``"1"`` for an int field, and the like.
        include_metadata: Write the class's namespace into the encoded form.

    Those of ``faust.Record`` are taken too. Dates, decimals and UUIDs are always
    recognised by their type, so ``isodates`` and ``decimals`` change nothing.

    >>> class Reading(Record, event_time="at"):
    ...     sensor_id: str
    ...     value: float
    ...     at: int
    >>> Reading.loads(b'{"sensor_id": "a", "value": 1.5, "at": 1700000000000}').value
    1.5
    """

    if TYPE_CHECKING:
        # What the metaclass takes, for type checkers.
        def __init_subclass__(cls, **options: Any) -> None: ...

    _options: ClassVar[Any]
    __is_model__: ClassVar[bool] = True
    __is_abstract__: ClassVar[bool] = False

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__struct_fields__))

    def asdict(self) -> dict[str, Any]:
        """Return the fields as a dict; nested records stay records."""
        return msgspec.structs.asdict(self)

    def to_representation(self) -> dict[str, Any]:
        """Return the record as plain data, ready for any codec."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        if self._options.include_metadata:
            plain["__faust"] = {"ns": self._options.namespace}
        return plain

    def __json__(self) -> Any:
        return self.to_representation()

    def dumps(self, *, serializer: Any = None) -> bytes:
        """Encode the record; as JSON unless its class or ``serializer`` says otherwise."""
        from faust.serializers.codecs import dumps

        chosen = serializer or self._options.serializer
        if chosen in (None, "json", "raw"):
            source = self.to_representation() if self._options.include_metadata else self
            return msgspec.json.encode(source)
        return cast(bytes, dumps(chosen, self.to_representation()))

    @classmethod
    def loads(
        cls: type[R], s: bytes, *, default_serializer: Any = None, serializer: Any = None
    ) -> R:
        """Decode a record.

        Raises:
            DecodeError: The bytes aren't a record of this class; it says which field.
        """
        from faust.serializers.codecs import loads

        chosen = serializer or cls._options.serializer or default_serializer
        if chosen in (None, "json", "raw"):
            try:
                return msgspec.json.decode(s, type=cls, strict=not cls._options.coerce)
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
                raise DecodeError(str(exc)) from exc
        return cls.from_data(loads(chosen, s))

    @classmethod
    def from_data(cls: type[R], data: Any, *, preferred_type: Any = None) -> R:
        """Make a record of plain data (a mapping).

        Raises:
            DecodeError: The data doesn't fit; it says which field.
        """
        if isinstance(data, cls):
            return data
        try:
            return msgspec.convert(data, type=cls, strict=not cls._options.coerce)
        except msgspec.ValidationError as exc:
            raise DecodeError(str(exc)) from exc

    def derive(self: R, *objects: Any, **fields: Any) -> R:
        """Copy the record with the fields of ``objects``, then ``fields``, changed."""
        changes: dict[str, Any] = {}
        for each in objects:
            changes.update(msgspec.structs.asdict(each))
        return msgspec.structs.replace(self, **{**changes, **fields})

    @property
    def validation_errors(self) -> list[Exception]:
        """What is wrong with the field values (checked when decoding, not when assigned)."""
        try:
            msgspec.convert(msgspec.to_builtins(self), type=type(self))
        except msgspec.ValidationError as exc:
            return [DecodeError(str(exc))]
        return []

    def validate(self) -> list[Exception]:
        return self.validation_errors

    def is_valid(self) -> bool:
        return not self.validation_errors

    def validate_or_raise(self) -> None:
        for error in self.validation_errors:
            raise error


class EventTimes:
    """Event times of values, in milliseconds, by a field of theirs.

    A ``datetime`` counts as UTC when it has no zone; an ``int`` is milliseconds, a
    ``float`` seconds, a ``str`` ISO 8601.
    """

    def __init__(self, field: str) -> None:
        self.field = field

    @classmethod
    def of(cls, declared: Any) -> EventTimes | None:
        """Return those of a record class that declares an event time, else None."""
        options = getattr(declared, "_options", None)
        field = getattr(options, "event_time", None)
        return cls(field) if field else None

    @cached_property
    def _get(self) -> Any:
        from operator import attrgetter

        return attrgetter(self.field)

    def __call__(self, values: Iterable[Any]) -> list[int]:
        times = list(map(self._get, values))
        if all(type(each) is int for each in times):
            return times
        return [milliseconds(each) for each in times]


def milliseconds(time: Any) -> int:
    """Return an event time (see :class:`EventTimes`) in milliseconds since 1970.

    Raises:
        DecodeError: It isn't a time.
    """
    if isinstance(time, bool) or time is None:
        raise DecodeError(f"{time!r} is not a time")
    if isinstance(time, int):
        return time
    if isinstance(time, float):
        return round(time * 1000)
    if isinstance(time, str):
        try:
            time = msgspec.convert(time, type=datetime)
        except msgspec.ValidationError as exc:
            raise DecodeError(f"{time!r} is not a time: {exc}") from exc
    if isinstance(time, datetime):
        if time.tzinfo is None:
            time = time.replace(tzinfo=timezone.utc)
        return round(float(time.timestamp()) * 1000)
    if isinstance(time, date):
        return milliseconds(datetime(time.year, time.month, time.day, tzinfo=timezone.utc))
    raise DecodeError(f"{time!r} is not a time")
