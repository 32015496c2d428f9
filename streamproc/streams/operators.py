"""Faust's operators, for agents whose function runs again on the same stream.

After a failure an agent's function is called again, with the stream that it has already
put operators on. They are not put on twice: ``echo`` would send twice, and a processor
would change its values twice. Checked against faust-streaming 0.15.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

import faust.streams
from faust.exceptions import Skip
from faust.streams import maybe_forward
from faust.types.models import FieldDescriptorT
from mode.utils.futures import maybe_async

from streamproc.errors import ConfigurationError


class OperatorStream(faust.streams.Stream):  # type: ignore[misc]
    """A stream with operators; what it iterates over is up to subclasses."""

    _has_operators = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._filters: list[Callable[[Any], Any]] = []

    def keep_operators(self) -> None:
        """Ignore operators until the next iteration begins: the stream has them already."""
        for stream in self._iter_ll_forwards():
            stream._has_operators = True

    @property
    def _is_derived(self) -> bool:
        return self._next is not None and (self._finalized or self._has_operators)

    def add_processor(self, processor: Any) -> None:
        if not self._has_operators:
            super().add_processor(processor)

    def filter(self, fun: Callable[[Any], Any]) -> Any:
        def keep(value: Any) -> Any:
            wanted = fun(value)
            if isawaitable(wanted):
                return self._keep_later(value, wanted)
            if not wanted:
                raise Skip
            return value

        self.add_processor(keep)
        self._filters.append(fun)
        return self

    async def _keep_later(self, value: Any, wanted: Awaitable[Any]) -> Any:
        if not await wanted:
            raise Skip
        return value

    def echo(self, *channels: Any) -> Any:
        targets = [self.derive_topic(each) if isinstance(each, str) else each for each in channels]

        async def send(value: Any) -> Any:
            # Faust's waits without looking at errors, which loses the value.
            await asyncio.gather(*(maybe_forward(value, target) for target in targets))
            return value

        self.add_processor(send)
        return self

    def through(self, channel: Any) -> Any:
        return self._next if self._is_derived else super().through(channel)

    def group_by(self, key: Any, **kwargs: Any) -> Any:
        return self._next if self._is_derived else super().group_by(key, **kwargs)

    def noack(self) -> Any:
        return self._next if self._is_derived else super().noack()

    # -- joins, which Faust names and doesn't have

    def join(self, *tables: Any, **options: Any) -> Any:
        """Join records with a table; see :meth:`streamproc.streams.flow.Flow.join`.

        Raises:
            ConfigurationError: It is anything but one table; says what to use.
        """
        if len(tables) != 1 or isinstance(tables[0], FieldDescriptorT):
            raise ConfigurationError(
                "Joins by fields are not in Faust either: use stream.join(table), and for two "
                "streams flow.interval_join(other), flow.asof_join(other) or "
                "flow.join_updates(other), where flow is app.stream(topic).flow()"
            )
        if isinstance(tables[0], faust.streams.Stream):
            raise ConfigurationError(
                "join() takes a table. For another stream use interval_join(other.flow()), "
                "asof_join(other.flow()) or join_updates(other.flow())"
            )
        return self.flow().join(tables[0], **options)

    def inner_join(self, *tables: Any, **options: Any) -> Any:
        """As :meth:`join`: records whose key isn't in the table are dropped."""
        return self.join(*tables, how="inner", **options)

    def left_join(self, *tables: Any, **options: Any) -> Any:
        """As :meth:`join`: records whose key isn't in the table go on with None."""
        return self.join(*tables, how="left", **options)

    def outer_join(self, *tables: Any, **options: Any) -> Any:
        """There is none with a table.

        Raises:
            ConfigurationError: Always; says what to use.
        """
        raise ConfigurationError(
            "A stream has no outer join with a table, which gives no records by itself: use "
            'flow.interval_join(other, how="outer") or flow.join_updates(other, how="outer")'
        )

    def flow(self, name: str | None = None) -> Any:
        """Return the stream as a chain of operators."""
        raise NotImplementedError

    async def _format_key(self, key: Any, value: Any) -> Any:
        # Faust's logs errors and drops the record.
        if isinstance(key, FieldDescriptorT):
            return key.getattr(value)
        return await maybe_async(key(value))
