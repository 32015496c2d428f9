"""Field descriptors: what ``Withdrawal.account_id`` is on the class.

They are Faust's own types, so ``stream.group_by(Withdrawal.account_id)`` and
``table.relative_to_field(Withdrawal.date)`` take them (faust-streaming 0.15.3).
"""

from __future__ import annotations

import copy
import sys
import types
import typing
from functools import partial
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from faust.models.fields import FieldDescriptor, field_for_type
from faust.types.models import FieldDescriptorT
from msgspec.structs import FieldInfo

from streamproc.errors import ConfigurationError
from streamproc.records.options import default_of

MUTABLE = (list, dict, set, bytearray)


def plain_type(declared: Any) -> Any:
    """Return the type inside ``Annotated`` and ``Optional``."""
    declared = _without_annotated(declared)
    if get_origin(declared) in (Union, types.UnionType):
        others = [each for each in get_args(declared) if each is not type(None)]
        if len(others) == 1:
            return plain_type(others[0])
    return declared


def _without_annotated(declared: Any) -> Any:
    while get_origin(declared) is Annotated:
        declared = get_args(declared)[0]
    return declared


def describe(model: Any, info: FieldInfo, parent: FieldDescriptorT | None = None) -> Any:
    """Return the Faust descriptor of a field."""
    options = model._options
    descriptor_type, tag = field_for_type(plain_type(info.type))
    return descriptor_type(
        field=info.name,
        input_name=info.encode_name,
        type=_without_annotated(info.type),
        model=model,
        required=info.required,
        default=None if info.required else default_of(info),
        parent=parent,
        coerce=options.coerce,
        model_coercions=options.coercions,
        date_parser=options.date_parser,
        tag=tag,
    )


def adapt_fields(class_name: str, namespace: dict[str, Any]) -> dict[str, str]:
    """Make the fields of a class body fit msgspec; return fields with another input name.

    An ``Optional`` field without a default gets None, mutable defaults are copied for
    each record, and Faust's field objects (``StringField(...)``) become defaults.
    """
    annotations = own_annotations(namespace)
    renamed: dict[str, str] = {}
    for name, annotation in annotations.items():
        if name in namespace:
            _adapt_default(class_name, name, namespace, renamed)
        elif is_optional(annotation, namespace):
            namespace[name] = None
    required = [name for name in annotations if name not in namespace]
    optional = [name for name in annotations if name in namespace]
    if "__annotations__" in namespace:
        # Faust takes required fields first, wherever they stand.
        namespace["__annotations__"] = {name: annotations[name] for name in required + optional}
    return renamed


def _adapt_default(
    class_name: str, name: str, namespace: dict[str, Any], renamed: dict[str, str]
) -> None:
    default = namespace[name]
    if isinstance(default, FieldDescriptor):
        _check_field_object(class_name, name, default)
        if default.input_name not in (None, name):
            renamed[name] = default.input_name
        if default.required:
            del namespace[name]
            return
        default = namespace[name] = default.default
    if isinstance(default, (*MUTABLE, msgspec.Struct)):
        namespace[name] = msgspec.field(default_factory=partial(copy.deepcopy, default))


def _check_field_object(class_name: str, name: str, field: FieldDescriptor) -> None:
    if field.exclude or field.output_name != field.input_name or field.tag:
        raise ConfigurationError(
            f"{class_name}.{name}: exclude, output_name and tags of Faust's fields are not "
            "supported; keep this model a faust.models.Record"
        )


def own_annotations(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return the annotations of a class body that are fields."""
    annotations = namespace.get("__annotations__", {})
    return {
        name: annotation
        for name, annotation in annotations.items()
        if not is_class_variable(annotation)
    }


def is_class_variable(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.split("[")[0].rpartition(".")[2] == "ClassVar"
    return annotation is typing.ClassVar or get_origin(annotation) is typing.ClassVar


def is_optional(annotation: Any, namespace: dict[str, Any]) -> bool:
    annotation = resolved(annotation, namespace)
    if isinstance(annotation, str):
        # It names something that isn't there yet; go by how it is written.
        text = annotation.replace(" ", "")
        return text.split("[")[0].rpartition(".")[2] == "Optional" or text.endswith("|None")
    annotation = _without_annotated(annotation)
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def resolved(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Return what an annotation written as a string means, or itself if that isn't known."""
    if not isinstance(annotation, str):
        return annotation
    module = sys.modules.get(namespace.get("__module__", ""))
    try:
        # Written in the user's classes, as typing.get_type_hints() takes them.
        names = dict(vars(module)) if module else {}
        return eval(annotation, names, dict(namespace))  # noqa: S307
    except (NameError, AttributeError, TypeError, SyntaxError):
        return annotation
