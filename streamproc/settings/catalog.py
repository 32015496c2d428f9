"""What settings there are: read off the settings object, for checks, tables and documents."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from streamproc.settings.model import Secret, Settings

ENV_PREFIX = "STREAMPROC_"

#: Names that other tools have for our settings.
_SYNONYMS = {
    "app_id": "name",
    "id": "name",
    "group": "name",
    "group_id": "name",
    "consumer_group": "name",
    "broker": "broker_list",
    "brokers": "broker_list",
    "bootstrap": "broker_list",
    "bootstrap_servers": "broker_list",
    "kafka": "broker_list",
    "topics": "topic",
    "redis_url": "redis",
    "format": "serialization",
    "serializer": "serialization",
    "value_serializer": "serialization",
    "port": "web_port",
    "datadir": "data_dir",
    "retries": "error_handling.retries",
    "max_retries": "error_handling.retries",
    "dead_letters": "error_handling.dead_letters",
    "dead_letter_topic": "error_handling.dead_letter_topic",
}


@dataclass(frozen=True)
class Setting:
    """One setting: where it is in the settings object, its type, default and meaning."""

    path: str
    type: Any
    default: Any
    description: str
    is_secret: bool
    can_be_none: bool
    #: The values that it may have, if they are but a few.
    choices: tuple[str, ...] = ()

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + self.path.upper().replace(".", "__")


def _settings_of(struct: Any, prefix: str = "") -> Iterator[Setting]:
    kinds = msgspec.inspect.type_info(struct)
    assert isinstance(kinds, msgspec.inspect.StructType)
    for info, field in zip(kinds.fields, msgspec.structs.fields(struct), strict=True):
        path = prefix + info.name
        if isinstance(info.type, msgspec.inspect.StructType):
            yield from _settings_of(info.type.cls, f"{path}.")
            continue
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        yield Setting(
            path=path,
            type=field.type,
            default=None if default is msgspec.NODEFAULT else default,
            description=_description(field.type),
            is_secret=_mentions(info.type, Secret),
            can_be_none=_mentions(info.type, None),
            choices=_choices(info.type),
        )


def _description(annotated: Any) -> str:
    for meta in getattr(annotated, "__metadata__", ()):
        if getattr(meta, "description", None):
            return str(meta.description)
    return ""


def _mentions(info: Any, kind: Any) -> bool:
    """Whether values of a type may be of this kind (None: may be None)."""
    if isinstance(info, msgspec.inspect.Metadata):
        return _mentions(info.type, kind)
    if isinstance(info, msgspec.inspect.UnionType):
        return any(_mentions(part, kind) for part in info.types)
    if kind is None:
        return isinstance(info, msgspec.inspect.NoneType)
    return isinstance(info, msgspec.inspect.CustomType) and info.cls is kind


def _choices(info: Any) -> tuple[str, ...]:
    if isinstance(info, msgspec.inspect.Metadata):
        return _choices(info.type)
    if isinstance(info, msgspec.inspect.UnionType):
        return tuple(choice for part in info.types for choice in _choices(part))
    return tuple(map(str, info.values)) if isinstance(info, msgspec.inspect.LiteralType) else ()


#: Every setting by its path, in the order of the settings object.
CATALOG: dict[str, Setting] = {setting.path: setting for setting in _settings_of(Settings)}

#: Settings that hold others.
GROUPS = {path.partition(".")[0] for path in CATALOG if "." in path}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``name`` was probably meant to be."""
    known = list(known)
    lowered = name.lower().replace("-", "_")
    if lowered in known:
        return lowered
    if (synonym := _SYNONYMS.get(lowered)) in known:
        return synonym
    close = difflib.get_close_matches(lowered, known, 1, 0.6)
    return close[0] if close else None


def markdown_table() -> str:
    """Return all settings as a table for documents."""
    rows = ["| setting | default | environment | meaning |", "|---|---|---|---|"]
    for setting in CATALOG.values():
        default = "" if setting.default in (None, []) else f"`{_as_yaml(setting.default)}`"
        cells = (f"`{setting.path}`", default, f"`{setting.env}`", setting.description)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
