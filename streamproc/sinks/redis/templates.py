"""Key templates: ``"stats:{sensor_id}"`` compiled once for each type of value.

The syntax is that of ``str.format``, so format specs (``{window_start:%H%M}``),
attributes (``{device.id}``), items (``{device[id]}``) and doubled braces (``{{user}}:{id}``
gives the Redis Cluster hash tag ``{user}``) work. A name is looked up in the value first,
then among what is known about the record: ``key``, ``timestamp`` (a UTC datetime),
``topic``, ``partition``, ``offset``. ``{value}`` is the value itself unless it has such a field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime, tzinfo
from functools import lru_cache
from operator import attrgetter, itemgetter
from string import Formatter
from typing import Any

from streamproc.errors import ConfigurationError, SinkError
from streamproc.sinks.redis.values import METADATA, Run, field_names

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*|\[[^\[\]{}]+\])*\Z")
_Format = Callable[..., str]
_Getter = Callable[[Any], Any]


class Template:
    """A string with ``{fields}`` filled from a value and its record."""

    def __init__(self, text: str) -> None:
        """Compile ``text``; raise :class:`ConfigurationError` if it is not a template."""
        self.text = text
        try:
            self._parts = list(Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(f"template {text!r}: {error}") from None
        self.names = [_base_name(text, name) for _, name, _, _ in self._parts if name is not None]
        self._reads_key = "key" in self.names
        self._reads_partition = "partition" in self.names
        slow = METADATA - {"key", "partition"}
        self._reads_record = not slow.isdisjoint(self.names) or any(
            name == "partition" and (conversion or "{" in (spec or ""))
            for _, name, spec, conversion in self._parts
        )
        #: By type of the value and, if it is read, the source partition.
        self._formats: dict[tuple[type, int | None], _Format] = {}

    def __deepcopy__(self, memo: Any) -> Template:
        return self  # nothing in it but what is compiled is ever changed

    @property
    def is_of_partition(self) -> bool:
        """True when the hash tag of its keys, for a Redis Cluster, is ``{p<source partition>}``."""
        before, after, seen = "", "", False
        for literal, name, spec, conversion in self._parts:
            before, after = (before, after + literal) if seen else (before + literal, after)
            if seen and name is not None:
                break
            if name is not None:
                if name != "partition" or spec or conversion:
                    return False
                seen = True
        return before.find("{") == len(before) - 2 and before.endswith("{p") and after[:1] == "}"

    def render(self, value: Any, run: Run, index: int) -> str:
        """Return the text for the value at ``index`` of ``run``; raise :class:`SinkError`."""
        kind = type(value), run.partition if self._reads_partition else None
        format_value = self._formats.get(kind)
        key = run.key(index) if self._reads_key else None
        try:
            if format_value is None:
                format_value = self._formats[kind] = self._compile(value, kind[1])
            if self._reads_record or self._reads_partition:
                return format_value(value, key, run, index)
            return format_value(value, key)
        except (LookupError, AttributeError) as error:
            raise self._missing(error, value, run, index) from None
        except (ValueError, TypeError) as error:
            raise SinkError(f"template {self.text!r} does not fit the value: {error}") from None

    def _compile(self, value: Any, partition: int | None) -> _Format:
        """Choose the fastest way of formatting for values like this one."""
        ambiguous = isinstance(value, dict) and not METADATA.isdisjoint(self.names)
        if ambiguous or self._reads_record:
            return self._format_slowly
        fields = set(self.names) if isinstance(value, dict) else set(field_names(value))
        fields.update(name for name in self.names if _has_property(value, name))
        moments: list[tuple[_Getter, str]] = []
        format_value: _Format = self._positional(value, fields, partition, moments).format
        if moments:
            format_value = _with_moments(format_value, moments)
        if self._reads_key and "key" not in fields:
            return _requiring_key(format_value)
        return format_value

    def _positional(
        self,
        value: Any,
        fields: Iterable[str],
        partition: int | None,
        moments: list[tuple[_Getter, str]],
    ) -> str:
        """Rewrite names as positions: {0...} the value, {1} the key, then texts of moments.

        Args:
            value: A value.
            fields: What it has.
            partition: Source partition, if known; it becomes text.
            moments: Is given how to get each datetime that has a format, and the format.
        """
        own = "0[{}]{}" if isinstance(value, dict) else "0.{}{}"
        pick: Callable[[str], _Getter] = itemgetter if isinstance(value, dict) else attrgetter
        pieces = []
        for literal, name, spec, conversion in self._parts:
            pieces.append(literal.replace("{", "{{").replace("}", "}}"))
            if name is None:
                continue
            base = _base_name(self.text, name)
            rest = name[len(base) :]
            if base in fields and not rest and spec and not conversion and "{" not in spec:
                getter = pick(base)
                if isinstance(getter(value), datetime):
                    moments.append((getter, spec))
                    pieces.append("{" + str(len(moments) + 1) + "}")
                    continue
            if base in fields:
                place = own.format(base, rest)
            elif base == "key":
                place = f"1{rest}"
            elif base == "partition" and partition is not None and not rest:
                pieces.append(format(partition, spec or ""))
                continue
            elif base == "value":
                place = f"0{rest}"
            else:
                raise LookupError(base)
            pieces.append("{" + place + (f"!{conversion}" if conversion else ""))
            pieces.append((f":{spec}" if spec else "") + "}")
        return "".join(pieces)

    def _format_slowly(self, value: Any, key: Any, run: Run | None = None, index: int = 0) -> str:
        names = {}
        own = set(field_names(value))
        for name in self.names:
            if isinstance(value, dict) and name in own:
                names[name] = value[name]
            elif name in own or _has_property(value, name):
                names[name] = getattr(value, name)
            elif name == "value":
                names[name] = value
            else:
                found = key if name == "key" else run and run.metadata(name, index)
                if found is None:
                    raise LookupError(name)
                names[name] = found
        return self.text.format_map(names)

    def _missing(self, error: Exception, value: Any, run: Run, index: int) -> SinkError:
        own = set(field_names(value))
        names = own | run.metadata_names(index) | {"value"}
        missing = [n for n in self.names if n not in names and not _has_property(value, n)]
        available = ", ".join(sorted(names))
        if missing:
            what = f"needs {missing[0]!r}, which {_describe(value)} does not have"
        else:
            what = f"cannot be filled from {_describe(value)}: {error}"
        return SinkError(f"template {self.text!r} {what}; available: {available}")


def _base_name(text: str, name: str) -> str:
    if not _NAME.match(name):
        raise ConfigurationError(
            f"template {text!r}: {{{name}}} is not the name of a field; "
            f'write names as in "stats:{{sensor_id}}" and literal braces doubled'
        )
    return re.split(r"[.\[]", name, maxsplit=1)[0]


def _has_property(value: Any, name: str) -> bool:
    return isinstance(getattr(type(value), name, None), property)


def _with_moments(format_value: _Format, moments: list[tuple[_Getter, str]]) -> _Format:
    def formatted(value: Any, key: Any, *record: Any) -> str:
        return format_value(value, key, *[_text(get(value), spec) for get, spec in moments])

    return formatted


def _text(moment: Any, spec: str) -> str:
    if type(moment) is not datetime:
        return format(moment, spec)
    return _text_of_moment(moment, moment.tzinfo, moment.fold, spec)


@lru_cache(maxsize=4096)
def _text_of_moment(moment: datetime, zone: tzinfo | None, fold: int, spec: str) -> str:
    """Return a datetime as text: many results are of the same window.

    Equal moments of two zones have different texts.
    """
    return format(moment, spec)


def _requiring_key(format_value: _Format) -> _Format:
    def checked(value: Any, key: Any, *record: Any) -> str:
        if key is None:
            raise LookupError("key")
        return format_value(value, key)

    return checked


def _describe(value: Any) -> str:
    return "a tombstone" if value is None else f"this {type(value).__name__}"
