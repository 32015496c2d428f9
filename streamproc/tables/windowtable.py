"""Tables of open windows, as the aggregations of streams keep them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from streamproc.aggregates import Program
from streamproc.errors import TableError
from streamproc.tables.keyed import EntryCodec
from streamproc.tables.stores import Store
from streamproc.tables.table import Table
from streamproc.tables.windowstate import AlignedWindows, KeyedWindows, WindowedState
from streamproc.windows import AlignedSpec, WindowSpec

#: How much longer than its windows a changelog keeps records, in ms: a worker may be away.
RETENTION_MARGIN = 7 * 24 * 3600 * 1000

Windows = Iterator[tuple[int, int, dict[str, Any]]]


class WindowTable(Table):
    """Open windows by key; a stream writes to it, and others may read.

    ``table.windows_of(key)`` gives the open windows of a key. A closed window is no longer
    here: its result went on with the stream.

    Args:
        app: The App.
        spec: The windows.
        program: What is aggregated in them.
        **options: Settings of :class:`Table`.
    """

    def __init__(
        self,
        app: Any,
        *,
        spec: WindowSpec,
        program: Program,
        inputs: int | None = 1,
        **options: Any,
    ) -> None:
        super().__init__(app, **options)
        self.spec = spec
        self.program = program
        self._inputs = inputs

    @property
    def inputs(self) -> int:
        """Number of inputs of the watermark: merged streams, or upstream partitions."""
        return int(self.source.inputs) if self._inputs is None else self._inputs

    def new_state(self, partition: int, store: Store) -> WindowedState:
        kind = AlignedWindows if isinstance(self.spec, AlignedSpec) else KeyedWindows
        return kind(
            partition,
            store,
            self.codec,
            self.spec,
            self.program,
            self.app.table_cache_bytes,
            self.inputs,
        )

    def _new_changelog_topic(self, **options: Any) -> Any:
        spec = self.spec
        spans = [getattr(spec, name, None) or 0 for name in ("size", "gap", "max_length")]
        retention = (max(spans) + spec.grace + RETENTION_MARGIN) / 1000
        options = {"compacting": True, "deleting": True, "retention": retention, **options}
        return super()._new_changelog_topic(**options)

    # -- reading

    def windows_of(self, key: Any) -> Windows:
        """Iterate over ``(start, end, result)`` of the open windows of a key (ms)."""
        for state in self._reach():
            yield from state.windows_of(key)

    def items(self) -> Iterator[tuple[Any, Any]]:  # type: ignore[override]
        """Iterate over ``((key, (start, end)), result)`` of all open windows."""
        for state in self._reach():
            for key, start, end, result in state.scan_windows():
                yield (key, (start, end)), result

    def scan(self, **bounds: Any) -> Iterator[tuple[Any, Any]]:
        """As :meth:`items`; there are no bounds."""
        return self.items()

    def __getitem__(self, key: Any) -> Any:
        return list(self.windows_of(key))

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the open windows of a key, or ``default`` if there are none."""
        return list(self.windows_of(key)) or default

    def __contains__(self, key: Any) -> bool:
        return next(self.windows_of(key), None) is not None

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TableError(f"Table {self.name!r} is written by its stream alone")

    __delitem__ = __setitem__  # type: ignore[assignment]


class AccumulatorTable(Table):
    """Running aggregations by key, as accumulators; reading one gives its results."""

    def __init__(self, app: Any, *, program: Program, **options: Any) -> None:
        super().__init__(app, **options)
        self.program = program

    @property
    def codec(self) -> EntryCodec:
        if self._codec is None:
            inner = super().codec
            self._codec = EntryCodec(
                inner.table,
                inner.encode_key,
                inner.decode_key,
                self.program.encode,
                self.program.decode,
            )
        return self._codec

    def __getitem__(self, key: Any) -> Any:
        return self.program.result(super().__getitem__(key))

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the results of a key, or ``default``."""
        acc = super().get(key)
        return default if acc is None else self.program.result(acc)

    def items(self) -> Iterator[tuple[Any, Any]]:  # type: ignore[override]
        """Iterate over ``(key, results)``."""
        return ((key, self.program.result(acc)) for key, acc in self.scan())

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TableError(f"Table {self.name!r} is written by its stream alone")


__all__ = ["AccumulatorTable", "WindowTable"]
