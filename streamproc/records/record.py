"""Typed records: what a Kafka message's key or value is made of.

A :class:`Record` is a :class:`msgspec.Struct`, so decoding validates and costs about
0.15 µs. It is also accepted wherever Faust takes a model, with the class options and
methods of ``faust.Record`` (checked against faust-streaming 0.15.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import msgspec
from faust.exceptions import ValidationError
from faust.models.base import registry
from faust.types.models import FieldDescriptorT

from streamproc.errors import DecodeError
from streamproc.records import lenient
from streamproc.records.fields import describe
from streamproc.records.meta import FaustModel, RecordMeta
from streamproc.records.options import Options

R = TypeVar("R", bound="Record")

#: Where Faust puts the namespace of a model into its data.
METADATA = "__faust"


class Record(msgspec.Struct, FaustModel, metaclass=RecordMeta, order=True):
    """Base class of typed records.

    Fields are annotations; a default makes a field optional, and ``Optional`` without a
    default means None. Constraints are ``Annotated[float, msgspec.Meta(ge=0)]``; checks
    of your own are :func:`~streamproc.records.validator` methods, or ``__post_init__``,
    which may raise ``ValueError``. Unknown fields are ignored. A field that doesn't fit
    is an error that names it; NaN and infinity are not JSON and an error too (floats
    that are NaN are written as null, and a ``Decimal`` takes ``"NaN"``).

    Class options:
        event_time: Name of the field that holds the event time; its type says the unit,
            see :class:`~streamproc.records.EventTimes`. Without it the Kafka timestamp
            is the event time.
        coerce: Take ``"1"`` for an int field, 1 for a str field, and the like.
        validation: Check records made in Python, too; implies ``coerce``.
        include_metadata: Write the class's namespace into the encoded form.
        abstract: A base for other records; no record of its own.
        polymorphic_fields: A message may name a subclass, and is read as that one.

    The other options of ``faust.Record`` are taken too. Dates, decimals and UUIDs are
    always recognised by their type, so ``isodates`` and ``decimals`` change nothing.

    >>> class Reading(Record, event_time="at"):
    ...     sensor_id: str
    ...     value: float
    ...     at: int
    >>> Reading.loads(b'{"sensor_id": "a", "value": 1.5, "at": 1700000000000}').value
    1.5
    """

    _options: ClassVar[Any]
    __is_abstract__: ClassVar[bool] = True

    if TYPE_CHECKING:

        def __init_subclass__(cls, **options: Any) -> None: ...

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__struct_fields__))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._humanize()}>"

    def _humanize(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__)

    def asdict(self) -> dict[str, Any]:
        """Return the fields as a dict; nested records stay records."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    def to_representation(self) -> dict[str, Any]:
        """Return the record as plain data, ready for any codec."""
        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=encode_unknown)
        if self._options.include_metadata:
            plain[METADATA] = {"ns": self._options.namespace}
        return plain

    def __json__(self) -> Any:
        return self.to_representation()

    def dumps(self, *, serializer: Any = None) -> bytes:
        """Encode the record; as JSON unless ``serializer`` or its class says otherwise.

        Raises:
            EncodeError: A field has no form in that encoding.
            ConfigurationError: The serializer is pickle.
        """
        from streamproc.records.codecs import encode

        return encode(serializer or self._options.serializer or "json", self)

    @classmethod
    def loads(
        cls: type[R], s: bytes, *, default_serializer: Any = None, serializer: Any = None
    ) -> R:
        """Decode a record; the class's own serializer goes before the argument, as in Faust.

        Raises:
            DecodeError: The bytes aren't a record of this class; it says which field.
            ConfigurationError: The serializer is pickle.
        """
        from streamproc.records.codecs import decode

        chosen = cls._options.serializer or serializer or default_serializer or "json"
        return cast(R, decode(chosen, cls, s))

    @classmethod
    def from_data(cls: type[R], data: Any, *, preferred_type: Any = None) -> R:
        """Make a record of plain data (a mapping), or of the subclass that it names.

        Raises:
            DecodeError: The data doesn't fit; it says which field.
        """
        if isinstance(data, Record):
            return cast(R, data)
        model = named_model(cls, data) or cls
        if not issubclass(model, Record):
            return cast(R, model.from_data(data, preferred_type=model))
        if model.__is_abstract__:
            raise DecodeError(f"{model.__name__} is abstract, and the data names no record of it")
        options = model._options
        if options.date_parser and isinstance(data, dict):
            data = lenient.parse_dates(options, data)
        try:
            return cast(R, _convert(model, data))
        except (msgspec.ValidationError, RecursionError) as exc:
            loose = lenient.loosened(options, data)
            if loose is None:
                raise DecodeError(str(exc)) from exc
        try:
            return cast(R, _convert(model, loose))
        except (msgspec.ValidationError, RecursionError) as exc:
            raise DecodeError(str(exc)) from exc

    @classmethod
    def _from_data_field(cls, data: Any) -> Any:
        # Called by the models of Faust that have a field of this type.
        return None if data is None else cls.from_data(data, preferred_type=cls)

    @classmethod
    def _contribute_field_descriptors(
        cls, target: Any, options: Any, parent: FieldDescriptorT | None = None
    ) -> dict[str, Any]:
        # Called by a descriptor for the fields of a nested record: ``Order.account.id``.
        descriptors = {info.name: describe(cls, info, parent) for info in cls._options.infos}
        for name, descriptor in descriptors.items():
            setattr(target, name, descriptor)
        return descriptors

    @classmethod
    def make_final(cls) -> None:
        """Do nothing: types of fields are resolved when first needed (``lazy_creation``)."""

    def derive(self: R, *objects: Any, **fields: Any) -> R:
        """Copy the record with the fields of ``objects``, then ``fields``, changed."""
        changed = self.asdict()
        for each in objects:
            changed.update(each.asdict())
        return type(self)(**{**changed, **fields})

    @property
    def validation_errors(self) -> list[ValidationError]:
        return self.validate()

    def validate(self) -> list[ValidationError]:
        """Return what is wrong with the field values now; decoding has checked them before."""
        errors = []
        options = self._options
        for info in options.infos:
            try:
                msgspec.convert(getattr(self, info.name), info.type, dec_hook=_as_it_is)
            except msgspec.ValidationError as exc:
                reason = f"{info.name}: {exc}"
                errors.append(ValidationError(reason, field=options.descriptors[info.name]))
        for field, check in options.validators:
            try:
                check(self, getattr(self, field))
            except (ValueError, TypeError, AssertionError) as exc:
                reason = f"{field} {exc}"
                errors.append(ValidationError(reason, field=options.descriptors[field]))
        return errors

    def is_valid(self) -> bool:
        return not self.validate()

    def validate_or_raise(self) -> None:
        """Raise the first validation error, a ``faust.exceptions.ValidationError``."""
        errors = self.validate()
        if errors:
            raise errors[0]


Record._options = Options(Record, None, {})


def named_model(declared: Any, data: Any) -> Any:
    """Return the model that the data names and ``declared`` may turn out to be, or None.

    That is a polymorphic subclass, or the envelope in which Faust sends requests. (Faust
    takes any polymorphic model, so that a sender could choose what an agent gets.)
    """
    metadata = data.get(METADATA) if isinstance(data, dict) else None
    namespace = metadata.get("ns") if isinstance(metadata, dict) else None
    if not isinstance(namespace, str) or namespace not in registry:
        return None
    model: Any = registry[namespace]
    options = model._options
    if not (options.polymorphic_fields or options.allow_blessed_key or declared is Record):
        return None
    if issubclass(model, declared) or options.allow_blessed_key or namespace[0] == "@":
        return model
    return None


def coercion_hook(model: Any) -> Any:
    """Return how msgspec makes values of types that it doesn't know, for ``coercions=``."""
    coercions = model._options.coercions

    def coerce(declared: Any, value: Any) -> Any:
        for types, handler in coercions.items():
            if issubclass(declared, types):
                return handler(value)
        raise TypeError(f"no coercion to {declared.__name__}")

    return coerce if coercions else None


def _convert(model: Any, data: Any) -> Any:
    options = model._options
    return msgspec.convert(data, model, strict=not options.coerce, dec_hook=coercion_hook(model))


def _as_it_is(declared: Any, value: Any) -> Any:
    return value


def encode_unknown(value: Any) -> Any:
    """Say how a value that msgspec doesn't know is encoded: as in Faust."""
    from faust.utils.json import on_default

    return on_default(value)
