"""Faust's table manager without its wait of one second at start (faust-streaming 0.15.3)."""

from __future__ import annotations

from faust.tables.manager import TableManager as FaustTableManager


class TableManager(FaustTableManager):  # type: ignore[misc]
    """Manages tables and their recovery."""

    async def on_start(self) -> None:
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()
