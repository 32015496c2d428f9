"""The state of an app's objects before it was started, to go back to.

A process that is killed and started again begins with its modules imported and nothing
else. Here the app object stays, so everything that belongs to the framework and can be
reached from it is set back to what it was: services, agents, streams, channels, tables.
Objects of other kinds (a user's own sinks, models, lists) are left as they are.
"""

from __future__ import annotations

import asyncio
import enum
import types
from collections import deque
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import msgspec
from mode import Service

ROOTS = {"faust", "mode", "streamproc", "asyncio"}
#: What has no state of a run: plain values, and settings and models.
_LEAVES = (
    str,
    bytes,
    int,
    float,
    type(None),
    type,
    enum.Enum,
    types.ModuleType,
    msgspec.Struct,
)
_CONTAINERS = (dict, list, set, deque)


class Snapshot:
    """Takes the state of what can be reached from ``root``, and restores it."""

    def __init__(self, root: Any) -> None:
        self._dicts: list[tuple[Any, dict[str, Any]]] = []
        self._slots: list[tuple[Any, list[tuple[str, Any]]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._take(root)

    def _take(self, root: Any) -> None:
        seen: dict[int, Any] = {}
        waiting = [root]
        while waiting:
            item = waiting.pop()
            if id(item) in seen or isinstance(item, _LEAVES):
                continue
            seen[id(item)] = item
            waiting.extend(self._note(item))

    def _note(self, item: Any) -> Iterator[Any]:
        """Keep the state of ``item``, and give what is to be looked at next."""
        if isinstance(item, tuple):
            yield from item
        elif isinstance(item, types.MethodType):
            yield item.__self__
        elif isinstance(item, types.FunctionType):
            yield from _enclosed(item)
        elif isinstance(item, _CONTAINERS) and type(item).__module__ in ("builtins", "collections"):
            self._containers.append((item, item.copy()))
            yield from item.values() if isinstance(item, dict) else list(item)
        elif isinstance(item, WeakSet):
            self._containers.append((item, list(item)))
        elif _is_ours(item):
            yield from self._note_object(item)

    def _note_object(self, item: Any) -> Iterator[Any]:
        state = getattr(item, "__dict__", None)
        if state is not None:
            self._dicts.append((item, dict(state)))
            yield from list(state.values())
        slots = [
            (name, getattr(item, name))
            for kind in type(item).__mro__
            for name in _slots_of(kind)
            if hasattr(item, name)
        ]
        if slots:
            self._slots.append((item, slots))
            yield from [value for _, value in slots]

    def unbind(self) -> None:
        """Let services and locks find their event loop when they are used again.

        A module that asked for a service's loop has bound it to one that never runs.
        """
        for item, state in self._dicts:
            if isinstance(state.get("_loop"), asyncio.AbstractEventLoop):
                item.__dict__["_loop"] = None

    def restore(self) -> None:
        """Set everything back."""
        for item, state in self._dicts:
            current = item.__dict__
            current.clear()
            current.update(state)
        for item, slots in self._slots:
            for name, value in slots:
                object.__setattr__(item, name, value)
        for item, content in self._containers:
            item.clear()
            item.extend(content) if isinstance(item, list | deque) else item.update(content)


def _is_ours(item: Any) -> bool:
    if isinstance(item, asyncio.AbstractEventLoop | asyncio.Future):
        return False
    kind = type(item)
    if isinstance(item, Service):
        return True
    return kind.__module__.split(".")[0] in ROOTS and not isinstance(item, BaseException)


def _slots_of(kind: type) -> Iterator[str]:
    slots = kind.__dict__.get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        if isinstance(kind.__dict__.get(name), types.MemberDescriptorType):
            yield name


def _enclosed(function: types.FunctionType) -> Iterator[Any]:
    if function.__module__ is None or function.__module__.split(".")[0] not in ROOTS:
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # not filled yet
