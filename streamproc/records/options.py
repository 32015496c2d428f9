"""Class options of records, in the form that Faust reads (faust-streaming 0.15.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import msgspec
from faust.types.models import FieldDescriptorT, ModelOptions
from msgspec.structs import FieldInfo

#: Class options that are kept as they are given.
KEPT = (
    "serializer",
    "include_metadata",
    "isodates",
    "decimals",
    "coerce",
    "coercions",
    "validation",
    "polymorphic_fields",
    "allow_blessed_key",
    "date_parser",
    "event_time",
)

#: Every class option that isn't one of msgspec's.
NAMES = frozenset({*KEPT, "namespace", "abstract", "lazy_creation"})


class Options(ModelOptions):  # type: ignore[misc]
    """Options of one record class; field types are resolved when first asked for."""

    include_metadata = False
    event_time: str | None = None
    #: (field, check) pairs; see :func:`streamproc.records.validators.validator`.
    validators: tuple[tuple[str, Callable[[Any, Any], None]], ...] = ()

    def __init__(self, model: Any, inherited: Options | None, given: Mapping[str, Any]) -> None:
        self.model = model
        self.coercions: dict[Any, Any] = {}
        if inherited is not None:
            self.coercions.update(inherited.coercions)
            for name in (*KEPT, "validators"):
                if name in inherited.__dict__ and name != "coercions":
                    setattr(self, name, inherited.__dict__[name])
        self.coercions.update(given.get("coercions") or {})
        for name in KEPT:
            if given.get(name) is not None and name != "coercions":
                setattr(self, name, given[name])
        if given.get("validation") is not None:
            self.coerce = True  # as in Faust
        self.namespace = given.get("namespace") or f"{model.__module__}.{model.__qualname__}"
        if self.is_polymorphic and "include_metadata" not in self.__dict__:
            # Without its namespace nobody could tell which model was written.
            self.include_metadata = True

    @property
    def is_polymorphic(self) -> bool:
        return bool(self.polymorphic_fields or self.allow_blessed_key)

    @cached_property
    def infos(self) -> tuple[FieldInfo, ...]:
        return msgspec.structs.fields(self.model)

    @cached_property
    def fields(self) -> dict[str, Any]:
        return {info.name: info.type for info in self.infos}

    @cached_property
    def fieldset(self) -> frozenset[str]:
        return frozenset(self.fields)

    @cached_property
    def fieldpos(self) -> dict[int, str]:
        return dict(enumerate(self.fields))

    @cached_property
    def optionalset(self) -> frozenset[str]:
        return frozenset(info.name for info in self.infos if not info.required)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        return {info.name: default_of(info) for info in self.infos if not info.required}

    @cached_property
    def descriptors(self) -> dict[str, FieldDescriptorT]:
        from streamproc.records.fields import describe

        return {info.name: describe(self.model, info) for info in self.infos}


def default_of(info: FieldInfo) -> Any:
    """Return the default of a field that has one."""
    if info.default_factory is not msgspec.NODEFAULT:
        return info.default_factory()
    return info.default
